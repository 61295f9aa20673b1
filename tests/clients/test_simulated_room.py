"""Research Mode, eye tracker and microphone of the simulated headset, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError, DeviceError, VideoError
from keystep_capture.samples import find_sample
from keystep_hololens.hl2ss import client, conventions, microphone, vlc
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss import sensor_client as sensors
from keystep_hololens.hl2ss.calibration import CAMERA_SHAPES, CameraCalibration
from keystep_hololens.hl2ss.picture_decoder import PictureDecoder, is_keyframe
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import DeviceClock, Rig, Room, SimulatedHeadset
from keystep_hololens.simulator.rig import nominal_camera
from keystep_hololens.simulator.room import TABLE_BELOW_ORIGIN_M, WALL_AHEAD_M

HOST = "127.0.0.1"
COFFEE = find_sample("pour-coffee")
LONG_THROW = Port.RM_DEPTH_LONGTHROW
_Packet = TypeVar("_Packet")


@pytest.fixture
async def headset() -> AsyncIterator[SimulatedHeadset]:
    clock = DeviceClock(time_scale=20)
    async with SimulatedHeadset(room=Room(), clock=clock, microphone=True) as simulated:
        yield simulated


async def take(stream: AsyncGenerator[_Packet, None], count: int) -> list[_Packet]:
    packets: list[_Packet] = []
    async with aclosing(stream):
        async for packet in stream:
            packets.append(packet)
            if len(packets) == count:
                break
    return packets


async def test_a_room_opens_every_port_it_can_fill(headset: SimulatedHeadset) -> None:
    kinds = {kind.name.lower() for kind in Port if kind <= Port.RM_IMU_MAGNETOMETER}
    others = {"remote_configuration", "microphone", "spatial_input", "extended_eye_tracker"}
    assert headset.open_ports.keys() == kinds | others
    async with SimulatedHeadset(room=Room()) as without:
        assert "microphone" not in without.open_ports
    with pytest.raises(ConfigError, match="needs a room"):
        SimulatedHeadset.of_sample(COFFEE, microphone=True)


# --- depth ---------------------------------------------------------------------------------------


def world_points(packet: sensors.DepthPacket, calibration: CameraCalibration) -> np.ndarray:
    """World points of a depth frame, shape (N, 3), invalid ones left out."""
    points = conventions.depth_points_m(packet.frame.depth_mm, calibration.uv2xy)
    assert packet.pose is not None
    world_from_camera = conventions.world_from_rm_camera(packet.pose, calibration.extrinsics)
    world = conventions.transform_points(world_from_camera, points).reshape(-1, 3)
    return world[np.isfinite(world[:, 0])]


def is_on_a_surface(world: np.ndarray, hand: np.ndarray, tolerance_m: float) -> np.ndarray:
    table = np.abs(world[:, 1] + TABLE_BELOW_ORIGIN_M) < tolerance_m
    wall = np.abs(world[:, 2] + WALL_AHEAD_M) < tolerance_m
    ball = np.abs(np.linalg.norm(world - hand, axis=1) - 0.06) < tolerance_m
    return table | wall | ball


async def test_long_throw_depth_lies_on_the_rooms_surfaces(headset: SimulatedHeadset) -> None:
    calibration = await sensors.read_camera_calibration(
        HOST, LONG_THROW, base_port=headset.base_port
    )
    stream = sensors.open_long_throw(HOST, rm.LongThrowConfig(), base_port=headset.base_port)
    packets = await take(stream, 4)
    origin_hns = headset.playback_origin_hns or 0
    for packet in packets:
        world = world_points(packet, calibration)
        time_s = (packet.timestamp_hns - origin_hns) / 1e7
        on_surface = is_on_a_surface(world, Room().hand_position_m(time_s), 0.008)
        assert len(world) > 50_000
        assert on_surface.mean() > 0.999
        assert (packet.frame.active_brightness[packet.frame.depth_mm > 0] > 0).all()
    assert np.diff([packet.timestamp_hns for packet in packets]).tolist() == [2_000_000] * 3
    assert packets[0].sensor_ticks_ns == packets[0].timestamp_hns * 100


@pytest.mark.parametrize("profile", [pv.VideoProfile.RAW, pv.VideoProfile.H264_MAIN])
async def test_ahat_depth_lies_on_the_rooms_surfaces(
    headset: SimulatedHeadset, profile: pv.VideoProfile
) -> None:
    kind = Port.RM_DEPTH_AHAT
    calibration = await sensors.read_camera_calibration(HOST, kind, base_port=headset.base_port)
    config = rm.AhatConfig.live(profile=profile)
    packets = await take(sensors.open_ahat(HOST, config, base_port=headset.base_port), 3)
    time_s = (packets[2].timestamp_hns - (headset.playback_origin_hns or 0)) / 1e7
    world = world_points(packets[2], calibration)
    hand = Room().hand_position_m(time_s)
    assert packets[2].frame.depth_mm.max() <= 1024
    assert is_on_a_surface(world, hand, 0.02).mean() > 0.98
    assert np.diff([packet.timestamp_hns for packet in packets]).tolist() == [222_222] * 2


async def test_ahat_in_hevc_is_decoded_too(headset: SimulatedHeadset) -> None:
    config = rm.AhatConfig.live(mode=0, profile=pv.VideoProfile.HEVC_MAIN)
    (packet,) = await take(sensors.open_ahat(HOST, config, base_port=headset.base_port), 1)
    assert packet.frame.depth_mm.shape == (512, 512)
    assert packet.pose is None
    assert 300 < np.median(packet.frame.depth_mm[packet.frame.depth_mm > 100]) < 1000


async def test_zdepth_is_refused_on_both_sides(headset: SimulatedHeadset) -> None:
    config = rm.AhatConfig(mode=0, bitrate_bps=10**6, depth_profile=rm.DepthProfile.ZDEPTH)
    with pytest.raises(ConfigError, match="pyzdepth"):
        await anext(sensors.open_ahat(HOST, config, base_port=headset.base_port))
    raw = rm.AhatConfig(mode=0, bitrate_bps=0)
    with pytest.raises(DeviceError, match="closed without data"):
        await anext(sensors.open_ahat(HOST, raw, base_port=headset.base_port))


async def test_equal_seeds_give_equal_rooms() -> None:
    frames = []
    for seed in (3, 3, 4):
        async with SimulatedHeadset(room=Room(seed=seed)) as headset:
            stream = sensors.open_long_throw(
                HOST, rm.LongThrowConfig(mode=0), base_port=headset.base_port
            )
            (packet,) = await take(stream, 1)
            frames.append(packet.frame.depth_mm)
    assert (frames[0] == frames[1]).all()
    assert (frames[0] != frames[2]).any()


# --- tracking cameras ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [pv.VideoProfile.H264_BASE, pv.VideoProfile.HEVC_MAIN])
async def test_tracking_pictures_decode_one_by_one(
    headset: SimulatedHeadset, profile: pv.VideoProfile
) -> None:
    config = rm.VlcConfig.live(profile=profile, gop_size=3)
    packets = await take(sensors.open_vlc(HOST, config, base_port=headset.base_port), 4)
    decoder = PictureDecoder(profile, width=640, height=480)
    pictures = [decoder.decode(packet.encoded) for packet in packets]
    assert [is_keyframe(packet.encoded, profile) for packet in packets] == [
        True,
        False,
        False,
        True,
    ]
    assert pictures[0].shape == (720, 640)
    assert (pictures[0][480:] == 128).mean() > 0.9  # no colour
    assert all(packet.pose is not None for packet in packets)
    times = [packet.timestamp_hns - (headset.playback_origin_hns or 0) for packet in packets]
    np.testing.assert_allclose(times, np.arange(4) * 1e7 / 30, atol=3)  # its lateness taken off


async def test_raw_tracking_pictures_are_late_unless_corrected(headset: SimulatedHeadset) -> None:
    config = rm.VlcConfig(mode=0, bitrate_bps=1, profile=pv.VideoProfile.RAW, divisor=2)
    stream = sensors.open_vlc(
        HOST, config, kind=Port.RM_VLC_RIGHTRIGHT, base_port=headset.base_port
    )
    first, second = await take(stream, 2)
    assert vlc.decode_raw_vlc(first.encoded).std() > 5
    assert first.timestamp_hns == (headset.playback_origin_hns or 0) + 125_000
    assert second.timestamp_hns - first.timestamp_hns == 666_666
    assert first.metadata.exposure_ns == 5_000_000


async def test_a_decoder_wants_a_key_frame_first(headset: SimulatedHeadset) -> None:
    config = rm.VlcConfig.live()
    packets = await take(sensors.open_vlc(HOST, config, base_port=headset.base_port), 2)
    decoder = PictureDecoder(config.profile, width=640, height=480)
    with pytest.raises(VideoError, match="key frame"):
        decoder.decode(packets[1].encoded)
    assert decoder.decode(packets[0].encoded).shape == (720, 640)
    with pytest.raises(VideoError, match="expected 320x240"):
        PictureDecoder(config.profile, width=320, height=240).decode(packets[0].encoded)


# --- IMU, eyes, spatial input, sound -------------------------------------------------------------


async def imu(headset: SimulatedHeadset, kind: Port, count: int = 2) -> list[sensors.ImuPacket]:
    return await take(sensors.open_imu(HOST, kind, base_port=headset.base_port), count)


async def test_the_accelerometer_feels_gravity_from_below(headset: SimulatedHeadset) -> None:
    kind = Port.RM_IMU_ACCELEROMETER
    extrinsics = await sensors.read_imu_calibration(HOST, kind, base_port=headset.base_port)
    first, second = await imu(headset, kind)
    assert first.samples.values.shape == (93, 3)
    assert first.pose is not None
    world_from_sensor = conventions.world_from_rm_camera(first.pose, extrinsics)
    in_world = world_from_sensor[:3, :3] @ first.samples.values.mean(axis=0)
    np.testing.assert_allclose(in_world, [0, 9.80665, 0], atol=0.05)
    times = np.concatenate([first.samples.device_time_hns, second.samples.device_time_hns])
    np.testing.assert_allclose(np.diff(times.astype(np.int64)), 1e7 / 1116, atol=2)


async def test_the_gyroscope_tells_how_the_head_turns() -> None:
    def turning(time_s: float) -> np.ndarray:
        cos, sin = np.cos(time_s * np.radians(90)), np.sin(time_s * np.radians(90))
        return np.array([[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, 0], [0, 0, 0, 1.0]])

    kind = Port.RM_IMU_GYROSCOPE
    async with SimulatedHeadset(room=Room(head_at=turning)) as headset:
        extrinsics = await sensors.read_imu_calibration(HOST, kind, base_port=headset.base_port)
        packet = (await imu(headset, kind, 1))[0]
    assert packet.samples.values.shape == (315, 3)
    assert packet.pose is not None
    world_from_sensor = conventions.world_from_rm_camera(packet.pose, extrinsics)
    in_world = world_from_sensor[:3, :3] @ packet.samples.values.mean(axis=0)
    np.testing.assert_allclose(in_world, [0, 90, 0], atol=0.2)


async def test_the_magnetometer_has_samples_but_no_constants(headset: SimulatedHeadset) -> None:
    kind = Port.RM_IMU_MAGNETOMETER
    assert (await imu(headset, kind, 1))[0].samples.values.shape == (11, 3)
    with pytest.raises(DeviceError, match="closed the connection"):
        await sensors.read_imu_calibration(HOST, kind, base_port=headset.base_port)


async def test_eyes_look_ahead_in_the_world(headset: SimulatedHeadset) -> None:
    stream = sensors.open_eye_tracker(HOST, 60, base_port=headset.base_port)
    packets = await take(stream, 3)
    origin_hns = headset.playback_origin_hns or 0
    for packet in packets:
        assert packet.sample.combined is not None
        assert packet.pose is not None
        _, direction = conventions.world_ray(packet.sample.combined, packet.pose)
        head = Room().head_at((packet.timestamp_hns - origin_hns) / 1e7)
        assert head is not None
        assert direction @ -head[:3, 2] > np.cos(np.radians(10))
    assert packets[0].sample.vergence_distance_m is None  # not offered on HoloLens 2
    assert packets[1].timestamp_hns - packets[0].timestamp_hns == 166_666


async def test_an_unknown_head_gives_invalid_eyes_and_no_poses() -> None:
    async with SimulatedHeadset(room=Room(head_at=lambda time_s: None)) as headset:
        eyes = await take(sensors.open_eye_tracker(HOST, base_port=headset.base_port), 1)
        depth = await take(
            sensors.open_long_throw(HOST, rm.LongThrowConfig(), base_port=headset.base_port), 1
        )
        spatial = await take(client.open_spatial_input(HOST, base_port=headset.base_port), 1)
    assert (eyes[0].sample.combined, eyes[0].pose, depth[0].pose) == (None, None, None)
    assert not depth[0].frame.depth_mm.any()
    assert (spatial[0].sample.head, spatial[0].sample.eye) == (None, None)


async def test_spatial_input_knows_head_and_hand(headset: SimulatedHeadset) -> None:
    packets = await take(client.open_spatial_input(HOST, base_port=headset.base_port), 3)
    sample, time_s = packets[2].sample, 2 * 166_666 / 1e7
    assert sample.head is not None
    assert sample.right_hand is not None
    assert sample.left_hand is None
    np.testing.assert_allclose(
        conventions.world_from_head(sample.head), Room().head_at(time_s), atol=1e-5
    )
    distance = np.linalg.norm(sample.right_hand.positions - Room().hand_position_m(time_s), axis=1)
    np.testing.assert_allclose(distance, 0.06, atol=1e-4)


async def test_sound_comes_as_aac_that_decodes(headset: SimulatedHeadset) -> None:
    packets = await take(sensors.open_microphone(HOST, base_port=headset.base_port), 12)
    decoder = av.AudioCodecContext.create("aac", "r")
    sound = [
        frame.to_ndarray()
        for packet in packets
        for frame in decoder.decode(av.Packet(bytes(packet.encoded)))
    ]
    assert {frame.shape for frame in sound} == {(2, 1024)}
    wave = np.concatenate(sound[4:], axis=1)[0]
    loudest = np.fft.rfft(wave * np.hanning(len(wave)))
    assert np.abs(loudest).argmax() * 48_000 / len(wave) == pytest.approx(440, abs=10)


@pytest.mark.parametrize(("level", "shape"), [(0x29, (1024, 2)), (0x2B, (1024, 5))])
async def test_sound_comes_raw(headset: SimulatedHeadset, level: int, shape: tuple[int]) -> None:
    config = rm.MicrophoneConfig(profile=rm.AudioProfile.RAW, level=level)
    stream = sensors.open_microphone(HOST, config, base_port=headset.base_port)
    packets = await take(stream, 2)
    sound = microphone.decode_raw_audio(packets[1].encoded, config)
    assert sound.shape == shape
    assert sound.std() > 0


async def test_a_microphone_level_nobody_knows_is_closed(headset: SimulatedHeadset) -> None:
    stream = sensors.open_microphone(
        HOST, rm.MicrophoneConfig(level=0x2D), base_port=headset.base_port
    )
    with pytest.raises(DeviceError, match="closed without data"):
        await anext(stream)


REFUSED = [
    (Port.RM_VLC_LEFTFRONT, rm.encode_request(rm.VlcConfig(mode=0, bitrate_bps=1, divisor=0))),
    (Port.RM_VLC_LEFTLEFT, rm.encode_request(rm.VlcConfig(mode=0, bitrate_bps=0))),
    (Port.RM_VLC_RIGHTFRONT, rm.encode_request(rm.VlcConfig(mode=1, bitrate_bps=1, profile=9))),
    (Port.RM_DEPTH_AHAT, rm.encode_request(rm.AhatConfig(mode=0, bitrate_bps=1, depth_profile=1))),
    (Port.RM_DEPTH_AHAT, rm.encode_request(rm.AhatConfig(mode=0, bitrate_bps=1, depth_profile=2))),
    (LONG_THROW, rm.encode_request(rm.LongThrowConfig(png_filter=7))),
    (LONG_THROW, rm.encode_request(rm.LongThrowConfig(divisor=0))),
    (Port.RM_IMU_GYROSCOPE, b"\x03"),
    (Port.EXTENDED_EYE_TRACKER, b"\x2d"),
    (Port.MICROPHONE, b"\x04\x29"),
]


@pytest.mark.parametrize(("kind", "request_bytes"), REFUSED)
async def test_what_the_headset_refuses_is_closed_without_data(
    headset: SimulatedHeadset, kind: Port, request_bytes: bytes
) -> None:
    reader, writer = await asyncio.open_connection(HOST, port(kind, headset.base_port))
    writer.write(request_bytes)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


# --- constants and remote configuration ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Port.RM_VLC_LEFTFRONT, LONG_THROW, Port.RM_DEPTH_AHAT])
async def test_constants_are_read_whole(headset: SimulatedHeadset, kind: Port) -> None:
    read = await sensors.read_camera_calibration(HOST, kind, base_port=headset.base_port)
    np.testing.assert_array_equal(read.uv2xy, nominal_camera(kind).uv2xy)
    np.testing.assert_array_equal(read.extrinsics, nominal_camera(kind).extrinsics)
    assert (read.scale, read.alias) == (nominal_camera(kind).scale, nominal_camera(kind).alias)


async def test_points_are_mapped_through_the_cameras_table(headset: SimulatedHeadset) -> None:
    remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
    pixels = np.array([[0, 0], [10, 20], [100.5, 7.25]], np.float32)
    plane = await remote.map_camera_points(LONG_THROW, rc.PointMapping.IMAGE_TO_UNIT_PLANE, pixels)
    np.testing.assert_allclose(plane[1], nominal_camera(LONG_THROW).uv2xy[20, 10], atol=1e-6)
    back = await remote.map_camera_points(LONG_THROW, rc.PointMapping.UNIT_PLANE_TO_IMAGE, plane)
    np.testing.assert_allclose(back, pixels, atol=0.01)
    with pytest.raises(DeviceError, match="closed the connection"):
        await remote.map_camera_points(
            Port.SPATIAL_INPUT, rc.PointMapping.IMAGE_TO_UNIT_PLANE, pixels
        )


async def test_rig_poses_are_those_of_the_packets(headset: SimulatedHeadset) -> None:
    stream = sensors.open_long_throw(HOST, rm.LongThrowConfig(), base_port=headset.base_port)
    packets = await take(stream, 2)
    remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
    poses = await remote.rig_poses([packet.timestamp_hns for packet in packets])
    np.testing.assert_array_equal(poses, [packet.pose for packet in packets])


async def test_setters_run_before_the_client_goes_on(headset: SimulatedHeadset) -> None:
    remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
    await remote.configure(
        rc.RcCall(rc.Command.SI_SAMPLING_DELAY, (-333_333,)),
        rc.RcCall(rc.Command.INTERFACE_PRIORITY, (port(LONG_THROW), 1)),
        rc.RcCall(rc.Command.RM_EYE_SELECTION, (1,)),
    )
    with pytest.raises(ConfigError, match="without a reply"):
        await remote.configure(rc.RcCall(rc.Command.UTC_OFFSET))


def test_constants_of_a_real_headset_can_be_read_from_a_file(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(288, 320, 2)).astype(np.float32)
    matrix = np.diag([180, 181, 1, 1]).astype(np.float32)
    matrix[2, :2] = 160, 140
    path = tmp_path / "calibration.npz"
    names = {"rm_depth_longthrow/uv2xy": table, "rm_depth_longthrow/intrinsics": matrix}
    np.savez(path, **names)
    rig = Rig.of_file(path)
    np.testing.assert_array_equal(rig.cameras[LONG_THROW].uv2xy, table)
    assert rig.cameras[LONG_THROW].undistorted_intrinsics.tolist() == [180, 181, 160, 140]
    assert rig.cameras.keys() == CAMERA_SHAPES.keys()
    np.savez(path, **{"pv/extrinsics": np.eye(3)})
    with pytest.raises(DataError, match="expected"):
        Rig.of_file(path)


# --- personal video with all of it ---------------------------------------------------------------


async def test_video_of_a_whole_sample_has_poses_and_comes_in_hevc_and_raw() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, whole=True, time_scale=5) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        for profile in (pv.VideoProfile.HEVC_MAIN, pv.VideoProfile.RAW):
            config = pv.PvConfig.live(width=424, height=240, fps=30, profile=profile, gop_size=2)
            packets = await take(client.open_pv(HOST, config, base_port=headset.base_port), 3)
            assert all(packet.pose is not None for packet in packets)
            if profile == pv.VideoProfile.RAW:
                assert pv.decode_raw_frame(packets[0].encoded, 424, 240).std() > 5
                continue
            decoder = PictureDecoder(profile, width=424, height=240)
            assert {decoder.decode(packet.encoded).shape for packet in packets} == {(360, 424)}


async def test_a_rooms_streams_end_with_the_sample() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, whole=True, time_scale=100) as headset:
        stream = sensors.open_long_throw(HOST, rm.LongThrowConfig(), base_port=headset.base_port)
        packets = [packet async for packet in stream]
    assert len(packets) == 48  # 9.576 s at 5 frames a second
