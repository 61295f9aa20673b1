"""What REST takes and gives, each with an example.

Nanoseconds are decimal strings in JSON: a JavaScript number holds them exactly only up to 2^53.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StrictBool, WithJsonSchema

from keystep_server.commands import CommandName
from keystep_server.sessions import DEVICE_ID_PATTERN, NAME_MAX_CHARS
from keystep_server.storage import (
    Branch,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    SessionKind,
    SessionState,
    StepEventKind,
)

API = "/api/v1"

Nanoseconds = Annotated[
    int,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^-?[0-9]+$"}),
]
DeviceId = Annotated[str, Field(pattern=DEVICE_ID_PATTERN)]
CommandId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]

EXAMPLE_AT = "2026-03-02T09:15:04.120000Z"
EXAMPLE_SESSION_ID = "ses_01kx5m3v0g8q2m4t6w8y0a2c4e"
_KEY_STEP_ID = "kst_8a3d1c0e5b7f42d69e10a4c2b6d8f013"
_DEVICE = {
    "id": "hololens-07",
    "first_seen_at": EXAMPLE_AT,
    "last_seen_at": EXAMPLE_AT,
    "client": "keystep-hololens 0.1.0",
}
_NEW_SESSION = {
    "device_id": "hololens-07",
    "kind": "guided",
    "task": "assemble the toy bike",
    "procedure": "toy-bike",
    "method": "tracker",
    "replay": False,
    "time_scale": 1.0,
}
_SESSION = {
    **_NEW_SESSION,
    "id": EXAMPLE_SESSION_ID,
    "state": "open",
    "created_at": EXAMPLE_AT,
    "closed_at": None,
    "epoch": 1,
    "close_reason": None,
    "error": None,
}
_STEP_EVENT = {
    "id": "4f8c3c3e-64ab-5a0e-9f52-0a3a7c6f1f11",
    "session_id": EXAMPLE_SESSION_ID,
    "ordinal": 3,
    "step_id": 7,
    "title": "Fit the front wheel",
    "kind": "completed",
    "frame_idx": 1234,
    "device_time_ns": "81234567890123",
    "epoch": 1,
    "detected_at": EXAMPLE_AT,
    "confidence": 0.93,
    "branch": "assembly_state",
    "evidence": {"state": "11110000000"},
    "occurrence": 0,
    "retracted": False,
    "retracted_at": None,
    "retracted_by": None,
    "retraction_evidence": None,
}
_KEY_STEP = {
    "id": _KEY_STEP_ID,
    "position": 0,
    "title": "Fit the front wheel",
    "start_s": 12.3,
    "end_s": 20.1,
    "exemplar_s": 18.4,
    "start_device_time_ns": "81234567890123",
    "end_device_time_ns": "81242367890123",
    "exemplar_device_time_ns": "81240667890123",
    "confidence": 0.81,
    "status": "proposed",
    "source": "extracted",
    "step_id": None,
    "exemplar": {
        "url": f"{API}/sessions/{EXAMPLE_SESSION_ID}/key-steps/{_KEY_STEP_ID}/image",
        "width": 1280,
        "height": 720,
    },
    "provenance": {"method": "steps"},
}
_PROCEDURE = {
    "name": "toy-bike",
    "title": "Assemble the toy bike",
    "steps": [{"step_id": 7, "title": "Fit the front wheel"}],
}
_STATS = {
    "session_id": EXAMPLE_SESSION_ID,
    "state": "open",
    "epoch": 1,
    "stats": {"live": True, "streams": {"rgb": {"packets": 5400, "lost": 3}}},
}
_RECORD = {"on": True}
_COMMAND = {"command": "done", "command_id": "c0ffee01"}
_STRETCH = {"count": 2, "newest_ms": [14.2, 13.9]}
_LATENCIES = {"session_id": EXAMPLE_SESSION_ID, "stretches": {"arrival_to_written": _STRETCH}}
_CHECK = {"name": "database", "ok": True, "detail": "answers"}


def config_of(example: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a schema with an example of it."""
    return ConfigDict(
        extra="forbid", from_attributes=True, json_schema_extra={"examples": [dict(example)]}
    )


