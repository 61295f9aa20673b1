"""A segment of a spool: one file of packets, each with its checksum, read back past any damage.

A record is `RECORD` (mark, CRC-32 of all that follows, running number, size of header and payload),
a packet's wire header and its payload. The first record describes the segment. What a killed
process left unfinished, or a disk has spoiled, fails its checksum: reading goes on at the next
record that is whole.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from keystep_capture import wire
from keystep_capture.errors import WireError
from keystep_capture.link import Payload
from keystep_capture.source import Life
from keystep_capture.streams import MAX_PAYLOAD_BYTES

RECORD = struct.Struct("<4sIIII")
PACKET_MARK, SEGMENT_MARK = b"KSp1", b"KSs1"
MAX_ATTEMPTS = 256
"""So often the next whole record of a damaged segment is looked for; then its rest is given up."""
SEARCH_BYTES = 256 * 1024

_NAME = re.compile(r"(\d{8,18})-([A-Za-z0-9._-]{1,64})\.spool\Z")


class SegmentNote(msgspec.Struct, kw_only=True, frozen=True):
    """What a segment says of itself.

    Attributes:
        session: The session of its packets, where it was known.
        streams: The streams of the source.
        first_ns: Device time of its first packet.
        counts: Per stream, packets of the same life in the segments before it.
    """

    session: wire.Identifier | None
    streams: Annotated[list[wire.Name], msgspec.Meta(max_length=32)]
    first_ns: wire.Count
    counts: wire.StreamCounts


_note_decoder = msgspec.msgpack.Decoder(SegmentNote)


class SpooledPacket(NamedTuple):
    """A packet out of a spool; `lost_count`: so many of its stream before it were spoiled."""

    header: wire.PacketHeader
    payload: bytes
    lost_count: int


@dataclass(slots=True, eq=False)
class Segment:
    """One file of a spool, and how far it was read.

    Attributes:
        path: The file.
        number: Its place in the spool.
        life: Whose packets are in it.
        first_ns, last_ns: Device times of its first packet and the newest that is known.
        size_bytes: How much of the file is good to read.
        read_bytes: How far it was read.
        last_sequences: Per stream the newest packet that was read from it or is held elsewhere.
    """

    path: Path
    number: int
    life: Life
    first_ns: int = 0
    last_ns: int = 0
    size_bytes: int = 0
    read_bytes: int = 0
    last_sequences: dict[str, int] = field(default_factory=dict)

    @property
    def is_read(self) -> bool:
        """Whether nothing of it is left to read."""
        return self.read_bytes >= self.size_bytes


def segment_path(folder: Path, number: int, life: Life) -> Path:
    """Where a segment lies; its name alone says whose it is."""
    return folder / f"{number:08d}-{life.instance}.spool"


def find_segment(path: Path) -> Segment | None:
    """A file of an earlier run; None: it is none of a spool.

    Raises:
        OSError: It cannot be read.
    """
    named = _NAME.match(path.name)
    if named is None or not path.is_file():
        return None
    life = Life(instance=named[2], session=None, streams=())
    segment = Segment(path, int(named[1]), life, size_bytes=path.stat().st_size)
    with path.open("rb") as file:
        note = _read_note(file, segment.size_bytes)
    if note is not None:
        segment.life = Life(instance=named[2], session=note.session, streams=tuple(note.streams))
        segment.first_ns = segment.last_ns = note.first_ns
    return segment


class SegmentWriter:
    """Appends to a new segment."""

    def __init__(self, segment: Segment, counts: Counter[str]) -> None:
        """Create the file.

        Args:
            segment: What is to be written; its `first_ns` is that of the packet to come.
            counts: Per stream, packets of its life in the segments before it.

        Raises:
            OSError: The disk does not take it; there is no file then.
        """
        self.segment = segment
        self._file = segment.path.open("xb", buffering=0)
        note = SegmentNote(
            session=segment.life.session,
            streams=list(segment.life.streams),
            first_ns=segment.first_ns,
            counts=dict(counts),
        )
        try:
            self._write(SEGMENT_MARK, 0, msgspec.msgpack.encode(note), b"")
        except OSError:
            self._file.close()
            segment.path.unlink(missing_ok=True)
            raise
        self._note_bytes = segment.size_bytes

    @property
    def is_empty(self) -> bool:
        """Whether no packet is in it."""
        return self.segment.size_bytes == self._note_bytes

    def append(self, header: wire.PacketHeader, payload: Payload, number: int) -> None:
        """Write a packet, the `number`th of its stream; it is with the operating system then.

        Raises:
            OSError: The disk does not take it; nothing of it is left in the file.
        """
        self._write(PACKET_MARK, number, wire.encode(header), payload)
        self.segment.last_ns = max(self.segment.last_ns, header.device_time_ns)

    def close(self) -> None:
        """End the segment."""
        self._file.close()

    def _write(self, mark: bytes, number: int, header: bytes, payload: Payload) -> None:
        sizes = struct.pack("<III", number & 0xFFFFFFFF, len(header), len(payload))
        check = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(sizes)))
        data = b"".join((mark, struct.pack("<I", check), sizes, header, payload))
        start = self.segment.size_bytes
        try:
            self._file.seek(start)
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._take_back(start)
            raise
        self.segment.size_bytes = start + len(data)

    def _take_back(self, size_bytes: int) -> None:
        try:
            self._file.truncate(size_bytes)
        except OSError:  # what follows is written over it, and it fails its checksum
            return


class SegmentReader:
    """Reads a segment from where it was left; may read what is still being written."""

    def __init__(self, segment: Segment) -> None:
        """Open the file.

        Raises:
            OSError: It cannot be read.
        """
        self.segment = segment
        self.damaged_bytes = 0
        self._file: BinaryIO = segment.path.open("rb", buffering=0)
        self._attempts = 0
        note = _read_note(self._file, segment.size_bytes)
        self.counts = None if note is None else dict(note.counts)

    def next(self) -> tuple[wire.PacketHeader, bytes, int] | None:
        """The next whole packet with its number; None: there is none left.

        Raises:
            OSError: The disk fails.
        """
        segment = self.segment
        while not segment.is_read:
            at = segment.read_bytes
            found = _read_record(self._file, at, segment.size_bytes)
            if found is None:
                segment.read_bytes = self._search(at + 1)
                self.damaged_bytes += segment.read_bytes - at
                continue
            segment.read_bytes = found.end
            if found.mark == SEGMENT_MARK:
                continue
            header = _packet_header(found)
            if header is not None:
                segment.last_ns = max(segment.last_ns, header.device_time_ns)
                return header, found.payload, found.number
            self.damaged_bytes += found.end - at
        return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _search(self, at: int) -> int:
        """Where the next record may begin; the end, where none does or too many were no records."""
        end, self._attempts = self.segment.size_bytes, self._attempts + 1
        if self._attempts > MAX_ATTEMPTS:
            return end
        while at < end:
            self._file.seek(at)
            piece = self._file.read(min(SEARCH_BYTES, end - at))
            if (place := piece.find(PACKET_MARK)) >= 0:
                return at + place
            if len(piece) < len(PACKET_MARK):
                return end
            at += len(piece) - len(PACKET_MARK) + 1  # a mark may lie across two pieces
        return end


class _Found(NamedTuple):
    mark: bytes
    number: int
    header: bytes
    payload: bytes
    end: int


def _read_record(file: BinaryIO, at: int, end: int) -> _Found | None:
    """The record at a place; None: there is no whole one."""
    file.seek(at)
    fixed = file.read(RECORD.size)
    if len(fixed) < RECORD.size:
        return None
    mark, check, number, header_bytes, payload_bytes = RECORD.unpack(fixed)
    size_bytes = header_bytes + payload_bytes
    if (
        mark not in (PACKET_MARK, SEGMENT_MARK)
        or header_bytes > wire.MAX_HEADER_BYTES
        or payload_bytes > MAX_PAYLOAD_BYTES
        or at + RECORD.size + size_bytes > end
    ):
        return None
    data = file.read(size_bytes)
    if len(data) < size_bytes or zlib.crc32(data, zlib.crc32(fixed[8:])) != check:
        return None
    return _Found(
        mark, number, data[:header_bytes], data[header_bytes:], at + RECORD.size + size_bytes
    )


def _read_note(file: BinaryIO, end: int) -> SegmentNote | None:
    found = _read_record(file, 0, end)
    if found is None or found.mark != SEGMENT_MARK:
        return None
    try:
        return _note_decoder.decode(found.header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _packet_header(found: _Found) -> wire.PacketHeader | None:
    """A record's packet; None: no server would take it."""
    try:
        header = wire.decode_client_message(found.header)
        if not isinstance(header, wire.PacketHeader):
            return None
        wire.check_payload(header, len(found.payload))
    except WireError:
        return None
    return header
