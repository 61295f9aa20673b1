"""What a session writes down so that a killed server goes on as if nothing had happened.

A checkpoint is one file, replaced atomically. It holds everything between the packets worked off
so far and those to come, and each stream's place; only what it covers is acknowledged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from keystep_capture.align import AlignerState, Sample
from keystep_capture.errors import DataError

VERSION = 2

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class ArrayState(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="array"):
    """A numpy array."""

    dtype: str
    shape: list[int]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Self:
        """Take an array's values."""
        return cls(dtype=array.dtype.str, shape=list(array.shape), data=array.tobytes())

    def array(self) -> npt.NDArray[Any]:
        """The array; raises ValueError or TypeError if the fields do not fit."""
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape).copy()


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that is cut around the gaze point when its tick is complete: PNG, no loss."""

    png: bytes
    intrinsics: tuple[float, float, float, float]
    world_from_camera: ArrayState


class FrameState(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="frame"):
    """The leading value of a tick.

    `small`: its picture for the motion cue, `seen`: detections, `view`: for the gaze point.
    """

    embedding: ArrayState | None = None
    small: ArrayState | None = None
    seen: ArrayState | None = None
    view: ViewState | None = None


ValueState: TypeAlias = ArrayState | FrameState | None


class SampleState(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a stream at one device time."""

    device_time_ns: int
    value: ValueState


class AlignerFields(msgspec.Struct, frozen=True, kw_only=True):
    """An `AlignerState` and its epoch."""

    epoch: _Count
    leading: str
    index: _Count
    next_due_ns: int | None
    newest_ns: dict[str, int]
    late_counts: dict[str, int]
    waiting: list[SampleState]
    held: dict[str, list[SampleState]]


class VideoState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the video's newest part was written."""

    part: str
    size_bytes: _Count


class FollowingState(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is guided by its ticks: rows that were looked at, and its cues' state."""

    looked_at: _Count
    cues: dict[str, Any]


class PipelineState(msgspec.Struct, frozen=True, kw_only=True):
    """What is between a session's packets and its results."""

    row_count: _Count
    feature_count: _Count
    detection_count: _Count
    aligner: AlignerFields | None = None
    video: VideoState | None = None
    following: FollowingState | None = None


class Place(msgspec.Struct, kw_only=True):
    """How far a stream was worked off in an epoch; the counts are the whole session's."""

    sequence: Annotated[int, msgspec.Meta(ge=-1)] = -1
    packets: _Count = 0
    lost: _Count = 0
    bytes: _Count = 0


class LaneState(Place, kw_only=True):
    """A stream's place, who sends it, and from where it must be sent again, if not from there."""

    instance: str
    epoch: _Count
    resume: Place | None = None


class GuideState(msgspec.Struct, frozen=True, kw_only=True):
    """What guidance stands on; `revision`: the first that may be given out after it.

    `looking_at` and `said` are the guide's; see `Guide`.
    """

    logic: dict[str, Any]
    standing: list[list[Any]]
    revision: _Count
    looking_at: int | None
    said: tuple[str, int]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A session between two packets."""

    version: int = VERSION
    guide: GuideState | None
    first_device_time_ns: int | None
    lanes: dict[str, LaneState]
    pipeline: PipelineState
    commands: list[tuple[str, bool, str]]


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a stream, and in which epoch; written before it is welcomed."""

    instance: str
    epoch: _Count


def write_json(path: Path, value: object) -> None:
    """Replace a file atomically; on the disk when this returns."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        # Python's, since it holds every float, infinities too; `dumps`, since `dump` is not in C.
        file.write(json.dumps(msgspec.to_builtins(value)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a file; None where there is none.

    Raises:
        DataError: It is no checkpoint, or of another version.
        OSError: It cannot be read.
    """
    if not path.exists():
        return None
    _refuse_folder(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if (version := value["version"]) != VERSION:
            raise DataError(f"expected a checkpoint of version {VERSION}, got {version}")
        return msgspec.convert(value, Checkpoint)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def read_sources(path: Path) -> dict[str, SourceState]:
    """Who sent each stream; empty where nobody has.

    Raises:
        DataError: The file does not say so.
        OSError: It cannot be read.
    """
    if not path.exists():
        return {}
    _refuse_folder(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, SourceState])
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"{path.name}: {error}") from error


def set_aside(path: Path) -> Path:
    """Give a file or folder that cannot be used another name; the new path."""
    aside = path.with_suffix(".unreadable")
    number = 2
    while aside.is_dir() or (path.is_dir() and aside.exists()):  # else it is replaced
        aside = path.with_suffix(f".unreadable-{number}")
        number += 1
    return path.replace(aside)


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path.name} is a folder, expected a file")


def aligner_fields(
    state: AlignerState, epoch: int, encode: Callable[[str, Any], ValueState]
) -> AlignerFields:
    """An aligner's state as it is written; `encode` is given a stream and a value of it."""

    def written(stream: str, samples: tuple[Sample, ...]) -> list[SampleState]:
        return [
            SampleState(device_time_ns=s.device_time_ns, value=encode(stream, s.value))
            for s in samples
        ]

    return AlignerFields(
        epoch=epoch,
        leading=state.leading,
        index=state.index,
        next_due_ns=state.next_due_ns,
        newest_ns=dict(state.newest_ns),
        late_counts=dict(state.late_counts),
        waiting=written(state.leading, state.waiting),
        held={name: written(name, samples) for name, samples in state.held.items()},
    )


def aligner_state(fields: AlignerFields, decode: Callable[[ValueState], Any]) -> AlignerState:
    """What `aligner_fields` wrote."""

    def read(samples: list[SampleState]) -> tuple[Sample, ...]:
        return tuple(
            Sample(device_time_ns=s.device_time_ns, value=decode(s.value)) for s in samples
        )

    return AlignerState(
        leading=fields.leading,
        index=fields.index,
        next_due_ns=fields.next_due_ns,
        newest_ns=fields.newest_ns,
        late_counts=fields.late_counts,
        waiting=read(fields.waiting),
        held={name: read(samples) for name, samples in fields.held.items()},
    )
