"""What a session's method reports or takes back, as step events of the log."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.recogniser import Retraction
from keystep_server.batches import Change, Sighting
from keystep_server.events import EventLog
from keystep_server.guidance import Guide
from keystep_server.storage import EventRetraction, StepEvent, StepEventKind, StoredEvent

log = structlog.get_logger(__name__)


async def store_change(
    session_id: str, change: Change, guide: Guide, events: EventLog
) -> StoredEvent | None:
    """Store a change and note it among the session's standing reports; the log publishes it.

    Returns:
        The event as it is stored now; None where there was none to take back.
    """
    if isinstance(change.change, Retraction):
        return await _retract(session_id, change.change, change.seen, guide, events)
    return await _report(session_id, change.change, change.seen, guide, events)


async def _report(
    session_id: str, step: StepCompletion, seen: Sighting, guide: Guide, events: EventLog
) -> StoredEvent:
    event = StepEvent(
        step_id=step.step_id,
        title=guide.procedure.step(step.step_id).title,
        kind=StepEventKind(step.kind),
        frame_idx=seen.frame_idx,
        device_time_ns=seen.device_time_ns,
        epoch=seen.epoch,
        detected_at=datetime.now(UTC),
        confidence=_chance(step.confidence),
        branch=seen.branch,
        evidence={"method": guide.logic.method, "stream": seen.stream},
    )
    stored = await events.append(session_id, event)
    guide.standing.add(step, stored.id)
    return stored


async def _retract(
    session_id: str, retraction: Retraction, seen: Sighting, guide: Guide, events: EventLog
) -> StoredEvent | None:
    event_id = guide.standing.take_back(retraction.step)
    if event_id is None:
        log.error("a report to take back is not known", session=session_id)
        return None
    taken_back = EventRetraction(
        at=datetime.now(UTC),
        by=guide.logic.method,
        evidence={
            "frame_idx": seen.frame_idx,
            "device_time_ns": str(seen.device_time_ns),  # as all of REST's nanoseconds
            "epoch": seen.epoch,
            "confidence": _chance(retraction.confidence),
        },
    )
    try:
        return await events.retract(event_id, taken_back)
    except Exception:
        guide.standing.add(retraction.step, event_id)  # it will be tried again
        raise


def _chance(value: float) -> float:
    return min(1.0, max(0.0, value))
