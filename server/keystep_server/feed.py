"""What jobs and key steps are now, for readers who want the newest and not every state between.

A reader who is slow misses states, never the last one: what waits for it is one notice per job and
session, however long it stays away.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from keystep_server.storage import KeyStepRevision


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing as it is now: `kind` and `key` say which, `data` (JSON values) how it is."""

    kind: str
    key: str
    session_id: str
    data: Mapping[str, Any]


class Follower:
    """Notices for one reader: an async iterator, and a context that lets go of it."""

    def __init__(self, feed: Feed, wanted: Callable[[Notice], bool]) -> None:
        self._feed = feed
        self._wanted = wanted
        self._waiting: OrderedDict[tuple[str, str], Notice] = OrderedDict()
        self._wake = asyncio.Event()
        self.stopped = False

    def __enter__(self) -> Self:
        self._feed.followers.add(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._feed.followers.discard(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notice:
        while not self._waiting:
            if self.stopped:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popitem(last=False)[1]

    def offer(self, notice: Notice) -> None:
        """Queue a notice in place of an older one of the same thing."""
        if self._wanted(notice):
            self._waiting[notice.kind, notice.key] = notice
            self._wake.set()

    def begin_with(self, notices: Iterable[Notice]) -> None:
        """Queue what was there before; what has changed since then is newer, and stays."""
        for notice in notices:
            self._waiting.setdefault((notice.kind, notice.key), notice)
        self._wake.set()

    def stop(self) -> None:
        """End after what waits."""
        self.stopped = True
        self._wake.set()


class Feed:
    """Hands notices to its followers; belongs to one event loop."""

    def __init__(self) -> None:
        self.followers: set[Follower] = set()
        self._stopping = False

    def follow(self, wanted: Callable[[Notice], bool]) -> Follower:
        """A reader of the notices wanted, from when it is entered as a context."""
        follower = Follower(self, wanted)
        if self._stopping:
            follower.stop()
        return follower

    def publish(self, notice: Notice) -> None:
        """Tell every follower that wants it."""
        for follower in self.followers:
            follower.offer(notice)

    def stop(self) -> None:
        """End all followers, now and from now on: open streams would keep uvicorn alive."""
        self._stopping = True
        for follower in self.followers:
            follower.stop()


def key_steps_notice(revision: KeyStepRevision) -> Notice:
    """That a session has a new revision of its key steps."""
    return Notice(
        kind="key_steps",
        key=revision.session_id,
        session_id=revision.session_id,
        data={
            "session_id": revision.session_id,
            "revision": revision.number,
            "origin": revision.origin.value,
            "job_id": revision.job_id,
            "key_step_count": len(revision.key_steps),
        },
    )
