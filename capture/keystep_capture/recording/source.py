"""Reads one MCAP file that may be cut off, damaged or made to do harm.

Every length is checked against the file and a stated limit before anything is allocated. A file
without its index is scanned: nine bytes a record, no message.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Metadata, MetadataIndex, Schema, Statistics
from mcap.writer import MCAP0_MAGIC

from keystep_capture.errors import DataError
from keystep_capture.recording.salvage import HEAD_BYTES, find_chunk, is_chunk

MAX_CHUNK_BYTES: Final = 64 * 1024 * 1024
"""Largest chunk, as stored and when unpacked."""
MAX_SUMMARY_BYTES: Final = 64 * 1024 * 1024
MAX_SMALL_RECORD_BYTES: Final = 1024 * 1024
"""Largest schema, channel or metadata."""
MAX_CHANNELS: Final = 4096
MAX_RECORDS: Final = 2_000_000
"""Records outside of chunks; an hour has about 50,000."""
MAX_CHANNELS_KEPT: Final = 200_000
"""Channels' ids in all the different sets that chunks have; a recording has a handful of sets."""
MAX_UNPACKING: Final = 100
"""A chunk may unpack to so many times its stored size; beyond that it is a compression bomb."""

_MAX_STORED_BYTES: Final = MAX_CHUNK_BYTES + 1024
_SEARCHED_BYTES: Final = 8 * 1024 * 1024
"""What does not begin as an MCAP file and has no chunk up to here is none."""
_MAX_BREAKS: Final = 1000
"""A file that breaks in more places is read up to there."""
_END_BYTES: Final = {int(Opcode.DATA_END): 4, int(Opcode.FOOTER): 20}
_RECORD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_CHUNK = struct.Struct("<QQQII")  # times, size unpacked, CRC, length of the compression's name
_CHUNK_INDEX = struct.Struct("<QQQQ")  # times, offset, length
_INDEX_ENTRY = struct.Struct("<HQ")  # channel, where its message index is
_FOOTER = struct.Struct("<BQQQI")
_MAGIC_BYTES = len(MCAP0_MAGIC)

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A place where a file is not what it should be.

    Attributes:
        path: The file.
        offset: Where, in bytes from its beginning.
        reason: What was expected and what is there.
    """

    path: Path
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: at byte {self.offset}: {self.reason}"


class DamagedError(DataError):
    """A file is damaged; `damage` says where."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(str(damage))
        self.damage = damage


class RawMessage(NamedTuple):
    """A message of a chunk; `data` is a view of the chunk's bytes."""

    channel_id: int
    sequence: int
    log_time_ns: int
    publish_time_ns: int
    data: memoryview


