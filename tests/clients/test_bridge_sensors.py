"""Every sensor of a simulated headset, through the bridge, over real sockets: the right values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from structlog.testing import capture_logs

from keystep_capture import wire
from keystep_capture.errors import ConfigError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.samples import find_sample
from keystep_capture.video import GapFilter, PacketDecoder
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.device_streams import DEVICE_STREAMS
from keystep_hololens.hl2ss import conventions
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import DeviceClock, Faults, Room, SimulatedHeadset, VideoSource
from keystep_hololens.simulator.room import GRAVITY_MPS2, TABLE_BELOW_ORIGIN_M, WALL_AHEAD_M

if TYPE_CHECKING:
    from conftest import RecordingServer

HOST = "127.0.0.1"
COFFEE = find_sample("pour-coffee")
Received = tuple[wire.PacketHeader, bytes]


def seeing(**options: Any) -> SimulatedHeadset:
    """A headset in the simulated room, without a camera."""
    clock = DeviceClock(time_scale=options.pop("time_scale", 1.0))
    return SimulatedHeadset(room=options.pop("room", Room()), clock=clock, **options)


@asynccontextmanager
async def bridging(
    headset: SimulatedHeadset, server: RecordingServer, *streams: str, **options: Any
) -> AsyncIterator[Bridge]:
    """A bridge that carries these streams, and is stopped at the end."""
    if streams:
        options["streams"] = streams
    config = BridgeConfig(host=HOST, base_port=headset.base_port, server=server.endpoint, **options)
    bridge = Bridge(config)
    running = asyncio.create_task(bridge.run())
    try:
        yield bridge
    finally:
        bridge.stop()
        async with asyncio.timeout(30):
            await running


def seconds(header: wire.PacketHeader, headset: SimulatedHeadset) -> float:
    """Seconds of playback at which a packet was captured."""
    return header.device_time_ns / 1e9 - (headset.playback_origin_hns or 0) / 1e7


def matrix(values: list[float] | None) -> np.ndarray:
    """A transform of a header, shape (4, 4)."""
    assert values is not None
    return np.array(values).reshape(4, 4)


def world_points(depth: Received, calibration: Received) -> np.ndarray:
    """Points of a depth image in the world by what the wire says only, (N, 3), metres."""
    header, payload = depth
    assert header.depth_unit_m is not None
    distance_m = read_image(header, payload) * header.depth_unit_m
    rays = read_array(*calibration)
    ahead = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], axis=2)
    points = ahead / np.linalg.norm(ahead, axis=2, keepdims=True) * distance_m[..., None]
    seen = points[distance_m > 0]
    pose = matrix(header.pose)
    return seen @ pose[:3, :3].T + pose[:3, 3]


def share_on_a_surface(world: np.ndarray, hand: np.ndarray, tolerance_m: float) -> float:
    """How many of the points lie on the room's table, wall or hand."""
    table = np.abs(world[:, 1] + TABLE_BELOW_ORIGIN_M) < tolerance_m
    wall = np.abs(world[:, 2] + WALL_AHEAD_M) < tolerance_m
    ball = np.abs(np.linalg.norm(world - hand, axis=1) - 0.06) < tolerance_m
    return float((table | wall | ball).mean())


# -- depth ---------------------------------------------------------------------------------------


async def test_long_throw_depth_lies_on_the_rooms_surfaces_by_what_the_wire_says(
    server: RecordingServer,
) -> None:
    async with seeing() as headset, bridging(headset, server, "depth", "depth_ab"):
        await server.has("depth_ab", 3)
        for depth in server.of("depth")[:3]:
            hand = Room().hand_position_m(seconds(depth[0], headset))
            world = world_points(depth, server.of("calibration")[0])
            assert len(world) > 50_000
            assert share_on_a_surface(world, hand, 0.008) > 0.999
    header, payload = server.of("depth_ab")[0]
    brightness = read_image(header, payload)
    assert (header.width, header.height, header.depth_unit_m) == (320, 288, None)
    seen = read_image(*server.of("depth")[0]) > 0
    assert (brightness[seen] > 0).all()
    assert [h.device_time_ns for h, _ in server.of("depth")[:3]] == [
        h.device_time_ns for h, _ in server.of("depth_ab")[:3]
    ]


async def test_ahat_depth_lies_on_the_rooms_surfaces_by_what_the_wire_says(
    server: RecordingServer,
) -> None:
    async with seeing() as headset, bridging(headset, server, "depth_ahat", video_codec="h264"):
        await server.has("depth_ahat", 4)
        hand = Room().hand_position_m(seconds(server.of("depth_ahat")[3][0], headset))
    world = world_points(server.of("depth_ahat")[3], server.of("calibration")[0])
    assert share_on_a_surface(world, hand, 0.02) > 0.98
    headers = [header for header, _ in server.of("depth_ahat")[:4]]
    assert {(h.width, h.height, h.depth_unit_m) for h in headers} == {(512, 512, 0.001)}
    assert np.diff([h.device_time_ns for h in headers]) == pytest.approx([1e9 / 15] * 3, abs=1e3)


