"""The log of step events: stored first, then handed to whoever follows a session.

A subscription reads what is stored from where its reader stopped, then what comes; every event once
and in order. Readers that cannot keep up are cut off and come back with the last ordinal they saw.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, Self, TypeVar

import structlog

from keystep_server.storage import EventRetraction, SessionState, StepEvent, Store, StoredEvent

_PAGE = 500  # events read from the store at once
_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)


class EndReason(StrEnum):
    """Why a subscription ended."""

    CLOSED = "closed"  # the session is closed and all was delivered
    SLOW = "slow"  # the reader fell too far behind; read on from its last ordinal
    STOPPING = "stopping"  # the server stops
    LEFT = "left"  # the reader itself let go


class Subscription:
    """Events of one session after an ordinal: an async iterator, and a context that lets go of it.

    `end_reason` says why it ended. Cancelling a wait for the next event loses nothing.
    """

    def __init__(
        self, source: EventLog, session_id: str, after_ordinal: int, capacity: int
    ) -> None:
        self._source = source
        self._session_id = session_id
        self._last_ordinal = after_ordinal
        self._capacity = capacity
        self._stored: deque[StoredEvent] = deque()
        self._live: deque[StoredEvent] = deque()
        self._registered = False
        self._caught_up = False
        self._wake = asyncio.Event()
        self.end_reason: EndReason | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredEvent:
        while True:
            if self._stored:
                return self._deliver(self._stored.popleft())
            if not self._caught_up:
                await self._read_stored()
            elif self._live:
                event = self._live.popleft()
                if event.ordinal > self._last_ordinal:
                    return self._deliver(event)
            elif self.end_reason is not None:
                self.close()
                raise StopAsyncIteration
            else:
                self._wake.clear()
                await self._wake.wait()

    def _deliver(self, event: StoredEvent) -> StoredEvent:
        self._last_ordinal = event.ordinal
        return event

    async def _read_stored(self) -> None:
        """Read a page; near the end register for live events, then read what is left.

        What is committed after registering is published to us, what was committed before is read
        here; an event that is both is skipped by its ordinal.
        """
        page = await self._source.read(self._session_id, after=self._last_ordinal, limit=_PAGE)
        self._stored.extend(page)
        if self._registered:
            self._caught_up = not page
        elif len(page) < _PAGE:
            await self._source.register(self._session_id, self)
            self._registered = True

    def close(self) -> None:
        """Let go; the iterator then ends."""
        self._source.unregister(self._session_id, self)
        self.end_reason = self.end_reason or EndReason.LEFT
        self._wake.set()

    def offer(self, event: StoredEvent) -> None:
        """Queue a live event; a full queue cuts the reader off."""
        if self.end_reason is not None:
            return
        if len(self._live) >= self._capacity:
            self.end(EndReason.SLOW)
            return
        self._live.append(event)
        self._wake.set()

    def end(self, reason: EndReason) -> None:
        """End after what is queued; the first reason stays."""
        self.end_reason = self.end_reason or reason
        self._wake.set()


class EventLog:
    """Step events of all sessions; all methods belong to one event loop.

    Args:
        store: Where events are kept.
        capacity: Live events that wait for one reader before it is cut off.

    `publishers` are called with each new event after its row is committed, in order, on the event
    loop; they must not block. One that raises is logged and does not stop the others.
    """

    def __init__(self, store: Store, *, capacity: int = 1000) -> None:
        self.publishers: list[Callable[[StoredEvent], None]] = []
        self._store = store
        self._capacity = capacity
        self._ordered = asyncio.Lock()  # events are published in the order of their ordinals
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def append(self, session_id: str, event: StepEvent) -> StoredEvent:
        """Store an event, then publish it; one that is stored already is only given back.

        A caller that is cancelled does not part the two: they are finished in the background.

        Raises:
            DataError: The evidence has no JSON form.
            NotFoundError: There is no such session.
            StateError: The session is closed.
        """
        return await self._finish(
            self._store_and_publish(self._store.append_event, session_id, event)
        )

    async def retract(self, event_id: str, retraction: EventRetraction) -> StoredEvent:
        """Mark an event as retracted, then publish it again, under its new ordinal.

        One that is retracted already is only given back.

        Raises:
            NotFoundError: There is no such event.
            StateError: Its session is closed.
        """
        return await self._finish(
            self._store_and_publish(self._store.retract_event, event_id, retraction)
        )

    async def read(
        self, session_id: str, *, after: int = 0, limit: int = 1000
    ) -> list[StoredEvent]:
        """Stored events of a session in order, those after the ordinal `after`."""
        return await asyncio.to_thread(self._store.events, session_id, after=after, limit=limit)

    def subscribe(self, session_id: str, after_ordinal: int = 0) -> Subscription:
        """Follow a session from after an ordinal (0: from its beginning)."""
        return Subscription(self, session_id, after_ordinal, self._capacity)

    async def end(self, session_id: str) -> None:
        """Tell the readers of a session that is now closed that nothing more will come."""
        async with self._ordered:
            for subscription in self._subscriptions.get(session_id, ()):
                subscription.end(EndReason.CLOSED)

    def stop(self) -> None:
        """End every subscription, now and from now on: open streams would keep uvicorn alive."""
        self._stopping = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.end(EndReason.STOPPING)

    def subscriber_count(self, session_id: str) -> int:
        """How many readers follow a session live."""
        return len(self._subscriptions.get(session_id, ()))

    async def _store_and_publish(
        self, write: Callable[..., tuple[StoredEvent, bool]], *args: Any
    ) -> StoredEvent:
        async with self._ordered:
            stored, is_new = await asyncio.to_thread(write, *args)
            if is_new:
                self._publish(stored)
            return stored

    def _publish(self, event: StoredEvent) -> None:
        for subscription in self._subscriptions.get(event.session_id, ()):
            subscription.offer(event)
        for publisher in self.publishers:
            try:
                publisher(event)
            except Exception:
                log.exception("a publisher of step events failed", event_id=event.id)

    async def _finish(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.create_task(work)
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def register(self, session_id: str, subscription: Subscription) -> None:
        """Give a subscription the events from now on; it ends at once if none can come."""
        self._subscriptions.setdefault(session_id, set()).add(subscription)
        if self._stopping:
            subscription.end(EndReason.STOPPING)
        session = await asyncio.to_thread(self._store.session, session_id)
        if session.state is SessionState.CLOSED:
            subscription.end(EndReason.CLOSED)

    def unregister(self, session_id: str, subscription: Subscription) -> None:
        """Give a subscription nothing more."""
        remaining = self._subscriptions.get(session_id, set())
        remaining.discard(subscription)
        if not remaining:
            self._subscriptions.pop(session_id, None)
