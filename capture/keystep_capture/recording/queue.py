"""A recording off the caller's path: a bounded queue in memory and one thread that writes.

`offer` never waits for the disk. When the disk cannot follow, packets are left out as their
stream's policy says, counted, and the recording itself says so in a note.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from keystep_capture.clock import Clock
from keystep_capture.errors import KeystepError
from keystep_capture.recording.foxglove import Payload
from keystep_capture.recording.notes import DropNote, Note
from keystep_capture.recording.writer import Position, RecordingWriter
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PacketHeader

LIMIT_BYTES = 64 * 1024 * 1024
PACKET_OVERHEAD_BYTES = 1024
"""What a waiting packet takes beside its payload, at most."""
NEWEST_SHARE = 0.75
"""`newest` streams are left out beyond this share of the limit; the rest is kept for the others."""
GATHER_S = 0.1
"""What was offered waits so long for more, since waking a thread costs more than a packet."""
GATHER_BYTES = 1024 * 1024
"""When so much waits, it is written at once."""
RETRY_AFTER_NS = 2_000_000_000
MAX_RETRY_AFTER_NS = 64_000_000_000
"""A disk that takes some and fails again is tried ever more seldom: each time begins a part."""
"""After an error of the disk nothing is written for so long, then a further part is begun."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """How a queue stands.

    Attributes:
        queued_bytes: What waits.
        limit_bytes: The most that may wait.
        written_count: Packets written.
        dropped: Packets left out so far, per stream; notes under `notes`.
        disk_error: What the disk said last, while nothing can be written; None: all is well.
    """

    queued_bytes: int
    limit_bytes: int
    written_count: int
    dropped: dict[str, int]
    disk_error: str | None


class QueueMark:
    """A moment among what was offered: reached when all before it was flushed, or was lost.

    Attributes:
        position: Where the recording ended then, once reached; None: nothing was ever flushed.
    """

    def __init__(self) -> None:
        self.position: Position | None = None
        self._reached = threading.Event()
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def is_reached(self) -> bool:
        """Whether all that was offered before is with the operating system, or was counted."""
        return self._reached.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is reached; False where time ran out."""
        return self._reached.wait(timeout_s)

    def when_reached(self, call: Callable[[], None]) -> None:
        """Call something once it is reached, in the writing thread; at once if it is already."""
        with self._lock:
            if not self._reached.is_set():
                self._calls.append(call)
                return
        call()

    def reach(self, position: Position | None) -> None:
        """Say that it is reached; for who writes."""
        with self._lock:
            self.position = position
            self._reached.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()


@dataclass(frozen=True, slots=True, kw_only=True)
class _MarkItem:
    mark: QueueMark
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _PacketItem:
    header: PacketHeader
    payload: Payload
    receive_time_ns: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoteItem:
    note: Note
    device_time_ns: int
    receive_time_ns: int
    size: int


_Item: TypeAlias = _PacketItem | _NoteItem | _MarkItem


