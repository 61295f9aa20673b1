"""Gives a recording to other programs: its video as MP4 with its times beside it, numbers as CSV.

Encoded video is not encoded again. An MP4 holds times in microseconds from the first picture on;
the `.times.json` beside it holds the device times to the nanosecond, and importing the video reads
them back. CSV holds times and float numbers exactly.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import msgspec
import numpy as np
from av.container import InputContainer

from keystep_capture.errors import ConfigError, DataError, VideoError
from keystep_capture.recording.entries import RecordedPacket
from keystep_capture.recording.reader import Recording
from keystep_capture.streams import STREAMS

_TIMESCALE = 1_000_000
_FORMATS = {"h264": "h264", "hevc": "hevc", "jpeg": "jpeg_pipe"}
_FIELDS = ("device_time_ns", "receive_time_ns", "epoch", "sequence", "valid", "frame_idx")


def export_mp4(
    recording: Recording,
    path: Path,
    *,
    stream: str = "rgb",
    epoch: int | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> int:
    """Write a stream's video into an MP4 file and its times into `NAME.times.json` beside it.

    What is cut out of it begins at the key frame before `start_ns`: it is not encoded again.

    Args:
        recording: Open for reading.
        path: The new file.
        stream: A stream of pictures.
        epoch: The epoch; None: the first that has the stream.
        start_ns: Device time that must be in it; None: from the first picture on.
        end_ns: Device time of the last picture at the latest; None: to the last one.

    Returns:
        The number of pictures.

    Raises:
        ConfigError: The file exists.
        DataError: There is no such video, or it changes its encoding.
    """
    sidecar = path.with_suffix(".times.json")
    for file in (path, sidecar):
        if file.exists():
            raise ConfigError(f"{file} exists already; expected the name of a new file")
    packets = _pictures(recording, stream, epoch, start_ns, end_ns)
    first = next(packets, None)
    if first is None:
        raise DataError(f"{recording.path}: has no decodable video of {stream!r}")
    times: list[int] = []
    sequences: list[int] = []
    with _removed_on_error(path, sidecar):
        try:
            _mux(path, itertools.chain((first,), packets), first, times, sequences)
        except DataError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(
                f"{recording.path}: the video of {stream!r} cannot be put into an MP4: "
                f"{_reason(error)}"
            ) from None
        about = {
            "session": recording.info.session,
            "stream": stream,
            "epoch": first.header.epoch,
            "encoding": first.header.encoding,
            "device_times_ns": times,
            "sequences": sequences,
        }
        sidecar.write_text(json.dumps(about), encoding="utf-8")
    return len(times)


def _mux(
    path: Path,
    packets: Iterable[RecordedPacket],
    first: RecordedPacket,
    times: list[int],
    sequences: list[int],
) -> None:
    """Write pictures as they are; what was written stands in `times` and `sequences`."""
    options = {"video_track_timescale": str(_TIMESCALE)}
    with (
        _template(first) as template,
        av.open(str(path), "w", format="mp4", options=options) as out,
    ):
        if not template.streams.video or not template.streams.video[0].width:
            raise VideoError("its first picture says no size")
        track = out.add_stream_from_template(template.streams.video[0])
        track.time_base = Fraction(1, _TIMESCALE)
        newest = -1
        for packet in packets:
            header = packet.header
            unit = av.Packet(packet.payload)
            unit.stream, unit.time_base = track, Fraction(1, _TIMESCALE)
            since_ns = header.device_time_ns - first.header.device_time_ns
            newest = max(newest + 1, round(since_ns / 1000))  # MP4 has no two pictures at a time
            unit.pts = unit.dts = newest
            unit.is_keyframe = header.keyframe
            out.mux(unit)
            times.append(header.device_time_ns)
            sequences.append(header.sequence)


@contextmanager
def _removed_on_error(*paths: Path) -> Iterator[None]:
    """No half of an export is left."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the file that it names."""
    return str(getattr(error, "strerror", None) or error).partition("\n")[0]


def export_csv(recording: Recording, folder: Path) -> dict[str, int]:
    """Write every stream of numbers and every kind of note into a CSV file of its own.

    Args:
        recording: Open for reading.
        folder: The new folder.

    Returns:
        Rows per file name.

    Raises:
        ConfigError: The folder exists and is not empty.
        DamagedError: The recording is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; expected the name of a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    with ExitStack() as removed_on_error, ExitStack() as closed:
        writers: dict[str, Any] = {}
        for name, heading, row in _rows(recording):
            if name not in writers:
                path = folder / f"{name}.csv"
                removed_on_error.enter_context(_removed_on_error(path))
                file = closed.enter_context(path.open("w", encoding="utf-8", newline=""))
                writers[name] = csv.writer(file)
                writers[name].writerow(heading)
                counts[f"{name}.csv"] = 0
            writers[name].writerow(row)
            counts[f"{name}.csv"] += 1
    return counts


def _rows(recording: Recording) -> Iterator[tuple[str, list[str], list[Any]]]:
    for entry in recording.entries():
        if not isinstance(entry, RecordedPacket):
            note = json.dumps(msgspec.to_builtins(entry.note))
            times = [entry.device_time_ns, entry.receive_time_ns]
            yield (
                f"note_{entry.kind}",
                ["device_time_ns", "receive_time_ns", "note"],
                [*times, note],
            )
            continue
        header = entry.header
        numeric = STREAMS[header.stream].encodings[header.encoding].numeric
        if numeric is None or header.encoding == "rays_f32":
            continue
        values = np.frombuffer(entry.payload, numeric).tolist()
        own = [header.device_time_ns, entry.receive_time_ns, header.epoch, header.sequence]
        more = [header.valid, "" if header.frame_idx is None else header.frame_idx]
        yield header.stream, [*_FIELDS, "values..."], [*own, *more, *values]


def _pictures(
    recording: Recording,
    stream: str,
    epoch: int | None,
    start_ns: int | None,
    end_ns: int | None,
) -> Iterator[RecordedPacket]:
    """A stream's packets from the first that can be decoded on, of one epoch and encoding."""
    lanes = [lane for lane in recording.lanes if lane.stream == stream]
    lanes = [lane for lane in lanes if epoch is None or lane.epoch == epoch]
    if not lanes or not set(lanes[0].encodings) <= _FORMATS.keys():
        raise DataError(
            f"{recording.path}: has no video of {stream!r}"
            + ("" if epoch is None else f" in epoch {epoch}")
        )
    if len(lanes[0].encodings) > 1:
        raise DataError(f"{recording.path}: {stream} changes between {lanes[0].encodings}")
    if start_ns is not None:
        before_ns = recording.keyframe_before(stream, start_ns, epoch=lanes[0].epoch)
        start_ns = start_ns if before_ns is None else before_ns
    packets = recording.packets(
        (stream,),
        epoch=lanes[0].epoch,
        start_ns=start_ns,
        end_ns=None if end_ns is None else end_ns + 1,
    )
    return itertools.dropwhile(
        lambda one: not (one.header.keyframe or one.header.encoding == "jpeg"), packets
    )


def _template(first: RecordedPacket) -> InputContainer:
    """The first picture as a file of its own, from which a muxer takes the codec's parameters."""
    template = av.open(io.BytesIO(first.payload), "r", format=_FORMATS[first.header.encoding])
    assert isinstance(template, InputContainer)
    return template
