"""Step events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from keystep_server.schemas.common import EXAMPLE_AT, EXAMPLE_SESSION_ID, Nanoseconds, config_of
from keystep_server.storage import Branch, StepEventKind

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
