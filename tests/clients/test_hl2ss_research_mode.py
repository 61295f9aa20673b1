"""Requests and payloads of the Research Mode sensors, eye tracker and microphone.

Golden bytes were captured from hl2ss's own client, version 1.0.37.
"""

from __future__ import annotations

import contextlib
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss import calibration, depth, eye_tracker, inertial, microphone, vlc
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.hl2ss.spatial_input import EyeRay

VLC_GOLDEN = bytes.fromhex(
    "01 01 01 ff 00801600 03 0a00000000000000 1e00000000000000"
    "ffffffffffffffff 0000000000000000 feffffffffffffff b817feffffffffff"
)
AHAT_GOLDEN = bytes.fromhex("01 01 00 01 ff c0cccc01 01 0a00000000000000 2d00000000000000")
LONG_THROW_GOLDEN = bytes.fromhex("01 01 05000000")
U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
OPTIONS = st.lists(st.tuples(U64, U64), max_size=4).map(tuple)
MODES = st.integers(0, 1)

vlc_configs = st.builds(
    rm.VlcConfig, mode=MODES, bitrate_bps=U32, profile=U8, divisor=U8, level=U8, options=OPTIONS
)
ahat_configs = st.builds(
    rm.AhatConfig,
    mode=MODES,
    bitrate_bps=U32,
    depth_profile=U8,
    profile=U8,
    divisor=U8,
    level=U8,
    options=OPTIONS,
)
long_throw_configs = st.builds(rm.LongThrowConfig, mode=MODES, divisor=U8, png_filter=U32)
PARSERS = {
    rm.VlcConfig: rm.parse_vlc_request,
    rm.AhatConfig: rm.parse_ahat_request,
    rm.LongThrowConfig: rm.parse_long_throw_request,
    rm.ImuConfig: rm.parse_imu_request,
    rm.MicrophoneConfig: rm.parse_microphone_request,
}


@pytest.mark.parametrize(
    ("config", "golden"),
    [
        (rm.VlcConfig.live(), VLC_GOLDEN),
        (rm.AhatConfig.live(), AHAT_GOLDEN),
        (rm.LongThrowConfig(), LONG_THROW_GOLDEN),
        (rm.ImuConfig(mode=1), b"\x01"),
        (rm.MicrophoneConfig(), bytes.fromhex("03 29")),
    ],
)
def test_requests_have_the_golden_bytes(config: rm.CameraRequest, golden: bytes) -> None:
    assert rm.encode_request(config) == golden
    assert PARSERS[type(config)](golden) == config


def test_the_eye_tracker_is_asked_with_its_rate_alone() -> None:
    assert rm.encode_eye_tracker_request(30) == b"\x1e"
    with pytest.raises(ConfigError, match="30, 60 or 90"):
        rm.encode_eye_tracker_request(45)


@given(config=vlc_configs | ahat_configs | long_throw_configs)
def test_requests_survive_the_wire_and_need_every_byte(config: rm.CameraRequest) -> None:
    parse, encoded = PARSERS[type(config)], rm.encode_request(config)
    assert parse(encoded + b"extra") == config
    assert all(parse(encoded[:end]) is None for end in range(len(encoded)))


@pytest.mark.parametrize("parse", list(PARSERS.values())[:4])
@pytest.mark.parametrize("mode", [2, 0xF2])
def test_mode_2_is_one_byte_and_only_its_low_bits_count(parse: object, mode: int) -> None:
    assert callable(parse)
    assert parse(bytes((mode,))) == rm.CalibrationRequest()
    assert rm.encode_request(rm.CalibrationRequest()) == b"\x02"


def test_settings_beyond_their_fields_are_refused_before_sending() -> None:
    with pytest.raises(ConfigError, match="does not fit the wire"):
        rm.encode_request(rm.LongThrowConfig(divisor=256))
    with pytest.raises(ConfigError, match="mode 0 or 1"):
        rm.encode_request(rm.ImuConfig(mode=3))


