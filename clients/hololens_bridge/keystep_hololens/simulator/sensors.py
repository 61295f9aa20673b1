"""Published head poses and gaze pixels as the simulated headset's spatial input.

IndustReal's frames come at 10 Hz (a headset's timer runs at about 60 Hz) and have no time stamps:
frame n is put at n periods after the start of playback. Frames without a row go out with no valid
part. Gaze rays are derived: from the head, through the published pixel of a nominal camera whose
axes are the head's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_capture.samples import (
    GazeCamera,
    Sample,
    SensorRow,
    load_gaze_camera,
    load_sensor_rows,
    load_truth,
)
from keystep_hololens.hl2ss.conventions import Matrix, head_pose
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND, encode_packet
from keystep_hololens.hl2ss.spatial_input import EyeRay, SpatialInput, encode_spatial_input
from keystep_hololens.simulator.packets import TimedPacket


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSource:
    """Sensor rows by frame number, and how long they play."""

    rows: dict[int, SensorRow]
    camera: GazeCamera
    frame_count: int
    frame_rate_hz: float
    loop: bool = False

    @classmethod
    def of_sample(cls, sample: Sample, *, loop: bool = False) -> SensorSource:
        """Load a sample's sensors.

        Raises:
            ConfigError: The sample has none.
            DataError: A file is not as documented.
        """
        if sample.sensors_path is None or sample.camera_path is None:
            raise ConfigError(f"sample {sample.name!r} has no head poses or gaze")
        rows = load_sensor_rows(sample.sensors_path)
        return cls(
            rows=rows,
            camera=load_gaze_camera(sample.camera_path),
            frame_count=load_truth(sample).frame_count if sample.truth_path else max(rows) + 1,
            frame_rate_hz=sample.frame_rate_hz,
            loop=loop,
        )

    @property
    def period_hns(self) -> int:
        """Device time from frame to frame."""
        return round(HNS_PER_SECOND / self.frame_rate_hz)

    @property
    def duration_hns(self) -> int | None:
        """How long it plays in device time; None if it never ends."""
        return None if self.loop else self.frame_count * self.period_hns

    def sample_at(self, frame_idx: int, world_from_published: Matrix | None = None) -> SpatialInput:
        """Return what the headset says of one frame; hands are never known.

        Args:
            frame_idx: Number of the frame.
            world_from_published: Where the headset's origin is; None: as published.
        """
        row = self.rows.get(frame_idx)
        if row is None:
            return SpatialInput()
        world_from_head = head_axes(row.world_from_head_luf)
        if world_from_published is not None:
            world_from_head = world_from_published @ world_from_head
        eye = None if row.gaze_px is None else gaze_ray(world_from_head, row.gaze_px, self.camera)
        return SpatialInput(head=head_pose(world_from_head), eye=eye)

    def head_at(self, time_s: float) -> Matrix | None:
        """Return the published head (right, up, back) nearest a time of playback, if any."""
        frame_idx = round(time_s * self.frame_rate_hz)
        row = self.rows.get(frame_idx % self.frame_count if self.loop else frame_idx)
        return None if row is None else head_axes(row.world_from_head_luf)


def head_axes(world_from_head_luf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn published columns left, up, forward into right, up, back; position stays."""
    return world_from_head_luf @ np.diag([-1.0, 1.0, -1.0, 1.0])


def gaze_ray(
    world_from_head: NDArray[np.float64], gaze_px: tuple[int, int], camera: GazeCamera
) -> EyeRay:
    """Derive the gaze ray through a pixel; `world_from_head` has columns right, up, back."""
    focal = camera.focal_length_px
    x = (gaze_px[0] - camera.width / 2) / focal
    y = (gaze_px[1] - camera.height / 2) / focal
    direction = world_from_head[:3, :3] @ np.array([x, -y, -1.0])
    return EyeRay(
        origin=world_from_head[:3, 3].astype(np.float32),
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
    )


class SpatialInputPacketStream:
    """What one client is sent, from the frame that is next on."""

    def __init__(
        self,
        source: SensorSource,
        *,
        origin_hns: int,
        now_hns: int,
        world_from_published: Matrix | None = None,
    ) -> None:
        self._world_from_published = world_from_published
        elapsed_hns = max(0, now_hns - origin_hns)
        self._source, self._origin_hns = source, origin_hns
        self._frame_idx = -(-elapsed_hns // source.period_hns)
        self._payload: bytes | None = None

    def next(self) -> TimedPacket | None:
        """Make the next packet; None after the last frame."""
        frame_idx = self._frame_idx
        if self._source.loop:
            frame_idx %= self._source.frame_count
        elif frame_idx >= self._source.frame_count:
            return None
        self._payload = encode_spatial_input(
            self._source.sample_at(frame_idx, self._world_from_published), self._payload
        )
        timestamp_hns = self._origin_hns + self._frame_idx * self._source.period_hns
        self._frame_idx += 1
        return TimedPacket(timestamp_hns, encode_packet(timestamp_hns, self._payload))

    def close(self) -> None:
        """Nothing is open."""