class DeviceOut(BaseModel):
    """One headset that was seen."""

    model_config = config_of(_DEVICE)

    id: str
    first_seen_at: datetime
    last_seen_at: datetime
    client: str | None = Field(description="name and version of the program that speaks for it")


class DeviceList(BaseModel):
    """A page of devices, by id."""

    model_config = config_of({"devices": [_DEVICE], "next_cursor": None})

    devices: list[DeviceOut]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: the last one")


class SessionIn(BaseModel):
    """A session to open."""

    model_config = config_of(_NEW_SESSION)

    device_id: DeviceId
    kind: SessionKind
    task: Name | None = None
    procedure: Name | None = Field(None, description="name of the procedure to be guided through")
    method: Name | None = Field(
        None,
        description="how steps are recognised: b1, b2, b3, tracker; by default the server's choice",
    )
    replay: StrictBool = Field(
        False, description="recorded streams: lossless, results do not hurry"
    )
    time_scale: float = Field(
        1.0, gt=0, le=1000, allow_inf_nan=False, description="data seconds per second; replay only"
    )
    record: StrictBool | None = Field(
        None, description="record every stream; by default an expert's session is, others are not"
    )


class RecordIn(BaseModel):
    """Whether a session is to be recorded from now on."""

    model_config = config_of(_RECORD)

    on: StrictBool


class RecordOut(BaseModel):
    """Whether a session is recorded."""

    model_config = config_of({"session_id": EXAMPLE_SESSION_ID, **_RECORD})

    session_id: str
    on: bool = Field(description="every stream is recorded, not only the video")


class SessionOut(BaseModel):
    """One wearer doing one task on one device."""

    model_config = config_of(_SESSION)

    id: str
    device_id: str
    kind: SessionKind
    state: SessionState
    task: str | None
    procedure: str | None
    method: str | None = Field(description="how steps are recognised; null without a procedure")
    replay: bool
    time_scale: float
    created_at: datetime
    closed_at: datetime | None
    epoch: int = Field(description="starts of bridge or headset so far; 0: none has connected")
    close_reason: str | None
    error: str | None = Field(description="what went wrong while closing")


class SessionList(BaseModel):
    """A page of sessions, newest first."""

    model_config = config_of({"sessions": [_SESSION], "next_cursor": None})

    sessions: list[SessionOut]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: the last one")


class StepEventOut(BaseModel):
    """One step completed, done wrong or taken back.

    A retracted event comes again with the same `id`, `retracted` true and a new `ordinal`.
    """

    model_config = config_of(_STEP_EVENT)

    id: str
    session_id: str
    ordinal: int = Field(description="place in the session's log; only grows; the id in SSE")
    step_id: int
    title: str
    kind: StepEventKind
    frame_idx: int | None
    device_time_ns: Nanoseconds
    epoch: int
    detected_at: datetime
    confidence: float
    branch: Branch
    evidence: dict[str, Any]
    occurrence: int = Field(description="counts events that are equal in all else")
    retracted: bool = Field(description="it no longer holds; key steps and guidance leave it out")
    retracted_at: datetime | None
    retracted_by: str | None = Field(description="the method that took it back, or who else did")
    retraction_evidence: dict[str, Any] | None = Field(
        description="of a method's: frame_idx, device_time_ns, epoch, and the confidence that the"
        " event was wrong"
    )


class StepEventList(BaseModel):
    """Step events in the order of their ordinals."""

    model_config = config_of({"events": [_STEP_EVENT], "next_after": None})

    events: list[StepEventOut]
    next_after: int | None = Field(description="`after` of the next page; null: no more for now")


class ExemplarOut(BaseModel):
    """The picture that stands for a key step."""

    model_config = config_of(_KEY_STEP["exemplar"])  # type: ignore[arg-type]

    url: str = Field(description="JPEG; `?width=320` for a smaller one")
    width: int
    height: int


