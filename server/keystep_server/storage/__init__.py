"""What the server remembers: devices, sessions, step events and key steps."""

from keystep_server.storage.credentials import CredentialStore
from keystep_server.storage.records import (
    AccessKey,
    Branch,
    Device,
    EventRetraction,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    RestToken,
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
    "AccessKey",
    "Branch",
    "CredentialStore",
    "Device",
    "EventRetraction",
    "KeyStep",
    "KeyStepSource",
    "KeyStepStatus",
    "RestToken",
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
