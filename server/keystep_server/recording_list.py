"""Which recordings there are: filtered, in order, page by page.

What the database knows is asked of it; what only the files know (sizes, whether they were closed,
the verdict that was kept) is looked at session by session.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from keystep_capture.errors import DataError
from keystep_capture.recording.health import Verdict
from keystep_server.sessions import SESSION_ID_PATTERN
from keystep_server.storage import Session, SessionKind, SessionState, Store

_PAGE: Final = 200
_CURSOR: Final = re.compile(rf"(?:([0-9]{{1,18}})\.)?({SESSION_ID_PATTERN[1:-1]})")
CURSOR_PATTERN: Final = f"^{_CURSOR.pattern}$"


class RecordingOrder(StrEnum):
    """In which order recordings are listed."""

    NEWEST = "newest"
    OLDEST = "oldest"
    LARGEST = "largest"


class HealthFilter(StrEnum):
    """A verdict, or that none was made yet."""

    GOOD = "good"
    USABLE = "usable"
    POOR = "poor"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFile:
    """A part of a recording."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRecording:
    """A session with what is recorded of it.

    Attributes:
        session: The session.
        files: Its parts.
        finished: Whether each part ends with its index; False while more may come.
        verdict: The verdict that was made of these files; None: none was asked for yet.
    """

    session: Session
    files: tuple[RecordingFile, ...]
    finished: bool
    verdict: Verdict | None = None

    @property
    def is_open(self) -> bool:
        """Whether its session is not closed, so that more may come."""
        return self.session.state is not SessionState.CLOSED

    @property
    def size_bytes(self) -> int:
        """Size of all parts."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFilter:
    """Which recordings are wanted, and in which order; None: any.

    Attributes:
        session_id: One session.
        device_id: Of this headset.
        kind: Of sessions of this kind.
        task: Of this task, by its whole name.
        begun_from: Of sessions opened at this time or later.
        begun_before: Of sessions opened before this time.
        finished: Whether each part ends with its index.
        health: By the verdict that was kept.
        order: The order.
    """

    session_id: str | None = None
    device_id: str | None = None
    kind: SessionKind | None = None
    task: str | None = None
    begun_from: datetime | None = None
    begun_before: datetime | None = None
    finished: bool | None = None
    health: HealthFilter | None = None
    order: RecordingOrder = RecordingOrder.NEWEST

    def takes(self, found: FoundRecording) -> bool:
        """Whether what only the files know is as wanted."""
        health = found.verdict or HealthFilter.UNKNOWN
        return self.finished in (None, found.finished) and self.health in (None, health)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingPage:
    """Recordings and the cursor of the page after them; None: this was the last."""

    recordings: tuple[FoundRecording, ...]
    next_cursor: str | None


def find_recordings(
    store: Store,
    look: Callable[[Session], FoundRecording | None],
    wanted: RecordingFilter,
    *,
    limit: int,
    cursor: str | None,
) -> RecordingPage:
    """A page of recordings (blocks).

    Args:
        store: Knows the sessions.
        look: Looks at a session's files; None where it has none.
        wanted: Filter and order.
        limit: How many at most.
        cursor: Of an earlier page with the same order; None: the first page.

    Raises:
        DataError: The cursor is not one of that order, or the times are the wrong way round.
    """
    _check_times(wanted)
    size_bytes, session_id = _parse_cursor(cursor, wanted.order)
    if wanted.order is RecordingOrder.LARGEST:
        everything = _matching(store, look, wanted, beyond=None)
        beyond = (
            one
            for one in everything
            if session_id is None or _size_key(one) < (size_bytes, session_id)
        )
        found = heapq.nlargest(limit + 1, beyond, key=_size_key)
    else:
        matching = _matching(store, look, wanted, beyond=session_id)
        found = list(itertools.islice(matching, limit + 1))
    page = tuple(found[:limit])
    more = len(found) > limit
    return RecordingPage(
        recordings=page, next_cursor=_cursor_after(page[-1], wanted.order) if more else None
    )


def _matching(
    store: Store,
    look: Callable[[Session], FoundRecording | None],
    wanted: RecordingFilter,
    *,
    beyond: str | None,
) -> Iterator[FoundRecording]:
    oldest_first = wanted.order is RecordingOrder.OLDEST
    while True:
        sessions = store.sessions(
            session_id=wanted.session_id,
            device_id=wanted.device_id,
            kind=wanted.kind,
            task=wanted.task,
            created_from=wanted.begun_from,
            created_before=wanted.begun_before,
            oldest_first=oldest_first,
            limit=_PAGE,
            beyond=beyond,
        )
        for session in sessions:
            found = look(session)
            if found is not None and wanted.takes(found):
                yield found
        if len(sessions) < _PAGE:
            return
        beyond = sessions[-1].id


def _size_key(found: FoundRecording) -> tuple[int, str]:
    return found.size_bytes, found.session.id


def _cursor_after(found: FoundRecording, order: RecordingOrder) -> str:
    if order is RecordingOrder.LARGEST:
        return f"{found.size_bytes}.{found.session.id}"
    return found.session.id


def _parse_cursor(cursor: str | None, order: RecordingOrder) -> tuple[int, str | None]:
    if cursor is None:
        return 0, None
    match = _CURSOR.fullmatch(cursor)
    if match is None or (match[1] is not None) != (order is RecordingOrder.LARGEST):
        raise DataError(
            f"cursor {cursor[:60]!r} is not one of the order {order.value}: take next_cursor of "
            "the page before, with the same filters and order"
        )
    return int(match[1] or 0), match[2]


def _check_times(wanted: RecordingFilter) -> None:
    start, end = wanted.begun_from, wanted.begun_before
    if start is not None and end is not None and start >= end:
        raise DataError(
            f"from is {start.isoformat()}, expected a time before to, {end.isoformat()}"
        )
