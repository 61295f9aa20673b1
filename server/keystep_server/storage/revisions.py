"""Revisions of a session's extracted key steps: each is written once, and none is overwritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import defer

from keystep_capture.errors import DataError, NotFoundError, StateError
from keystep_server.storage.engine import json_object
from keystep_server.storage.records import KeyStep, KeyStepSource, KeyStepStatus
from keystep_server.storage.tables import KeyStepRevisionRow, SessionRow

MAX_REVISIONS = 1000
"""Of one session; a person's edits are tens."""
MAX_KEY_STEPS = 500
"""Of one revision."""

_PLAIN = (
    *("id", "title", "epoch", "start_device_time_ns", "end_device_time_ns"),
    *("exemplar_device_time_ns", "start_s", "end_s", "exemplar_s", "confidence", "exemplar_path"),
)


class RevisionOrigin(StrEnum):
    """What made a revision: the session's closing, an extraction job, or a person's edit."""

    CLOSING = "closing"
    EXTRACTION = "extraction"
    EDIT = "edit"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSpan:
    """Where an epoch of the recording lies on the key steps' time; `device_time_ns`: its start."""

    epoch: int
    start_s: float
    end_s: float
    device_time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRevision:
    """Key steps to store as a session's next revision.

    Attributes:
        origin: What made them.
        key_steps: All of them, their positions counting from 0.
        changes: For an edit: its operations, JSON values.
        provenance: How they were found: method, models with hashes, settings, seed.
        timeline: The epochs of the recording in order; empty where they are not known.
        job_id: The extraction job.
    """

    origin: RevisionOrigin
    key_steps: tuple[KeyStep, ...]
    changes: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timeline: tuple[EpochSpan, ...] = ()
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStepRevision(NewRevision):
    """A stored revision; `parent` is the one that it came after, None for the first."""

    session_id: str
    number: int
    created_at: datetime
    parent: int | None


class RevisionStore:
    """The store's part for revisions; blocks, and may be used from any thread."""

    def __init__(self, engine: Engine, writer: Engine) -> None:
        self._engine = engine
        self._writer = writer

    def add(
        self,
        session_id: str,
        revision: NewRevision,
        at: datetime,
        *,
        only_after: int | None = None,
    ) -> KeyStepRevision | None:
        """Store the next revision; that of a job which has one already is only given back.

        Args:
            session_id: The session.
            revision: What to store.
            at: Now.
            only_after: The number of the revision it was made from, if it was made from one.

        Returns:
            The stored revision; None where another has come after `only_after`.

        Raises:
            DataError: A key step is of another session or source, too many of them, or two share
                an id.
            NotFoundError: There is no such session.
            StateError: The session has as many revisions as it can have.
        """
        _check(session_id, revision.key_steps)
        with OrmSession(self._writer) as orm, orm.begin():
            if orm.get(SessionRow, session_id, with_for_update=True) is None:
                raise NotFoundError(f"there is no session {session_id}")
            if revision.job_id is not None and (found := _of_job(orm, session_id, revision.job_id)):
                return _to_revision(found)
            newest = orm.scalars(_newest(session_id)).one()
            if only_after is not None and newest != only_after:
                return None
            if newest is not None and newest >= MAX_REVISIONS:
                raise StateError(
                    f"session {session_id} has {newest} revisions of its key steps, "
                    "which is as many as it can have"
                )
            row = _to_row(session_id, (newest or 0) + 1, newest, revision, at)
            orm.add(row)
            return _to_revision(row)

    def get(self, session_id: str, number: int | None = None) -> KeyStepRevision:
        """A revision; without a number the newest.

        Raises:
            NotFoundError: There is none.
        """
        found = self.find(session_id, number)
        if found is None:
            raise NotFoundError(
                f"session {session_id} has no extracted key steps"
                + ("" if number is None else f" of revision {number}")
            )
        return found

    def find(self, session_id: str, number: int | None = None) -> KeyStepRevision | None:
        """A revision, without a number the newest; None where there is none."""
        with OrmSession(self._engine) as orm:
            if number is None:
                number = orm.scalars(_newest(session_id)).one()
            row = orm.get(KeyStepRevisionRow, (session_id, number)) if number else None
            return None if row is None else _to_revision(row)

    def all(self, session_id: str) -> list[KeyStepRevision]:
        """All revisions of a session, oldest first, without their key steps."""
        query = (
            select(KeyStepRevisionRow)
            .where(KeyStepRevisionRow.session_id == session_id)
            .order_by(KeyStepRevisionRow.number)
            .options(defer(KeyStepRevisionRow.key_steps))
        )
        with OrmSession(self._engine) as orm:
            return [_to_revision(row, key_steps=()) for row in orm.scalars(query)]


