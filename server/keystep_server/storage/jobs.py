"""Extraction jobs in the database, so that they outlive the server's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as OrmSession

from keystep_capture.errors import NotFoundError, StateError
from keystep_server.storage.engine import json_object
from keystep_server.storage.tables import JobRow, SessionRow

_COPIED = (
    *("id", "session_id", "created_at", "started_at", "finished_at", "attempts", "progress"),
    *("error", "revision", "options"),
)


class JobState(StrEnum):
    """Where a job stands; one that was running when the server ended is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come of it."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One extraction of a session's key steps.

    Attributes:
        recordings: Sessions whose recordings are trained on, `session_id` first.
        options: What was chosen, as it was asked for (JSON values).
        attempts: How often its process was started.
        progress: What its process said last (docs/steps.md).
        error: Why it failed.
        revision: The revision of key steps that it made.
        notes: What a reader should know of the result.
    """

    id: str
    session_id: str
    recordings: tuple[str, ...]
    options: Mapping[str, Any]
    state: JobState
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    revision: int | None = None
    notes: tuple[str, ...] = ()


class JobStore:
    """The store's part for jobs; blocks, and may be used from any thread."""

    def __init__(self, engine: Engine, writer: Engine) -> None:
        self._engine = engine
        self._writer = writer

    def add(self, job: Job, *, most_unfinished: int) -> None:
        """Store a new job.

        Raises:
            NotFoundError: There is no such session.
            StateError: The session has a job that is not finished, or too many wait.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            if orm.get(SessionRow, job.session_id, with_for_update=True) is None:
                raise NotFoundError(f"there is no session {job.session_id}")
            unfinished = list(orm.scalars(_unfinished()))
            for other in unfinished:
                if other.session_id == job.session_id:
                    raise StateError(
                        f"session {job.session_id} has the {other.state} job {other.id}; "
                        "wait for it or cancel it"
                    )
            if len(unfinished) >= most_unfinished:
                raise StateError(
                    f"{len(unfinished)} jobs wait or run, which is as many as this server takes"
                )
            orm.add(_to_row(job))

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            NotFoundError: There is none with this id.
        """
        with OrmSession(self._engine) as orm:
            return _to_job(_row(orm, job_id))

    def page(
        self,
        *,
        session_id: str | None = None,
        state: JobState | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Job]:
        """Jobs newest first, at most `limit`, those older than the id `before`."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if session_id is not None:
            query = query.where(JobRow.session_id == session_id)
        if state is not None:
            query = query.where(JobRow.state == state)
        if before is not None:
            query = query.where(JobRow.id < before)
        with OrmSession(self._engine) as orm:
            return [_to_job(row) for row in orm.scalars(query)]

    def unfinished(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        with OrmSession(self._engine) as orm:
            return [_to_job(row) for row in orm.scalars(_unfinished())]

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change a job that is not finished; one that is stays as it is.

        Raises:
            NotFoundError: There is none with this id, perhaps since its session was deleted.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _row(orm, job_id)
            if not JobState(row.state).is_final:
                for name, value in changes.items():
                    setattr(row, name, value)
            return _to_job(row)


def _unfinished() -> Any:
    states = (JobState.QUEUED, JobState.RUNNING)
    return select(JobRow).where(JobRow.state.in_(states)).order_by(JobRow.id)


def _row(orm: OrmSession, job_id: str) -> JobRow:
    row = orm.get(JobRow, job_id)
    if row is None:
        raise NotFoundError(f"there is no job {job_id}")
    return row


def _to_row(job: Job) -> JobRow:
    values = {name: getattr(job, name) for name in _COPIED}
    values["options"] = json_object(job.options, "options")
    return JobRow(
        **values,
        state=job.state.value,
        recordings=list(job.recordings),
        notes=list(job.notes),
    )


def _to_job(row: JobRow) -> Job:
    return Job(
        **{name: getattr(row, name) for name in _COPIED},
        state=JobState(row.state),
        recordings=tuple(row.recordings),
        notes=tuple(row.notes),
    )
