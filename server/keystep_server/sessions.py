"""Sessions: opened by REST or by a headset's hello, closed once, at most one open per device."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from keystep_capture.errors import DataError, KeystepError, NotFoundError, StateError
from keystep_server.events import EventLog
from keystep_server.storage import Session, SessionKind, SessionState, Store

DEVICE_ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
SESSION_ID_PATTERN = r"^ses_[0-9a-hjkmnp-tv-z]{26}$"
NAME_MAX_CHARS = 200  # of a task's or procedure's name

_DEVICE_ID = re.compile(DEVICE_ID_PATTERN[1:-1])
_SESSION_ID = re.compile(SESSION_ID_PATTERN[1:-1])
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: sorts as the number does

log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def new_session_id(at: datetime) -> str:
    """`ses_` and 26 base-32 digits: milliseconds since 1970 (48 bit), then 80 random bits.

    Ids sort as their times do.
    """
    number = (int(at.timestamp() * 1000) << 80) | secrets.randbits(80)
    return "ses_" + "".join(_BASE32[(number >> shift) & 31] for shift in range(125, -5, -5))


def check_session_id(session_id: str) -> str:
    """The id, if it has the form of one.

    Raises:
        NotFoundError: It cannot be a session's id.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise NotFoundError("there is no such session: ids are ses_ and 26 letters or digits")
    return session_id


def check_device_id(device_id: str) -> str:
    """The id, if it has the form of one.

    Raises:
        DataError: It has not.
    """
    if not _DEVICE_ID.fullmatch(device_id):
        raise DataError(f"device id {device_id[:80]!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -")
    return device_id


async def _record_nothing(_session_id: str, _on: bool) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHooks:
    """What the rest of the server does for the registry.

    Attributes:
        on_close: Drains a session's pipeline and extracts its key steps; runs once, before the
            session becomes closed.
        stats_of: JSON-ready counters of a session that may or may not be live.
        validate_procedure: Raises NotFoundError for a procedure that is not there.
        choose_method: Given a procedure and the method asked for (None: none in particular), the
            name of the one to recognise steps by; raises ConfigError where that cannot be.
        latencies_of: JSON-ready newest latencies of a live session; empty for another.
        ask_to_record: Told whether a session that is not closed is to be recorded, where that was
            said.
    """

    on_close: Callable[[str], Awaitable[None]]
    stats_of: Callable[[str], dict[str, Any]]
    validate_procedure: Callable[[str], None]
    choose_method: Callable[[str, str | None], str]
    latencies_of: Callable[[str], dict[str, Any]] = lambda _session_id: {}
    ask_to_record: Callable[[str, bool], Awaitable[None]] = _record_nothing


