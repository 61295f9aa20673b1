"""A source's packets on its own disk: what its server cannot take now, in order, up to a limit.

A folder of segments (`spool_file`): the newest is appended to, the oldest is read, and one is
deleted when all of it was acknowledged. What was appended outlives the process, and the next one
finds it. Single-threaded; a disk that fails is reported and tried again, it raises nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from keystep_capture.clock import Clock
from keystep_capture.errors import StateError
from keystep_capture.link import Payload
from keystep_capture.source import Life
from keystep_capture.spool_file import (
    Segment,
    SegmentReader,
    SegmentWriter,
    SpooledPacket,
    find_segment,
    segment_path,
)
from keystep_capture.wire import PacketHeader

LIMIT_BYTES = 20 * 1024**3
SEGMENT_BYTES = 16 * 1024**2
OVERHEAD_BYTES = 1024
"""What a packet takes beside its payload, at most."""
RETRY_AFTER_NS = 2_000_000_000
"""After an error of the disk nothing is written for so long."""
FULL_RETRY_NS = 200_000_000
"""Nor, when the limit was reached, for so long."""
TELL_AGAIN_NS = 60_000_000_000
"""The same trouble is told of again after this."""
UNSENT_FOLDER = "unsent"
"""Where packets go whose session is closed: nobody will take them, and nobody deletes them."""

log = structlog.get_logger(__name__)


class Spool:
    """The packets of one device that wait on the disk."""

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Find what an earlier run has left; a folder that cannot be used is reported.

        Args:
            folder: The device's own; made if it is not there.
            limit_bytes: The most that may be on the disk, what was set aside included.
            segment_bytes: When to begin a further file.
            clock: Monotonic clock, ns.

        Raises:
            StateError: Another process uses the folder.
        """
        self.folder = folder
        self.error: str | None = None
        self.damaged_bytes = 0
        self._limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._told_ns: dict[str, int] = {}
        self._retry_ns: int | None = None
        self._lock: int | None = None
        self._closed = False
        self._segments: list[Segment] = []
        self._stored_bytes = 0
        self._unsent_bytes = 0
        self._next_number = 0
        self._writer: SegmentWriter | None = None
        self._written: tuple[str, Counter[str]] = ("", Counter())
        self._reader: SegmentReader | None = None
        self._reading = _Reading("")
        try:
            self._segments = self._open()
            self._stored_bytes = sum(segment.size_bytes for segment in self._segments)
        except BlockingIOError:
            raise StateError(
                f"another process uses the spool in {folder}: end it, or name another folder"
            ) from None
        except OSError as error:
            self._fail(error)

    # -- what is there ---------------------------------------------------------------------------

    @property
    def lives(self) -> list[Life]:
        """Whose packets are there, oldest first."""
        return list({segment.life.instance: segment.life for segment in self._segments}.values())

    @property
    def size_bytes(self) -> int:
        """What it takes of the disk."""
        return self._unsent_bytes + self._stored_bytes

    @property
    def has_unread(self) -> bool:
        """Whether there are packets that were not read yet."""
        return bool(self._segments) and not self._segments[-1].is_read

    @property
    def may_append(self) -> bool:
        """Whether it is worth trying to write."""
        return not self._closed and (self._retry_ns is None or self._clock() >= self._retry_ns)

    @property
    def next_instance(self) -> str | None:
        """Whose packet would be read next; None: there is none."""
        segment = self._first_unread()
        return None if segment is None else segment.life.instance

    @property
    def unread_bytes(self) -> int:
        """What was not read yet."""
        return sum(segment.size_bytes - segment.read_bytes for segment in self._segments)

    @property
    def unread_ns(self) -> int:
        """Device time from the packet read last to the newest, summed over lives; about."""
        spans: dict[str, tuple[int, int]] = {}
        for segment in self._segments:
            if segment.is_read:
                continue
            first, last = spans.get(segment.life.instance, (segment.first_ns, 0))
            spans[segment.life.instance] = first, max(last, segment.last_ns)
        read = self._reading
        if read.instance in spans and read.newest_ns is not None:
            spans[read.instance] = read.newest_ns, spans[read.instance][1]
        return sum(max(0, last - first) for first, last in spans.values())

    # -- writing ---------------------------------------------------------------------------------

    def append(
        self, life: Life, header: PacketHeader, payload: Payload, *, is_held: bool = False
    ) -> bool:
        """Write a packet behind all others.

        Args:
            life: Whose it is.
            header: Its header; session, epoch and time of sending do not matter.
            payload: Its payload.
            is_held: It need not be read, the caller has it; only where nothing is unread.

        Returns:
            Whether it was written; else why not was reported.
        """
        assert not (is_held and self.has_unread)
        if not self.may_append:
            return False
        try:
            if self._lock is None:
                self._open()  # what an earlier run has left there is for the next one
            if self.size_bytes + len(payload) + OVERHEAD_BYTES > self._limit_bytes:
                self._retry_ns = self._clock() + FULL_RETRY_NS
                self._tell(f"its limit of {self._limit_bytes / 1e9:g} GB is reached")
                return False
            self._append(life, header, payload, is_held=is_held)
        except OSError as error:
            self._fail(error)
            return False
        if self.error is not None:
            log.info("the spool takes packets again", folder=str(self.folder))
        self.error = self._retry_ns = None
        return True

    def _append(self, life: Life, header: PacketHeader, payload: Payload, *, is_held: bool) -> None:
        if self._written[0] != life.instance:
            self._written = (life.instance, Counter())
        counts = self._written[1]
        writer = self._writer_of(life, header.device_time_ns, counts)
        number, before = counts[header.stream], writer.segment.size_bytes
        writer.append(header, payload, number)
        self._stored_bytes += writer.segment.size_bytes - before
        if is_held:
            self._begin_reading(life.instance, counts)
            self._note_read(writer.segment, header, number)
            writer.segment.read_bytes = writer.segment.size_bytes
        counts[header.stream] += 1

    def _writer_of(self, life: Life, first_ns: int, counts: Counter[str]) -> SegmentWriter:
        writer = self._writer
        if writer is not None:
            segment = writer.segment
            if segment.life == life and segment.size_bytes < self._segment_bytes:
                return writer
            self._end_segment()
        path = segment_path(self.folder, self._next_number, life)
        segment = Segment(path, self._next_number, life, first_ns=first_ns, last_ns=first_ns)
        self._next_number += 1
        self._writer = writer = SegmentWriter(segment, counts)
        segment.read_bytes = segment.size_bytes  # what it says of itself is known here
        self._stored_bytes += segment.size_bytes
        self._segments.append(segment)
        return writer

    def _end_segment(self) -> None:
        """Close the newest segment; one without packets is deleted."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.close()
        if writer.is_empty:
            self._delete(writer.segment)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, instance: str) -> SpooledPacket | None:
        """The next packet of a life; None: there is none left before those of the next one."""
        while (segment := self._first_unread()) is not None and segment.life.instance == instance:
            try:
                reader = self._reader_of(segment)
                before = reader.damaged_bytes
                found = reader.next()
                self._note_damage(segment, reader.damaged_bytes - before)
            except OSError as error:
                log.error("a spool cannot be read", file=segment.path.name, error=str(error))
                self._note_damage(segment, segment.size_bytes - segment.read_bytes)
                segment.read_bytes = segment.size_bytes
                continue
            if found is not None:
                header, payload, number = found
                return SpooledPacket(header, payload, self._note_read(segment, header, number))
        return None

    def release(self, instance: str, first_held: Mapping[str, int]) -> None:
        """Delete what was acknowledged.

        Args:
            instance: Whose packets were read last.
            first_held: Per stream the oldest packet that is still held for sending (again).
        """
        while self._segments:
            segment = self._segments[0]
            if segment.life.instance != instance or not segment.is_read:
                return
            for stream, last in segment.last_sequences.items():
                if first_held.get(stream, last + 1) <= last:
                    return
            self._delete(segment)

    def discard(self, instance: str) -> None:
        """Delete all packets of a life."""
        for segment in self._of(instance):
            self._delete(segment)

    def set_aside(self, instance: str) -> int:
        """Put a life's packets into a folder from which none is sent; bytes."""
        segments, target = self._of(instance), self.folder / UNSENT_FOLDER
        size_bytes = sum(segment.size_bytes for segment in segments)
        try:
            target.mkdir(exist_ok=True)
            for segment in segments:
                segment.path.replace(target / segment.path.name)
        except OSError as error:
            log.error("packets could not be set aside", folder=str(target), error=str(error))
        for segment in segments:
            self._forget(segment)
        self._unsent_bytes += size_bytes
        return size_bytes

    def close(self) -> None:
        """Close the files; what they hold is for the next run."""
        self._closed = True
        self._end_segment()
        self._close_reader()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- segments --------------------------------------------------------------------------------

    def _open(self) -> list[Segment]:
        """Make the folder this process's own; what is in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = _find_segments(self.folder.iterdir())
            unsent = self.folder / UNSENT_FOLDER
            if unsent.is_dir():
                self._unsent_bytes = sum(path.stat().st_size for path in unsent.iterdir())
        except OSError:
            os.close(lock)
            raise
        self._lock = lock
        self._next_number = max((segment.number for segment in found), default=-1) + 1
        return found

    def _first_unread(self) -> Segment | None:
        return next((segment for segment in self._segments if not segment.is_read), None)

    def _of(self, instance: str) -> list[Segment]:
        return [segment for segment in self._segments if segment.life.instance == instance]

    def _reader_of(self, segment: Segment) -> SegmentReader:
        if self._reader is None or self._reader.segment is not segment:
            self._close_reader()
            self._reader = SegmentReader(segment)
            self._begin_reading(segment.life.instance, self._reader.counts)
        return self._reader

    def _begin_reading(self, instance: str, counts: Mapping[str, int] | None) -> None:
        if self._reading.instance != instance:
            self._reading = _Reading(instance, counts)

    def _note_read(self, segment: Segment, header: PacketHeader, number: int) -> int:
        """A packet was read, or is held by the caller; how many of its stream were not."""
        segment.last_sequences[header.stream] = max(
            header.sequence, segment.last_sequences.get(header.stream, -1)
        )
        return self._reading.note(header, number)

    def _note_damage(self, segment: Segment, byte_count: int) -> None:
        if byte_count:
            self.damaged_bytes += byte_count
            log.error("a part of a spool is spoiled", file=segment.path.name, bytes=byte_count)

    def _delete(self, segment: Segment) -> None:
        self._forget(segment)
        with suppress(OSError):  # it is sent again then, and the server knows it
            segment.path.unlink(missing_ok=True)

    def _forget(self, segment: Segment) -> None:
        if self._writer is not None and self._writer.segment is segment:
            self._writer.close()
            self._writer = None
        if self._reader is not None and self._reader.segment is segment:
            self._close_reader()
        if segment in self._segments:
            self._segments.remove(segment)
            self._stored_bytes -= segment.size_bytes

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # -- trouble ---------------------------------------------------------------------------------

    def _fail(self, error: OSError) -> None:
        self._retry_ns = self._clock() + RETRY_AFTER_NS
        self._end_segment()
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = " (make room there)" if error.errno == errno.ENOSPC else ""
        self._tell(reason + hint)

    def _tell(self, reason: str) -> None:
        self.error = reason
        now_ns = self._clock()
        told_ns = self._told_ns.get(reason)
        if told_ns is None or now_ns - told_ns > TELL_AGAIN_NS:
            self._told_ns[reason] = now_ns
            log.error(
                "the spool takes no packets: what the server cannot take is dropped",
                folder=str(self.folder),
                reason=reason,
            )


class _Reading:
    """Where reading stands within a life."""

    def __init__(self, instance: str, counts: Mapping[str, int] | None = None) -> None:
        self.instance = instance
        self.newest_ns: int | None = None
        self._is_known = counts is not None
        self._next = dict(counts or {})

    def note(self, header: PacketHeader, number: int) -> int:
        """A packet is the `number`th of its stream; how many before it were skipped."""
        self.newest_ns = header.device_time_ns
        expected = self._next.get(header.stream, 0 if self._is_known else number)
        self._next[header.stream] = number + 1
        return max(0, number - expected)


def _find_segments(paths: Iterable[Path]) -> list[Segment]:
    """An earlier run's segments in order, each with all that is known of its life."""
    found = []
    for path in paths:
        try:
            segment = find_segment(path)
        except OSError as error:
            log.error("a spool cannot be read", file=path.name, error=str(error))
            continue
        if segment is not None:
            found.append(segment)
    found.sort(key=lambda segment: segment.number)
    sessions = {s.life.instance: s.life.session for s in found if s.life.session is not None}
    streams: dict[str, dict[str, None]] = {}
    for segment in found:
        streams.setdefault(segment.life.instance, {}).update(dict.fromkeys(segment.life.streams))
    for segment in found:
        instance = segment.life.instance
        segment.life = replace(
            segment.life, session=sessions.get(instance), streams=tuple(streams[instance])
        )
    return found