def test_the_two_vlc_options_shift_its_time() -> None:
    assert rm.VlcConfig.live().time_shift_hns(5_000_000) == -125_000
    half = int.from_bytes(struct.pack("<d", 0.5), "little")
    config = rm.VlcConfig(mode=0, bitrate_bps=1, options=((2**64 - 1, half),))
    assert config.time_shift_hns(5_000_000) == 25_000  # half of 5 ms
    assert rm.VlcConfig(mode=0, bitrate_bps=1).time_shift_hns(5_000_000) == 0


# --- payloads ------------------------------------------------------------------------------------


@given(ticks=U64, exposure=U64, gain=U32)
def test_vlc_metadata_survives_its_24_bytes(ticks: int, exposure: int, gain: int) -> None:
    metadata = vlc.VlcMetadata(sensor_ticks_ns=ticks, exposure_ns=exposure, gain=gain)
    assert metadata.encode() == struct.pack("<QQII", ticks, exposure, gain, 0)
    assert vlc.VlcMetadata.decode(metadata.encode()) == metadata


def planes(shape: tuple[int, int], seed: int, top: int = 2**16) -> depth.DepthFrame:
    numbers = np.random.default_rng(seed).integers(0, top, (2, *shape), np.uint16)
    return depth.DepthFrame(numbers[0], numbers[1])


def test_long_throw_planes_survive_the_png() -> None:
    frame = planes(depth.LONG_THROW_SHAPE, seed=1)
    decoded, ticks = depth.decode_long_throw(depth.encode_long_throw(frame, 2**63))
    np.testing.assert_array_equal(decoded.depth_mm, frame.depth_mm)
    np.testing.assert_array_equal(decoded.active_brightness, frame.active_brightness)
    assert (decoded.depth_mm.dtype, ticks) == (np.uint16, 2**63)


def test_long_throw_bytes_are_depth_over_brightness_in_blue_green_red_alpha() -> None:
    frame = planes(depth.LONG_THROW_SHAPE, seed=2)
    png = depth.encode_long_throw(frame, 0)[:-8]
    rgba = cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), -1), cv2.COLOR_BGRA2RGBA)
    first, second = int(frame.depth_mm[0, 0]), int(frame.depth_mm[0, 1])
    assert rgba.shape == (288, 320, 4)  # each pixel holds two values, the first low byte in blue
    assert rgba[0, 0].tolist() == [second & 255, first >> 8, first & 255, second >> 8]
    assert int(rgba[144, 0, 2]) == int(frame.active_brightness[0, 0]) & 255


