"""Values that go into and come out of the store; no database object leaves the store.

Times of day are UTC and timezone-aware; `device_time_ns` is the device's own clock, comparable
within one epoch of one session only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID, uuid5

from keystep_capture.errors import DataError
from keystep_capture.key_files import Role

INT64_MAX = 2**63 - 1
_STEP_EVENT_NAMESPACE = UUID("6f0c6b0e-5d1c-5b0a-9a53-2a6a54a3b0de")
_KEY_STEP_NAMESPACE = UUID("b5a3de0f-7a0e-5c0d-8a9b-5a1f3bb0e2c4")


class SessionKind(StrEnum):
    """Why a session is held: an expert shows the task, or a wearer is guided through it."""

    EXPERT = "expert"
    GUIDED = "guided"


class SessionState(StrEnum):
    """Where a session stands; one that is being closed stays what it was until that is done."""

    OPEN = "open"
    PAUSED = "paused"
    CLOSED = "closed"


class StepEventKind(StrEnum):
    """What happened to a step."""

    COMPLETED = "completed"
    INCORRECT = "incorrect"
    REMOVED = "removed"


class Branch(StrEnum):
    """Which part of the models saw a step event, or that the wearer said so."""

    ASSEMBLY_STATE = "assembly_state"
    SPATIO_TEMPORAL = "spatio_temporal"
    KEY_STEP_FILTER = "key_step_filter"
    WEARER = "wearer"


class KeyStepSource(StrEnum):
    """Where a key step comes from: an expert's recording, or a guided session's progress."""

    EXTRACTED = "extracted"
    PROCEDURE = "procedure"


class KeyStepStatus(StrEnum):
    """Extracted: proposed, then confirmed by a person. Procedure: pending to done or wrong."""

    PROPOSED = "proposed"
    CONFIRMED = "confirmed"
    PENDING = "pending"
    CURRENT = "current"
    COMPLETED = "completed"
    INCORRECT = "incorrect"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One headset that was seen."""

    id: str
    first_seen_at: datetime
    last_seen_at: datetime
    client: str | None  # name and version of the program that speaks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """The public key that a device or follower is let in with, z85."""

    name: str
    role: Role
    public_key: str
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestToken:
    """A REST token as it is stored: by its SHA-256, hexadecimal."""

    name: str
    sha256: str
    read_only: bool
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One wearer doing one task on one device."""

    id: str
    device_id: str
    kind: SessionKind
    state: SessionState
    task: str | None
    procedure: str | None
    replay: bool
    time_scale: float  # seconds of data per second
    created_at: datetime
    method: str | None = None  # how its steps are recognised; None without a procedure
    closed_at: datetime | None = None
    epoch: int = 0  # starts of bridge or headset so far; 0: none has connected
    close_reason: str | None = None
    error: str | None = None  # what went wrong while closing


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One step completed, done wrong or taken back, as a branch saw it.

    Raises:
        DataError: a number is not finite or out of its range.
    """

    step_id: int
    title: str
    kind: StepEventKind
    frame_idx: int | None
    device_time_ns: int
    epoch: int
    detected_at: datetime
    confidence: float
    branch: Branch
    evidence: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    occurrence: int = 0  # counts events that are equal in all else

    def __post_init__(self) -> None:
        check_range("step_id", self.step_id, -(2**31), 2**31 - 1)
        check_range("epoch", self.epoch, 0, 2**31 - 1)
        check_range("frame_idx", self.frame_idx, 0, INT64_MAX)
        check_range("device_time_ns", self.device_time_ns, -INT64_MAX, INT64_MAX)
        check_range("confidence", self.confidence, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRetraction:
    """Why and when a step event is taken back: `by` is a method's name, or who else did it."""

    at: datetime
    by: str
    evidence: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent(StepEvent):
    """A step event with its place in its session's log.

    `ordinal` only grows within a session. A retraction moves the event to a new ordinal, so that
    whoever reads on from the last ordinal they saw learns of it; `id` stays.
    """

    id: str
    session_id: str
    ordinal: int
    retracted: bool
    retracted_at: datetime | None = None
    retracted_by: str | None = None
    retraction_evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStep:
    """A segment of a session with its exemplar frame; times are None where nothing was seen yet.

    `*_s` are seconds since the session's first packet; device times are of `epoch`, None where
    that is not known. `exemplar_path` is relative to the data
    directory; `exemplar_size` is (width, height) of that picture in pixels.

    Raises:
        DataError: a number is not finite or out of its range.
    """

    id: str
    session_id: str
    position: int
    title: str
    status: KeyStepStatus
    source: KeyStepSource
    step_id: int | None = None
    epoch: int | None = None
    start_device_time_ns: int | None = None
    end_device_time_ns: int | None = None
    exemplar_device_time_ns: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    exemplar_s: float | None = None
    confidence: float | None = None
    exemplar_path: str | None = None
    exemplar_size: tuple[int, int] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON values

    def __post_init__(self) -> None:
        for name in ("start", "end", "exemplar"):
            value = getattr(self, f"{name}_device_time_ns")
            check_range(f"{name}_device_time_ns", value, -INT64_MAX, INT64_MAX)
            check_range(f"{name}_s", getattr(self, f"{name}_s"), -1e12, 1e12)
        check_range("position", self.position, 0, 2**31 - 1)
        check_range("epoch", self.epoch, 0, 2**31 - 1)
        check_range("confidence", self.confidence, 0, 1)
        if (self.exemplar_path is None) != (self.exemplar_size is None):
            raise DataError(f"key step {self.id}: exemplar_path and exemplar_size go together")
        if self.exemplar_path is not None:
            _check_inside(self.exemplar_path)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number that is not finite or outside [low, high]; None passes.

    Raises:
        DataError: The number is out of range.
    """
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise DataError(f"{name} is {value}, expected {low} to {high}")


def _check_inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise DataError(f"exemplar_path is {path!r}, expected one relative to the data directory")


def step_event_id(session_id: str, event: StepEvent) -> str:
    """The id that the same event gets however often it is found: a UUIDv5 of what defines it."""
    parts = (session_id, event.epoch, event.branch, event.step_id, event.kind)
    name = "/".join(str(part) for part in (*parts, event.device_time_ns, event.occurrence))
    return str(uuid5(_STEP_EVENT_NAMESPACE, name))


def key_step_id(session_id: str, source: KeyStepSource, position: int) -> str:
    """The id of the key step at one position of a session: `kst_` and 32 hex digits."""
    return f"kst_{uuid5(_KEY_STEP_NAMESPACE, f'{session_id}/{source}/{position}').hex}"