class SessionRegistry:
    """The sessions of this server; all methods belong to one event loop.

    Sessions that were open when the server stopped are open when it starts again: their headsets
    come back and go on.
    """

    def __init__(
        self,
        store: Store,
        events: EventLog,
        hooks: SessionHooks,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._events = events
        self._hooks = hooks
        self._now = now
        self._closing: dict[str, asyncio.Task[Session]] = {}

    async def create(
        self,
        *,
        device_id: str,
        kind: SessionKind,
        task: str | None = None,
        procedure: str | None = None,
        method: str | None = None,
        replay: bool = False,
        time_scale: float = 1.0,
        record: bool | None = None,
    ) -> Session:
        """Open a session; `record` says whether all of it is recorded, None: if it is an expert's.

        Raises:
            ConfigError: There is no such method, or it cannot run live.
            DataError: An id, name or number is not as documented.
            NotFoundError: There is no such procedure.
            StateError: The device has a session that is not closed; the message names it.
        """
        session = await self._open(device_id, kind, task, procedure, method, replay, time_scale)
        if record is not None:
            await self._hooks.ask_to_record(session.id, record)
        return session

    async def session_for_device(
        self,
        *,
        device_id: str,
        kind: SessionKind,
        task: str | None = None,
        procedure: str | None = None,
        method: str | None = None,
        replay: bool = False,
        time_scale: float = 1.0,
        client: str | None = None,
    ) -> Session:
        """The device's session that is not closed, or a new one with what is asked for.

        Notes that the device was seen, once it has its session: who is refused leaves no trace.
        While the device's session is being closed this waits, and opens a new one then.

        Raises:
            ConfigError: There is no such method, or it cannot run live.
            DataError: An id, name or number is not as documented.
            NotFoundError: There is no such procedure.
        """
        check_device_id(device_id)
        while True:
            session = await asyncio.to_thread(self._store.current_session, device_id)
            if session is None:
                try:
                    session = await self._open(
                        device_id, kind, task, procedure, method, replay, time_scale
                    )
                except StateError:
                    continue  # another caller was first: theirs is the device's session
            if (run := self._closing.get(session.id)) is None:
                await asyncio.to_thread(self._store.touch_device, device_id, self._now(), client)
                return session
            await asyncio.shield(run)

    async def _open(
        self,
        device_id: str,
        kind: SessionKind,
        task: str | None,
        procedure: str | None,
        method: str | None,
        replay: bool,
        time_scale: float,
    ) -> Session:
        check_device_id(device_id)
        _check_name("task", task)
        _check_name("procedure", procedure)
        if not (math.isfinite(time_scale) and 0 < time_scale <= 1000):
            raise DataError(f"time_scale is {time_scale}, expected more than 0 and at most 1000")
        if time_scale != 1.0 and not replay:
            raise DataError(
                f"time_scale is {time_scale}, but only a replay can run at another speed"
            )
        method = await asyncio.to_thread(self._choose_method, procedure, method)
        now = self._now()
        session = Session(
            id=new_session_id(now),
            device_id=device_id,
            kind=kind,
            state=SessionState.OPEN,
            task=task,
            procedure=procedure,
            method=method,
            replay=replay,
            time_scale=time_scale,
            created_at=now,
        )
        await asyncio.to_thread(self._store.add_session, session)
        log.info("session opened", session=session.id, device=device_id, kind=kind.value)
        return session

    def _choose_method(self, procedure: str | None, asked: str | None) -> str | None:
        """What the steps of a new session are recognised by; None where there are none."""
        if procedure is None:
            if asked is not None:
                raise DataError(
                    f"method is {asked[:80]!r}, but there is no procedure whose steps it could"
                    " recognise; give one, or leave the method out"
                )
            return None
        self._hooks.validate_procedure(procedure)
        return self._hooks.choose_method(procedure, asked)

    async def get(self, session_id: str) -> Session:
        """One session.

        Raises:
            NotFoundError: There is none with this id.
        """
        return await asyncio.to_thread(self._store.session, check_session_id(session_id))

    async def list_sessions(
        self,
        *,
        state: SessionState | None = None,
        device_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[list[Session], str | None]:
        """Sessions newest first and the cursor of the next page; None: this was the last."""
        found = await asyncio.to_thread(
            self._store.sessions,
            state=state,
            device_id=device_id,
            limit=limit + 1,
            beyond=cursor,
        )
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def set_recording(self, session_id: str, on: bool) -> bool:
        """Record all of a session from now on, or no longer; which of the two.

        Raises:
            NotFoundError: There is no such session.
            StateError: It is closed or being closed, or the disk does not take it.
        """
        self._refuse_closing(session_id)
        session = await self.get(session_id)
        if session.state is SessionState.CLOSED:
            raise StateError(f"session {session_id} is closed; open a new one")
        await self._hooks.ask_to_record(session_id, on)
        return on

    async def begin_epoch(self, session_id: str) -> int:
        """Count a restart of the bridge or headset; the epoch that its packets carry from now.

        Raises:
            NotFoundError: There is no such session.
            StateError: The session is closed or being closed.
        """
        self._refuse_closing(session_id)
        return await asyncio.to_thread(self._store.begin_epoch, check_session_id(session_id))

    async def set_paused(self, session_id: str, paused: bool) -> Session:
        """Pause an open session or go on with a paused one.

        Raises:
            NotFoundError: There is no such session.
            StateError: The session is closed or being closed.
        """
        self._refuse_closing(session_id)
        return await asyncio.to_thread(self._store.set_paused, check_session_id(session_id), paused)

    def stats(self, session_id: str) -> dict[str, Any]:
        """The live counters of a session, as the ingest side gives them."""
        return self._hooks.stats_of(check_session_id(session_id))

    def latencies(self, session_id: str) -> dict[str, Any]:
        """Newest latencies of a session by stretch; empty where it is not live."""
        return self._hooks.latencies_of(check_session_id(session_id))

    async def close(self, session_id: str, reason: str) -> Session:
        """Close a session when its pipeline has drained; the closed session.

        Closing a closed session changes nothing. Calls that overlap share one run, and a caller
        that gives up does not stop it. If draining fails, the session is closed all the same and
        its `error` says why.

        Raises:
            NotFoundError: There is no such session.
        """
        run = self._closing.get(session_id)
        if run is None:
            run = self._start_closing(session_id, self._run_close(session_id, reason))
        return await asyncio.shield(run)

    def _start_closing(
        self, session_id: str, work: Coroutine[Any, Any, Session]
    ) -> asyncio.Task[Session]:
        run = asyncio.create_task(work, name=f"close {session_id}")
        self._closing[session_id] = run

        def forget(_run: asyncio.Task[Session]) -> None:
            del self._closing[session_id]

        run.add_done_callback(forget)
        return run

    async def _run_close(self, session_id: str, reason: str) -> Session:
        session = await self.get(session_id)
        if session.state is SessionState.CLOSED:
            return session
        error = await self._drain(session_id)
        session = await asyncio.to_thread(
            self._store.close_session, session_id, self._now(), reason, error
        )
        await self._events.end(session_id)
        log.info("session closed", session=session_id, reason=reason, error=error)
        return session

    async def _drain(self, session_id: str) -> str | None:
        """Run the hook; what went wrong, in words, since a session must close whatever happens."""
        try:
            await self._hooks.on_close(session_id)
        except KeystepError as error:
            log.warning("closing a session failed", session=session_id, error=str(error))
            return str(error)
        except Exception as error:
            log.exception("closing a session failed", session=session_id)
            return f"unexpected {type(error).__name__}; the server's log has the details"
        return None

    def is_closing(self, session_id: str) -> bool:
        """Whether a session is being closed at this moment."""
        return session_id in self._closing

    def _refuse_closing(self, session_id: str) -> None:
        if session_id in self._closing:
            raise StateError(f"session {session_id} is being closed; open a new one")


def _check_name(what: str, name: str | None) -> None:
    if name is not None and not (0 < len(name) <= NAME_MAX_CHARS and name.isprintable()):
        raise DataError(
            f"{what} is {name[:80]!r}: expected 1 to {NAME_MAX_CHARS} printable characters"
        )
