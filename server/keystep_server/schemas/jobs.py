"""Extraction jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from keystep_server.schemas.common import API, EXAMPLE_AT, EXAMPLE_SESSION_ID, config_of
from keystep_server.sessions import SESSION_ID_PATTERN
from keystep_server.storage import Job, JobState

JOB_ID_PATTERN = r"^job_[0-9a-hjkmnp-tv-z]{26}$"

_JOB_ID = "job_01kx5p7c2e4g6j8m0q2s4t6v8y"
_EXTRACTION: dict[str, Any] = {"preset": "small", "cues": ["appearance", "hands"], "clusters": 9}
_PROGRESS = {"stage": "training", "done": 40, "of": 100, "loss": 1.27}
_JOB = {
    "id": _JOB_ID,
    "session_id": EXAMPLE_SESSION_ID,
    "recordings": [EXAMPLE_SESSION_ID],
    "state": "running",
    "options": _EXTRACTION,
    "progress": _PROGRESS,
    "attempts": 1,
    "created_at": EXAMPLE_AT,
    "started_at": EXAMPLE_AT,
    "finished_at": None,
    "error": None,
    "revision": None,
    "notes": [],
    "log_url": f"{API}/jobs/{_JOB_ID}/log",
    "key_steps_url": None,
}

SessionIdText = Annotated[str, Field(pattern=SESSION_ID_PATTERN)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Cue = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Cues = Annotated[list[Cue], Field(min_length=1, max_length=16)]
Pair = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}:[a-z][a-z0-9_]{0,39}$")]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class ExtractionIn(BaseModel):
    """What to choose of `keystep extract`; docs/steps.md has each with its words and default."""

    model_config = config_of(_EXTRACTION)

    recordings: list[SessionIdText] = Field(
        default_factory=list,
        max_length=31,
        description="further closed sessions of the same task, whose recordings are trained on too",
    )
    preset: Word | None = None
    cues: Cues | None = Field(None, description="the first is the anchor")
    tick_rate: Annotated[float, Field(gt=0, le=60)] | None = None
    bootstrap: Cues | None = None
    encoder: Word | None = None
    position: Word | None = None
    causal: StrictBool = False
    context: Annotated[int, Field(ge=0, le=100_000)] | None = None
    spacing: Word | None = None
    tempo: Annotated[float, Field(ge=1, le=4)] | None = None
    window: Word | None = None
    sigma: Positive | None = Field(None, description="s")
    extent: Annotated[float, Field(gt=0, le=1)] | None = None
    chunks: Annotated[int, Field(ge=2, le=4096)] | None = None
    batch: Annotated[int, Field(ge=1, le=64)] | None = None
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    learning_rate: Positive | None = None
    drop_epochs: Annotated[list[int], Field(max_length=100)] | None = Field(
        None, description="empty: none"
    )
    drop_factor: Positive | None = None
    pairs: Annotated[dict[Pair, Weight], Field(min_length=1, max_length=256)] | None = Field(
        None, description='lambdas: {"appearance:motion": 0.5}'
    )
    soft_dtw: Weight | None = None
    inference_cues: Cues | None = None
    stride: Annotated[int, Field(ge=1, le=1000)] | None = None
    clustering: Word | None = None
    clusters: Annotated[int, Field(ge=1, le=500)] | Literal["auto"] | None = None
    alpha: Annotated[float, Field(ge=0, lt=1)] | None = None
    gamma: Positive | None = Field(None, description="s")
    min_duration: Annotated[float, Field(ge=0, le=1e6)] | None = Field(None, description="s")
    sampling: Word | None = None
    top_n: Annotated[int, Field(ge=0, le=500)] | None = None
    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    threads: Annotated[int, Field(ge=1, le=64)] | None = None

    def flags(self) -> list[str]:
        """The choices as flags of the command; what was not chosen is left to it."""
        flags = []
        for name, value in self.chosen().items():
            flag = f"--{name.replace('_', '-')}"
            if name == "recordings" or value is False:
                continue
            flags.append(flag if value is True else f"{flag}={_text(name, value)}")
        return flags

    def chosen(self) -> dict[str, Any]:
        """What was chosen, JSON values."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{pair}={weight}" for pair, weight in value.items())
    if isinstance(value, list):
        joined = ",".join(str(item) for item in value)
        return joined or "none"  # only drop_epochs may be empty
    return str(value)


class JobOut(BaseModel):
    """One extraction of a session's key steps."""

    model_config = config_of(_JOB)

    id: str
    session_id: str
    recordings: list[str] = Field(description="sessions that are trained on, its own first")
    state: JobState
    options: dict[str, Any] = Field(description="as they were asked for")
    progress: dict[str, Any] = Field(
        description="`stage` (features, training, key_steps, done) with `recording`, `done`, `of`, "
        "`loss` where it has them"
    )
    attempts: int = Field(description="how often its process was started")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None = Field(description="why it failed or was cancelled")
    revision: int | None = Field(description="of the key steps that it made")
    notes: list[str] = Field(description="what a reader should know of the result")
    log_url: str
    key_steps_url: str | None = Field(description="its revision, once it is done")

    @classmethod
    def of(cls, job: Job) -> JobOut:
        """The job as REST gives it."""
        names = cls.model_fields.keys() - {"options", "log_url", "key_steps_url"}
        made = f"{API}/sessions/{job.session_id}/key-steps?revision={job.revision}"
        return cls(
            **{name: getattr(job, name) for name in names},
            options=job.options["body"],
            log_url=f"{API}/jobs/{job.id}/log",
            key_steps_url=None if job.revision is None else made,
        )


class JobList(BaseModel):
    """A page of jobs, newest first."""

    model_config = config_of({"jobs": [_JOB], "next_cursor": None})

    jobs: list[JobOut]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: the last one")