@pytest.mark.parametrize(
    "spoil",
    [
        lambda png: b"not a png" * 100,
        lambda png: png[:16] + struct.pack(">II", 30_000, 30_000) + png[24:],
        lambda png: png[: len(png) // 2],
        lambda png: b"",
    ],
)
def test_what_is_no_long_throw_png_is_refused(spoil: object) -> None:
    assert callable(spoil)
    payload = depth.encode_long_throw(planes(depth.LONG_THROW_SHAPE, seed=3), 5)
    with pytest.raises(DeviceError, match="long-throw"):
        depth.decode_long_throw(spoil(payload[:-8]) + payload[-8:])


def test_raw_ahat_is_exact() -> None:
    frame = planes(depth.AHAT_SHAPE, seed=4)
    parts = depth.split_ahat_payload(depth.encode_ahat_payload(depth.encode_raw_ahat(frame), 77))
    decoded = depth.decode_raw_ahat(parts.encoded)
    np.testing.assert_array_equal(decoded.depth_mm, frame.depth_mm)
    np.testing.assert_array_equal(decoded.active_brightness, frame.active_brightness)
    assert (len(parts.zdepth), parts.sensor_ticks_ns) == (0, 77)


@settings(deadline=None)
@given(depth_mm=st.integers(0, 1023), brightness=arrays(np.uint16, 8))
def test_the_ahat_picture_keeps_depth_to_4_mm_and_every_other_brightness(
    depth_mm: int, brightness: np.ndarray
) -> None:
    frame = depth.DepthFrame(
        np.full(depth.AHAT_SHAPE, depth_mm, np.uint16),
        np.tile(brightness, 512 * 64).reshape(depth.AHAT_SHAPE),
    )
    picture = depth.pack_ahat_picture(frame)
    unpacked = depth.unpack_ahat_picture(picture)
    assert (unpacked.depth_mm == depth_mm // 4 * 4).all()
    kept = (np.sqrt(brightness[::2]).astype(int) ** 2).repeat(2)
    np.testing.assert_array_equal(unpacked.active_brightness[100, :8], kept)


def test_the_ahat_picture_is_the_documented_nv12() -> None:
    frame = planes(depth.AHAT_SHAPE, seed=5, top=1024)
    picture = depth.pack_ahat_picture(frame)
    u, v = picture[512:].reshape(2, -1)
    nv12 = np.stack([u, v], axis=1).ravel()  # chroma byte k: root of AB pixel 2k
    roots = np.sqrt(frame.active_brightness.ravel()[::2]).astype(np.uint8)
    np.testing.assert_array_equal(nv12, roots)
    np.testing.assert_array_equal(picture[:512], frame.depth_mm >> 2)


def test_ahat_with_zdepth_or_wrong_sizes_is_refused() -> None:
    blob = depth.split_ahat_payload(depth.encode_ahat_payload(b"picture", 1, zdepth=b"blob"))
    assert (bytes(blob.zdepth), bytes(blob.encoded)) == (b"blob", b"picture")
    with pytest.raises(DeviceError, match="pyzdepth"):
        depth.check_no_zdepth(blob)
    with pytest.raises(DeviceError, match="has 27"):
        depth.split_ahat_payload(depth.encode_ahat_payload(b"picture", 1, zdepth=b"blob") + b"x")


@given(count=st.integers(0, 20), data=st.data())
def test_imu_samples_survive_the_wire(count: int, data: st.DataObject) -> None:
    ticks = data.draw(arrays(np.uint64, count, unique=True))
    samples = inertial.ImuSamples(
        sensor_ticks_ns=ticks,
        device_time_hns=ticks + np.uint64(1),
        values=data.draw(arrays(np.float32, (count, 3), elements=st.floats(width=32))),
        temperatures=np.full(count, 30.0, np.float32),
    )
    encoded = inertial.encode_imu(samples)
    decoded = inertial.decode_imu(encoded)
    assert len(encoded) == 32 * count
    for name in ("sensor_ticks_ns", "device_time_hns", "values", "temperatures"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(samples, name))


def test_equal_imu_times_are_spread_by_the_sensors_clock() -> None:
    data = b"".join(struct.pack("<QQ4f", 1000 + 900_000 * n, 500, 1, 2, 3, 4) for n in range(3))
    samples = inertial.decode_imu(data)
    assert samples.device_time_hns.tolist() == [500, 9500, 18_500]
    np.testing.assert_array_equal(samples.values[1], [1, 2, 3])
    with pytest.raises(DeviceError, match="32 bytes"):
        inertial.decode_imu(data[:-1])


rays = st.none() | st.builds(
    EyeRay,
    origin=arrays(np.float32, 3, elements=st.floats(-9, 9, width=32)),
    direction=arrays(np.float32, 3, elements=st.floats(-9, 9, width=32)),
)


@given(calibrated=st.booleans(), combined=rays, left=rays, openness=st.none() | st.just(0.5))
def test_eye_samples_survive_their_92_bytes_with_their_valid_bits(
    calibrated: bool, combined: EyeRay | None, left: EyeRay | None, openness: float | None
) -> None:
    sample = eye_tracker.EyeSample(
        calibrated=calibrated, combined=combined, left=left, right_openness=openness
    )
    data = eye_tracker.encode_eye_sample(sample)
    (valid,) = struct.unpack_from("<I", data, 88)
    parts = calibrated, combined is not None, left is not None, openness is not None
    assert (len(data), valid) == (92, sum(np.multiply(parts, (1, 2, 4, 32))))
    decoded = eye_tracker.decode_eye_sample(data)
    assert (decoded.combined is None, decoded.right) == (combined is None, None)
    assert eye_tracker.encode_eye_sample(decoded) == data


def test_adts_headers_say_48_khz_stereo_and_the_frames_size() -> None:
    header = microphone.adts_header(93)
    assert header[:2] == b"\xff\xf1"
    assert header[2] >> 2 & 0xF == 3
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    assert (len(header), size) == (7, 100)


def test_raw_audio_is_stereo_or_an_array_of_five() -> None:
    stereo = rm.MicrophoneConfig(profile=rm.AudioProfile.RAW)
    array = rm.MicrophoneConfig(profile=rm.AudioProfile.RAW, level=0x2B)
    assert microphone.decode_raw_audio(struct.pack("<4h", 1, 2, 3, 4), stereo).shape == (2, 2)
    assert microphone.decode_raw_audio(bytes(40), array).shape == (2, 5)
    with pytest.raises(DeviceError, match="20 bytes"):
        microphone.decode_raw_audio(bytes(41), array)


def test_raw_pv_rows_are_padded_to_64() -> None:
    nv12 = np.random.default_rng(0).integers(0, 256, (240 * 3 // 2, 424), np.uint8)
    data = pv.encode_raw_frame(nv12)
    assert len(data) == pv.raw_frame_size(424, 240) == 448 * 240 * 3 // 2
    np.testing.assert_array_equal(pv.decode_raw_frame(data, 424, 240), nv12)
    with pytest.raises(DeviceError, match="424x240"):
        pv.decode_raw_frame(data[1:], 424, 240)


# --- calibrations --------------------------------------------------------------------------------

SIZES = {
    Port.RM_VLC_LEFTFRONT: 4_915_280,
    Port.RM_VLC_RIGHTRIGHT: 4_915_280,
    Port.RM_DEPTH_LONGTHROW: 1_474_644,
    Port.RM_DEPTH_AHAT: 4_194_392,
}


@pytest.mark.parametrize(("kind", "size"), SIZES.items())
def test_calibrations_have_the_documented_size_and_survive_the_wire(kind: Port, size: int) -> None:
    data = np.arange(size // 4, dtype="<f4").tobytes()
    decoded = calibration.decode_camera_calibration(kind, data)
    assert calibration.encode_camera_calibration(kind, decoded) == data
    height, width = calibration.CAMERA_SHAPES[kind]
    assert decoded.uv2xy[0, 1].tolist() == [1, height * width + 1]  # x plane, then y plane
    assert decoded.undistorted_intrinsics[3] == size // 4 - 1
    assert (decoded.scale is None) == (kind <= Port.RM_VLC_RIGHTRIGHT)
    with pytest.raises(DeviceError, match=str(size)):
        calibration.decode_camera_calibration(kind, data[:-4])


def test_the_depth_scale_follows_the_extrinsics() -> None:
    data = np.arange(SIZES[Port.RM_DEPTH_AHAT] // 4, dtype="<f4").tobytes()
    decoded = calibration.decode_camera_calibration(Port.RM_DEPTH_AHAT, data)
    first = 2 * 512 * 512 + 16
    assert (decoded.scale, decoded.alias) == (first, first + 1)


@given(data=st.binary(max_size=120))
def test_any_bytes_are_a_payload_or_refused(data: bytes) -> None:
    for decode in (
        depth.decode_long_throw,
        depth.split_ahat_payload,
        depth.decode_raw_ahat,
        inertial.decode_imu,
        eye_tracker.decode_eye_sample,
        vlc.decode_raw_vlc,
    ):
        with contextlib.suppress(DeviceError):
            decode(data)
    for parse in PARSERS.values():
        parse(data)
