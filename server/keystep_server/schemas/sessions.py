"""Devices and sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field, StrictBool

from keystep_server.commands import CommandName
from keystep_server.schemas.common import (
    EXAMPLE_AT,
    EXAMPLE_SESSION_ID,
    CommandId,
    DeviceId,
    Name,
    config_of,
)
from keystep_server.storage import SessionKind, SessionState

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
