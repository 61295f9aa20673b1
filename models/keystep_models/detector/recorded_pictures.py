"""A recording's or a video's pictures, numbered as labels number them: from 0, every packet one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from av.video.frame import VideoFrame

from keystep_capture.errors import DataError
from keystep_capture.recording import Recording
from keystep_capture.recording.pictures import VideoReader
from keystep_models.steps.recording_source import VIDEO_SUFFIXES, open_recording

_NS = 1_000_000_000
_TOLERANCE = 0.25  # of a period: cameras' stamps jitter

Numbered = tuple[int, int, VideoFrame | None]
"""Number, time in ns of the video or the device, picture (None: it cannot be decoded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Where pictures come from: `name`, what tells the source from others, and a way to read it."""

    name: str
    identity: Mapping[str, Any]
    read: Callable[[], Iterator[Numbered]]


def open_pictures(path: Path) -> Pictures:
    """A recording's folder or part, or a video file.

    Raises:
        DataError: There is none, or it is of no known kind; in reading: it holds no picture.
    """
    source = open_recording(path)
    is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    read = _video_pictures if is_video else _recorded_pictures
    return Pictures(name=source.name, identity=source.identity, read=lambda: read(path))


def at_rate(pictures: Iterator[Numbered], rate_hz: float | None) -> Iterator[Numbered]:
    """The first picture, then each that is due; numbered anew, without gaps.

    Args:
        pictures: All of them.
        rate_hz: At most so many a second; None: all of them, with their own numbers.
    """
    if rate_hz is None:
        yield from pictures
        return
    period_ns = round(_NS / rate_hz)
    number, due_ns = 0, None
    for _, time_ns, picture in pictures:
        if due_ns is not None and due_ns - time_ns > _TOLERANCE * period_ns:
            # A clock that jumps back is another epoch's: the grid starts anew.
            if due_ns - time_ns <= period_ns:
                continue
            due_ns = None
        if due_ns is None or time_ns - due_ns >= period_ns:
            due_ns = time_ns
        yield number, time_ns, picture
        number, due_ns = number + 1, due_ns + period_ns


def _recorded_pictures(path: Path) -> Iterator[Numbered]:
    reader = VideoReader()
    count = 0
    with Recording(path) as recording:
        for packet in recording.packets(("rgb",), skip_damage=True):
            header = packet.header
            yield count, header.device_time_ns, reader.decode(header, packet.payload)
            count += 1
    if not count:
        raise DataError(f"{path}: the recording has no pictures (stream rgb)")


def _video_pictures(path: Path) -> Iterator[Numbered]:
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video")
            for frame in container.decode(video=0):
                time_s = 0.0 if frame.time is None else frame.time
                yield count, round(time_s * _NS), frame
                count += 1
    except FFmpegError as error:
        raise DataError(f"{path}: the video breaks off after {count} frames: {error}") from error
    if not count:
        raise DataError(f"{path}: no frame could be decoded")
