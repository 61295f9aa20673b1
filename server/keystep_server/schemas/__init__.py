"""What REST takes and gives, each with an example.

Nanoseconds are decimal strings in JSON: a JavaScript number holds them exactly only up to 2^53.
"""

from keystep_server.schemas.common import (
    API,
    EXAMPLE_AT,
    EXAMPLE_SESSION_ID,
    DeviceId,
    Nanoseconds,
    config_of,
)
from keystep_server.schemas.events import StepEventList, StepEventOut
from keystep_server.schemas.health import CheckOut, HealthOut, ProblemOut, ReadinessOut
from keystep_server.schemas.jobs import ExtractionIn, JobList, JobOut
from keystep_server.schemas.key_steps import (
    ExemplarOut,
    KeyStepList,
    KeyStepOut,
    KeyStepsPatch,
    RevisionDetailOut,
    RevisionList,
    RevisionOut,
)
from keystep_server.schemas.procedures import ProcedureList, ProcedureOut, ProcedureStepOut
from keystep_server.schemas.sessions import (
    CommandIn,
    CommandOut,
    DeviceList,
    DeviceOut,
    LatenciesOut,
    RecordIn,
    RecordOut,
    SessionIn,
    SessionList,
    SessionOut,
    StatsOut,
    StretchOut,
)

__all__ = [
    "API",
    "EXAMPLE_AT",
    "EXAMPLE_SESSION_ID",
    "CheckOut",
    "CommandIn",
    "CommandOut",
    "DeviceId",
    "DeviceList",
    "DeviceOut",
    "ExemplarOut",
    "ExtractionIn",
    "HealthOut",
    "JobList",
    "JobOut",
    "KeyStepList",
    "KeyStepOut",
    "KeyStepsPatch",
    "LatenciesOut",
    "Nanoseconds",
    "ProblemOut",
    "ProcedureList",
    "ProcedureOut",
    "ProcedureStepOut",
    "ReadinessOut",
    "RecordIn",
    "RecordOut",
    "RevisionDetailOut",
    "RevisionList",
    "RevisionOut",
    "SessionIn",
    "SessionList",
    "SessionOut",
    "StatsOut",
    "StepEventList",
    "StepEventOut",
    "StretchOut",
    "config_of",
]
