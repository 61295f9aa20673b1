"""What the simulated headset answers on its remote configuration port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.calibration import CAMERA_SHAPES, CameraCalibration
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT, HNS_PER_SECOND, Port
from keystep_hololens.simulator.clock import Playback
from keystep_hololens.simulator.rig import map_points
from keystep_hololens.simulator.sensing import PoseAt

APPLICATION_VERSION = rc.Version(1, 0, 37, 0)
_RESEARCH_MODE_COMMANDS = frozenset(
    {
        rc.Command.RM_EYE_SELECTION,
        rc.Command.RM_MAP_CAMERA_POINTS,
        rc.Command.RM_RIG_NODE_WORLD_POSES,
        rc.Command.RM_LOOP_CONTROL,
    }
)


@dataclass(slots=True, kw_only=True)
class RemoteAnswers:
    """Answers what is asked; setters are accepted and change nothing but the record of them.

    Attributes:
        cameras: Constants of Research Mode's cameras; None while Research Mode is off.
        rig_pose_at: The rig's pose over seconds of playback.
        base_port: Of this headset: cameras are named by port number, shifted or not.
    """

    playback: Playback
    cameras: Mapping[Port, CameraCalibration] | None
    rig_pose_at: PoseAt
    base_port: int
    camera_is_on: Callable[[], bool]

    def answer(self, call: rc.RcCall) -> bytes | None:
        """Return the reply to a command, None where there is none.

        Raises:
            DeviceError: The headset closes the connection: Research Mode is off, or no such camera.
        """
        clock = self.playback.clock
        if call.command in _RESEARCH_MODE_COMMANDS and self.cameras is None:
            raise DeviceError(f"{call.command.name}: Research Mode is off")
        match call.command:
            case rc.Command.APPLICATION_VERSION:
                return _pack(call, *APPLICATION_VERSION)
            case rc.Command.UTC_OFFSET:
                return _pack(call, clock.utc_offset_hns)
            case rc.Command.PV_STATUS:
                return _pack(call, int(self.camera_is_on()))
            case rc.Command.CURRENT_TIME if call.arguments[0] == rc.TimeSource.UTC:
                return _pack(call, clock.utc_hns())
            case rc.Command.CURRENT_TIME:
                return _pack(call, clock.now_hns())
            case rc.Command.RM_MAP_CAMERA_POINTS:
                return self._mapped_points(call)
            case rc.Command.RM_RIG_NODE_WORLD_POSES:
                return self._rig_poses(call)
            case _:
                return None

    def _mapped_points(self, call: rc.RcCall) -> bytes:
        assert self.cameras is not None
        number, direction, _, *flat = call.arguments
        kind = self._camera(int(number))
        points = np.array(flat, np.float32).reshape(-1, 2)
        to_unit_plane = direction == rc.PointMapping.IMAGE_TO_UNIT_PLANE
        mapped = map_points(self.cameras[kind], points, to_unit_plane=to_unit_plane)
        return mapped.astype("<f4").tobytes()

    def _camera(self, number: int) -> Port:
        for base in (self.base_port, DEFAULT_BASE_PORT):
            for kind in CAMERA_SHAPES:
                if number == base + kind and kind in (self.cameras or ()):
                    return kind
        raise DeviceError(f"port {number} is no Research Mode camera")

    def _rig_poses(self, call: rc.RcCall) -> bytes:
        origin_hns = self.playback.origin_hns
        if origin_hns is None:
            return bytes(rc.reply_size(call))
        times_s = [(int(at) - origin_hns) / HNS_PER_SECOND for at in call.arguments[1:]]
        return b"".join(self.rig_pose_at(time_s).astype("<f4").tobytes() for time_s in times_s)


def _pack(call: rc.RcCall, *values: int) -> bytes:
    return rc.REPLIES[call.command].pack(*values)
