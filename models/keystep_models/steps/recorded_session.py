"""Recordings of sessions (docs/recordings.md) as sources of key-step extraction."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.align import Tick
from keystep_capture.errors import DataError, WireError
from keystep_capture.payloads import read_array
from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.entries import RecordedPacket
from keystep_capture.recording.pictures import read_frames, read_ticks
from keystep_capture.wire import PacketHeader
from keystep_models.cues.sensor_cues import STACK_SAMPLES
from keystep_models.steps.recording_source import Moment, file_identity, folder_name

_LEADING = ("rgb", "head", "gaze", "hands")
_DEPTHS = ("depth", "depth_ahat")
_MAX_HELD = 512  # gaze samples, or pictures, between the newest packet and the tick being made
_MAX_AGE_NS = 10**9  # of the oldest sample of a stack


class RecordedSession:
    """A recording's folder or one of its parts; damage is passed over and told."""

    def __init__(self, path: Path) -> None:
        """Name a recording; it is opened when it is read."""
        self._path = path
        self._warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's or the file's name, as far as `folder_name` takes it.

        A link's own, so that links give recordings names.
        """
        return folder_name(
            self._path.stem
            if self._path.is_file()
            else os.path.basename(os.path.abspath(self._path))
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """What each of its parts is."""
        parts = part_paths(self._path) if self._path.is_dir() else [self._path]
        return {"kind": "recording", "parts": [file_identity(part) for part in parts]}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Whether it was closed, and what of it is damaged."""
        return self._warnings

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        """Ticks epoch by epoch, led by the pictures or, where there are none, by a sensor."""
        with Recording(self._path) as recording:
            for epoch in recording.epochs:
                streams = {lane.stream for lane in recording.lanes if lane.epoch == epoch}
                leading = next((stream for stream in _LEADING if stream in streams), None)
                if leading is None:
                    continue
                between = _Between()
                ticks = read_ticks(
                    recording,
                    epoch=epoch,
                    leading=leading,
                    rate_hz=rate_hz,
                    skip_damage=True,
                    watch=between.watch,
                )
                for tick in ticks:
                    yield _moment(tick, epoch, between)
            warnings = [] if recording.finished else ["the recording was not closed"]
            if recording.damage:
                first = recording.damage[0]
                warnings.append(f"{len(recording.damage)} damaged places, the first: {first}")
            self._warnings = tuple(warnings)

    def pictures(
        self, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
        """Colour pictures of given packets."""
        return read_frames([self._path], wanted)


def is_recording(path: Path) -> bool:
    """Whether a path is a recording's folder or a part."""
    if path.is_dir():
        return bool(part_paths(path))
    return path.suffix == ".mcap"


class _Between:
    """What ticks do not hold: gaze samples between them, the unit of depth, the camera's place."""

    def __init__(self) -> None:
        self._cameras: deque[PacketHeader] = deque(maxlen=_MAX_HELD)
        self._gaze: deque[tuple[int, NDArray[np.floating]]] = deque(maxlen=_MAX_HELD)
        self._units_m: dict[str, float] = {}

    def watch(self, packet: RecordedPacket) -> None:
        """Take a packet of any stream, in the recording's order."""
        header = packet.header
        if header.stream == "gaze":
            ray: NDArray[np.floating] = np.full((2, 3), np.nan)
            if header.valid != 0:
                with contextlib.suppress(WireError):  # a ray that cannot be read is missing
                    ray = read_array(header, packet.payload)
            self._gaze.append((header.device_time_ns, ray))
        elif header.stream == "rgb":
            self._cameras.append(header)
        elif header.stream in _DEPTHS and header.depth_unit_m is not None:
            self._units_m[header.stream] = header.depth_unit_m

    def gaze(self, time_ns: int) -> NDArray[np.floating] | None:
        """The newest samples up to a tick, (16, 2, 3); None where there are not so many."""
        rays = [ray for at, ray in self._gaze if time_ns - _MAX_AGE_NS < at <= time_ns]
        return np.stack(rays[-STACK_SAMPLES:]) if len(rays) >= STACK_SAMPLES else None

    def camera(self, time_ns: int) -> PacketHeader | None:
        """The header of the picture of a tick; older ones are let go."""
        while self._cameras and self._cameras[0].device_time_ns < time_ns:
            self._cameras.popleft()
        first = self._cameras[0] if self._cameras else None
        return first if first is not None and first.device_time_ns == time_ns else None

    def depth_m(self, stream: str, image: NDArray[np.generic]) -> NDArray[np.float32] | None:
        """A depth image in metres, not a number where nothing was measured."""
        unit_m = self._units_m.get(stream)
        if unit_m is None:
            return None
        depth = image.astype(np.float32) * np.float32(unit_m)
        depth[image == 0] = np.nan
        return depth


def _moment(tick: Tick, epoch: int, between: _Between) -> Moment:
    samples: dict[str, NDArray[np.floating] | None] = {}
    picture = None
    for stream, sample in tick.samples.items():
        value = None if sample is None else sample.value
        if stream == "rgb":
            if value is not None and not isinstance(value, VideoFrame):
                raise DataError(f"expected pictures in stream rgb, got {type(value).__name__}")
            picture = value
        elif value is None or isinstance(value, np.ndarray):
            if value is not None and stream in _DEPTHS:
                value = between.depth_m(stream, value)
            samples[stream] = value
    samples["gaze_stack"] = between.gaze(tick.device_time_ns)
    camera = between.camera(tick.device_time_ns) if picture is not None else None
    return Moment(
        epoch=epoch,
        device_time_ns=tick.device_time_ns,
        picture=picture,
        samples=samples,
        intrinsics=None if camera is None else camera.intrinsics,
        pose=None if camera is None else camera.pose,
    )
