"""How each packet and note is stored, and the exact inverse.

Every packet gives one JSON `keystep.Packet` with its whole header. Its payload stands in the
Foxglove message before it with the same MCAP `sequence` (video, images, hands' joints), or as
`values` or base64 `payload` in the JSON itself. docs/recordings.md lists the channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from mcap.well_known import MessageEncoding, SchemaEncoding

from keystep_capture import wire
from keystep_capture.errors import DataError, WireError
from keystep_capture.recording import foxglove
from keystep_capture.recording.foxglove import Payload
from keystep_capture.recording.notes import KIND_OF, NOTE_KINDS, Note
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PacketHeader

FORMAT_VERSION: Final = "1"
PACKET_SCHEMA: Final = "keystep.Packet"
INFO_NAME: Final = "keystep.recording"
"""Name of the file's metadata record."""


class PacketRecord(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A packet: its header and, where no Foxglove message carries it, its payload.

    Attributes:
        header: The wire's header, field by field (docs/wire.md).
        values: The payload's numbers in its encoding's type, where all of them are finite.
        payload: The payload's bytes, where `values` cannot tell them.
    """

    header: PacketHeader
    values: list[int | float] | None = None
    payload: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """A channel of the file.

    Attributes:
        topic: `/epoch_<n>/<stream>/<what>` or `/session/<kind>`.
        message_encoding: `protobuf` or `json`.
        schema_name: Name of its schema.
        metadata: What a reader needs without decoding a message.
    """

    topic: str
    message_encoding: str
    schema_name: str
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class EncodedMessage(NamedTuple):
    """A message before it has a channel id; its bytes are the parts joined."""

    channel: ChannelSpec
    parts: tuple[Payload, ...]


MAX_BYTES_AS_NUMBERS: Final = 16 * 1024
"""Longer payloads stand in JSON as base64, which takes a fifth of their numbers' space."""

_encode_json = msgspec.json.Encoder().encode
_decode_packet = msgspec.json.Decoder(PacketRecord).decode
_decode_note = {kind: msgspec.json.Decoder(cls).decode for kind, cls in NOTE_KINDS.items()}


class PacketEncoder:
    """Turns packets into messages; one object per file, since it says calibrations anew in each."""

    def __init__(self) -> None:
        """Start without a calibration said."""
        self._lanes: dict[tuple[int, str, str], _LaneChannels] = {}
        self._calibrations: dict[tuple[int, str], tuple[object, ...]] = {}

    def encode(self, header: PacketHeader, payload: Payload) -> list[EncodedMessage]:
        """The messages of a packet, its record last.

        Args:
            header: The wire's header.
            payload: Its payload; must not be changed until the messages are written.

        Raises:
            WireError: Header and payload break docs/wire.md.
        """
        wire.check_payload(header, len(payload))
        lane = self._lane(header)
        messages = []
        if header.intrinsics is not None and self._is_new_calibration(header):
            messages.append(EncodedMessage(lane.calibration, (lane.build.calibration(header),)))
        lane.add_poses(messages, header, payload)
        carrier = foxglove.carrier_of(header) if len(payload) else None
        if carrier is None:
            record = _inline_record(header, payload)
        else:
            parts = lane.build.carrier_parts(carrier, header, payload)
            messages.append(EncodedMessage(lane.carrier, parts))
            record = PacketRecord(header=header)
        messages.append(EncodedMessage(lane.record, (_encode_json(record),)))
        return messages

    def _lane(self, header: PacketHeader) -> _LaneChannels:
        key = (header.epoch, header.stream, header.encoding)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _LaneChannels(header)
        return lane

    def _is_new_calibration(self, header: PacketHeader) -> bool:
        key = (header.epoch, header.stream)
        calibration = (header.intrinsics, header.width, header.height)
        is_new = self._calibrations.get(key) != calibration
        self._calibrations[key] = calibration
        return is_new


class _LaneChannels:
    """The channels of one stream, epoch and encoding, and what builds their messages."""

    def __init__(self, header: PacketHeader) -> None:
        self.build = foxglove.LaneMessages(header)
        self._prefix = f"/epoch_{header.epoch}/{header.stream}"
        self._metadata = {
            "stream": header.stream,
            "epoch": str(header.epoch),
            "encoding": header.encoding,
        }
        self._encoding = header.encoding
        self.record = self._channel("packet", PACKET_SCHEMA, "packet", MessageEncoding.JSON)
        carrier = foxglove.carrier_by_encoding(header.encoding)
        if carrier is not None:
            name = carrier.message.DESCRIPTOR.full_name
            self.carrier = self._channel(carrier.topic, name, "carrier")
        self.calibration = self._channel("calibration", "foxglove.CameraCalibration", "view")
        self._pose = self._channel("pose", "foxglove.FrameTransform", "view")
        self._palms = self._channel("palms", "foxglove.FrameTransforms", "view")

    def add_poses(
        self, messages: list[EncodedMessage], header: PacketHeader, payload: Payload
    ) -> None:
        """Add the poses in a packet: a camera's, the head's, the palms'."""
        if header.pose is not None:
            self._add(messages, self._pose, self.build.pose(header, header.pose))
        if not len(payload):
            return
        if self._encoding == "pose_f32":
            self._add(messages, self._pose, self.build.head_pose(header, payload))
        elif self._encoding == "joints_f32":
            self._add(messages, self._palms, self.build.palms(header, payload))

    @staticmethod
    def _add(messages: list[EncodedMessage], channel: ChannelSpec, data: bytes | None) -> None:
        if data is not None:
            messages.append(EncodedMessage(channel, (data,)))

    def _channel(
        self, topic: str, schema: str, role: str, encoding: str = MessageEncoding.Protobuf
    ) -> ChannelSpec:
        return ChannelSpec(
            topic=f"{self._prefix}/{topic}",
            message_encoding=encoding,
            schema_name=schema,
            metadata=MappingProxyType({**self._metadata, "role": role}),
        )


def _inline_record(header: PacketHeader, payload: Payload) -> PacketRecord:
    """A record that holds its payload; as numbers where they give back the same bytes."""
    numeric = STREAMS[header.stream].encodings[header.encoding].numeric
    if numeric is None or not 0 < len(payload) <= MAX_BYTES_AS_NUMBERS:
        return PacketRecord(header=header, payload=bytes(payload))
    values = np.frombuffer(payload, numeric).tolist()
    if not math.isfinite(sum(values)):
        return PacketRecord(header=header, payload=bytes(payload))
    return PacketRecord(header=header, values=values)


def decode_packet(record: bytes | memoryview, carried: bytes | None) -> tuple[PacketHeader, bytes]:
    """The inverse of `PacketEncoder.encode`.

    Args:
        record: The packet's JSON.
        carried: The payload of the carrying message before it, if there was one.

    Returns:
        Header and payload as they were.

    Raises:
        DataError: It is no such record, its payload is missing, or it breaks docs/wire.md.
    """
    try:
        packet = _decode_packet(record)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DataError(f"expected a {PACKET_SCHEMA}, got {len(record)} bytes: {error}") from None
    header = packet.header
    try:
        payload = _payload_of(packet, carried)
        wire.check_payload(header, len(payload))
    except WireError as error:
        raise DataError(f"a packet breaks the wire's rules: {error}") from None
    return header, payload


def _payload_of(packet: PacketRecord, carried: bytes | None) -> bytes:
    header = packet.header
    if packet.payload is not None:
        return packet.payload
    if packet.values is not None:
        spec = STREAMS.get(header.stream)
        encoding = spec.encodings.get(header.encoding) if spec else None
        if encoding is None or encoding.numeric is None:
            raise DataError(f"expected no numbers for {header.stream} {header.encoding!r}")
        try:
            with np.errstate(over="raise"):
                return np.array(packet.values, dtype=encoding.numeric).tobytes()
        except (FloatingPointError, OverflowError, ValueError) as error:
            raise DataError(f"numbers do not fit {encoding.numeric}: {error}") from None
    if carried is None:
        raise DataError(
            f"{header.stream} packet {header.sequence} lacks the message that carries its payload"
        )
    return carried


@cache
def note_channel(kind: str) -> ChannelSpec:
    """The channel of notes of a kind."""
    return ChannelSpec(
        topic=f"/session/{kind}",
        message_encoding=MessageEncoding.JSON,
        schema_name=f"keystep.{NOTE_KINDS[kind].__name__}",
        metadata=MappingProxyType({"role": "note", "kind": kind}),
    )


def encode_note(note: Note) -> EncodedMessage:
    """A note's message."""
    return EncodedMessage(note_channel(KIND_OF[type(note)]), (_encode_json(note),))


def decode_note(kind: str, data: bytes | memoryview) -> Note:
    """The inverse of `encode_note`.

    Raises:
        DataError: The kind is unknown or the bytes are no such note.
    """
    if kind not in _decode_note:
        raise DataError(f"expected a note of a known kind ({', '.join(NOTE_KINDS)}), got {kind!r}")
    try:
        note: Note = _decode_note[kind](data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DataError(f"expected a {kind} note, got {len(data)} bytes: {error}") from None
    return note


@cache
def schema_of(name: str) -> tuple[str, bytes]:
    """The encoding and bytes of a schema by its name."""
    if name in foxglove.MESSAGES:
        return SchemaEncoding.Protobuf, foxglove.file_descriptor_set(foxglove.MESSAGES[name])
    return SchemaEncoding.JSONSchema, _encode_json(_json_schema(_OWN_SCHEMAS[name]))


_OWN_SCHEMAS: Mapping[str, Any] = MappingProxyType(
    {PACKET_SCHEMA: PacketRecord} | {f"keystep.{cls.__name__}": cls for cls in NOTE_KINDS.values()}
)


def has_schema(name: str) -> bool:
    """Whether a schema of this name is one that is written."""
    return name in foxglove.MESSAGES or name in _OWN_SCHEMAS


def own_schema_names() -> Iterable[str]:
    """Names of the schemas that are ours."""
    return _OWN_SCHEMAS.keys()


def _json_schema(cls: type) -> dict[str, Any]:
    """A JSON schema whose root is the object itself, as Foxglove wants it."""
    (root,), others = msgspec.json.schema_components([cls], ref_template="#/$defs/{name}")
    others = dict(others)
    own = others.pop(root["$ref"].rpartition("/")[2])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **own, "$defs": others}
