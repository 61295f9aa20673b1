"""From a part's messages to packets and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mcap.records import Channel

from keystep_capture.errors import DataError
from keystep_capture.recording import schemas
from keystep_capture.recording.foxglove import carried_payload
from keystep_capture.recording.notes import NOTE_KINDS, Note
from keystep_capture.recording.source import Damage, DamagedError, McapSource, RawMessage
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PacketHeader

MAX_JSON_BYTES: Final = 8 * 1024 * 1024
"""Largest packet or note as JSON; a payload of 4 MiB takes 5.6 MiB in base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPacket:
    """A packet as it came.

    Attributes:
        header: The wire's header.
        payload: Its payload.
        receive_time_ns: When it arrived, on the arrival clock (`RecordingInfo.clock`).
        part_idx: The part it stands in.
        arrival: Its number in the order of arrival within the part.
    """

    header: PacketHeader
    payload: bytes
    receive_time_ns: int
    part_idx: int
    arrival: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedNote:
    """A note; `kind` is one of `NOTE_KINDS`, the other fields as `RecordedPacket`'s."""

    kind: str
    note: Note
    device_time_ns: int
    receive_time_ns: int
    part_idx: int
    arrival: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelInfo:
    """What a channel's metadata says."""

    role: str
    stream: str = ""
    epoch: int = 0
    encoding: str = ""
    kind: str = ""


def channel_info(channel: Channel) -> ChannelInfo | None:
    """What a channel holds; None where it is none of ours or of a stream that is not known."""
    values = channel.metadata
    role, kind = values.get("role", ""), values.get("kind", "")
    if role == "note":
        return ChannelInfo(role=role, kind=kind) if kind in NOTE_KINDS else None
    stream, epoch = values.get("stream", ""), values.get("epoch", "")
    numbered = epoch.isascii() and epoch.isdigit() and len(epoch) < 20
    if role not in ("packet", "carrier") or stream not in STREAMS or not numbered:
        return None
    return ChannelInfo(
        role=role, stream=stream, epoch=int(epoch), encoding=values.get("encoding", "")[:64]
    )


class EntryDecoder:
    """Turns the messages of a part's chunks into entries, chunk by chunk."""

    def __init__(
        self,
        source: McapSource,
        part_idx: int,
        *,
        streams: tuple[str, ...] | None = None,
        kinds: tuple[str, ...] | None = (),
        epoch: int | None = None,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            source: The part.
            part_idx: Its place in the recording.
            streams: Those wanted; None: all.
            kinds: Kinds of notes wanted; empty: all, None: no notes.
            epoch: The one wanted; None: all.
            on_damage: Told of what is damaged and passed over; None: it is raised.
        """
        self._part_idx = part_idx
        self._source = source
        self._streams = streams
        self._kinds = kinds
        self._epoch = epoch
        self._on_damage = on_damage
        self._wanted: dict[int, tuple[ChannelInfo, str] | None] = {}
        self._carried: dict[tuple[int, str], tuple[int, str, memoryview]] = {}

    def entries(self, idx: int) -> Iterator[RecordedPacket | RecordedNote]:
        """The entries of a chunk, in order of arrival; one without any is not read.

        Raises:
            DamagedError: Something is damaged, and nobody is told of it instead.
        """
        if not self._may_have(idx):
            return
        try:
            for message in self._source.messages(idx):
                if message.channel_id not in self._wanted:
                    self._wanted[message.channel_id] = self._judge(message.channel_id, idx)
                wanted = self._wanted[message.channel_id]
                if wanted is None:
                    continue
                about, schema = wanted
                if about.role == "carrier":
                    key = (about.epoch, about.stream)
                    self._carried[key] = (message.sequence, schema, message.data)
                    continue
                try:
                    entry = self._decode(about, message)
                except DataError as error:
                    self._damaged(idx, str(error))
                else:
                    yield entry
        except DamagedError as error:
            if self._on_damage is None:
                raise
            self._on_damage(error.damage)

    def _may_have(self, idx: int) -> bool:
        """Whether a chunk has anything wanted, as far as the index tells."""
        ids = self._source.chunk_channels(idx)
        if ids is None or not ids <= self._source.channels.keys():
            return True
        for channel_id in ids - self._wanted.keys():
            self._wanted[channel_id] = self._judge(channel_id, idx)
        return any(self._wanted[channel_id] is not None for channel_id in ids)

    def _judge(self, channel_id: int, idx: int) -> tuple[ChannelInfo, str] | None:
        channel = self._source.channels.get(channel_id)
        if channel is None:
            self._damaged(idx, f"a message of channel {channel_id}, which is not described")
            return None
        about = channel_info(channel)
        if about is None:
            return None
        schema = self._source.schemas.get(channel.schema_id, "")
        if about.role == "note":
            unwanted = self._kinds is None or (self._kinds and about.kind not in self._kinds)
            return None if unwanted else (about, schema)
        if self._streams is not None and about.stream not in self._streams:
            return None
        return None if self._epoch not in (None, about.epoch) else (about, schema)

    def _decode(self, about: ChannelInfo, message: RawMessage) -> RecordedPacket | RecordedNote:
        if len(message.data) > MAX_JSON_BYTES:
            raise DataError(
                f"a message of {len(message.data)} bytes, at most {MAX_JSON_BYTES} can be read"
            )
        if about.role == "note":
            return RecordedNote(
                kind=about.kind,
                note=schemas.decode_note(about.kind, message.data),
                device_time_ns=message.log_time_ns,
                receive_time_ns=message.publish_time_ns,
                part_idx=self._part_idx,
                arrival=message.sequence,
            )
        carried: bytes | None = None
        waiting = self._carried.pop((about.epoch, about.stream), None)
        if waiting is not None and waiting[0] == message.sequence:
            carried = carried_payload(waiting[1], waiting[2])
        header, payload = schemas.decode_packet(message.data, carried)
        if (header.stream, header.epoch) != (about.stream, about.epoch):
            raise DataError(
                f"a packet of {header.stream} epoch {header.epoch} stands in the channel of "
                f"{about.stream} epoch {about.epoch}"
            )
        return RecordedPacket(
            header=header,
            payload=payload,
            receive_time_ns=message.publish_time_ns,
            part_idx=self._part_idx,
            arrival=message.sequence,
        )

    def _damaged(self, idx: int, reason: str) -> None:
        damage = Damage(
            path=self._source.path, offset=self._source.chunk_offset(idx), reason=reason
        )
        if self._on_damage is None:
            raise DamagedError(damage)
        self._on_damage(damage)
