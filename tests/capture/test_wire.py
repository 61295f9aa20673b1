"""The codec against reference bytes made without it, and against hostile bytes."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any, get_args

import cv2
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture import wire
from keystep_capture.errors import ProtocolError, WireError
from keystep_capture.streams import STREAMS

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "wire" / "messages.json").read_text(encoding="utf-8")
)
DECODERS = {"client": wire.decode_client_message, "server": wire.decode_server_message}
NOT_OURS = {"client": wire.decode_server_message, "server": wire.decode_client_message}
HEADERS = [bytes.fromhex(golden["header_hex"]) for golden in GOLDEN]
PACKET = GOLDEN[0]["fields"]

names = st.text(max_size=64)
identifiers = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
counts = st.integers(0, 2**62)
times = st.integers(-(2**62), 2**62)
floats = st.floats(allow_nan=False)
step_names = st.none() | st.builds(wire.StepName, id=st.integers(-1, 999), title=names)
packets = st.builds(
    wire.PacketHeader,
    protocol=st.just(wire.PROTOCOL),
    session=names,
    epoch=counts,
    stream=names,
    sequence=counts,
    device_time_ns=counts,
    send_time_ns=times,
    encoding=names,
    keyframe=st.booleans(),
    width=st.none() | st.integers(1, 16384),
    height=st.none() | st.integers(1, 16384),
    intrinsics=st.none() | st.tuples(floats, floats, floats, floats),
    pose=st.none() | st.lists(floats, min_size=16, max_size=16),
    valid=st.integers(-1, 255),
    frame_idx=st.none() | counts,
    depth_unit_m=st.none() | floats,
    upright_turns=st.integers(0, 3),
    calibrates=st.none() | names,
    rig_from_sensor=st.none() | st.lists(floats, min_size=16, max_size=16),
)
hellos = st.builds(
    wire.Hello,
    protocol=st.just(wire.PROTOCOL),
    device=identifiers,
    client=names,
    instance=identifiers,
    kind=st.sampled_from(["expert", "guided"]),
    streams=st.lists(names, max_size=8),
    session=st.none() | identifiers,
    task=st.none() | names,
    procedure=st.none() | names,
    method=st.none() | names,
    replay=st.booleans(),
    time_scale=floats,
)
guidances = st.builds(
    wire.Guidance,
    protocol=st.just(wire.PROTOCOL),
    revision=counts,
    severity=st.sampled_from(["info", "caution", "cannot_see"]),
    current_step=step_names,
    next_step=step_names,
    text=names,
    progress=st.tuples(counts, counts),
    device_time_ns=counts,
    spoken=names,
    spoken_revision=counts,
    picture=st.none() | identifiers,
)


def _built(message: type[wire.Message], /, **fields: Any) -> st.SearchStrategy[wire.Message]:
    return st.builds(message, protocol=st.just(wire.PROTOCOL), **fields)


stream_counts = st.dictionaries(names, times, max_size=8)
client_messages = st.one_of(
    packets,
    hellos,
    _built(
        wire.ClockReply,
        request_id=counts,
        server_time_ns=times,
        receive_time_ns=times,
        reply_time_ns=times,
        dropped=stream_counts,
    ),
    _built(
        wire.DeviceClock,
        epoch=counts,
        device_time_ns=times,
        bridge_time_ns=times,
        uncertainty_ns=counts,
        rate=floats,
    ),
    _built(
        wire.GuidanceAck,
        revision=counts,
        displayed_time_ns=times,
        displayed=st.booleans(),
        reason=names,
    ),
    _built(wire.PictureRequest, picture=identifiers),
    _built(wire.Command, command=names, command_id=identifiers),
    _built(wire.Finished, last_sequences=stream_counts, close=st.booleans()),
)
grants = st.builds(wire.StreamGrant, granted=counts, received_sequence=times)
server_messages = st.one_of(
    guidances,
    _built(
        wire.Welcome,
        session=names,
        epoch=counts,
        heartbeat_s=floats,
        streams=st.dictionaries(names, grants, max_size=5),
    ),
    _built(wire.Refused, reason=names, message=names, fatal=st.booleans()),
    _built(wire.Credit, stream=names, granted=counts, received_sequence=times),
    _built(wire.ClockRequest, request_id=counts, server_time_ns=times),
    _built(wire.Picture, picture=identifiers, encoding=st.sampled_from(["jpeg", "png"])),
    _built(wire.CommandResult, command_id=identifiers, accepted=st.booleans(), text=names),
    _built(wire.Finish, reason=names),
    _built(wire.Closed, session=names),
)


def read_or_refuse(header: bytes) -> None:
    """Both decoders give a message, None or a WireError; anything else fails the test."""
    for decode in DECODERS.values():
        with contextlib.suppress(WireError):
            message = decode(header)
            assert message is None or isinstance(message, wire.Message)


def packed(fields: dict[str, Any], **changes: Any) -> bytes:
    """Fields as another implementation would send them."""
    data = msgpack.packb(fields | changes)
    assert isinstance(data, bytes)
    return data


# -- reference bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["name"] for golden in GOLDEN])
def test_reference_bytes_are_read_and_written_alike(golden: dict[str, Any]) -> None:
    header = bytes.fromhex(golden["header_hex"])
    message = DECODERS[golden["from"]](header)
    assert message is not None
    for name, value in golden["fields"].items():
        if name != "type":
            read = json.loads(json.dumps(value))
            assert msgpack.unpackb(wire.encode(getattr(message, name))) == read
    assert msgpack.packb(msgpack.unpackb(wire.encode(message))) == header  # one spelling of sizes


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["name"] for golden in GOLDEN])
def test_reference_packets_satisfy_the_table_of_streams(golden: dict[str, Any]) -> None:
    message = DECODERS[golden["from"]](bytes.fromhex(golden["header_hex"]))
    has_payload = golden["payload_hex"] is not None
    assert isinstance(message, wire.PacketHeader | wire.Picture) is has_payload
    if isinstance(message, wire.PacketHeader):
        payload_bytes = len(bytes.fromhex(golden["payload_hex"]))
        assert wire.check_payload(message, payload_bytes) is STREAMS[message.stream]


def test_the_reference_picture_can_be_looked_at_and_its_size_is_bounded() -> None:
    (golden,) = [golden for golden in GOLDEN if golden["fields"]["type"] == "picture"]
    image = bytes.fromhex(golden["payload_hex"])
    wire.check_picture(len(image))
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (1, 1, 3)
    wire.check_picture(wire.MAX_PICTURE_BYTES)
    for size in (0, wire.MAX_PICTURE_BYTES + 1):
        with pytest.raises(WireError, match="1 to 262144 bytes"):
            wire.check_picture(size)


def test_every_type_of_message_has_reference_bytes() -> None:
    types = {
        message.__struct_config__.tag
        for union in (wire.ClientMessage, wire.ServerMessage)
        for message in get_args(union)
    }
    assert {golden["fields"]["type"] for golden in GOLDEN} == types


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["name"] for golden in GOLDEN])
def test_a_message_from_the_wrong_side_is_malformed(golden: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="malformed"):
        NOT_OURS[golden["from"]](bytes.fromhex(golden["header_hex"]))


# -- round trips -------------------------------------------------------------------------------


@given(message=client_messages)
def test_client_messages_survive_the_wire(message: wire.ClientMessage) -> None:
    header = wire.encode(message)
    if len(header) <= wire.MAX_HEADER_BYTES:
        assert wire.decode_client_message(header) == message


@given(message=server_messages)
def test_server_messages_survive_the_wire(message: wire.ServerMessage) -> None:
    header = wire.encode(message)
    if len(header) <= wire.MAX_HEADER_BYTES:
        assert wire.decode_server_message(header) == message


@given(message=packets)
def test_an_independent_decoder_reads_our_packets(message: wire.PacketHeader) -> None:
    fields = msgpack.unpackb(wire.encode(message))
    assert fields.pop("type") == "packet"
    for name, value in fields.items():
        ours = getattr(message, name)
        assert value == (list(ours) if isinstance(ours, tuple) else ours)
    left_out = set(wire.PacketHeader.__struct_fields__) - fields.keys()
    assert all(getattr(message, name) in (None, False, -1) for name in left_out)


@given(header=st.binary(max_size=64))
def test_a_header_may_be_any_buffer(header: bytes) -> None:
    for decode in DECODERS.values():
        outcomes = []
        for buffer in (header, memoryview(header)):
            try:
                outcomes.append(decode(buffer))
            except WireError as error:
                outcomes.append(error.reason)
        assert outcomes[0] == outcomes[1]


# -- hostile bytes -----------------------------------------------------------------------------


@given(header=st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_wire_error(header: bytes) -> None:
    read_or_refuse(header)


@given(fields=st.dictionaries(st.sampled_from([*PACKET, *wire.Hello.__struct_fields__]), names))
def test_any_map_gives_a_message_or_a_wire_error(fields: dict[str, str]) -> None:
    read_or_refuse(packed({"type": "packet", "protocol": "1.0"} | fields))


@given(data=st.data(), header=st.sampled_from(HEADERS))
def test_flipped_bits_give_a_message_or_a_wire_error(data: st.DataObject, header: bytes) -> None:
    mutated = bytearray(header)
    for position in data.draw(st.lists(st.integers(0, 8 * len(header) - 1), max_size=6)):
        mutated[position // 8] ^= 1 << position % 8
    read_or_refuse(bytes(mutated))


@given(data=st.data(), header=st.sampled_from(HEADERS), inserted=st.binary(max_size=12))
def test_spliced_headers_give_a_message_or_a_wire_error(
    data: st.DataObject, header: bytes, inserted: bytes
) -> None:
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(header))] * 2)))
    read_or_refuse(header[:start] + inserted + header[end:])


@pytest.mark.parametrize("header", HEADERS)
def test_a_truncated_header_is_malformed(header: bytes) -> None:
    for length in range(len(header)):
        for decode in DECODERS.values():
            with pytest.raises(WireError) as caught:
                decode(header[:length])
            assert caught.value.reason == "malformed"


@pytest.mark.parametrize("header", HEADERS)
def test_bytes_after_a_header_are_malformed(header: bytes) -> None:
    for decode in DECODERS.values():
        with pytest.raises(WireError):
            decode(header + b"\xc0")


BOMBS = {
    "arrays 4,000 deep": b"\x91" * 4000,
    "maps 1,300 deep": b"\x81\xa1a" * 1300,
    "4 Gi array": b"\xdd\xff\xff\xff\xff",
    "4 Gi map": b"\xdf\xff\xff\xff\xff",
    "4 Gi text": b"\xdb\xff\xff\xff\xff",
    "4 Gi bytes": b"\xc6\xff\xff\xff\xff",
    "4 Gi extension": b"\xc9\xff\xff\xff\xff\x01",
    "time stamp beyond all time": b"\xd7\xff" + b"\xff" * 8,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("key", ["streams", "dropped", "pose", "task", "unknown_key"])
def test_bombs_are_malformed_wherever_they_stand(bomb: bytes, key: str) -> None:
    for kind in ("hello", "packet", "clock_reply"):
        prefix = b"\x83" + b"".join(
            msgpack.packb(text) for text in ("type", kind, "protocol", "1.2", key)
        )
        for header in (bomb, prefix + bomb):
            with pytest.raises(WireError) as caught:
                wire.decode_client_message(header)
            assert caught.value.reason == "malformed"


def test_a_text_that_is_not_utf8_is_malformed() -> None:
    for header in HEADERS:
        broken = header[:-1] + b"\xff"  # the protocol's last letter
        for decode in DECODERS.values():
            with pytest.raises(WireError, match="not a keystep message"):
                decode(broken)


def test_a_header_may_have_4096_bytes_and_not_one_more() -> None:
    empty = len(packed(PACKET, unknown=b"")) + 1  # a bin of 256 and more has a longer prefix
    largest = packed(PACKET, unknown=bytes(wire.MAX_HEADER_BYTES - empty))
    assert len(largest) == wire.MAX_HEADER_BYTES
    assert isinstance(wire.decode_client_message(largest), wire.PacketHeader)
    for header in (largest + b"\xc0", b"\xc0" * 5000, b"\xc0" * 1_000_000):
        with pytest.raises(WireError, match="at most 4096") as caught:
            wire.decode_client_message(header)
        assert caught.value.reason == "header_size"


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["2.0", "0.9", "10.0", "2.17"])
@pytest.mark.parametrize("kind", ["packet", "hello", "credit", "from_the_future"])
def test_another_major_version_is_refused_by_both_names(protocol: str, kind: str) -> None:
    header = packed({"type": kind, "protocol": protocol, "anything": [1, {}]})
    for decode in DECODERS.values():
        with pytest.raises(ProtocolError, match=rf"{protocol}, this one {wire.PROTOCOL}") as caught:
            decode(header)
        assert caught.value.reason == "protocol_version"


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["name"] for golden in GOLDEN])
def test_unknown_keys_of_a_newer_minor_version_are_ignored(golden: dict[str, Any]) -> None:
    newer = packed(golden["fields"], protocol="1.7", depth={"scale": [0.5, None]})
    message = DECODERS[golden["from"]](newer)
    known = DECODERS[golden["from"]](packed(golden["fields"], protocol="1.7"))
    assert message == known is not None


def test_unknown_types_are_ignored_of_a_newer_minor_version_only() -> None:
    for decode in DECODERS.values():
        assert decode(packed({"type": "haptics", "protocol": "1.2", "pulse": 3})) is None
        for protocol in ("1.0", wire.PROTOCOL):
            with pytest.raises(WireError, match="'haptics' message is malformed"):
                decode(packed({"type": "haptics", "protocol": protocol, "pulse": 3}))


def test_a_newer_minor_version_does_not_excuse_a_malformed_packet() -> None:
    with pytest.raises(WireError, match="'packet' message is malformed"):
        wire.decode_client_message(packed(PACKET, protocol="1.2", sequence=-1))


@pytest.mark.parametrize(
    "protocol", ["", "1", "1.", ".0", "one.0", "1.x", "1,0", "-1.0", "1.0.0", "²." + "0", "1" * 50]
)
def test_a_protocol_that_is_no_version_is_malformed(protocol: str) -> None:
    with pytest.raises(WireError, match=r"expected 'major\.minor'") as caught:
        wire.decode_client_message(packed(PACKET, protocol=protocol))
    assert caught.value.reason == "malformed"


# -- fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", -1),
        ("sequence", 2**63),
        ("sequence", 1.5),
        ("device_time_ns", 2**63),
        ("device_time_ns", "now"),
        ("session", "s" * 65),
        ("stream", None),
        ("width", 0),
        ("height", 16385),
        ("keyframe", 1),
        ("intrinsics", [1.0, 2.0, 3.0]),
        ("pose", [0.0] * 15),
        ("pose", [0.0] * 17),
        ("valid", 256),
        ("frame_idx", -1),
    ],
)
def test_a_packet_with_a_field_out_of_range_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(WireError, match="'packet' message is malformed"):
        wire.decode_client_message(packed(PACKET, **{field: value}))


@pytest.mark.parametrize("device", ["", "a b", "a/b", "../a", "a\n", "ä", "a" * 65])
def test_a_device_id_that_could_be_a_path_or_a_line_is_malformed(device: str) -> None:
    hello = next(golden["fields"] for golden in GOLDEN if golden["fields"]["type"] == "hello")
    with pytest.raises(WireError, match="'hello' message is malformed"):
        wire.decode_client_message(packed(hello, device=device))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("command", "command", "n" * 65),
        ("command", "command", None),
        ("command", "command_id", "../../etc"),
        ("command", "command_id", ""),
        ("picture_request", "picture", "a/b"),
        ("guidance_ack", "reason", 7),
    ],
)
def test_a_message_of_the_wearers_side_out_of_range_is_malformed(
    kind: str, field: str, value: Any
) -> None:
    fields = next(golden["fields"] for golden in GOLDEN if golden["fields"]["type"] == kind)
    with pytest.raises(WireError, match=f"'{kind}' message is malformed"):
        wire.decode_client_message(packed(fields, **{field: value}))


# -- payloads ----------------------------------------------------------------------------------


def header_of(stream: str, encoding: str, **changes: Any) -> wire.PacketHeader:
    message = wire.decode_client_message(
        packed({**PACKET, "stream": stream, "encoding": encoding, **changes})
    )
    assert isinstance(message, wire.PacketHeader)
    return message


@pytest.mark.parametrize(
    ("header", "payload_bytes", "reason"),
    [
        (header_of("lidar", "png"), 1, "unknown_stream"),
        (header_of("depth", "png"), 1, "unknown_encoding"),
        (header_of("depth", "u16"), 3, "payload_size"),
        (header_of("depth", "png16", depth_unit_m=0.0), 9, "not_finite"),
        (header_of("depth", "png16", depth_unit_m=float("nan")), 9, "not_finite"),
        (header_of("vlc_left_front", "grey8"), 640 * 480 - 1, "payload_size"),
        (header_of("gyroscope", "samples_f32"), 1025 * 20, "payload_size"),
        (header_of("calibration", "none"), 1, "payload_size"),
        (header_of("calibration", "rays_f32"), 4 * 1024 * 1024 + 8, "payload_size"),
        (header_of("calibration", "none", rig_from_sensor=[float("nan")] * 16), 0, "not_finite"),
        (header_of("gaze", "h264"), 24, "unknown_encoding"),
        (header_of("rgb", "h265"), 1, "unknown_encoding"),
        (header_of("rgb", "h264"), 4 * 1024 * 1024 + 1, "payload_size"),
        (header_of("rgb", "h264"), 0, "payload_size"),
        (header_of("rgb", "jpeg", valid=0), 1, "payload_size"),
        (header_of("hands", "joints_f32"), 1871, "payload_size"),
        (header_of("hands", "joints_f32"), 0, "payload_size"),
        (header_of("hands", "joints_f32", valid=1), 936, "payload_size"),
        (header_of("hands", "joints_f32", valid=0), 1872, "payload_size"),
        (header_of("detections", "detections_f64"), 47, "payload_size"),
        (header_of("detections", "detections_f64"), 48 * 257, "payload_size"),
        (header_of("rgb", "h264", intrinsics=[1.0, float("nan"), 1.0, 1.0]), 9, "not_finite"),
        (header_of("rgb", "h264", pose=[float("inf")] + [0.0] * 15), 9, "not_finite"),
        (
            header_of("rgb", "h264", pose=[float("inf"), float("-inf")] + [0.0] * 14),
            9,
            "not_finite",
        ),
    ],
)
def test_payloads_beside_the_table_of_streams_are_refused(
    header: wire.PacketHeader, payload_bytes: int, reason: str
) -> None:
    with pytest.raises(WireError) as caught:
        wire.check_payload(header, payload_bytes)
    assert caught.value.reason == reason


@pytest.mark.parametrize("spec", STREAMS.values(), ids=STREAMS)
def test_every_whole_number_of_rows_up_to_the_limit_is_taken(spec: Any) -> None:
    for encoding in spec.encodings.values():
        header = header_of(spec.name, encoding.name)
        for rows in {encoding.min_rows, encoding.max_rows}:
            assert wire.check_payload(header, rows * encoding.row_bytes) is spec
        assert wire.check_payload(header_of(spec.name, encoding.name, valid=0), 0) is spec


VLC = (("left", "front"), ("left", "left"), ("right", "front"), ("right", "right"))


def test_the_table_has_the_sizes_that_the_specification_prints() -> None:
    sizes = {name: spec.max_payload_bytes for name, spec in STREAMS.items()}
    assert sizes == {
        "rgb": 4 * 1024 * 1024,
        "gaze": struct.calcsize("<6f"),
        "head": struct.calcsize("<16f"),
        "hands": struct.calcsize("<468f"),
        "detections": 256 * struct.calcsize("<6d"),
        **dict.fromkeys(("depth", "depth_ab", "depth_ahat", "depth_ahat_ab"), 1024 * 1024),
        **dict.fromkeys((f"vlc_{side}_{way}" for side, way in VLC), 512 * 1024),
        **dict.fromkeys(("accelerometer", "gyroscope", "magnetometer"), 1024 * 5 * 4),
        "eye_tracking": struct.calcsize("<21f"),
        "microphone": 16 * 1024 * struct.calcsize("<2h"),
        "calibration": 4 * 1024 * 1024,
    }
