"""What is recorded besides packets: one JSON object a message, each kind in a channel of its own.

A note's `device_time_ns` places it on the timeline; its schema is written into the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec

from keystep_capture.wire import Guidance, GuidanceAck


class StepEventNote(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A step event as it was decided.

    Attributes:
        id: The event's deterministic id.
        kind: `completed`, `incorrect` or `removed`.
        step_id: The step.
        device_time_ns: Time of the evidence.
        confidence: 0 to 1.
        branch: Which branch decided.
        retracted: Whether this takes the event with this id back.
        evidence: What it rests on, as the server keeps it.
    """

    id: str
    kind: str
    step_id: int
    device_time_ns: int
    confidence: float | None = None
    branch: str | None = None
    retracted: bool = False
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)


class ClockNote(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """How one clock stood to another: `remote` read `remote_time_ns` at `local_time_ns`.

    Attributes:
        remote: Whose clock was read.
        local: On whose clock it is placed.
        epoch: The epoch it holds for.
        remote_time_ns: The remote clock ...
        local_time_ns: ... when the local one read this.
        uncertainty_ns: Bound of the error.
        rate: Remote seconds a local second.
    """

    remote: Literal["device", "bridge"]
    local: Literal["bridge", "server"]
    epoch: int
    remote_time_ns: int
    local_time_ns: int
    uncertainty_ns: int
    rate: float = 1.0


class TickNote(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A tick and its features.

    Attributes:
        epoch: Its epoch.
        index: Its number within the epoch.
        device_time_ns: Its time.
        cues: The streams and features that were there.
        features: Per extractor the vector's bytes, little-endian float32.
        models: Per extractor the sha256 of its model.
    """

    epoch: int
    index: int
    device_time_ns: int
    cues: list[str]
    features: dict[str, bytes] = msgspec.field(default_factory=dict)
    models: dict[str, str] = msgspec.field(default_factory=dict)


class DropNote(msgspec.Struct, kw_only=True, frozen=True):
    """What could not be recorded since the last such note, by stream."""

    dropped: dict[str, int]
    reason: str


class SessionNote(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A change of the session: a source came or went, it was paused, resumed or closed."""

    event: str
    source: str | None = None
    epoch: int | None = None
    detail: str | None = None


class LabelNote(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A row of a data set's labels, as published; importers write it.

    Attributes:
        source: The file it stands in, relative to what was imported.
        frame_idx: The frame that it is of.
        device_time_ns: That frame's time.
        values: Its numbers, in the file's order.
        texts: Its texts, in the file's order.
    """

    source: str
    frame_idx: int
    device_time_ns: int
    values: list[float] = msgspec.field(default_factory=list)
    texts: list[str] = msgspec.field(default_factory=list)


Note: TypeAlias = (
    StepEventNote
    | Guidance
    | GuidanceAck
    | ClockNote
    | TickNote
    | DropNote
    | SessionNote
    | LabelNote
)

NOTE_KINDS: Mapping[str, type[Note]] = MappingProxyType(
    {
        "step_event": StepEventNote,
        "guidance": Guidance,
        "guidance_ack": GuidanceAck,
        "clock": ClockNote,
        "tick": TickNote,
        "drop": DropNote,
        "session": SessionNote,
        "label": LabelNote,
    }
)
"""Notes by the name of their kind, which is also their channel's: `/session/<kind>`."""

KIND_OF: Mapping[type[Note], str] = MappingProxyType(
    {cls: kind for kind, cls in NOTE_KINDS.items()}
)
