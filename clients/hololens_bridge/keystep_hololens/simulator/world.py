"""Where the simulated headset's world begins, and poses in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss.conventions import Matrix, pv_pose, row_matrix
from keystep_hololens.simulator.rig import PV_FROM_HEAD, rig_pose
from keystep_hololens.simulator.room import Room
from keystep_hololens.simulator.sensors import SensorSource


class World:
    """The sample's head poses in the headset's world, whose origin a reboot moves.

    Poses are as on the wire, 16 zeros where the head is not known; times are seconds of playback.
    """

    def __init__(self, room: Room | None, sensors: SensorSource | None) -> None:
        self._room, self._sensors = room, sensors
        self.from_sample: Matrix = np.eye(4)

    def rig_pose_at(self, time_s: float) -> NDArray[np.float32]:
        """Return the rig node's pose; only with a room."""
        assert self._room is not None
        return rig_pose(self._head_at(time_s), self._room.rig)

    def tracker_pose_at(self, time_s: float) -> NDArray[np.float32]:
        """Return the eye tracker's pose: its node is taken to be the head (right, up, back)."""
        world_from_head = self._head_at(time_s)
        if world_from_head is None:
            return np.zeros((4, 4), np.float32)
        return row_matrix(world_from_head)

    def pv_pose_at(self, time_s: float) -> NDArray[np.float32]:
        """Return the PV camera's pose: it is taken to sit at the head."""
        world_from_head = self._head_at(time_s)
        if world_from_head is None:
            return np.zeros((4, 4), np.float32)
        return pv_pose(world_from_head @ np.linalg.inv(PV_FROM_HEAD))

    def begin_at(self, time_s: float) -> None:
        """Move the origin to where the head is, level, heading where it heads."""
        sample_from_head = self._sample_from_head(time_s)
        if sample_from_head is None:  # nowhere in particular, but elsewhere
            sample_from_head = np.eye(4)
            sample_from_head[:3, 3] = (0.5, 0.0, -0.25)
        back = sample_from_head[:3, 2] * [1, 0, 1]
        level = np.eye(4)
        level[:3, 2] = back / np.linalg.norm(back)
        level[:3, 0] = np.cross(level[:3, 1], level[:3, 2])
        level[:3, 3] = sample_from_head[:3, 3]
        self.from_sample = np.asarray(np.linalg.inv(level), np.float64)

    def _sample_from_head(self, time_s: float) -> Matrix | None:
        if self._room is not None:
            return self._room.head_at(time_s)
        return None if self._sensors is None else self._sensors.head_at(time_s)

    def _head_at(self, time_s: float) -> Matrix | None:
        sample_from_head = self._sample_from_head(time_s)
        return None if sample_from_head is None else self.from_sample @ sample_from_head
