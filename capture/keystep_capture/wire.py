"""The wire's codec: docs/wire.md in code.

Headers are msgpack maps, validated while they are decoded (msgspec). Payloads never pass through
here: they stay the buffers they came as.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from keystep_capture.errors import ProtocolError, WireError
from keystep_capture.streams import STREAMS, StreamSpec

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 1
PROTOCOL = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
MAX_HEADER_BYTES = 4096
MAX_PICTURE_BYTES = 256 * 1024

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
TimeNs: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=512)]
Identifier: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
Intrinsics: TypeAlias = tuple[float, float, float, float]
Pose: TypeAlias = Annotated[list[float], msgspec.Meta(min_length=16, max_length=16)]
SessionKind: TypeAlias = Literal["expert", "guided"]
Severity: TypeAlias = Literal["info", "caution", "cannot_see"]
PictureEncoding: TypeAlias = Literal["jpeg", "png"]
StreamCounts: TypeAlias = Annotated[dict[Name, int], msgspec.Meta(max_length=32)]


class Message(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="type", frozen=True):
    """What every header carries."""

    protocol: Name


class PacketHeader(Message, tag="packet", frozen=True):
    """One timestamped message of a stream; the payload is the next frame."""

    session: Name
    epoch: Count
    stream: Name
    sequence: Count
    device_time_ns: Count
    send_time_ns: TimeNs
    encoding: Name
    keyframe: bool = False
    width: Annotated[int, msgspec.Meta(ge=1, le=16384)] | None = None
    height: Annotated[int, msgspec.Meta(ge=1, le=16384)] | None = None
    intrinsics: Intrinsics | None = None
    pose: Pose | None = None
    valid: Annotated[int, msgspec.Meta(ge=-1, le=255)] = -1
    frame_idx: Count | None = None
    depth_unit_m: float | None = None
    upright_turns: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    calibrates: Name | None = None
    rig_from_sensor: Pose | None = None


class Hello(Message, tag="hello", frozen=True):
    """A client introduces itself and says what it will send."""

    device: Identifier
    client: Name
    instance: Identifier
    kind: SessionKind
    streams: Annotated[list[Name], msgspec.Meta(max_length=32)]
    session: Identifier | None = None
    task: Name | None = None
    procedure: Name | None = None
    method: Name | None = None
    replay: bool = False
    time_scale: float = 1.0


class StreamGrant(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Where a stream stands when a connection begins; `None`: all that was received is written."""

    granted: int
    received_sequence: int
    acknowledged_sequence: int | None = None


class Welcome(Message, tag="welcome", frozen=True):
    """The server's answer to a hello it accepts."""

    session: Name
    epoch: int
    heartbeat_s: float
    streams: dict[str, StreamGrant]


class Refused(Message, tag="refused", frozen=True):
    """What was wrong; `fatal`: this client should not try again."""

    reason: Name
    message: str
    fatal: bool = False


class Credit(Message, tag="credit", frozen=True):
    """How many packets of a stream may be sent in all, what was taken and what is written down."""

    stream: Name
    granted: int
    received_sequence: int
    acknowledged_sequence: int | None = None


class ClockRequest(Message, tag="clock_request", frozen=True):
    """The server reads its clock and asks for the other's; also the heartbeat."""

    request_id: int
    server_time_ns: int


class ClockReply(Message, tag="clock_reply", frozen=True):
    """The client's clock when the request came and when the answer left."""

    request_id: Count
    server_time_ns: TimeNs
    receive_time_ns: TimeNs
    reply_time_ns: TimeNs
    dropped: StreamCounts = msgspec.field(default_factory=dict)


class DeviceClock(Message, tag="device_clock", frozen=True):
    """The bridge's estimate of the headset's clock."""

    epoch: Count
    device_time_ns: TimeNs
    bridge_time_ns: TimeNs
    uncertainty_ns: Count
    rate: float


class StepName(msgspec.Struct, kw_only=True, frozen=True):
    """A step as the wearer is told of it."""

    id: int
    title: str


