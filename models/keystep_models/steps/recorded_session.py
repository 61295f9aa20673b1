"""Recordings of sessions (docs/recordings.md) as sources of key-step extraction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.align import Tick
from keystep_capture.errors import DataError
from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.pictures import read_frames, read_ticks
from keystep_models.steps.recording_source import Moment, file_identity

_LEADING = ("rgb", "head", "gaze", "hands")


class RecordedSession:
    """A recording's folder or one of its parts; damage is passed over and told."""

    def __init__(self, path: Path) -> None:
        """Name a recording; it is opened when it is read."""
        self._path = path
        self._warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's or the file's name."""
        return self._path.stem if self._path.is_file() else self._path.resolve().name

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
                ticks = read_ticks(
                    recording, epoch=epoch, leading=leading, rate_hz=rate_hz, skip_damage=True
                )
                for tick in ticks:
                    yield _moment(tick, epoch)
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


def _moment(tick: Tick, epoch: int) -> Moment:
    samples: dict[str, NDArray[np.floating] | None] = {}
    picture = None
    for stream, sample in tick.samples.items():
        value = None if sample is None else sample.value
        if stream == "rgb":
            if value is not None and not isinstance(value, VideoFrame):
                raise DataError(f"expected pictures in stream rgb, got {type(value).__name__}")
            picture = value
        elif value is None or isinstance(value, np.ndarray):
            samples[stream] = value
    return Moment(epoch=epoch, device_time_ns=tick.device_time_ns, picture=picture, samples=samples)