class KeyStepOut(BaseModel):
    """A segment of a session with its exemplar frame; null where nothing was seen yet.

    `*_s` are seconds since the session's first packet.
    """

    model_config = config_of(_KEY_STEP)

    id: str
    position: int
    title: str
    start_s: float | None
    end_s: float | None
    exemplar_s: float | None
    start_device_time_ns: Nanoseconds | None
    end_device_time_ns: Nanoseconds | None
    exemplar_device_time_ns: Nanoseconds | None
    confidence: float | None
    status: KeyStepStatus
    source: KeyStepSource = Field(
        description="extracted: from an expert's recording; procedure: a guided session's progress"
    )
    step_id: int | None = Field(description="the procedure's step; null for extracted key steps")
    exemplar: ExemplarOut | None
    provenance: dict[str, Any] = Field(description="how it was found: method, models, parameters")

    @classmethod
    def of(cls, key_step: KeyStep) -> KeyStepOut:
        """The key step as REST gives it."""
        names = cls.model_fields.keys() - {"exemplar"}
        values = {name: getattr(key_step, name) for name in names}
        exemplar = None
        if key_step.exemplar_size is not None:
            width, height = key_step.exemplar_size
            url = f"{API}/sessions/{key_step.session_id}/key-steps/{key_step.id}/image"
            exemplar = ExemplarOut(url=url, width=width, height=height)
        return cls(**values, exemplar=exemplar)


class KeyStepList(BaseModel):
    """All key steps of a session, in order."""

    model_config = config_of({"key_steps": [_KEY_STEP]})

    key_steps: list[KeyStepOut]


class StatsOut(BaseModel):
    """What a session's streams and models have done."""

    model_config = config_of(_STATS)

    session_id: str
    state: SessionState
    epoch: int
    stats: dict[str, Any] = Field(
        description="streams, drops by reason, ticks, latencies; live, or as it was when closed"
    )


class CommandIn(BaseModel):
    """Something the wearer could say."""

    model_config = config_of(_COMMAND)

    command: CommandName
    command_id: CommandId | None = Field(None, description="the same id again does nothing more")


class CommandOut(BaseModel):
    """What became of a command."""

    model_config = config_of({**_COMMAND, "accepted": True, "text": "Done: Fit the front wheel."})

    command: CommandName
    command_id: str
    accepted: bool
    text: str = Field(description="for the wearer; empty where the guidance says it all")


class StretchOut(BaseModel):
    """Latencies of one stretch of the way, ms."""

    model_config = config_of(_STRETCH)

    count: int = Field(description="how many there were since this server took up the session")
    newest_ms: list[float] = Field(description="the newest 4096, oldest first")


class LatenciesOut(BaseModel):
    """A live session's newest latencies by stretch; none where it is not live."""

    model_config = config_of(_LATENCIES)

    session_id: str
    stretches: dict[str, StretchOut]


class ProcedureStepOut(BaseModel):
    """One step of a procedure."""

    model_config = config_of(_PROCEDURE["steps"][0])  # type: ignore[arg-type]

    step_id: int
    title: str


class ProcedureOut(BaseModel):
    """A procedure that sessions can be guided through."""

    model_config = config_of(_PROCEDURE)

    name: str
    title: str
    steps: list[ProcedureStepOut]


class ProcedureList(BaseModel):
    """All procedures."""

    model_config = config_of({"procedures": [_PROCEDURE]})

    procedures: list[ProcedureOut]


class HealthOut(BaseModel):
    """The process answers."""

    model_config = config_of({"status": "alive"})

    status: str


class CheckOut(BaseModel):
    """One thing the server needs before it can work."""

    model_config = config_of(_CHECK)

    name: str
    ok: bool
    detail: str


class ReadinessOut(BaseModel):
    """Whether the server can work, and what is missing."""

    model_config = config_of({"ready": True, "checks": [_CHECK]})

    ready: bool
    checks: list[CheckOut]


class ProblemOut(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = config_of(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": f"there is no session {EXAMPLE_SESSION_ID}",
        }
    )

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = Field(None, description="one entry per invalid field")
