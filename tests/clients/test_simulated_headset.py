"""Our client against the simulated headset, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import av
import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DeviceError, VideoError
from keystep_capture.samples import find_sample, load_sensor_rows
from keystep_hololens.hl2ss import client, conventions
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import DeviceClock, Faults, SimulatedHeadset, VideoSource

HOST = "127.0.0.1"
COFFEE = find_sample("pour-coffee")
INDUSTREAL = find_sample("industreal-03")
SMALL = pv.PvConfig.live(width=424, height=240, fps=30, gop_size=15)


@pytest.fixture
async def coffee() -> AsyncIterator[SimulatedHeadset]:
    """A headset that shows the coffee video, ten times as fast, over and over; PV is off."""
    async with SimulatedHeadset.of_sample(COFFEE, time_scale=10, loop=True) as headset:
        yield headset


async def pv_packets(
    headset: SimulatedHeadset, config: pv.PvConfig, count: int | None = None, timeout_s: float = 5.0
) -> list[client.PvPacket]:
    packets: list[client.PvPacket] = []
    stream = client.open_pv(HOST, config, base_port=headset.base_port, read_timeout_s=timeout_s)
    async with aclosing(stream):
        async for packet in stream:
            packets.append(packet)
            if len(packets) == count:
                break
    return packets


def remote(headset: SimulatedHeadset) -> client.RemoteConfigurationClient:
    return client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)


async def camera_is(headset: SimulatedHeadset, *, on: bool) -> None:
    """Return once the headset says so; a switch is never answered."""
    async with asyncio.timeout(10):
        while await remote(headset).pv_status() is not on:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def decode_each(packets: list[client.PvPacket]) -> list[list[av.VideoFrame]]:
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_type = "SLICE"
    return [decoder.decode(av.Packet(bytes(packet.encoded))) for packet in packets]


def raw_connection(headset: SimulatedHeadset, kind: Port) -> socket.socket:
    connection = socket.create_connection((HOST, port(kind, headset.base_port)), timeout=5)
    connection.setblocking(False)
    return connection


async def receive_all(connection: socket.socket) -> bytes:
    received = bytearray()
    async with asyncio.timeout(5):
        while chunk := await asyncio.get_running_loop().sock_recv(connection, 65536):
            received += chunk
    return bytes(received)


async def test_remote_configuration_answers_and_follows_the_camera(
    coffee: SimulatedHeadset,
) -> None:
    assert await remote(coffee).version() == (1, 0, 37, 0)
    assert not await remote(coffee).pv_status()
    await client.start_pv(HOST, base_port=coffee.base_port)
    await camera_is(coffee, on=True)
    await client.stop_pv(HOST, base_port=coffee.base_port)
    await camera_is(coffee, on=False)


async def test_setters_are_accepted_and_the_connection_stays_in_step(
    coffee: SimulatedHeadset,
) -> None:
    focus = rc.encode_call(rc.RcCall(rc.Command.PV_FOCUS, (3, 2, 0, 1000, 0)))
    delay = rc.encode_call(rc.RcCall(rc.Command.SI_SAMPLING_DELAY, (-333_333,)))
    with raw_connection(coffee, Port.REMOTE_CONFIGURATION) as connection:
        connection.setblocking(True)
        connection.sendall(focus + delay + b"\x00")
        reply = await asyncio.to_thread(connection.recv, 8)
        assert struct.unpack("<4H", reply) == (1, 0, 37, 0)


@pytest.mark.parametrize("command", [b"\x1a", b"\x0e\0\0\0\0"])
async def test_unknown_and_research_mode_commands_close_the_connection(
    coffee: SimulatedHeadset, command: bytes
) -> None:
    with raw_connection(coffee, Port.REMOTE_CONFIGURATION) as connection:
        await asyncio.get_running_loop().sock_sendall(connection, command)
        assert await receive_all(connection) == b""


async def test_all_clocks_of_the_headset_agree_and_run_at_its_time_scale() -> None:
    host_ns = [5_000_000_000]
    clock = DeviceClock(
        origin_hns=1000, time_scale=3, monotonic_ns=lambda: host_ns[0], unix_ns=lambda: 10**18
    )
    video = VideoSource.open(COFFEE.video_path or Path())
    async with SimulatedHeadset(video=video, clock=clock) as headset:
        host_ns[0] += 2_000_000
        (probe,) = await remote(headset).probe_clock(lambda: host_ns[0])
        assert probe == (5_002_000_000, 1000 + 60_000, 5_002_000_000)
        utc = await remote(headset).current_time(rc.TimeSource.UTC)
        offset = await remote(headset).utc_offset()
    assert utc == offset + 61_000
    assert conventions.unix_time_ns(1000, offset) == 10**18


async def test_twenty_mode_1_packets_each_give_a_picture_at_once(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    packets = await pv_packets(coffee, SMALL, 20)
    pictures = decode_each(packets)
    assert [len(given) for given in pictures] == [1] * 20
    assert [given[0].key_frame for given in pictures] == [k in (0, 15) for k in range(20)]
    assert all(bytes(packet.encoded[:5]) == b"\0\0\0\1\x09" for packet in packets)
    assert {(given[0].width, given[0].height) for given in pictures} == {(424, 240)}
    assert {packet.pose is None for packet in packets} == {True}  # 16 zeros: not known
    assert packets[0].metadata.focal_length_px[0] == pytest.approx(334.77, abs=0.01)


async def test_frames_carry_the_device_time_of_the_playing_sample(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    packets = await pv_packets(coffee, SMALL, 10)
    origin_hns = coffee.playback_origin_hns
    assert origin_hns is not None
    expected = [origin_hns + k * 10_000_000 // 30 for k in range(10)]
    assert [packet.timestamp_hns for packet in packets] == expected


async def test_mode_0_has_no_pose_and_a_divisor_drops_frames(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    config = pv.PvConfig(mode=0, width=424, height=240, fps=30, divisor=3, bitrate_bps=400_000)
    packets = await pv_packets(coffee, config, 5)
    assert [len(given) for given in decode_each(packets)] == [1] * 5
    steps = np.diff([packet.timestamp_hns for packet in packets])
    np.testing.assert_array_equal(steps, 1_000_000)


async def test_the_pictures_are_those_of_the_video(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    packets = await pv_packets(coffee, SMALL, 12)
    shown = decode_each(packets)[11][0].to_ndarray(format="gray").astype(np.float64)
    with av.open(str(COFFEE.video_path)) as container:
        source = [frame for frame, _ in zip(container.decode(video=0), range(12), strict=False)]
    expected = source[11].reformat(424, 240, format="gray").to_ndarray().astype(np.float64)
    assert np.abs(shown - expected).mean() < 6


async def test_mode_2_sends_208_bytes_and_closes(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    request = pv.PvCalibrationRequest(width=1280, height=720, fps=30)
    with raw_connection(coffee, Port.PERSONAL_VIDEO) as connection:
        data = pv.encode_pv_request(pv.PvRequest(stream=request))
        await asyncio.get_running_loop().sock_sendall(connection, data)
        reply = await receive_all(connection)
    assert len(reply) == 208
    calibration = await client.read_pv_calibration(HOST, request, base_port=coffee.base_port)
    assert calibration.encode() == reply
    np.testing.assert_array_equal(calibration.principal_point_px, [640, 360])


async def test_pv_that_was_not_started_is_closed_without_data(coffee: SimulatedHeadset) -> None:
    with pytest.raises(DeviceError, match="closed without data: start PV first"):
        await pv_packets(coffee, SMALL)


@pytest.mark.parametrize(
    "config",
    [
        pv.PvConfig.live(width=640, height=480, fps=30),
        pv.PvConfig.live(width=640, height=360, fps=60),
        pv.PvConfig(mode=0, width=640, height=360, fps=30, bitrate_bps=0),
        pv.PvConfig(mode=0, width=640, height=360, fps=30, bitrate_bps=1, divisor=0),
        pv.PvConfig(mode=0, width=640, height=360, fps=30, bitrate_bps=1, profile=9),
    ],
)
async def test_unsupported_pv_settings_are_closed_without_data(
    coffee: SimulatedHeadset, config: pv.PvConfig
) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    with pytest.raises(DeviceError, match="closed without data"):
        await pv_packets(coffee, config)


async def test_shared_mode_ignores_the_size_asked_for(coffee: SimulatedHeadset) -> None:
    await client.start_pv(HOST, pv.PvStart(shared=True), base_port=coffee.base_port)
    (packet,) = await pv_packets(coffee, pv.PvConfig.live(width=100, height=90, fps=7), 1)
    ((picture,),) = decode_each([packet])
    assert (packet.metadata.width, packet.metadata.height) == (picture.width, picture.height)
    assert (picture.width, picture.height) == (1280, 720)


async def test_one_connection_can_start_stream_and_stop(coffee: SimulatedHeadset) -> None:
    request = pv.PvRequest(start=pv.PvStart(), stop=True, stream=SMALL)
    with raw_connection(coffee, Port.PERSONAL_VIDEO) as connection:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, pv.encode_pv_request(request))
        assert await loop.sock_recv(connection, 12)
        assert await remote(coffee).pv_status()
    await camera_is(coffee, on=False)  # seen only when the next send fails


async def test_a_second_client_gets_silence_until_the_first_leaves() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, loop=True) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        first = client.open_pv(HOST, SMALL, base_port=headset.base_port)
        async with aclosing(first):
            await anext(first)
            with pytest.raises(DeviceError, match="accepted the connection and stays silent"):
                await pv_packets(headset, SMALL, 1, timeout_s=0.2)
        assert len(await pv_packets(headset, SMALL, 1)) == 1


async def test_a_client_that_reconnects_gets_a_key_frame_of_the_present(
    coffee: SimulatedHeadset,
) -> None:
    await client.start_pv(HOST, base_port=coffee.base_port)
    before = await pv_packets(coffee, SMALL, 20)
    after = await pv_packets(coffee, SMALL, 2)
    assert [len(given) for given in decode_each(after)] == [1, 1]
    assert decode_each(after[:1])[0][0].key_frame
    assert after[0].timestamp_hns > before[-1].timestamp_hns
    assert (after[0].timestamp_hns - (coffee.playback_origin_hns or 0)) % 333_333 < 100


async def test_the_sample_plays_once_then_the_port_closes() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, time_scale=50) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        config = pv.PvConfig.live(width=424, height=240, fps=15)
        packets = await pv_packets(headset, config)
        assert len(packets) == 144  # 9.576 s at 15 frames a second
        await asyncio.wait_for(headset.finished.wait(), 5)
        with pytest.raises(DeviceError, match="closed without data"):
            await pv_packets(headset, config)


async def test_a_looped_video_begins_again(tmp_path: Path) -> None:
    video = VideoSource.open(COFFEE.video_path or Path(), loop=True)
    clock = DeviceClock(time_scale=100)
    async with SimulatedHeadset(video=video, clock=clock) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        config = pv.PvConfig.live(width=424, height=240, fps=15)
        packets = await pv_packets(headset, config, 150)
        pictures = [given[0].to_ndarray(format="gray") for given in decode_each(packets)]
    first, again, middle = (pictures[k].astype(np.float64) for k in (1, 145, 75))
    assert np.abs(first - again).mean() < np.abs(first - middle).mean() / 2


async def test_spatial_input_equals_the_published_rows() -> None:
    rows = load_sensor_rows(INDUSTREAL.sensors_path or Path())
    async with SimulatedHeadset.of_sample(INDUSTREAL, time_scale=5000) as headset:
        stream = client.open_spatial_input(HOST, base_port=headset.base_port)
        packets = [packet async for packet in stream]
        origin_hns = headset.playback_origin_hns
        await asyncio.wait_for(headset.finished.wait(), 5)
    assert origin_hns is not None
    times = [packet.timestamp_hns - origin_hns for packet in packets]
    assert times == [n * 1_000_000 for n in range(2754)]
    assert {n for n, packet in enumerate(packets) if packet.sample.head is not None} == set(rows)
    for n, row in rows.items():
        check_sample(packets[n], row.world_from_head_luf, row.gaze_px)


def check_sample(
    packet: client.SpatialInputPacket, luf: np.ndarray, gaze_px: tuple[int, int] | None
) -> None:
    sample = packet.sample
    assert sample.head is not None
    assert sample.left_hand is None
    world_from_head = conventions.world_from_head(sample.head)
    np.testing.assert_allclose(world_from_head[:3, :3], luf[:3, :3] * [-1, 1, -1], atol=1e-6)
    np.testing.assert_allclose(world_from_head[:3, 3], luf[:3, 3], atol=1e-6)
    assert (sample.eye is None) == (gaze_px is None)
    if sample.eye is not None and gaze_px is not None:
        origin, direction = conventions.world_eye_ray(sample.eye)
        in_head = np.linalg.inv(world_from_head) @ np.append(origin + 0.6 * direction, 1)
        focal = 640 / np.tan(np.radians(64.69 / 2))
        pixel = (640 + focal * in_head[0] / -in_head[2], 360 - focal * in_head[1] / -in_head[2])
        np.testing.assert_allclose(pixel, gaze_px, atol=0.01)


async def test_what_a_sample_lacks_is_refused_like_a_port_that_is_not_there() -> None:
    async with SimulatedHeadset.of_sample(INDUSTREAL, time_scale=100) as headset:
        assert headset.open_ports.keys() == {"remote_configuration", "spatial_input"}
        with pytest.raises(DeviceError, match="refused") as refused:
            await client.start_pv(HOST, base_port=headset.base_port)
        assert isinstance(refused.value.__cause__, ConnectionRefusedError)


async def test_playback_can_begin_before_any_client() -> None:
    async with SimulatedHeadset.of_sample(
        INDUSTREAL, time_scale=10_000, start_at_once=True
    ) as headset:
        assert headset.playback.started.is_set()
        await asyncio.wait_for(headset.finished.wait(), 5)


async def test_a_silent_headset_is_told_from_a_slow_one() -> None:
    async with SimulatedHeadset.of_sample(INDUSTREAL, faults=Faults(silent=True)) as headset:
        stream = client.open_spatial_input(HOST, base_port=headset.base_port, read_timeout_s=0.2)
        with pytest.raises(DeviceError, match="accepted the connection and stays silent"):
            await anext(stream)
        quick = client.RemoteConfigurationClient(
            host=HOST, base_port=headset.base_port, read_timeout_s=0.2
        )
        with pytest.raises(DeviceError, match="stays silent"):
            await quick.version()


@pytest.mark.parametrize(
    ("faults", "message", "count"),
    [
        (Faults(truncate_at=3), "inside a message", 3),
        (Faults(oversize_at=2), "payload of 4294967295 bytes", 2),
    ],
)
async def test_broken_packets_are_errors_after_the_good_ones(
    faults: Faults, message: str, count: int
) -> None:
    async with SimulatedHeadset.of_sample(COFFEE, time_scale=10, faults=faults) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        stream = client.open_pv(HOST, SMALL, base_port=headset.base_port)
        for _ in range(count):
            assert len((await anext(stream)).encoded) > 0
        with pytest.raises(DeviceError, match=message):
            await anext(stream)


async def test_a_dropped_connection_ends_the_stream_and_the_next_one_goes_on() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, faults=Faults(drop_at=4)) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        first, second = await pv_packets(headset, SMALL), await pv_packets(headset, SMALL)
    assert len(first) == len(second) == 4
    assert second[0].timestamp_hns > first[-1].timestamp_hns


async def test_backoff_grows_to_its_limit_and_starts_anew_after_success() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    backoff = client.Backoff(initial_s=1, maximum_s=5, sleep=sleep, uniform=lambda: 1.0)
    for _ in range(4):
        await backoff.wait()
    backoff.reset()
    await backoff.wait()
    assert slept == [0.75, 1.5, 3.0, 3.75, 0.75]


async def test_a_port_in_use_is_named(coffee: SimulatedHeadset) -> None:
    other = SimulatedHeadset.of_sample(COFFEE, base_port=coffee.base_port)
    with pytest.raises(ConfigError, match=rf"port {coffee.base_port + 9} .* is in use"):
        await other.__aenter__()


def test_a_missing_video_or_one_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no video file"):
        VideoSource.open(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="not a video"):
        VideoSource.open(tmp_path / "text.mp4")
