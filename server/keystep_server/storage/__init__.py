"""What the server remembers: devices, sessions, step events and key steps."""

from keystep_server.storage.records import (
    Branch,
    Device,
    EventRetraction,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    Session,
    SessionKind,
    SessionState,
    StepEvent,
    StepEventKind,
    StoredEvent,
    key_step_id,
    step_event_id,
)
from keystep_server.storage.store import Store

__all__ = [
    "Branch",
    "Device",
    "EventRetraction",
    "KeyStep",
    "KeyStepSource",
    "KeyStepStatus",
    "Session",
    "SessionKind",
    "SessionState",
    "StepEvent",
    "StepEventKind",
    "Store",
    "StoredEvent",
    "key_step_id",
    "step_event_id",
]
