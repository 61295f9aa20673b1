"""What the server remembers: devices, sessions, step events, key steps and jobs."""

from keystep_server.storage.credentials import CredentialStore
from keystep_server.storage.jobs import Job, JobState, JobStore
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
from keystep_server.storage.revisions import (
    MAX_KEY_STEPS,
    EpochSpan,
    KeyStepRevision,
    NewRevision,
    RevisionOrigin,
    RevisionStore,
)
from keystep_server.storage.store import Store

__all__ = [
    "MAX_KEY_STEPS",
    "AccessKey",
    "Branch",
    "CredentialStore",
    "Device",
    "EpochSpan",
    "EventRetraction",
    "Job",
    "JobState",
    "JobStore",
    "KeyStep",
    "KeyStepRevision",
    "KeyStepSource",
    "KeyStepStatus",
    "NewRevision",
    "RestToken",
    "RevisionOrigin",
    "RevisionStore",
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
