"""What key-step extraction needs of a recording: its ticks, and pictures of given ticks."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.errors import DataError

_NS = 1_000_000_000
_END_BYTES = 1 << 20
_MAX_NAME_CHARS = 80
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_TAKEN_NAMES = {"features", "training", "labels", "times_ns"}  # beside or within the results
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One tick.

    Attributes:
        epoch: Device times are comparable within one epoch only.
        device_time_ns: Of the tick.
        picture: The colour picture; None without one.
        samples: Other streams' values by name; absent or None where missing. Depth images are in
            metres, not a number where nothing was measured; `gaze_stack` holds the newest sixteen
            rays up to the tick, (16, 2, 3).
        intrinsics: fx, fy, cx, cy of the picture, pixels; None where its packet has none.
        pose: world_from_camera of the picture, row by row; None where its packet has none.
    """

    epoch: int
    device_time_ns: int
    picture: VideoFrame | None
    samples: Mapping[str, NDArray[np.floating] | None]
    intrinsics: Sequence[float] | None = None
    pose: Sequence[float] | None = None


class RecordingSource(Protocol):
    """A recording that can be read as often as needed; it is never written to."""

    @property
    def name(self) -> str:
        """A file name for what is made of it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells it from other recordings, for caches and provenance."""

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        """Ticks in order; the same ones each time.

        Raises:
            DataError: It cannot be read.
        """

    def pictures(
        self, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
        """Pictures of ticks given as (epoch, device_time_ns), in order; those that are there."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was found amiss while it was read last."""


def open_recording(path: Path) -> RecordingSource:
    """A recording by its path: a recording's folder, a part of it, or a video file.

    Raises:
        DataError: There is none, or it is of no known kind.
    """
    from keystep_models.steps.recorded_session import RecordedSession, is_recording

    if not path.exists():
        raise DataError(f"{path}: no such recording")
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFile(path)
    if is_recording(path):
        return RecordedSession(path)
    raise DataError(
        f"{path}: expected a recording's folder with its parts, a part (.mcap), "
        f"or a video file ({', '.join(VIDEO_SUFFIXES)})"
    )


def folder_name(text: str) -> str:
    """A recording's name as its results' folder is called, ASCII: "Küche 2" becomes "Kuche-2"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = _NOT_IN_NAMES.sub("-", plain).lstrip("-._")[:_MAX_NAME_CHARS] or "recording"
    return f"{name}-recording" if name in _TAKEN_NAMES else name


def file_identity(path: Path) -> dict[str, Any]:
    """A file's size and the hash of its first and last MiB: cheap, and enough for a cache."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return {"file": path.name, "bytes": size, "sha256_of_ends": digest.hexdigest()}


class VideoFile:
    """A plain video file: pictures only."""

    def __init__(self, path: Path) -> None:
        """Name a file; it is opened when it is read."""
        self._path = path
        self._warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending, as far as `folder_name` takes it."""
        return folder_name(self._path.stem)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, size and hash of the file's ends."""
        return {"kind": "video", **file_identity(self._path)}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where it breaks off."""
        return self._warnings

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        """Ticks: the first frame, then the first frame at or after each period's end."""
        period_ns = round(_NS / rate_hz)
        due_ns: int | None = None
        for time_ns, frame in self._frames():
            if due_ns is not None and time_ns < due_ns:
                continue
            if due_ns is None or time_ns - due_ns >= period_ns:
                due_ns = time_ns  # the first, or after a gap: the grid starts anew
            due_ns += period_ns
            yield Moment(epoch=0, device_time_ns=time_ns, picture=frame, samples={})

    def pictures(
        self, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
        """Frames at exactly these times."""
        missing = set(wanted)
        for time_ns, frame in self._frames():
            if not missing:
                return
            if (0, time_ns) in missing:
                missing.discard((0, time_ns))
                yield (0, time_ns), frame

    def _frames(self) -> Iterator[tuple[int, VideoFrame]]:
        self._warnings = ()
        count, last_ns = 0, -1
        try:
            with av.open(str(self._path)) as container:
                if not container.streams.video:
                    raise DataError(f"{self._path}: holds no video")
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    if frame.pts is None or frame.time_base is None:
                        continue
                    time_ns = round(frame.pts * frame.time_base * _NS)
                    if time_ns <= last_ns:
                        continue
                    last_ns, count = time_ns, count + 1
                    yield time_ns, frame
        except FFmpegError as error:
            if not count:
                raise DataError(f"{self._path}: no video that can be decoded: {error}") from error
            self._warnings = (f"the video breaks off after {count} frames: {error}",)
        if not count:
            raise DataError(f"{self._path}: no frame could be decoded")
