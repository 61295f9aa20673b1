"""Between database rows and the values the rest of the server sees."""

from __future__ import annotations

from typing import Any

from keystep_server.storage.records import (
    Branch,
    Device,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    Session,
    SessionKind,
    SessionState,
    StepEvent,
    StepEventKind,
    StoredEvent,
)
from keystep_server.storage.tables import DeviceRow, KeyStepRow, SessionRow, StepEventRow


def to_device(row: DeviceRow) -> Device:
    """The device of a row."""
    return Device(
        id=row.id,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        client=row.client,
    )


def to_session(row: SessionRow) -> Session:
    """The session of a row."""
    return Session(
        id=row.id,
        device_id=row.device_id,
        kind=SessionKind(row.kind),
        state=SessionState(row.state),
        task=row.task,
        procedure=row.procedure,
        method=row.method,
        replay=row.replay,
        time_scale=row.time_scale,
        created_at=row.created_at,
        closed_at=row.closed_at,
        epoch=row.epoch,
        close_reason=row.close_reason,
        error=row.error,
    )


def to_session_row(session: Session) -> SessionRow:
    """The row of a session."""
    return SessionRow(
        id=session.id,
        device_id=session.device_id,
        kind=session.kind.value,
        state=session.state.value,
        task=session.task,
        procedure=session.procedure,
        method=session.method,
        replay=session.replay,
        time_scale=session.time_scale,
        created_at=session.created_at,
        closed_at=session.closed_at,
        epoch=session.epoch,
        close_reason=session.close_reason,
        error=session.error,
    )


def to_stored_event(row: StepEventRow) -> StoredEvent:
    """The step event of a row."""
    return StoredEvent(
        id=row.id,
        session_id=row.session_id,
        ordinal=row.ordinal,
        step_id=row.step_id,
        title=row.title,
        kind=StepEventKind(row.kind),
        frame_idx=row.frame_idx,
        device_time_ns=row.device_time_ns,
        epoch=row.epoch,
        detected_at=row.detected_at,
        confidence=row.confidence,
        branch=Branch(row.branch),
        evidence=row.evidence,
        occurrence=row.occurrence,
        retracted=row.retracted,
        retracted_at=row.retracted_at,
        retracted_by=row.retracted_by,
        retraction_evidence=row.retraction_evidence,
    )


def to_step_event_row(
    event: StepEvent, event_id: str, session_id: str, ordinal: int, evidence: dict[str, Any]
) -> StepEventRow:
    """The row of a new step event."""
    return StepEventRow(
        id=event_id,
        session_id=session_id,
        ordinal=ordinal,
        step_id=event.step_id,
        title=event.title,
        kind=event.kind.value,
        frame_idx=event.frame_idx,
        device_time_ns=event.device_time_ns,
        epoch=event.epoch,
        detected_at=event.detected_at,
        confidence=event.confidence,
        branch=event.branch.value,
        evidence=evidence,
        occurrence=event.occurrence,
        retracted=False,
    )


def to_key_step(row: KeyStepRow) -> KeyStep:
    """The key step of a row."""
    size = None
    if row.exemplar_width is not None and row.exemplar_height is not None:
        size = (row.exemplar_width, row.exemplar_height)
    return KeyStep(
        id=row.id,
        session_id=row.session_id,
        position=row.position,
        title=row.title,
        status=KeyStepStatus(row.status),
        source=KeyStepSource(row.source),
        step_id=row.step_id,
        start_device_time_ns=row.start_device_time_ns,
        end_device_time_ns=row.end_device_time_ns,
        exemplar_device_time_ns=row.exemplar_device_time_ns,
        start_s=row.start_s,
        end_s=row.end_s,
        exemplar_s=row.exemplar_s,
        confidence=row.confidence,
        exemplar_path=row.exemplar_path,
        exemplar_size=size,
        provenance=row.provenance,
    )


def to_key_step_row(key_step: KeyStep, provenance: dict[str, Any]) -> KeyStepRow:
    """The row of a key step."""
    width, height = key_step.exemplar_size or (None, None)
    return KeyStepRow(
        id=key_step.id,
        session_id=key_step.session_id,
        position=key_step.position,
        title=key_step.title,
        status=key_step.status.value,
        source=key_step.source.value,
        step_id=key_step.step_id,
        start_device_time_ns=key_step.start_device_time_ns,
        end_device_time_ns=key_step.end_device_time_ns,
        exemplar_device_time_ns=key_step.exemplar_device_time_ns,
        start_s=key_step.start_s,
        end_s=key_step.end_s,
        exemplar_s=key_step.exemplar_s,
        confidence=key_step.confidence,
        exemplar_path=key_step.exemplar_path,
        exemplar_width=width,
        exemplar_height=height,
        provenance=provenance,
    )
