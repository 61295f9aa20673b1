"""Golden bytes below were captured from hl2ss's own client, version 1.0.37."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import (
    Port,
    decode_packet_header,
    encode_packet,
    parse_packet,
    port,
)

PV_GOLDEN = bytes.fromhex("01 8002 6801 1e 01 01 ff 00e01000 01 0a00000000000000 1e00000000000000")
START_PV_GOLDEN = bytes.fromhex("07 00010000000000 6666663f 00000000 00000000 00000000 01000000")
U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
F32 = st.floats(width=32, allow_nan=False)

configs = st.builds(
    pv.PvConfig,
    mode=st.integers(0, 1),
    width=U16,
    height=U16,
    fps=U8,
    divisor=U8,
    profile=U8,
    level=U8,
    bitrate_bps=U32,
    options=st.lists(st.tuples(U64, U64), max_size=5).map(tuple),
)
starts = st.builds(
    pv.PvStart,
    shared=st.booleans(),
    enable_mrc=st.booleans(),
    global_opacity=F32,
    output_width=F32,
    stabilization_length=U32,
    hologram_perspective=U32,
)
requests = st.builds(
    pv.PvRequest,
    start=st.none() | starts,
    stop=st.booleans(),
    stream=st.none() | configs | st.builds(pv.PvCalibrationRequest, width=U16, height=U16, fps=U8),
)
metadata = st.builds(
    pv.PvMetadata,
    focal_length_px=st.tuples(F32, F32),
    principal_point_px=st.tuples(F32, F32),
    width=U16,
    height=U16,
    exposure_time_hns=U64,
    exposure_compensation=st.tuples(U64, U64),
    lens_position=U32,
    focus_state=U32,
    iso_speed=U32,
    white_balance_k=U32,
    iso_gains=st.tuples(F32, F32),
    white_balance_gains=st.tuples(F32, F32, F32),
)


def test_ports_are_those_of_the_headset_and_shift_together() -> None:
    assert port(Port.REMOTE_CONFIGURATION) == 3809
    assert port(Port.PERSONAL_VIDEO) == 3810
    assert port(Port.SPATIAL_INPUT) == 3812
    assert port(Port.GUEST_MESSAGE_QUEUE) == 3820
    assert port(Port.PERSONAL_VIDEO, base=20_000) == 20_010


def test_a_live_pv_configuration_has_the_golden_bytes() -> None:
    config = pv.PvConfig.live(width=640, height=360, fps=30)
    assert pv.encode_pv_request(pv.PvRequest(stream=config)) == PV_GOLDEN
    assert pv.parse_pv_request(PV_GOLDEN) == pv.PvRequest(stream=config)


def test_starting_and_stopping_pv_have_the_golden_bytes() -> None:
    assert pv.encode_pv_request(pv.PvRequest(start=pv.PvStart())) == START_PV_GOLDEN
    assert pv.parse_pv_request(START_PV_GOLDEN) == pv.PvRequest(start=pv.PvStart())
    assert pv.encode_pv_request(pv.PvRequest(stop=True)) == b"\x0b"


def test_a_calibration_request_has_six_bytes() -> None:
    request = pv.PvRequest(stream=pv.PvCalibrationRequest(width=1920, height=1080, fps=30))
    assert pv.encode_pv_request(request) == struct.pack("<BHHB", 2, 1920, 1080, 30)


def test_start_and_stream_in_one_connection_put_the_switch_before_the_configuration() -> None:
    stream = pv.PvConfig.live(width=640, height=360, fps=30)
    request = pv.PvRequest(start=pv.PvStart(), stop=True, stream=stream)
    assert pv.encode_pv_request(request) == b"\x0d" + START_PV_GOLDEN[1:] + PV_GOLDEN[1:]


@given(request=requests)
def test_pv_requests_survive_the_wire_and_need_every_byte(request: pv.PvRequest) -> None:
    encoded = pv.encode_pv_request(request)
    assert pv.parse_pv_request(encoded + b"extra") == request
    assert all(pv.parse_pv_request(encoded[:end]) is None for end in range(len(encoded)))


def test_a_setting_too_big_for_its_field_is_refused_before_sending() -> None:
    config = pv.PvConfig(mode=0, width=70_000, height=1, fps=1, bitrate_bps=1)
    with pytest.raises(ConfigError, match="does not fit the wire"):
        pv.encode_pv_request(pv.PvRequest(stream=config))


@given(value=metadata)
def test_pv_metadata_survives_the_wire(value: pv.PvMetadata) -> None:
    assert len(value.encode()) == pv.PV_METADATA_SIZE
    assert pv.PvMetadata.decode(value.encode()) == value


def test_pv_metadata_fields_sit_at_the_documented_offsets() -> None:
    data = pv.PvMetadata(
        focal_length_px=(1.0, 2.0),
        principal_point_px=(3.0, 4.0),
        width=640,
        height=360,
        exposure_time_hns=5,
        lens_position=6,
        focus_state=pv.FocusState.FOCUSED,
        iso_speed=7,
        white_balance_k=8,
        iso_gains=(9.0, 10.0),
    ).encode()
    assert struct.unpack_from("<4f", data, 0) == (1, 2, 3, 4)
    assert struct.unpack_from("<Q", data, 16) == (5,)
    assert struct.unpack_from("<4I", data, 40) == (6, 3, 7, 8)
    assert struct.unpack_from("<2f", data, 56) == (9, 10)
    assert struct.unpack_from("<2H", data, 76) == (640, 360)


def test_a_pv_calibration_survives_its_208_bytes() -> None:
    values = np.arange(52, dtype="<f4")
    calibration = pv.PvCalibration.decode(values.tobytes())
    np.testing.assert_array_equal(calibration.projection[0], [9, 10, 11, 12])
    np.testing.assert_array_equal(calibration.extrinsics_mf, np.arange(45, 52))
    assert calibration.encode() == values.tobytes()
    with pytest.raises(DeviceError, match="208"):
        pv.PvCalibration.decode(b"\0" * 207)


@given(
    timestamp=U64,
    payload=st.binary(max_size=300),
    values=st.none() | st.lists(F32, min_size=16, max_size=16),
)
def test_packets_survive_framing_and_need_every_byte(
    timestamp: int, payload: bytes, values: list[float] | None
) -> None:
    pose = None if values is None else np.array(values, np.float32).reshape(4, 4)
    data = encode_packet(timestamp, payload, pose)
    parsed = parse_packet(data + b"next", with_pose=pose is not None, max_size=300)
    assert parsed is not None
    assert (parsed[0].timestamp_hns, bytes(parsed[0].payload)) == (timestamp, payload)
    assert parsed[1] == len(data) == 12 + len(payload) + 64 * (pose is not None)
    if pose is not None:
        np.testing.assert_array_equal(parsed[0].pose, pose)
    assert parse_packet(data[:-1], with_pose=pose is not None, max_size=300) is None


def test_the_payload_size_on_the_wire_leaves_the_pose_out() -> None:
    data = encode_packet(7, b"abc", np.eye(4, dtype=np.float32))
    assert decode_packet_header(data[:12]) == (7, 3)


def test_a_packet_beyond_the_limit_is_refused_from_its_header() -> None:
    with pytest.raises(DeviceError, match="at most 10"):
        parse_packet(struct.pack("<QI", 0, 11), with_pose=False, max_size=10)


ARGUMENT_SIZES = {
    0x00: 0, 0x01: 0, 0x02: 4, 0x03: 0, 0x04: 20, 0x05: 4, 0x06: 4, 0x07: 4, 0x08: 8, 0x09: 4,
    0x0A: 8, 0x0B: 4, 0x0C: 4, 0x0D: 4, 0x0E: 4, 0x0F: 4, 0x10: 4, 0x11: 4, 0x12: 4, 0x13: 20,
    0x14: 8, 0x15: 4, 0x18: 4, 0x19: 8, 0x20: 4, 0x21: 4, 0x22: 8,
}  # fmt: skip


@pytest.mark.parametrize(("number", "size"), ARGUMENT_SIZES.items())
def test_every_command_takes_exactly_its_arguments(number: int, size: int) -> None:
    data = bytes((number,)) + bytes(range(size))
    parsed = rc.parse_call(data + b"\x00")
    assert parsed is not None
    assert parsed[1] == 1 + size
    assert rc.encode_call(parsed[0]) == data
    assert rc.parse_call(data[:-1]) is None


def test_commands_with_counts_take_as_many_items_as_they_say() -> None:
    points = rc.RcCall(rc.Command.RM_MAP_CAMERA_POINTS, (3800, 0, 2, 1.0, 2.0, 3.0, 4.0))
    poses = rc.RcCall(rc.Command.RM_RIG_NODE_WORLD_POSES, (2, 11, 12))
    for call, size in ((points, 1 + 12 + 16), (poses, 1 + 4 + 16)):
        data = rc.encode_call(call)
        assert rc.parse_call(data + b"x") == (call, size)
        assert rc.parse_call(data[:-1]) is None


@pytest.mark.parametrize("data", [b"\x1a", b"\xff", b"\x17\xff\xff\xff\xff"])
def test_unknown_commands_and_absurd_counts_are_refused(data: bytes) -> None:
    with pytest.raises(DeviceError):
        rc.parse_call(data)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_call_incomplete_or_refused(data: bytes) -> None:
    try:
        parsed = rc.parse_call(data)
    except DeviceError:
        return
    if parsed is not None:
        assert 1 <= parsed[1] <= len(data)