class RecordingQueue:
    """Feeds a `RecordingWriter` from any thread."""

    def __init__(
        self,
        writer: RecordingWriter,
        *,
        limit_bytes: int = LIMIT_BYTES,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Start the writing thread; the writer belongs to it until `close`.

        Args:
            writer: Where to.
            limit_bytes: The most that may wait in memory.
            clock: The arrival clock, ns.
        """
        self._writer = writer
        self._limit_bytes = limit_bytes
        self._gather_bytes = min(GATHER_BYTES, limit_bytes // 4)
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[_Item] = deque()
        self._queued_bytes = 0
        self._skipping: set[tuple[str, int]] = set()  # videos that wait for their key frame
        self._dropped: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()  # dropped, and not yet said in the recording
        self._disk_error: str | None = None
        self._retry_ns = 0
        self._retry_after_ns = RETRY_AFTER_NS
        self._recovered_ns: int | None = None
        self._newest_ns = 0
        self._busy = False
        self._urgent = False  # somebody waits for what was offered so far
        self._behind = False  # not all that waited was taken
        self._closing = False
        self._ended = False
        self._position: Position | None = None
        self._thread = threading.Thread(target=self._run, name="keystep recording", daemon=True)
        self._thread.start()

    def offer(
        self, header: PacketHeader, payload: Payload, *, receive_time_ns: int | None = None
    ) -> bool:
        """Record a packet, or leave it out as its stream's policy says; never waits for the disk.

        Args:
            header: A header that `wire.check_payload` has passed.
            payload: Its payload; must not be changed afterwards.
            receive_time_ns: When it arrived; None: now.

        Returns:
            Whether it was taken.
        """
        arrival_ns = self._clock() if receive_time_ns is None else receive_time_ns
        size = len(payload) + PACKET_OVERHEAD_BYTES
        item = _PacketItem(header=header, payload=payload, receive_time_ns=arrival_ns, size=size)
        with self._changed:
            if not self._admits(header, size):
                self._count_drop(header.stream)
                return False
            self._put(item)
        return True

    def offer_note(
        self, note: Note, *, device_time_ns: int, receive_time_ns: int | None = None
    ) -> bool:
        """Record a note; left out only when the queue is full.

        Returns:
            Whether it was taken.
        """
        arrival_ns = self._clock() if receive_time_ns is None else receive_time_ns
        size = PACKET_OVERHEAD_BYTES * 4
        item = _NoteItem(
            note=note, device_time_ns=device_time_ns, receive_time_ns=arrival_ns, size=size
        )
        with self._changed:
            if self._closing or self._queued_bytes + size > self._limit_bytes:
                self._count_drop("notes")
                return False
            self._put(item)
        return True

    def mark(self) -> QueueMark:
        """Note this moment; what was offered so far is written and flushed without delay."""
        mark = QueueMark()
        with self._changed:
            if not self._ended:
                self._put(_MarkItem(mark=mark))
                self._hurry()
                return mark
        mark.reach(self._position)
        return mark

    @property
    def queued_bytes(self) -> int:
        """What waits."""
        return self._queued_bytes

    def state(self) -> QueueState:
        """How the queue stands now."""
        with self._changed:
            return QueueState(
                queued_bytes=self._queued_bytes,
                limit_bytes=self._limit_bytes,
                written_count=self._writer.packet_count,
                dropped=dict(self._dropped),
                disk_error=self._disk_error,
            )

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Wait until all that was offered is written or given up; False where time ran out."""
        with self._changed:
            self._hurry()
            return self._changed.wait_for(
                lambda: not self._waiting and not self._busy, timeout=timeout_s
            )

    def close(self, timeout_s: float = 30.0) -> bool:
        """Write what waits, end the recording and stop the thread.

        Returns:
            Whether all was done in time; the thread goes on by itself where not.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- with the lock held ----------------------------------------------------------------------

    def _admits(self, header: PacketHeader, size: int) -> bool:
        if self._closing:
            return False
        spec = STREAMS[header.stream]
        share = NEWEST_SHARE if spec.policy == "newest" else 1.0
        fits = self._queued_bytes + size <= self._limit_bytes * share
        if not spec.encodings[header.encoding].video:
            return fits
        lane = (header.stream, header.epoch)
        if not fits or (lane in self._skipping and not header.keyframe):
            self._skipping.add(lane)
            return False
        self._skipping.discard(lane)
        return True

    def _put(self, item: _Item) -> None:
        self._waiting.append(item)
        self._queued_bytes += item.size
        if not self._busy and (len(self._waiting) == 1 or self._is_full_enough):
            self._changed.notify_all()

    @property
    def _is_full_enough(self) -> bool:
        in_time = self._urgent or self._behind or self._closing
        return in_time or self._queued_bytes >= self._gather_bytes

    def _hurry(self) -> None:
        self._urgent = True
        self._changed.notify_all()

    def _count_drop(self, stream: str) -> None:
        self._dropped[stream] += 1
        self._untold[stream] += 1

    # -- in the writing thread -------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            for item in batch:
                if isinstance(item, _MarkItem):
                    self._reach(item.mark)
                else:
                    self._write(item)
            self._tell_drops()
            self._guard(self._writer.flush_if_due)
            with self._changed:
                self._queued_bytes -= sum(item.size for item in batch)
                self._busy = False
                self._changed.notify_all()
        self._guard(self._flush)
        self._guard(self._writer.close)

    def _take(self) -> list[_Item] | None:
        """What waits; an empty list after half a second of silence, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, timeout=0.5)
            if self._waiting:
                self._changed.wait_for(lambda: self._is_full_enough, timeout=GATHER_S)
            self._busy = bool(self._waiting)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), 64))]
            self._behind = bool(self._waiting)
            self._urgent = self._urgent and self._behind
            self._ended = self._closing and not batch
            return None if self._ended else batch

    def _reach(self, mark: QueueMark) -> None:
        if self._disk_error is None:
            self._guard(self._flush)
        mark.reach(self._position)

    def _flush(self) -> None:
        self._position = self._writer.flush() or self._position

    def _write(self, item: _PacketItem | _NoteItem) -> None:
        if self._disk_error is not None and self._clock() < self._retry_ns:
            self._lose(item)
            return
        try:
            if isinstance(item, _NoteItem):
                self._writer.write_note(
                    item.note,
                    device_time_ns=item.device_time_ns,
                    receive_time_ns=item.receive_time_ns,
                )
            else:
                self._newest_ns = item.header.device_time_ns
                self._writer.write_packet(
                    item.header, item.payload, receive_time_ns=item.receive_time_ns
                )
        except OSError as error:
            self._fail(error)
            self._lose(item)
        except (KeystepError, TypeError, ValueError) as error:  # it should not have been offered
            log.warning("something was not recorded", error=str(error))
            self._lose(item)
        else:
            self._recover()

    def _lose(self, item: _PacketItem | _NoteItem) -> None:
        with self._changed:
            if isinstance(item, _NoteItem):
                self._count_drop("notes")
                return
            header = item.header
            self._count_drop(header.stream)
            if STREAMS[header.stream].encodings[header.encoding].video:
                self._skipping.add((header.stream, header.epoch))

    def _tell_drops(self) -> None:
        with self._changed:
            if not self._untold or self._disk_error is not None:
                return
            note = DropNote(dropped=dict(self._untold), reason="the disk did not follow")
            self._untold.clear()
        self._guard(lambda: self._writer.write_note(note, device_time_ns=self._newest_ns))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        now_ns = self._clock()
        if self._disk_error is None:
            log.error("recording: the disk does not take it", error=str(error))
            again = self._recovered_ns is not None and (
                now_ns - self._recovered_ns < MAX_RETRY_AFTER_NS
            )
            longer_ns = min(2 * self._retry_after_ns, MAX_RETRY_AFTER_NS)
            self._retry_after_ns = longer_ns if again else RETRY_AFTER_NS
        lost, self._writer.lost = self._writer.lost, Counter()
        with self._changed:
            self._disk_error = str(error)
            self._dropped += lost
            self._untold += lost
        self._retry_ns = now_ns + self._retry_after_ns

    def _recover(self) -> None:
        if self._disk_error is not None:
            log.info("recording: the disk takes it again")
            self._recovered_ns = self._clock()
            with self._changed:
                self._disk_error = None