class Guidance(Message, tag="guidance", frozen=True):
    """What the wearer is told now.

    `spoken` is to be spoken aloud once for each `spoken_revision`; `picture` is to be asked for.
    """

    revision: int
    severity: Severity
    current_step: StepName | None
    next_step: StepName | None
    text: str
    progress: tuple[int, int]
    device_time_ns: int
    spoken: str = ""
    spoken_revision: int = 0
    picture: Identifier | None = None


class GuidanceAck(Message, tag="guidance_ack", frozen=True):
    """A revision arrived; `displayed` says whether a headset showed it, `reason` why it did not."""

    revision: Count
    displayed_time_ns: TimeNs
    displayed: bool
    reason: Name = ""


class PictureRequest(Message, tag="picture_request", frozen=True):
    """The client asks for a picture that guidance named."""

    picture: Identifier


class Picture(Message, tag="picture", frozen=True):
    """A picture that was asked for; the image is the next frame."""

    picture: Identifier
    encoding: PictureEncoding


class Command(Message, tag="command", frozen=True):
    """The wearer asks for something; the same `command_id` again asks for nothing more."""

    command: Name
    command_id: Identifier


class CommandResult(Message, tag="command_result", frozen=True):
    """What became of a command; `text` is for the wearer, empty where guidance says it."""

    command_id: Identifier
    accepted: bool
    text: str


class Finish(Message, tag="finish", frozen=True):
    """The server asks the client to send what it still holds."""

    reason: Text


class Finished(Message, tag="finished", frozen=True):
    """The client has sent all; `close` asks for the session to be closed."""

    last_sequences: StreamCounts
    close: bool = False


class Closed(Message, tag="closed", frozen=True):
    """The session is closed; nothing more will be taken."""

    session: Name


ClientMessage: TypeAlias = (
    PacketHeader
    | Hello
    | ClockReply
    | DeviceClock
    | GuidanceAck
    | PictureRequest
    | Command
    | Finished
)
ServerMessage: TypeAlias = (
    Welcome | Refused | Credit | ClockRequest | Guidance | Picture | CommandResult | Finish | Closed
)

_CLIENT_TYPES = frozenset(
    {
        "packet",
        "hello",
        "clock_reply",
        "device_clock",
        "guidance_ack",
        "picture_request",
        "command",
        "finished",
    }
)
_SERVER_TYPES = frozenset(
    {
        "welcome",
        "refused",
        "credit",
        "clock_request",
        "guidance",
        "picture",
        "command_result",
        "finish",
        "closed",
    }
)


class _Preamble(msgspec.Struct):
    type: str
    protocol: str


# RecursionError: deep nesting; UnicodeDecodeError: a text that is not UTF-8.
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

_encoder = msgspec.msgpack.Encoder()
_preamble_decoder = msgspec.msgpack.Decoder(_Preamble)
_client_decoder = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder = msgspec.msgpack.Decoder(ServerMessage)

encode = _encoder.encode
"""Encode a message's header to msgpack bytes."""

_M = TypeVar("_M")


def decode_client_message(header: bytes | memoryview) -> ClientMessage | None:
    """Read a header that a client sent.

    Returns:
        The message, or None for a type that only a newer minor version knows: ignore it.

    Raises:
        ProtocolError: It speaks another major version.
        WireError: The bytes are no valid header; its `reason` says in a word why.
    """
    return _decode(header, _client_decoder, _CLIENT_TYPES)


def decode_server_message(header: bytes | memoryview) -> ServerMessage | None:
    """Read a header that the server sent; as `decode_client_message`."""
    return _decode(header, _server_decoder, _SERVER_TYPES)


def _decode(
    header: bytes | memoryview, decoder: msgspec.msgpack.Decoder[_M], known: frozenset[str]
) -> _M | None:
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(
            f"header has {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed", "header_size"
        )
    try:
        message = decoder.decode(header)
    except _UNREADABLE as error:
        _explain(header, error, known)
        return None
    if message.protocol != PROTOCOL:  # type: ignore[attr-defined]
        _newer_minor(message.protocol)  # type: ignore[attr-defined]
    return message


