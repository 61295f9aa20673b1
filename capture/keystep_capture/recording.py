"""A session's encoded video on disk: MCAP with Foxglove's CompressedVideo, as it came.

Nothing is decoded or encoded again. One file (part) per server run; pictures are read back by
decoding from the key frame before them. (Recording every stream comes with issue D.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from av.video.frame import VideoFrame
from foxglove_schemas_protobuf import CompressedVideo_pb2
from mcap.exceptions import McapError
from mcap.records import Channel, Message
from mcap.stream_reader import StreamReader
from mcap.well_known import MessageEncoding, SchemaEncoding
from mcap.writer import CompressionType, Writer

from keystep_capture.errors import VideoError
from keystep_capture.video import GapFilter, PacketDecoder
from keystep_capture.wire import PacketHeader

_NS = 1_000_000_000
_FORMATS = {"hevc": "h265"}  # Foxglove's names, where they are not ours

log = structlog.get_logger(__name__)


class VideoRecorder:
    """Writes one epoch-spanning part of a session's video."""

    def __init__(self, path: Path) -> None:
        """Create the file; `path` must not exist yet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")
        # Without chunks, what is written is readable at once, whatever happens to this process.
        self._writer = Writer(self._file, use_chunking=False, compression=CompressionType.NONE)
        self._writer.start(profile="", library="keystep")
        self._schema_id = self._writer.register_schema(
            name="foxglove.CompressedVideo",
            encoding=SchemaEncoding.Protobuf,
            data=_file_descriptor_set(),
        )
        self._channels: dict[tuple[int, str], int] = {}
        self._file.flush()

    def write(self, header: PacketHeader, payload: bytes | memoryview) -> None:
        """Append a packet; log_time is its device time."""
        message = CompressedVideo_pb2.CompressedVideo(
            frame_id="pv",
            data=bytes(payload),
            format=_FORMATS.get(header.encoding, header.encoding),
        )
        message.timestamp.seconds, message.timestamp.nanos = divmod(header.device_time_ns, _NS)
        self._writer.add_message(
            channel_id=self._channel(header),
            log_time=header.device_time_ns,
            data=message.SerializeToString(),
            publish_time=header.device_time_ns,
            sequence=(header.sequence << 1 | header.keyframe) & 0xFFFFFFFF,
        )
        if header.keyframe:
            self._file.flush()

    @property
    def part(self) -> str:
        """Name of the file."""
        return Path(self._file.name).name

    def flush(self) -> int:
        """Hand what was written to the operating system; the file's size then, bytes."""
        self._file.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; may run beside `write`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write the index and close the file, which is closed even where that fails."""
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
        finally:
            self._file.close()

    def _channel(self, header: PacketHeader) -> int:
        key = (header.epoch, header.encoding)
        if key not in self._channels:
            self._channels[key] = self._writer.register_channel(
                topic=f"/rgb/epoch_{header.epoch}",
                message_encoding=MessageEncoding.Protobuf,
                schema_id=self._schema_id,
                metadata={"epoch": str(header.epoch), "encoding": header.encoding},
            )
        return self._channels[key]


def read_frames(
    parts: Iterable[Path], wanted: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
    """Decode the pictures of given moments.

    Args:
        parts: Files of a `VideoRecorder`; one that was cut off is read as far as it goes, one
            that is no recording at all is passed over with a warning.
        wanted: (epoch, device_time_ns) of packets in the recording.

    Yields:
        The moment and its picture, in the order of the recording; moments that are not there or
        cannot be decoded are left out.
    """
    missing = set(wanted)
    # Kept from part to part: after a restart a video goes on in the middle of a group of pictures.
    decoders: dict[tuple[int, str], tuple[PacketDecoder, GapFilter]] = {}
    for part in parts:
        for epoch, encoding, message in _messages(part):
            if not missing:
                return
            video_id = (epoch, encoding)
            if video_id not in decoders:
                gaps = GapFilter(independent=encoding == "jpeg")
                decoders[video_id] = PacketDecoder(encoding), gaps
            decoder, gaps = decoders[video_id]
            keyframe = bool(message.sequence & 1)
            if not gaps.admit(message.sequence >> 1, keyframe=keyframe):
                continue
            video = CompressedVideo_pb2.CompressedVideo.FromString(message.data)
            try:
                frame = decoder.decode(video.data)
            except VideoError:
                gaps.break_off()
                continue
            moment = (epoch, message.log_time)
            if moment in missing:
                missing.discard(moment)
                yield moment, frame


def _messages(part: Path) -> Iterator[tuple[int, str, Message]]:
    channels: dict[int, tuple[int, str]] = {}
    with part.open("rb") as file:
        try:
            for record in StreamReader(file).records:
                if isinstance(record, Channel):
                    channels[record.id] = (
                        int(record.metadata["epoch"]),
                        record.metadata["encoding"],
                    )
                elif isinstance(record, Message):
                    epoch, encoding = channels[record.channel_id]
                    yield epoch, encoding, record
        except McapError as error:
            log.warning("a recording ends early", part=part.name, error=str(error))


def _file_descriptor_set() -> bytes:
    """The schema with all it imports, as MCAP wants protobuf schemas."""
    from google.protobuf.descriptor import FileDescriptor
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    described = FileDescriptorSet()
    seen: set[str] = set()

    def add(descriptor: FileDescriptor) -> None:
        if descriptor.name in seen:
            return
        seen.add(descriptor.name)
        for dependency in descriptor.dependencies:
            add(dependency)
        descriptor.CopyToProto(described.file.add())

    add(CompressedVideo_pb2.DESCRIPTOR)
    return bytes(described.SerializeToString())
