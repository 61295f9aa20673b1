"""Recordings as REST gives them: pydantic models with an example each."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from keystep_capture.recording.health import Verdict
from keystep_server.recording_health import StoredHealth
from keystep_server.recording_list import FoundRecording
from keystep_server.schemas.common import API, EXAMPLE_AT, EXAMPLE_SESSION_ID, config_of
from keystep_server.storage import SessionKind

_RECORDING = {
    "session_id": EXAMPLE_SESSION_ID,
    "device_id": "hololens-07",
    "kind": "expert",
    "task": "assemble the toy bike",
    "procedure": None,
    "created_at": EXAMPLE_AT,
    "closed_at": EXAMPLE_AT,
    "size_bytes": 1048576,
    "finished": True,
    "health": "good",
    "files": [
        {
            "name": "part-000.mcap",
            "size_bytes": 1048576,
            "url": f"{API}/recordings/{EXAMPLE_SESSION_ID}/files/part-000.mcap",
        }
    ],
    "video_url": f"{API}/recordings/{EXAMPLE_SESSION_ID}/video",
    "thumbnail_url": f"{API}/recordings/{EXAMPLE_SESSION_ID}/thumbnail",
    "health_url": f"{API}/recordings/{EXAMPLE_SESSION_ID}/health",
}
_RECORDED_STREAM = {"stream": "rgb", "epoch": 1, "encodings": ["h264"]}
_RECORDING_INDEX = {"streams": [_RECORDED_STREAM], "damage": []}
_STREAM_HEALTH = {
    "stream": "rgb",
    "epoch": 1,
    "packets": 5400,
    "rate_hz": 29.98,
    "lost": 3,
    "longest_gap_s": 0.133,
    "stalls": 0,
}
_HEALTH = {
    "session_id": EXAMPLE_SESSION_ID,
    "verdict": "usable",
    "reasons": ["gaze stalled 1 times, up to 1.4 s"],
    "packets": 21600,
    "dropped": {},
    "damage": [],
    "streams": [_STREAM_HEALTH],
}


class RecordingFileOut(BaseModel):
    """A part of a recording."""

    model_config = config_of(_RECORDING["files"][0])  # type: ignore[index,arg-type]

    name: str
    size_bytes: int
    url: str = Field(description="the MCAP file; takes ranges")


class RecordingOut(BaseModel):
    """What is recorded of a session."""

    model_config = config_of(_RECORDING)

    session_id: str
    device_id: str
    kind: SessionKind
    task: str | None
    procedure: str | None
    created_at: datetime
    closed_at: datetime | None = Field(description="null: more may come")
    size_bytes: int
    finished: bool = Field(description="each file ends with its index; else it can be repaired")
    health: Verdict | None = Field(description="null: `health_url` was not asked for yet")
    files: list[RecordingFileOut]
    video_url: str = Field(description="MP4, once the session is closed; `?epoch=` for a later one")
    thumbnail_url: str = Field(description="JPEG, once the session is closed")
    health_url: str = Field(description="the verdict with reasons, once the session is closed")

    @classmethod
    def of(cls, found: FoundRecording) -> RecordingOut:
        """The recording as REST gives it."""
        session = found.session
        url = f"{API}/recordings/{session.id}"
        files = [
            RecordingFileOut(
                name=one.name, size_bytes=one.size_bytes, url=f"{url}/files/{one.name}"
            )
            for one in found.files
        ]
        return cls(
            session_id=session.id,
            device_id=session.device_id,
            kind=session.kind,
            task=session.task,
            procedure=session.procedure,
            created_at=session.created_at,
            closed_at=session.closed_at,
            size_bytes=sum(one.size_bytes for one in found.files),
            finished=found.finished,
            health=found.verdict,
            files=files,
            video_url=f"{url}/video",
            thumbnail_url=f"{url}/thumbnail",
            health_url=f"{url}/health",
        )


class RecordingList(BaseModel):
    """A page of recordings, in the order that was asked for."""

    model_config = config_of({"recordings": [_RECORDING], "next_cursor": None})

    recordings: list[RecordingOut]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: the last one")


class RecordedStreamOut(BaseModel):
    """A stream of one epoch in a recording."""

    model_config = config_of(_RECORDED_STREAM)

    stream: str
    epoch: int
    encodings: list[str]


class RecordingDetailOut(RecordingOut):
    """A recording with what its index says."""

    model_config = config_of({**_RECORDING, **_RECORDING_INDEX})

    streams: list[RecordedStreamOut]
    damage: list[str] = Field(description="what cannot be read, with file and byte")


class StreamHealthOut(BaseModel):
    """How one stream of one epoch was recorded."""

    model_config = config_of(_STREAM_HEALTH)

    stream: str
    epoch: int
    packets: int
    rate_hz: float | None = Field(description="packets a second of device time")
    lost: int = Field(description="numbers missing in its sequence")
    longest_gap_s: float
    stalls: int


class RecordingHealthOut(BaseModel):
    """Whether a recording is fit for training and replay (docs/recordings.md)."""

    model_config = config_of(_HEALTH)

    session_id: str
    verdict: Verdict
    reasons: list[str] = Field(description="what the verdict rests on, worst first")
    packets: int
    dropped: dict[str, int] = Field(description="left out while it was recorded, by stream")
    damage: list[str]
    streams: list[StreamHealthOut]

    @classmethod
    def of(cls, session_id: str, health: StoredHealth) -> RecordingHealthOut:
        """The verdict as REST gives it."""
        return cls(
            session_id=session_id,
            verdict=health.verdict,
            reasons=health.reasons,
            packets=health.packets,
            dropped=health.dropped,
            damage=health.damage,
            streams=[StreamHealthOut.model_validate(lane) for lane in health.streams],
        )
