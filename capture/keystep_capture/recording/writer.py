"""Writes a session's packets and notes into the parts of a recording, in order of arrival.

What was flushed survives the death of the process; a write flushes when a second has passed since
the last flush. Not thread-safe: `RecordingQueue` is, and keeps the disk off the caller's path.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from keystep_capture.clock import Clock
from keystep_capture.errors import DataError, StateError
from keystep_capture.recording.container import CHUNK_BYTES, McapFile
from keystep_capture.recording.foxglove import Payload
from keystep_capture.recording.info import RecordingInfo
from keystep_capture.recording.notes import Note
from keystep_capture.recording.schemas import (
    FORMAT_VERSION,
    INFO_NAME,
    ChannelSpec,
    EncodedMessage,
    PacketEncoder,
    encode_note,
    schema_of,
)
from keystep_capture.wire import PacketHeader

FLUSH_EVERY_NS = 1_000_000_000
PART_BYTES = 1024 * 1024 * 1024
"""A part is ended when it holds this much; a reader holds 40 bytes of index per megabyte."""

_PART_NAME = re.compile(r"part-(\d{3,6})\.mcap\Z")


def part_paths(folder: Path) -> list[Path]:
    """The parts in a recording's folder, in order; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    numbered = ((_PART_NAME.match(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(m[1]), path) for m, path in numbered if m)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place in a recording up to which everything is in the files.

    Attributes:
        part: Name of the newest part.
        size_bytes: How much of it.
    """

    part: str
    size_bytes: int


def take_back(folder: Path, position: Position | None) -> None:
    """Cut off what was written after a position, so that it can be written again.

    What is left of the part lacks its index; it is read up to its end, a further part follows.

    Args:
        folder: A recording's folder that nobody writes.
        position: Where it is to end; None: at its beginning, all parts go.

    Raises:
        DataError: The position's part has no part's name.
        OSError: The files cannot be changed.
    """
    last = -1 if position is None else _number(position.part)
    for path in part_paths(folder):
        if _number(path.name) > last:
            path.unlink()
        elif position is not None and path.name == position.part:
            os.truncate(path, min(position.size_bytes, path.stat().st_size))


def _number(name: str) -> int:
    match = _PART_NAME.match(name)
    if match is None:
        raise DataError(f"expected the name of a part, part-000.mcap and on, got {name!r}")
    return int(match[1])


@cache
def _library() -> str:
    return f"keystep {version('keystep')}"


class RecordingWriter:
    """Appends parts to a recording's folder: `part-000.mcap`, `part-001.mcap`, ..."""

    def __init__(
        self,
        folder: Path,
        info: RecordingInfo,
        *,
        clock: Clock = time.monotonic_ns,
        utc_clock: Clock = time.time_ns,
        part_bytes: int = PART_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Prepare; the next part is created by the first packet or note.

        Args:
            folder: Made if it is not there; parts already in it are left as they are.
            info: What the recording says of itself.
            clock: The arrival clock, ns; `receive_time_ns` is read from it.
            utc_clock: UTC, ns since 1970, said once a part.
            part_bytes: When to begin a further part.
            chunk_bytes: When to end a chunk.
        """
        self.folder = folder
        self._info = info
        self._clock = clock
        self._utc_clock = utc_clock
        self._part_bytes = part_bytes
        self._chunk_bytes = chunk_bytes
        self._part: _Part | None = None
        self._flushed_ns = clock()
        self._closed = False
        self._unflushed: Counter[str] = Counter()
        self.packet_count = 0
        self.lost: Counter[str] = Counter()
        """Packets lost with the unflushed end of a part, per stream; at most these."""

    def write_packet(
        self, header: PacketHeader, payload: Payload, *, receive_time_ns: int | None = None
    ) -> None:
        """Append a packet as it came.

        Args:
            header: The wire's header.
            payload: Its payload; must not be changed before the next flush.
            receive_time_ns: When it arrived, on the arrival clock; None: now.

        Raises:
            WireError: The packet breaks docs/wire.md; nothing was written.
            OSError: The disk does not take it. The part was ended; the next call begins another.
        """
        part = self._open_part()
        messages = part.encoder.encode(header, payload)
        arrival_ns = self._clock() if receive_time_ns is None else receive_time_ns
        self._add(part, messages, header.device_time_ns, arrival_ns)
        self.packet_count += 1
        self._unflushed[header.stream] += 1
        self.flush_if_due()

    def write_note(
        self, note: Note, *, device_time_ns: int, receive_time_ns: int | None = None
    ) -> None:
        """Append what is no packet: a step event, guidance, a clock's reading, a tick.

        Args:
            note: What happened.
            device_time_ns: Its place on the timeline.
            receive_time_ns: When, on the arrival clock; None: now.

        Raises:
            OSError: As `write_packet`.
        """
        arrival_ns = self._clock() if receive_time_ns is None else receive_time_ns
        self._add(self._open_part(), [encode_note(note)], device_time_ns, arrival_ns)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Flush where a second has passed since the last flush; for callers that fall silent.

        Raises:
            OSError: As `write_packet`.
        """
        if self._part is not None and self._clock() - self._flushed_ns >= FLUSH_EVERY_NS:
            self.flush()

    def flush(self) -> Position | None:
        """Hand all that was written to the operating system.

        Returns:
            Where the recording ends now; None where this writer has no part open.

        Raises:
            OSError: As `write_packet`.
        """
        if self._part is None:
            return None
        try:
            self._part.file.flush()
            self._part.repeat_head()
        except OSError:
            self._abandon()
            raise
        self._flushed_ns = self._clock()
        self._unflushed.clear()
        file = self._part.file
        return Position(part=file.path.name, size_bytes=file.size_bytes)

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; may run beside the other calls.

        Raises:
            OSError: The disk failed.
        """
        part = self._part
        if part is not None:
            part.file.sync()

    def close(self) -> None:
        """End the part with its index.

        Raises:
            OSError: The disk does not take it; the part can be read and repaired.
        """
        self._closed = True
        self._end_part()

    def _add(
        self, part: _Part, messages: Sequence[EncodedMessage], time_ns: int, arrival_ns: int
    ) -> None:
        try:
            part.add(messages, max(0, time_ns), max(0, arrival_ns))
        except OSError:
            self._abandon()
            raise

    def _open_part(self) -> _Part:
        if self._closed:
            raise StateError(f"the recording in {self.folder} is closed")
        if self._part is not None and self._part.file.size_bytes >= self._part_bytes:
            self._end_part()
        if self._part is None:
            self._part = self._begin_part()
            self._flushed_ns = self._clock()
        return self._part

    def _begin_part(self) -> _Part:
        self.folder.mkdir(parents=True, exist_ok=True)
        last = part_paths(self.folder)[-1:]
        number = _number(last[0].name) + 1 if last else 0
        path = self.folder / f"part-{number:03d}.mcap"
        file = McapFile(path, library=_library(), chunk_bytes=self._chunk_bytes)
        info = replace(self._info, utc_ns=str(self._utc_clock()), clock_ns=str(self._clock()))
        metadata = {"format_version": FORMAT_VERSION, "part": str(number)}
        try:
            metadata |= info.to_metadata()
            file.add_metadata(INFO_NAME, metadata)
            file.flush()
        except OSError:
            file.abandon()
            path.unlink(missing_ok=True)  # nothing is in it; a full disk shall not fill with parts
            raise
        return _Part(file, metadata)

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        try:
            part.file.flush()
            part.repeat_head()
            part.file.close()
        except OSError:
            part.file.abandon()
            self._count_lost()
            raise
        self._unflushed.clear()

    def _abandon(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.file.abandon()
        self._count_lost()

    def _count_lost(self) -> None:
        self.lost += self._unflushed
        self._unflushed.clear()


class _Part:
    """One file and the channels it has."""

    def __init__(self, file: McapFile, metadata: Mapping[str, str]) -> None:
        self.file = file
        self._metadata = metadata
        self._repeated = False
        self.encoder = PacketEncoder()
        self._schema_ids: dict[str, int] = {}
        self._channel_ids: dict[int, int] = {}  # by the spec's identity, which is kept alive here
        self._specs: list[ChannelSpec] = []
        self._arrival = 0

    def repeat_head(self) -> None:
        """Say behind the first chunk again what stood before it: a file's first bytes get lost."""
        if self._repeated or not self._arrival:
            return
        self.file.add_metadata(INFO_NAME, self._metadata)
        self.file.repeat_schemas()
        self.file.flush()
        self._repeated = True

    def add(self, messages: Sequence[EncodedMessage], time_ns: int, arrival_ns: int) -> None:
        """Write the messages of one packet or note under one number of arrival."""
        arrival, add_message = self._arrival & 0xFFFFFFFF, self.file.add_message
        for spec, parts in messages:
            channel_id = self._channel_ids.get(id(spec)) or self._add_channel(spec)
            add_message(channel_id, arrival, time_ns, arrival_ns, parts)
        self._arrival += 1
        self.file.end_group()

    def _add_channel(self, spec: ChannelSpec) -> int:
        channel_id = self.file.add_channel(
            spec.topic, spec.message_encoding, self._schema_id(spec.schema_name), spec.metadata
        )
        self._channel_ids[id(spec)] = channel_id
        self._specs.append(spec)
        return channel_id

    def _schema_id(self, name: str) -> int:
        if name not in self._schema_ids:
            encoding, data = schema_of(name)
            self._schema_ids[name] = self.file.add_schema(name, encoding, data)
        return self._schema_ids[name]
