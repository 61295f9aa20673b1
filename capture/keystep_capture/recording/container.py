"""Writes one MCAP file: chunked, with checksums and an index, in few copies.

The `mcap` package writes a record with a call for each of its numbers, several times the cost of
our packets' own encoding; messages are therefore packed here, and all other records by its classes.
Format: https://mcap.dev/spec.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.writer import MCAP0_MAGIC

CHUNK_BYTES = 1024 * 1024
"""A chunk is ended when it holds this much; one packet more may be in it."""

_MESSAGE = struct.Struct("<BQHIQQ")  # opcode, length, channel, sequence, log and publish time
_MESSAGE_OP = int(Opcode.MESSAGE)
_MESSAGE_FIELDS_BYTES = 2 + 4 + 8 + 8
_CHUNK = struct.Struct("<BQQQQIIQ")  # opcode, length, times, size, CRC, no compression, data length
_MESSAGE_INDEX = struct.Struct("<BQHI")
_FOOTER_START = struct.Struct("<BQQQ")
_FOOTER_BYTES = 8 + 8 + 4

Part = bytes | bytearray | memoryview


class McapFile:
    """A file that is being written; what was flushed can be read whatever happens afterwards.

    Schemas and channels stand in the data section before the first chunk that needs them; each
    chunk also repeats its channels, so that it can be read when all else is damaged.
    """

    def __init__(self, path: Path, *, library: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Create the file.

        Args:
            path: Must not exist yet.
            library: The writing program's name and version.
            chunk_bytes: When to end a chunk.

        Raises:
            OSError: It exists or cannot be created.
        """
        self.path = path
        self._chunk_bytes = chunk_bytes
        self._file = path.open("xb")
        self._builder = RecordBuilder()
        self._schemas: list[Schema] = []
        self._channels: list[Channel] = []
        self._channel_records: list[bytes] = []
        self._chunk_indexes: list[ChunkIndex] = []
        self._metadata_indexes: list[MetadataIndex] = []
        self._message_counts: dict[int, int] = {}
        self._start_ns: int | None = None
        self._end_ns = 0
        self._written = self._chunk_size = 0
        self._begin_chunk()
        self._write(MCAP0_MAGIC)
        self._write_record(Header(profile="keystep", library=library))

    @property
    def size_bytes(self) -> int:
        """What the file would hold if it were flushed now."""
        return self._written + self._chunk_size

    def add_schema(self, name: str, encoding: str, data: bytes) -> int:
        """Write a schema; its id."""
        schema = Schema(id=len(self._schemas) + 1, name=name, encoding=encoding, data=data)
        self._schemas.append(schema)
        self._write_record(schema)
        return schema.id

    def repeat_schemas(self) -> None:
        """Write all schemas so far again, for readers of a file whose beginning is damaged."""
        for schema in self._schemas:
            self._write_record(schema)

    def add_channel(
        self, topic: str, message_encoding: str, schema_id: int, metadata: Mapping[str, str]
    ) -> int:
        """Write a channel; its id."""
        channel = Channel(
            id=len(self._channels) + 1,
            topic=topic,
            message_encoding=message_encoding,
            schema_id=schema_id,
            metadata=dict(metadata),
        )
        self._channels.append(channel)
        channel.write(self._builder)
        record = bytes(self._builder.end())  # type: ignore[no-untyped-call]
        self._channel_records.append(record)
        self._write(record)
        return channel.id

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """Write a map of texts, found by its name without reading the file."""
        offset = self._written
        self._write_record(Metadata(name=name, metadata=dict(values)))
        length = self._written - offset
        self._metadata_indexes.append(MetadataIndex(offset=offset, length=length, name=name))

    def add_message(
        self,
        channel_id: int,
        sequence: int,
        log_time_ns: int,
        publish_time_ns: int,
        parts: Sequence[Part],
    ) -> None:
        """Add a message to the chunk; its parts must not be changed until it is flushed."""
        index = self._index.get(channel_id)
        if index is None:
            index = self._begin_index(channel_id)
        length = _MESSAGE_FIELDS_BYTES + sum(map(len, parts))
        offset = self._chunk_size
        index += (log_time_ns, offset)
        self._buffers += (
            _MESSAGE.pack(_MESSAGE_OP, length, channel_id, sequence, log_time_ns, publish_time_ns),
            *parts,
        )
        self._chunk_size = offset + 9 + length

    def end_group(self) -> None:
        """Say that the messages so far may be parted from the next ones."""
        if self._chunk_size >= self._chunk_bytes:
            self._end_chunk()

    def flush(self) -> None:
        """End the chunk and hand everything to the operating system."""
        self._end_chunk()
        self._file.flush()

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; may run beside the other calls.

        Raises:
            OSError: The disk failed.
        """
        try:
            os.fsync(self._file.fileno())
        except ValueError:  # closed meanwhile, and synced by that
            return

    def close(self) -> None:
        """Write the summary and close the file, which is closed even where that fails.

        Raises:
            OSError: The disk did not take it; the file lacks its index and can be repaired.
        """
        if self._file.closed:
            return
        try:
            self._end_chunk()
            self._write_record(DataEnd(data_section_crc=0))
            self._write_summary()
            self._write(MCAP0_MAGIC)
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file as it is, after an error of the disk."""
        self._begin_chunk()
        try:
            self._file.close()
        except OSError:  # it could not take what was left, which was told before
            self._file.raw.close()

    def _begin_index(self, channel_id: int) -> list[int]:
        """Repeat a channel in the chunk, before its first message there."""
        index: list[int] = []
        self._index[channel_id] = index
        record = self._channel_records[channel_id - 1]
        self._buffers.append(record)
        self._chunk_size += len(record)
        return index

    def _begin_chunk(self) -> None:
        self._buffers: list[Part] = []
        self._index: dict[int, list[int]] = {}  # per channel: log time, offset, log time, ...
        self._chunk_size = 0

    def _end_chunk(self) -> None:
        if not self._index:
            return
        data = b"".join(self._buffers)
        index = self._index
        self._begin_chunk()
        start_ns = min(min(entries[::2]) for entries in index.values())
        end_ns = max(max(entries[::2]) for entries in index.values())
        offset = self._written
        self._write(
            _CHUNK.pack(
                Opcode.CHUNK,
                _CHUNK.size - 9 + len(data),
                start_ns,
                end_ns,
                len(data),
                zlib.crc32(data),
                0,
                len(data),
            )
        )
        self._write(data)
        indexes_offset = self._written
        offsets = {}
        for channel_id, entries in index.items():
            offsets[channel_id] = self._written
            body = struct.pack(f"<{len(entries)}Q", *entries)
            self._write(
                _MESSAGE_INDEX.pack(Opcode.MESSAGE_INDEX, 6 + len(body), channel_id, len(body))
                + body
            )
            self._message_counts[channel_id] = (
                self._message_counts.get(channel_id, 0) + len(entries) // 2
            )
        self._chunk_indexes.append(
            ChunkIndex(
                message_start_time=start_ns,
                message_end_time=end_ns,
                chunk_start_offset=offset,
                chunk_length=indexes_offset - offset,
                message_index_offsets=offsets,
                message_index_length=self._written - indexes_offset,
                compression="",
                compressed_size=len(data),
                uncompressed_size=len(data),
            )
        )
        self._start_ns = start_ns if self._start_ns is None else min(self._start_ns, start_ns)
        self._end_ns = max(self._end_ns, end_ns)

    def _write_summary(self) -> None:
        start = self._written
        summary = RecordBuilder()
        offsets = []
        groups = (
            (Opcode.SCHEMA, self._schemas),
            (Opcode.CHANNEL, self._channels),
            (Opcode.STATISTICS, [self._statistics()]),
            (Opcode.CHUNK_INDEX, self._chunk_indexes),
            (Opcode.METADATA_INDEX, self._metadata_indexes),
        )
        for opcode, records in groups:
            group_start = summary.count
            for record in records:
                record.write(summary)
            if records:
                offsets.append(
                    SummaryOffset(
                        group_opcode=opcode,
                        group_start=start + group_start,
                        group_length=summary.count - group_start,
                    )
                )
        offset_start = start + summary.count
        for entry in offsets:
            entry.write(summary)
        data = bytes(summary.end())  # type: ignore[no-untyped-call]
        footer_start = _FOOTER_START.pack(Opcode.FOOTER, _FOOTER_BYTES, start, offset_start)
        crc = zlib.crc32(footer_start, zlib.crc32(data))
        self._write(data)
        self._write_record(
            Footer(summary_start=start, summary_offset_start=offset_start, summary_crc=crc)
        )

    def _statistics(self) -> Statistics:
        return Statistics(
            attachment_count=0,
            channel_count=len(self._channels),
            channel_message_counts=self._message_counts,
            chunk_count=len(self._chunk_indexes),
            message_count=sum(self._message_counts.values()),
            message_start_time=self._start_ns or 0,
            message_end_time=self._end_ns,
            metadata_count=len(self._metadata_indexes),
            schema_count=len(self._schemas),
        )

    def _write_record(self, record: Schema | Header | Metadata | DataEnd | Footer) -> None:
        record.write(self._builder)
        self._write(self._builder.end())  # type: ignore[no-untyped-call]

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._written += len(data)