async def test_a_depth_camera_says_its_constants_once(server: RecordingServer) -> None:
    faults = Faults(drop_at=2)  # each connection ends after two frames
    async with seeing(faults=faults) as headset, bridging(headset, server, "depth"):
        await server.has("depth", 5)
    ((header, payload),) = server.of("calibration")
    assert (header.calibrates, header.width, header.height) == ("depth", 320, 288)
    constants = Room().rig.cameras[Port.RM_DEPTH_LONGTHROW]
    np.testing.assert_array_equal(read_array(header, payload), constants.uv2xy)
    rig_from_camera = np.linalg.inv(constants.extrinsics.T.astype(float))
    np.testing.assert_allclose(matrix(header.rig_from_sensor), rig_from_camera, atol=1e-6)
    assert server.of("depth")[0][0].device_time_ns == header.device_time_ns


@pytest.mark.parametrize(
    ("streams", "said"),
    [
        (("rgb", "depth", "depth_ahat_ab"), "cannot run together"),
        (("rgb", "lidar"), "no stream lidar; it has rgb, gaze, head, hands, depth"),
        (("detections",), "no stream detections"),
        ((), r"\(none was named\)"),
    ],
)
def test_streams_that_cannot_be_carried_are_refused(streams: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BridgeConfig(host=HOST, streams=streams)


# -- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "hevc"])
async def test_tracking_pictures_decode_and_say_how_to_turn_them(
    server: RecordingServer, codec: Any
) -> None:
    streams = ("vlc_left_front", "vlc_right_front")
    async with seeing() as headset, bridging(headset, server, *streams, video_codec=codec):
        for stream in streams:
            await server.has(stream, 3)
        await server.has("calibration", 2)
    for stream, turns, x_points in zip(streams, (1, 3), ("down", "up"), strict=True):
        decoder = PacketDecoder(codec)
        packets = server.of(stream)[:3]
        assert [header.keyframe for header, _ in packets] == [True, False, False]
        for header, payload in packets:
            frame = decoder.decode(payload)
            assert (frame.width, frame.height) == (header.width, header.height) == (640, 480)
            assert (header.encoding, header.upright_turns) == (codec, turns)
            camera, head = matrix(header.pose), Room().head_at(seconds(header, headset))
            assert head is not None
            assert camera[:3, 2] @ -head[:3, 2] > 0.99  # looks ahead, on its side
            side = camera[:3, 0] @ head[:3, 1]
            assert side < -0.99 if x_points == "down" else side > 0.99
            assert np.linalg.norm(camera[:3, 3] - head[:3, 3]) < 0.2
    told = {header.calibrates for header, _ in server.of("calibration")}
    assert told == set(streams)


def source_pictures(count: int) -> list[np.ndarray]:
    """The sample's first pictures as the headset scales them, luma, (360, 640)."""
    with av.open(COFFEE.video_path) as container:
        frames = (frame for _, frame in zip(range(count), container.decode(video=0), strict=False))
        return [
            frame.reformat(width=640, height=360, format="gray").to_ndarray() for frame in frames
        ]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
async def test_video_of_either_codec_decodes_to_the_samples_pictures(
    server: RecordingServer, codec: Any
) -> None:
    assert COFFEE.video_path is not None
    video = VideoSource.open(COFFEE.video_path)
    async with (
        SimulatedHeadset(video=video) as headset,
        bridging(headset, server, "rgb", video_codec=codec),
    ):
        await server.has("rgb", 20)
    decoder, gaps = PacketDecoder(codec), GapFilter()
    packets = server.of("rgb")[:20]
    assert [h.sequence for h, _ in packets if h.keyframe] == [0, 15]
    for (header, payload), source in zip(packets, source_pictures(20), strict=True):
        assert header.encoding == codec
        assert gaps.admit(header.sequence, keyframe=header.keyframe)
        picture = decoder.decode(payload).reformat(format="gray").to_ndarray()
        assert np.abs(picture.astype(int) - source).mean() < 8


async def test_video_carries_the_cameras_pose_with_opencvs_axes(server: RecordingServer) -> None:
    async with (
        SimulatedHeadset.of_sample(COFFEE, whole=True) as headset,
        bridging(headset, server, "rgb"),
    ):
        await server.has("rgb", 10)
    for header, _ in server.of("rgb")[:10]:
        head = Room().head_at(seconds(header, headset))
        assert head is not None
        right, up, back, position = head[:3].T
        expected = np.column_stack((right, -up, -back, position))
        np.testing.assert_allclose(matrix(header.pose)[:3], expected, atol=1e-5)
        assert header.intrinsics is not None


# -- head, eyes, inertia, sound --------------------------------------------------------------------


async def test_the_accelerometer_feels_gravity_from_below_in_the_world(
    server: RecordingServer,
) -> None:
    async with seeing() as headset, bridging(headset, server, "accelerometer"):
        await server.has("accelerometer", 3)
    first, second, _ = server.of("accelerometer")[:3]
    samples = read_array(*first)
    assert samples.shape == (93, 5)
    in_world = matrix(first[0].pose)[:3, :3] @ samples[:, 1:4].mean(axis=0)
    np.testing.assert_allclose(in_world, [0, GRAVITY_MPS2, 0], atol=0.05)
    np.testing.assert_allclose(samples[:, 4], 35.0)
    times_s = [
        h.device_time_ns / 1e9 + read_array(h, p)[:, 0].astype(float) for h, p in (first, second)
    ]
    np.testing.assert_allclose(np.diff(np.concatenate(times_s)), 1 / 1116, atol=2e-6)
    ((constants, empty),) = server.of("calibration")
    assert (constants.calibrates, constants.encoding, empty) == ("accelerometer", "none", b"")


async def test_the_gyroscope_turns_in_radians_and_the_magnetometer_has_no_place(
    server: RecordingServer,
) -> None:
    def turning(time_s: float) -> np.ndarray:
        cos, sin = np.cos(time_s * np.radians(90)), np.sin(time_s * np.radians(90))
        return np.array([[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, 0], [0, 0, 0, 1.0]])

    room = Room(head_at=turning)
    async with (
        seeing(room=room) as headset,
        bridging(headset, server, "gyroscope", "magnetometer"),
    ):
        await server.has("gyroscope", 1)
        await server.has("magnetometer", 1)
    header, payload = server.of("gyroscope")[0]
    in_world = matrix(header.pose)[:3, :3] @ read_array(header, payload)[:, 1:4].mean(axis=0)
    np.testing.assert_allclose(in_world, [0, np.radians(90), 0], atol=np.radians(0.3))
    header, payload = server.of("magnetometer")[0]
    assert header.pose is None
    samples = read_array(header, payload)
    assert samples.shape == (11, 5)
    assert not samples[:, 4].any()
    assert {header.calibrates for header, _ in server.of("calibration")} == {"gyroscope"}


async def test_both_eyes_look_ahead_in_the_world(server: RecordingServer) -> None:
    async with seeing() as headset, bridging(headset, server, "eye_tracking"):
        await server.has("eye_tracking", 5)
    for header, payload in server.of("eye_tracking")[:5]:
        assert header.valid == 0b1000111  # rays and calibration; no openness, no vergence
        values = read_array(header, payload)
        head = Room().head_at(seconds(header, headset))
        assert head is not None
        for origin, direction in values[:18].reshape(3, 2, 3):
            assert direction @ -head[:3, 2] > np.cos(np.radians(10))
            assert np.linalg.norm(origin - head[:3, 3]) < 0.05
        assert not values[18:].any()


async def test_what_is_not_known_is_left_out(server: RecordingServer) -> None:
    room = Room(head_at=lambda time_s: None)
    streams = ("eye_tracking", "depth", "accelerometer", "head")
    async with seeing(room=room) as headset, bridging(headset, server, *streams):
        for stream in streams:
            await server.has(stream, 1)
    eyes, head = server.of("eye_tracking")[0], server.of("head")[0]
    assert (eyes[0].valid, eyes[1], head[0].valid, head[1]) == (0, b"", 0, b"")
    assert server.of("depth")[0][0].pose is None
    assert server.of("accelerometer")[0][0].pose is None


async def test_sound_is_carried_only_when_it_is_asked_for(server: RecordingServer) -> None:
    async with seeing(microphone=True) as headset:
        async with bridging(headset, server):
            await server.has("head", 5)
        assert "microphone" not in server.hellos[-1].streams
        async with bridging(headset, server, "microphone"):
            await server.has("microphone", 12)
    decoder = av.AudioCodecContext.create("aac", "r")
    sound = [
        frame.to_ndarray()
        for _, payload in server.of("microphone")
        for frame in decoder.decode(av.Packet(payload))
    ]
    wave = np.concatenate(sound[4:], axis=1)[0]
    loudest = np.fft.rfft(wave * np.hanning(len(wave)))
    assert np.abs(loudest).argmax() * 48_000 / len(wave) == pytest.approx(440, abs=10)


# -- what goes wrong -----------------------------------------------------------------------------


async def test_a_headset_without_research_mode_sends_the_rest_and_the_remedy_is_said_once(
    server: RecordingServer,
) -> None:
    assert COFFEE.video_path is not None
    video = VideoSource.open(COFFEE.video_path)
    with capture_logs() as logs:
        async with SimulatedHeadset(video=video) as headset, bridging(headset, server):
            await server.has("rgb", 60)
    told = [entry for entry in logs if entry.get("what") == "depth_long_throw"]
    assert len(told) == 1
    assert "refused the connection" in told[0]["reason"]
    assert "Research mode" in told[0]["hint"]
    assert "depth" in server.hellos[0].streams
    sequences = [header.sequence for header, _ in server.of("rgb")]
    assert sequences == list(range(len(sequences)))


@pytest.mark.parametrize(
    "fault", [{"silent": True}, {"stall": True}, {"garbage_at": 1}, {"corrupt_at": 1}]
)
async def test_a_depth_camera_that_fails_hinders_no_other_sensor(
    server: RecordingServer, fault: dict[str, Any]
) -> None:
    faults = Faults(ports=frozenset({Port.RM_DEPTH_LONGTHROW}), **fault)
    streams = ("head", "depth", "eye_tracking", "accelerometer")
    async with seeing(faults=faults) as headset, bridging(headset, server, *streams):
        await server.has("head", 60)
        await server.has("eye_tracking", 20)
        await server.has("accelerometer", 5)
        headset.set_faults(Faults())
        await server.has("depth", 3)
    for stream in ("head", "eye_tracking", "accelerometer"):
        sequences = [header.sequence for header, _ in server.of(stream)]
        assert sequences == list(range(len(sequences)))
    assert server.epoch == 1


@pytest.mark.parametrize("fault", ["corrupt_at", "garbage_at", "truncate_at", "reorder_at"])
async def test_broken_packets_of_every_sensor_cost_their_connection_at_most(
    server: RecordingServer, fault: str
) -> None:
    streams = tuple(name for name in DEVICE_STREAMS if not name.startswith(("rgb", "depth_ahat")))
    faults = Faults(**{fault: 1})
    async with (
        seeing(faults=faults, microphone=True) as headset,
        bridging(headset, server, *streams),
    ):
        for stream in streams:
            await server.has(stream, 1)
        headset.set_faults(Faults())
        for stream in streams:
            await server.has(stream, len(server.of(stream)) + 2)
    assert server.finished


async def test_a_restarted_headset_begins_a_new_epoch_for_all_its_streams(
    server: RecordingServer,
) -> None:
    streams = ("head", "depth", "accelerometer", "eye_tracking")
    room = Room()
    async with seeing(room=room) as headset, bridging(headset, server, *streams):
        for stream in streams:
            await server.has(stream, 3, epoch=1)
        await server.until(lambda: server.peers[-1].device_clock)
        await headset.reboot()
        for stream in streams:
            await server.has(stream, 3, epoch=server.epoch if server.epoch > 1 else 2)
        epoch, boot_ns = server.epoch, headset.clock.now_hns() * 100
    assert epoch == 2
    for stream in (*streams, "calibration"):
        headers = [header for header, _ in server.of(stream, epoch=2)]
        assert [header.sequence for header in headers] == list(range(len(headers)))
        times_ns = [header.device_time_ns for header in headers]
        assert times_ns == sorted(times_ns) or stream == "calibration"
        assert max(times_ns) <= boot_ns
    told = sorted(header.calibrates or "" for header, _ in server.of("calibration", epoch=2))
    assert told == ["accelerometer", "depth"]


async def test_slow_depth_cameras_come_at_their_rate(server: RecordingServer) -> None:
    faults = Faults(long_throw_rate_hz=1.0)
    async with (
        seeing(faults=faults, time_scale=8.0) as headset,
        bridging(headset, server, "head", "depth", time_scale=8.0),
    ):
        await server.has("depth", 4)
        await server.has("head", 120)
    times_ns = [header.device_time_ns for header, _ in server.of("depth")[:4]]
    assert np.diff(times_ns).tolist() == [1_000_000_000] * 3
    sequences = [header.sequence for header, _ in server.of("head")]
    assert sequences == list(range(len(sequences)))


def test_every_stream_of_the_headset_is_in_the_table() -> None:
    from keystep_capture.streams import STREAMS

    assert set(DEVICE_STREAMS) == set(STREAMS) - {"detections", "calibration"}
    assert conventions.upright_turns(Port.RM_DEPTH_LONGTHROW) == 0