class McapSource:
    """One file, opened for reading; its channels and chunks are known, its messages are not read.

    Attributes:
        path: The file.
        size_bytes: Its size.
        channels: By id.
        schemas: Names by id.
        metadata: The metadata records that were found, by name.
        statistics: Of a file that was closed properly.
        finished: Whether it was closed properly: its index stands at its end.
        damage: What was found damaged while it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its index, or scan it where there is none.

        Raises:
            DataError: It is empty or no MCAP file.
            OSError: It cannot be read.
        """
        self.path = path
        self.channels: dict[int, Channel] = {}
        self.schemas: dict[int, str] = {}
        self.metadata: dict[str, Mapping[str, str]] = {}
        self.statistics: Statistics | None = None
        self.finished = False
        self.damage: list[Damage] = []
        self._after_breaks: list[int] = []
        self._file = path.open("rb")
        try:
            self.size_bytes = self._file.seek(0, io.SEEK_END)
            begins_well = self._begins_well()
            self._forget_chunks()
            if not self._read_index():
                if not begins_well and self._find_chunk(0, stop=_SEARCHED_BYTES) is None:
                    raise DataError(str(self.damage[0]))
                self._after_breaks.clear()
                self._scan()
                self._learn_from_chunks()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # -- chunks ----------------------------------------------------------------------------------

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self._offsets)

    def chunk_times(self, idx: int) -> tuple[int, int]:
        """First and last log time in a chunk, ns, as its index says."""
        return self._start_times[idx], self._end_times[idx]

    def chunk_offset(self, idx: int) -> int:
        """Where a chunk begins in the file."""
        return self._offsets[idx]

    def chunk_channels(self, idx: int) -> frozenset[int] | None:
        """Ids of the channels with messages in a chunk; None: neither index nor a reading said."""
        return self._chunk_channels.get(idx)

    def messages(self, idx: int) -> Iterator[RawMessage]:
        """The messages of a chunk, in order; channels that it repeats are learned.

        Raises:
            DamagedError: The chunk is not what its checksum or lengths say.
        """
        data, offset = memoryview(self._chunk_data(idx)), self._offsets[idx]
        position, end = 0, len(data)
        found: set[int] = set()
        while position < end:
            if end - position < _RECORD.size:
                raise self._damaged(offset, "the chunk ends within a record")
            opcode, length = _RECORD.unpack_from(data, position)
            body = position + _RECORD.size
            position = body + length
            if position > end:
                raise self._damaged(offset, f"a record of {length} bytes exceeds its chunk")
            if opcode == Opcode.MESSAGE:
                if length < _MESSAGE.size:
                    raise self._damaged(offset, f"a message record has only {length} bytes")
                channel_id, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(data, body)
                content = data[body + _MESSAGE.size : position]
                found.add(channel_id)
                yield RawMessage(channel_id, sequence, log_ns, publish_ns, content)
            elif opcode == Opcode.CHANNEL:
                self._learn_channel(bytes(data[body:position]), offset)
            elif opcode == Opcode.SCHEMA:
                self._learn_schema(bytes(data[body:position]), offset)
        if idx not in self._chunk_channels:
            self._remember_channels(idx, frozenset(found))

    def stored_crc(self, idx: int) -> int:
        """A chunk's checksum as stored; 0: it has none."""
        offset = self._offsets[idx]
        return int(_CHUNK.unpack(self._read(offset + _RECORD.size, _CHUNK.size))[3])

    def _chunk_data(self, idx: int) -> bytes:
        offset, length = self._offsets[idx], self._lengths[idx]
        record = self._read(offset, length)
        opcode, body_length = _RECORD.unpack_from(record)
        if opcode != Opcode.CHUNK or body_length != length - _RECORD.size:
            raise self._damaged(offset, f"expected a chunk of {length} bytes, as the index says")
        fields_end = _RECORD.size + _CHUNK.size
        if length < fields_end + 8:
            raise self._damaged(offset, f"a chunk of {length} bytes is too short")
        _, _, size, crc, name_length = _CHUNK.unpack_from(record, _RECORD.size)
        name_end = fields_end + name_length
        if name_length > 16 or name_end + 8 > length:
            raise self._damaged(offset, f"the compression's name has {name_length} bytes")
        (stored,) = struct.unpack_from("<Q", record, name_end)
        if name_end + 8 + stored != length:
            raise self._damaged(
                offset, f"expected {length - name_end - 8} bytes in the chunk, it says {stored}"
            )
        name, data = record[fields_end:name_end], record[name_end + 8 :]
        unpacked = self._unpack(data, size, name, offset)
        if crc and zlib.crc32(unpacked) != crc:
            raise self._damaged(offset, f"the chunk's checksum is wrong: expected {crc:08x}")
        return unpacked

    def _unpack(self, data: bytes, size: int, name: bytes, offset: int) -> bytes:
        if size > MAX_CHUNK_BYTES or size > MAX_UNPACKING * len(data) + 65536:
            raise self._damaged(
                offset, f"a chunk of {len(data)} bytes says that it unpacks to {size}"
            )
        if name not in _UNPACK:
            raise self._damaged(
                offset, f"compression {name!r} is unknown; known: none, lz4 and zstd"
            )
        try:
            unpacked = _UNPACK[name](data, size)
        except (zstandard.ZstdError, RuntimeError, EOFError, ValueError, MemoryError) as error:
            raise self._damaged(offset, f"the chunk cannot be unpacked: {error}") from None
        if len(unpacked) != size:
            raise self._damaged(
                offset, f"the chunk unpacks to {len(unpacked)} bytes or more, expected {size}"
            )
        return unpacked

    # -- opening ---------------------------------------------------------------------------------

    def _begins_well(self) -> bool:
        if not self.size_bytes:
            raise DataError(f"{self.path}: the file is empty, expected an MCAP recording")
        found = self._read(0, min(_MAGIC_BYTES, self.size_bytes))
        if found != MCAP0_MAGIC:
            self._note(
                0, f"expected an MCAP recording, which begins with {MCAP0_MAGIC!r}, got {found!r}"
            )
        return found == MCAP0_MAGIC

    def _forget_chunks(self) -> None:
        self._offsets, self._lengths = array("Q"), array("Q")
        self._start_times, self._end_times = array("Q"), array("Q")
        self._chunk_channels: dict[int, frozenset[int]] = {}
        self._channel_sets: dict[frozenset[int], frozenset[int]] = {}  # most chunks have the same
        self._channel_sets_size = 0

    def _read_index(self) -> bool:
        """Read the summary at the file's end; False where it has none that can be trusted."""
        footer_offset = self.size_bytes - _MAGIC_BYTES - _FOOTER.size
        if footer_offset < _MAGIC_BYTES:
            return False
        tail = self._read(footer_offset, _FOOTER.size + _MAGIC_BYTES)
        opcode, length, start, _, crc = _FOOTER.unpack_from(tail)
        if tail[_FOOTER.size :] != MCAP0_MAGIC or opcode != Opcode.FOOTER or length != 20:
            return False
        if not _MAGIC_BYTES <= start <= footer_offset:
            return False
        try:
            self._read_summary(start, footer_offset, crc, tail)
        except DamagedError as error:
            self.damage.append(error.damage)
            self._forget_chunks()
            self.channels, self.schemas, self.statistics = {}, {}, None
            return False
        self.finished = True
        return True

    def _read_summary(self, start: int, end: int, crc: int, tail: bytes) -> None:
        if end - start > MAX_SUMMARY_BYTES:
            raise self._damaged(start, f"the index has {end - start} bytes")
        summary = self._read(start, end - start)
        if crc and zlib.crc32(tail[: _FOOTER.size - 4], zlib.crc32(summary)) != crc:
            raise self._damaged(start, "the index's checksum is wrong")
        position, metadata_indexes = 0, []
        while position < len(summary):
            offset = start + position
            if len(summary) - position < _RECORD.size:
                raise self._damaged(offset, "the index ends within a record")
            opcode, length = _RECORD.unpack_from(summary, position)
            position += _RECORD.size
            body = summary[position : position + length]
            position += length
            if len(body) != length:
                raise self._damaged(offset, f"a record of {length} bytes exceeds the index")
            if opcode == Opcode.CHUNK_INDEX:
                self._add_indexed_chunk(body, offset)
            elif opcode == Opcode.STATISTICS:
                self.statistics = self._parse(Statistics.read, body, offset)
            elif opcode == Opcode.METADATA_INDEX:
                metadata_indexes.append(self._parse(MetadataIndex.read, body, offset))
            else:
                self._learn(opcode, body, offset)
        for index in metadata_indexes[:16]:
            self._read_metadata(index)

    def _add_indexed_chunk(self, body: bytes, offset: int) -> None:
        if len(body) < _CHUNK_INDEX.size:
            raise self._damaged(offset, "a chunk's index is too short")
        start_ns, end_ns, chunk_offset, length = _CHUNK_INDEX.unpack_from(body)
        self._add_chunk(chunk_offset, length, start_ns, end_ns, offset)
        self._remember_channels(self.chunk_count - 1, self._indexed_channels(body, offset))

    def _remember_channels(self, idx: int, channels: frozenset[int]) -> None:
        """Keep a chunk's channels, in bounded memory: what is not kept is read again."""
        known = self._channel_sets.get(channels)
        if known is None:
            if not channels or self._channel_sets_size + len(channels) > MAX_CHANNELS_KEPT:
                return
            self._channel_sets_size += len(channels)
            known = self._channel_sets[channels] = channels
        self._chunk_channels[idx] = known

    def _indexed_channels(self, body: bytes, offset: int) -> frozenset[int]:
        """Channels of a chunk by the map in its index; none where that was left out."""
        start = _CHUNK_INDEX.size + 4
        if len(body) < start:
            raise self._damaged(offset, "a chunk's index is too short")
        (length,) = struct.unpack_from("<I", body, _CHUNK_INDEX.size)
        if length % _INDEX_ENTRY.size or start + length > len(body):
            raise self._damaged(offset, f"a chunk's index has {length} bytes of channels")
        entries = body[start : start + length]
        return frozenset(channel for channel, _ in _INDEX_ENTRY.iter_unpack(entries))

    def _add_chunk(
        self, offset: int, length: int, start_ns: int, end_ns: int, said_at: int
    ) -> None:
        after = self._offsets[-1] + self._lengths[-1] if self._offsets else _MAGIC_BYTES
        if offset < after or offset + length > self.size_bytes or length > _MAX_STORED_BYTES:
            raise self._damaged(
                said_at,
                f"a chunk of {length} bytes at {offset} cannot be: the one before it ends at "
                f"{after}, the file at {self.size_bytes}",
            )
        if start_ns > end_ns:
            raise self._damaged(said_at, f"a chunk lasts from {start_ns} back to {end_ns}")
        self._offsets.append(offset)
        self._lengths.append(length)
        self._start_times.append(start_ns)
        self._end_times.append(end_ns)

    def _read_metadata(self, index: MetadataIndex) -> None:
        if index.length > MAX_SMALL_RECORD_BYTES or index.offset + index.length > self.size_bytes:
            raise self._damaged(index.offset, f"metadata of {index.length} bytes cannot be")
        record = self._read(index.offset, index.length)
        if len(record) < _RECORD.size or record[0] != Opcode.METADATA:
            raise self._damaged(index.offset, "expected metadata, as the index says")
        self._learn(Opcode.METADATA, record[_RECORD.size :], index.offset)

    def _scan(self) -> None:
        """Find chunks and channels from the beginning on; a break is passed over and noted."""
        position = _MAGIC_BYTES
        for _ in range(MAX_RECORDS):
            if position + _RECORD.size > self.size_bytes:
                self._note(position, "the file ends without an index: it was not closed")
                return
            opcode, length = _RECORD.unpack(self._read(position, _RECORD.size))
            if _END_BYTES.get(opcode) == length:
                self._note(position, "the file's index is missing or damaged")
                return
            try:
                self._scan_record(opcode, position, length)
            except DamagedError as error:
                self.damage.append(error.damage)
                found = self._find_chunk(position + 1)
                if found is None or len(self.damage) >= _MAX_BREAKS:
                    return
                position = found
            else:
                position += _RECORD.size + length
        self._note(position, f"more than {MAX_RECORDS} records outside of chunks")

    def _scan_record(self, opcode: int, position: int, length: int) -> None:
        end = position + _RECORD.size + length
        if not 1 <= opcode <= 0x0F or end > self.size_bytes:
            left = max(0, self.size_bytes - position - _RECORD.size)
            raise self._damaged(
                position,
                f"a record of kind {opcode} with {length} bytes does not fit: "
                f"{left} bytes are left",
            )
        if opcode == Opcode.CHUNK:
            if length < _CHUNK.size:
                raise self._damaged(position, f"a chunk of {length} bytes is too short")
            head = self._read(position, min(HEAD_BYTES, self.size_bytes - position))
            limits = {"file_bytes": self.size_bytes, "limit_bytes": _MAX_STORED_BYTES}
            if not is_chunk(head, offset=position, **limits) and (
                inside := find_chunk(self._file, position + 1, stop=end, **limits)
            ):
                raise self._damaged(
                    position, f"a chunk of {length} bytes has one at {inside} in it"
                )
            start_ns, end_ns, *_ = _CHUNK.unpack_from(head, _RECORD.size)
            self._add_chunk(position, _RECORD.size + length, start_ns, end_ns, position)
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.METADATA):
            if length > MAX_SMALL_RECORD_BYTES:
                raise self._damaged(position, f"a schema or channel of {length} bytes")
            self._learn(opcode, self._read(position + _RECORD.size, length), position)

    def _find_chunk(self, start: int, stop: int | None = None) -> int | None:
        """The next chunk behind a break."""
        size = self.size_bytes
        stop = size if stop is None else min(stop, size)
        found = find_chunk(
            self._file, start, stop=stop, file_bytes=size, limit_bytes=_MAX_STORED_BYTES
        )
        if found is not None:
            self._after_breaks.append(self.chunk_count)
        return found

    def _learn_from_chunks(self) -> None:
        """Learn the channels of chunks behind a break: what described them may lie in it."""
        for idx in self._after_breaks:
            with contextlib.suppress(DamagedError, IndexError):  # it may itself have been refused
                for _ in self.messages(idx):
                    pass

    # -- records ---------------------------------------------------------------------------------

    def _learn(self, opcode: int, body: bytes, offset: int) -> None:
        if opcode == Opcode.CHANNEL:
            self._learn_channel(body, offset)
        elif opcode == Opcode.SCHEMA:
            self._learn_schema(body, offset)
        elif opcode == Opcode.METADATA and len(self.metadata) < 16:
            metadata = self._parse(Metadata.read, body, offset)
            self.metadata[metadata.name] = metadata.metadata

    def _learn_channel(self, body: bytes, offset: int) -> None:
        channel = self._parse(Channel.read, body, offset)
        known = self.channels.get(channel.id)
        if known is None and len(self.channels) >= MAX_CHANNELS:
            raise self._damaged(offset, f"more than {MAX_CHANNELS} channels")
        if known is not None and known != channel:
            raise self._damaged(offset, f"channel {channel.id} is described in two ways")
        self.channels[channel.id] = channel

    def _learn_schema(self, body: bytes, offset: int) -> None:
        schema = self._parse(Schema.read, body, offset)
        if schema.id not in self.schemas and len(self.schemas) >= MAX_CHANNELS:
            raise self._damaged(offset, f"more than {MAX_CHANNELS} schemas")
        self.schemas[schema.id] = schema.name

    def _parse(self, read: Callable[[Any], _R], body: bytes, offset: int) -> _R:
        if len(body) > MAX_SMALL_RECORD_BYTES:
            raise self._damaged(offset, f"a record of {len(body)} bytes is too long for its kind")
        try:
            return read(ReadDataStream(io.BytesIO(body)))
        except (McapError, struct.error, UnicodeDecodeError, OverflowError) as error:
            reason = str(error) or type(error).__name__
            raise self._damaged(offset, f"a record cannot be read: {reason}") from None

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size_bytes:
            missing = offset + length - self.size_bytes
            raise self._damaged(offset, f"expected {length} bytes, the file lacks {missing}")
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:  # it became shorter since it was opened
            raise self._damaged(offset, f"expected {length} bytes, got {len(data)}")
        return data

    def _note(self, offset: int, reason: str) -> None:
        self.damage.append(Damage(path=self.path, offset=offset, reason=reason))

    def _damaged(self, offset: int, reason: str) -> DamagedError:
        return DamagedError(Damage(path=self.path, offset=offset, reason=reason))


def ends_with_index(path: Path) -> bool:
    """Whether a file's end is that of an MCAP file that was closed; nothing else is looked at.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        tail_bytes = _FOOTER.size + _MAGIC_BYTES
        if file.seek(0, io.SEEK_END) < _MAGIC_BYTES + tail_bytes:
            return False
        file.seek(-tail_bytes, io.SEEK_END)
        tail = file.read(tail_bytes)
    return tail[0] == Opcode.FOOTER and tail.endswith(MCAP0_MAGIC)


def _unpack_lz4(data: bytes, size: int) -> bytes:
    return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1))


def _unpack_zstd(data: bytes, size: int) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_BYTES)
    with unpacker.stream_reader(io.BytesIO(data)) as reader:
        parts, left = [], size + 1
        while left and (part := reader.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


_UNPACK: Mapping[bytes, Callable[[bytes, int], bytes]] = {
    b"": lambda data, _: data,
    b"lz4": _unpack_lz4,
    b"zstd": _unpack_zstd,
}