def _newest(session_id: str) -> Any:
    query = select(func.max(KeyStepRevisionRow.number))
    return query.where(KeyStepRevisionRow.session_id == session_id)


def _of_job(orm: OrmSession, session_id: str, job_id: str) -> KeyStepRevisionRow | None:
    query = select(KeyStepRevisionRow).where(
        KeyStepRevisionRow.session_id == session_id, KeyStepRevisionRow.job_id == job_id
    )
    return orm.scalars(query).one_or_none()


def _check(session_id: str, key_steps: Sequence[KeyStep]) -> None:
    if len(key_steps) > MAX_KEY_STEPS:
        raise DataError(f"{len(key_steps)} key steps, expected at most {MAX_KEY_STEPS}")
    wanted = (session_id, KeyStepSource.EXTRACTED)
    if any((step.session_id, step.source) != wanted for step in key_steps):
        raise DataError(f"expected extracted key steps of session {session_id} only")
    if len({step.id for step in key_steps}) != len(key_steps):
        raise DataError(f"key steps of session {session_id}: an id occurs twice")
    if [step.position for step in key_steps] != list(range(len(key_steps))):
        raise DataError(f"key steps of session {session_id}: expected positions from 0 on")


def _to_row(
    session_id: str, number: int, parent: int | None, revision: NewRevision, at: datetime
) -> KeyStepRevisionRow:
    plain = json_object(
        {
            "changes": [dict(change) for change in revision.changes],
            "provenance": dict(revision.provenance),
            "timeline": [asdict(start) for start in revision.timeline],
            "key_steps": [_to_document(step) for step in revision.key_steps],
        },
        "the revision",
    )
    return KeyStepRevisionRow(
        session_id=session_id,
        number=number,
        created_at=at,
        origin=revision.origin.value,
        parent=parent,
        job_id=revision.job_id,
        **plain,
    )


def _to_revision(
    row: KeyStepRevisionRow, key_steps: tuple[KeyStep, ...] | None = None
) -> KeyStepRevision:
    if key_steps is None:
        key_steps = tuple(
            _from_document(row.session_id, position, document)
            for position, document in enumerate(row.key_steps)
        )
    return KeyStepRevision(
        session_id=row.session_id,
        number=row.number,
        created_at=row.created_at,
        origin=RevisionOrigin(row.origin),
        parent=row.parent,
        job_id=row.job_id,
        changes=tuple(row.changes),
        provenance=row.provenance,
        timeline=tuple(EpochSpan(**start) for start in row.timeline),
        key_steps=key_steps,
    )


def _to_document(step: KeyStep) -> dict[str, Any]:
    width, height = step.exemplar_size or (None, None)
    return {
        **{name: getattr(step, name) for name in _PLAIN},
        "status": step.status.value,
        "exemplar_width": width,
        "exemplar_height": height,
        "provenance": dict(step.provenance),
    }


def _from_document(session_id: str, position: int, document: Mapping[str, Any]) -> KeyStep:
    width, height = document["exemplar_width"], document["exemplar_height"]
    return KeyStep(
        session_id=session_id,
        position=position,
        source=KeyStepSource.EXTRACTED,
        status=KeyStepStatus(document["status"]),
        exemplar_size=None if width is None or height is None else (width, height),
        provenance=document["provenance"],
        **{name: document[name] for name in _PLAIN},
    )