def _explain(header: bytes | memoryview, error: Exception, known: frozenset[str]) -> None:
    """Say why a header was not decoded; None where a newer minor version explains it."""
    try:
        preamble = _preamble_decoder.decode(header)
    except _UNREADABLE:
        raise WireError(f"header is not a keystep message: {error}") from None
    if _newer_minor(preamble.protocol) and preamble.type not in known:
        return
    raise WireError(f"{preamble.type[:64]!r} message is malformed: {error}") from None


def _newer_minor(protocol: str) -> bool:
    """Whether a protocol text names a newer minor version of ours."""
    major, dot, minor = protocol.partition(".")
    valid = major.isascii() and major.isdigit() and dot and minor.isascii() and minor.isdigit()
    if not valid or len(protocol) > 12:
        raise WireError(
            f"protocol is {protocol[:64]!r}, expected 'major.minor' such as {PROTOCOL!r}"
        )
    if int(major) != PROTOCOL_MAJOR:
        raise ProtocolError(
            f"the other side speaks protocol {protocol}, this one {PROTOCOL}: "
            f"use matching major versions of keystep on both sides"
        )
    return int(minor) > PROTOCOL_MINOR


def check_payload(header: PacketHeader, payload_bytes: int) -> StreamSpec:
    """Check a packet's stream, encoding and sizes against the table of streams.

    Args:
        header: The packet's header.
        payload_bytes: Size of its payload frame.

    Returns:
        The stream's row of the table.

    Raises:
        WireError: The stream or encoding is unknown, the payload's size is not one of its
            encoding's, or a number in the header is not finite.
    """
    spec = STREAMS.get(header.stream)
    if spec is None:
        raise WireError(
            f"stream {header.stream!r} is unknown; known: {', '.join(STREAMS)}", "unknown_stream"
        )
    encoding = spec.encodings.get(header.encoding)
    if encoding is None:
        raise WireError(
            f"stream {spec.name!r} has no encoding {header.encoding!r}; "
            f"it has {', '.join(spec.encodings)}",
            "unknown_encoding",
        )
    if payload_bytes > encoding.row_bytes * encoding.max_rows:
        raise WireError(
            f"{spec.name} payload has {payload_bytes} bytes, "
            f"at most {encoding.max_bytes} are allowed",
            "payload_size",
        )
    if header.valid == 0:
        if payload_bytes:
            raise WireError(
                f"{spec.name} packet says valid = 0 but has a payload of {payload_bytes} bytes",
                "payload_size",
            )
    elif payload_bytes % encoding.row_bytes or payload_bytes < (
        encoding.row_bytes * encoding.min_rows
    ):
        raise WireError(
            f"{spec.name} payload has {payload_bytes} bytes, expected "
            f"{encoding.min_rows} to {encoding.max_rows} rows of {encoding.row_bytes}",
            "payload_size",
        )
    if header.intrinsics is not None and not math.isfinite(sum(header.intrinsics)):
        raise WireError(f"{spec.name} intrinsics {header.intrinsics} are not finite", "not_finite")
    if header.pose is not None and not math.isfinite(sum(header.pose)):
        raise WireError(f"{spec.name} pose is not finite", "not_finite")
    if header.rig_from_sensor is not None and not math.isfinite(sum(header.rig_from_sensor)):
        raise WireError(f"{spec.name} rig_from_sensor is not finite", "not_finite")
    unit_m = header.depth_unit_m
    if unit_m is not None and not (math.isfinite(unit_m) and unit_m > 0):
        raise WireError(f"{spec.name} depth_unit_m is {unit_m}, expected above 0", "not_finite")
    return spec


def check_picture(payload_bytes: int) -> None:
    """Check the size of a `picture` message's payload frame.

    Raises:
        WireError: It is missing or too large.
    """
    if not 0 < payload_bytes <= MAX_PICTURE_BYTES:
        raise WireError(
            f"a picture has 1 to {MAX_PICTURE_BYTES} bytes, got {payload_bytes}", "payload_size"
        )
