"""The store: small typed methods over the database, values in and out.

Everything here blocks; on the event loop it is called through `asyncio.to_thread`. A store may be
used from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from sqlalchemy import Engine, delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from keystep_capture.errors import DataError, NotFoundError, StateError
from keystep_server.storage.convert import (
    to_device,
    to_key_step,
    to_key_step_row,
    to_session,
    to_session_row,
    to_step_event_row,
    to_stored_event,
)
from keystep_server.storage.credentials import CredentialStore
from keystep_server.storage.engine import WRITES, json_object, open_engine
from keystep_server.storage.jobs import JobStore
from keystep_server.storage.records import (
    Device,
    EventRetraction,
    KeyStep,
    KeyStepSource,
    Session,
    SessionKind,
    SessionState,
    StepEvent,
    StoredEvent,
    step_event_id,
)
from keystep_server.storage.revisions import RevisionStore
from keystep_server.storage.tables import (
    DeviceRow,
    JobRow,
    KeyStepRevisionRow,
    KeyStepRow,
    SessionRow,
    StepEventRow,
)


class Store:
    """Devices, sessions, step events and key steps, durable once a method has returned."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{WRITES: True})
        self.credentials = CredentialStore(self._engine, self._writer)
        self.revisions = RevisionStore(self._engine, self._writer)
        self.jobs = JobStore(self._engine, self._writer)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database at an SQLAlchemy URL, making or upgrading its tables.

        Raises:
            ConfigError: The URL's driver is not installed.
            DataError: The database cannot be opened or upgraded.
        """
        return cls(open_engine(url))

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Ask the database for something; raises what the driver raises when it is not there."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    # Devices

    def touch_device(self, device_id: str, at: datetime, client: str | None = None) -> Device:
        """Note that a device was seen now, making it if it is new; `client` None keeps the old."""
        with OrmSession(self._writer) as orm, orm.begin():
            row = orm.get(DeviceRow, device_id)
            if row is None:
                row = DeviceRow(id=device_id, first_seen_at=at, last_seen_at=at, client=None)
                orm.add(row)
            row.last_seen_at = max(at, row.last_seen_at)
            row.client = client[:200] if client else row.client
            return to_device(row)

    def devices(self, *, limit: int = 100, after: str | None = None) -> list[Device]:
        """Devices by id, at most `limit`, those after the id `after`."""
        query = select(DeviceRow).order_by(DeviceRow.id).limit(limit)
        if after is not None:
            query = query.where(DeviceRow.id > after)
        with OrmSession(self._engine) as orm:
            return [to_device(row) for row in orm.scalars(query)]

    # Sessions

    def add_session(self, session: Session) -> Session:
        """Store a new session, and its device if that was not seen yet.

        Raises:
            StateError: The device has a session that is not closed.
        """
        at = session.created_at
        try:
            with OrmSession(self._writer) as orm, orm.begin():
                if orm.get(DeviceRow, session.device_id) is None:
                    orm.add(
                        DeviceRow(
                            id=session.device_id, first_seen_at=at, last_seen_at=at, client=None
                        )
                    )
                    orm.flush()
                orm.add(to_session_row(session))
        except IntegrityError as error:
            current = self.current_session(session.device_id)
            if current is None:
                raise
            raise StateError(
                f"device {session.device_id} has the {current.state} session {current.id}; "
                "close it before another is created"
            ) from error
        return session

    def session(self, session_id: str) -> Session:
        """One session.

        Raises:
            NotFoundError: There is none with this id.
        """
        with OrmSession(self._engine) as orm:
            return to_session(_session_row(orm, session_id))

    def current_session(self, device_id: str) -> Session | None:
        """The device's session that is not closed, if it has one."""
        query = select(SessionRow).where(
            SessionRow.device_id == device_id, SessionRow.state != SessionState.CLOSED
        )
        with OrmSession(self._engine) as orm:
            row = orm.scalars(query).one_or_none()
            return to_session(row) if row else None

    def sessions(
        self,
        *,
        state: SessionState | None = None,
        device_id: str | None = None,
        kind: SessionKind | None = None,
        session_id: str | None = None,
        task: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        oldest_first: bool = False,
        limit: int = 100,
        beyond: str | None = None,
    ) -> list[Session]:
        """Sessions newest (or oldest) first, at most `limit`, those after `beyond` in that order.

        Times are timezone-aware; the one a session was opened at stands in its id, too.
        """
        order = SessionRow.id if oldest_first else SessionRow.id.desc()
        query = select(SessionRow).order_by(order).limit(limit)
        if session_id is not None:
            query = query.where(SessionRow.id == session_id)
        if task is not None:
            query = query.where(SessionRow.task == task)
        if created_from is not None:
            query = query.where(SessionRow.created_at >= created_from)
        if created_before is not None:
            query = query.where(SessionRow.created_at < created_before)
        if state is not None:
            query = query.where(SessionRow.state == state)
        if device_id is not None:
            query = query.where(SessionRow.device_id == device_id)
        if kind is not None:
            query = query.where(SessionRow.kind == kind)
        if beyond is not None:
            past = SessionRow.id > beyond if oldest_first else SessionRow.id < beyond
            query = query.where(past)
        with OrmSession(self._engine) as orm:
            return [to_session(row) for row in orm.scalars(query)]

    def unclosed_session_count(self) -> int:
        """How many sessions are not closed."""
        query = select(func.count()).where(SessionRow.state != SessionState.CLOSED)
        with OrmSession(self._engine) as orm:
            return orm.scalars(query.select_from(SessionRow)).one()

    def begin_epoch(self, session_id: str) -> int:
        """Count the session's epoch up by one; the new one.

        Raises:
            NotFoundError: There is no such session.
            StateError: The session is closed.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _unclosed_session_row(orm, session_id)
            row.epoch += 1
            return row.epoch

    def set_paused(self, session_id: str, paused: bool) -> Session:
        """Pause an open session or go on with a paused one.

        Raises:
            NotFoundError: There is no such session.
            StateError: The session is closed.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _unclosed_session_row(orm, session_id)
            row.state = SessionState.PAUSED if paused else SessionState.OPEN
            return to_session(row)

    def close_session(
        self, session_id: str, at: datetime, reason: str, error: str | None = None
    ) -> Session:
        """Mark a session closed; one that is closed already stays as it was.

        Raises:
            NotFoundError: There is no such session.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _session_row(orm, session_id, for_update=True)
            if row.state != SessionState.CLOSED:
                row.state = SessionState.CLOSED
                row.closed_at, row.close_reason, row.error = at, reason[:200], error
            return to_session(row)

    def delete_session(self, session_id: str) -> None:
        """Delete a closed session, its step events, key steps and jobs; SQLite overwrites them.

        Raises:
            NotFoundError: There is no such session.
            StateError: It is not closed.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _session_row(orm, session_id, for_update=True)
            if row.state != SessionState.CLOSED:
                raise StateError(f"session {session_id} is {row.state}; close it first")
            orm.execute(delete(StepEventRow).where(StepEventRow.session_id == session_id))
            for table in (KeyStepRow, KeyStepRevisionRow, JobRow):
                orm.execute(delete(table).where(table.session_id == session_id))
            orm.delete(row)
        self._empty_log()

    def _empty_log(self) -> None:
        """Bring SQLite's log into the database, so that nothing deleted stands in it any more.

        Where somebody reads at this moment, the next deletion or the server's end does it.
        """
        if self._engine.dialect.name != "sqlite":
            return
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.close()
        finally:
            connection.close()

    # Step events

    def append_event(self, session_id: str, event: StepEvent) -> tuple[StoredEvent, bool]:
        """Store a step event as the newest of its session; whether it is new comes with it.

        An event whose id is stored already is left as it is, whatever the session's state.

        Raises:
            DataError: The evidence has no JSON form.
            NotFoundError: There is no such session.
            StateError: The session is closed.
        """
        event_id = step_event_id(session_id, event)
        evidence = json_object(event.evidence, "evidence")
        with OrmSession(self._writer) as orm, orm.begin():
            session = _session_row(orm, session_id, for_update=True)
            known = orm.get(StepEventRow, event_id)
            if known is not None:
                return to_stored_event(known), False
            _refuse_closed(session)
            row = to_step_event_row(
                event, event_id, session_id, _next_ordinal(orm, session_id), evidence
            )
            orm.add(row)
            return to_stored_event(row), True

    def retract_event(self, event_id: str, retraction: EventRetraction) -> tuple[StoredEvent, bool]:
        """Mark a step event as retracted, moving it to its session's newest ordinal.

        Whether this changed anything comes with it: one that is retracted stays as it is.

        Raises:
            DataError: The evidence has no JSON form.
            NotFoundError: There is no such event.
            StateError: The session is closed.
        """
        evidence = json_object(retraction.evidence, "evidence")
        with OrmSession(self._writer) as orm, orm.begin():
            row = orm.get(StepEventRow, event_id)
            if row is None:
                raise NotFoundError(f"there is no step event {event_id}")
            if row.retracted:
                return to_stored_event(row), False
            _refuse_closed(_session_row(orm, row.session_id, for_update=True))
            row.ordinal = _next_ordinal(orm, row.session_id)
            row.retracted = True
            row.retracted_at, row.retracted_by = retraction.at, retraction.by[:64]
            row.retraction_evidence = evidence
            return to_stored_event(row), True

    def events(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        """A session's step events in order, at most `limit`, those after the ordinal `after`."""
        query = (
            select(StepEventRow)
            .where(StepEventRow.session_id == session_id, StepEventRow.ordinal > after)
            .order_by(StepEventRow.ordinal)
            .limit(limit)
        )
        with OrmSession(self._engine) as orm:
            return [to_stored_event(row) for row in orm.scalars(query)]

    # Key steps

    def replace_progress(self, session_id: str, key_steps: Sequence[KeyStep]) -> None:
        """Store the key steps of a guided session's progress instead of those it had, all or none.

        Raises:
            DataError: A key step is of another session or source, or two share an id or position.
            NotFoundError: There is no such session.
        """
        wanted = (session_id, KeyStepSource.PROCEDURE)
        if any((step.session_id, step.source) != wanted for step in key_steps):
            raise DataError(f"expected key steps of session {session_id}'s procedure only")
        rows = [
            to_key_step_row(step, json_object(step.provenance, "provenance")) for step in key_steps
        ]
        try:
            with OrmSession(self._writer) as orm, orm.begin():
                _session_row(orm, session_id, for_update=True)
                orm.execute(delete(KeyStepRow).where(KeyStepRow.session_id == session_id))
                orm.add_all(rows)
        except IntegrityError as error:
            raise DataError(
                f"key steps of session {session_id}: an id or position occurs twice"
            ) from error

    def progress(self, session_id: str) -> list[KeyStep]:
        """The key steps of a guided session's progress, by position."""
        query = (
            select(KeyStepRow)
            .where(KeyStepRow.session_id == session_id)
            .order_by(KeyStepRow.position)
        )
        with OrmSession(self._engine) as orm:
            return [to_key_step(row) for row in orm.scalars(query)]


def _session_row(orm: OrmSession, session_id: str, *, for_update: bool = False) -> SessionRow:
    row = orm.get(SessionRow, session_id, with_for_update=for_update or None)
    if row is None:
        raise NotFoundError(f"there is no session {session_id}")
    return row


def _unclosed_session_row(orm: OrmSession, session_id: str) -> SessionRow:
    row = _session_row(orm, session_id, for_update=True)
    _refuse_closed(row)
    return row


def _refuse_closed(row: SessionRow) -> None:
    if row.state == SessionState.CLOSED:
        raise StateError(f"session {row.id} is closed; open a new one")


def _next_ordinal(orm: OrmSession, session_id: str) -> int:
    query = select(func.max(StepEventRow.ordinal)).where(StepEventRow.session_id == session_id)
    return (orm.scalars(query).one() or 0) + 1
