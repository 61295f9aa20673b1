"""Ways in which the simulated headset fails on request, seen by our clients over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DeviceError, VideoError
from keystep_capture.samples import find_sample, load_sensor_rows
from keystep_hololens.hl2ss import client, conventions
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss import sensor_client as sensors
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss.message_client import open_unity_messages
from keystep_hololens.hl2ss.picture_decoder import PictureDecoder, is_keyframe
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import (
    DeviceClock,
    Faults,
    Room,
    SimulatedHeadset,
    UnityApp,
)

HOST = "127.0.0.1"
COFFEE = find_sample("pour-coffee")
INDUSTREAL = find_sample("industreal-03")
LONG_THROW = frozenset({Port.RM_DEPTH_LONGTHROW})


@pytest.fixture
async def headset() -> AsyncIterator[SimulatedHeadset]:
    clock = DeviceClock(time_scale=20)
    async with SimulatedHeadset(room=Room(), app=UnityApp(), clock=clock) as simulated:
        yield simulated


def eyes(headset: SimulatedHeadset) -> AsyncGenerator[sensors.EyeTrackerPacket, None]:
    return sensors.open_eye_tracker(HOST, base_port=headset.base_port, read_timeout_s=0.5)


def depth(headset: SimulatedHeadset) -> AsyncGenerator[sensors.DepthPacket, None]:
    return sensors.open_long_throw(HOST, rm.LongThrowConfig(), base_port=headset.base_port)


async def times_of(stream: AsyncGenerator[sensors.EyeTrackerPacket, None], count: int) -> list[int]:
    async with aclosing(stream):
        return [(await anext(stream)).timestamp_hns for _ in range(count)]


async def test_a_stalled_stream_stays_open_and_goes_on(headset: SimulatedHeadset) -> None:
    stream = sensors.open_eye_tracker(HOST, base_port=headset.base_port)
    async with aclosing(stream):
        await anext(stream)
        headset.set_faults(Faults(stall=True))
        waiting = asyncio.ensure_future(collect(stream, 30))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        headset.set_faults(Faults())
        assert np.diff(await waiting).tolist() == [333_333] * 29  # late, but all of them


async def collect(stream: AsyncGenerator[sensors.EyeTrackerPacket, None], count: int) -> list[int]:
    return [(await anext(stream)).timestamp_hns for _ in range(count)]


async def test_a_stall_is_an_error_after_the_read_timeout(headset: SimulatedHeadset) -> None:
    async with aclosing(eyes(headset)) as stream:
        await anext(stream)
        headset.set_faults(Faults(stall=True))
        with pytest.raises(DeviceError, match=r"sent nothing more for 0\.5 s"):
            await collect(stream, 30)


async def test_a_stall_of_one_service_leaves_the_others(headset: SimulatedHeadset) -> None:
    headset.set_faults(Faults(stall=True, ports=frozenset({Port.UNITY_MESSAGE_QUEUE})))
    assert len(await times_of(eyes(headset), 3)) == 3
    async with open_unity_messages(HOST, base_port=headset.base_port, read_timeout_s=0.2) as app:
        with pytest.raises(DeviceError, match="silent"):
            await app.remove_all()


async def test_a_disconnect_ends_streams_and_the_next_connection_works(
    headset: SimulatedHeadset,
) -> None:
    async with aclosing(eyes(headset)) as stream, aclosing(depth(headset)) as other:
        await anext(stream)
        await anext(other)
        headset.disconnect([Port.EXTENDED_EYE_TRACKER])
        with pytest.raises((StopAsyncIteration, DeviceError)):
            await collect(stream, 1000)
        await anext(other)
    assert len(await times_of(eyes(headset), 2)) == 2


async def test_a_reordered_packet_comes_after_the_next(headset: SimulatedHeadset) -> None:
    headset.set_faults(Faults(reorder_at=1))
    steps = np.diff(await times_of(eyes(headset), 5))
    np.testing.assert_allclose(steps / 333_333, [2, -1, 2, 1], atol=1e-4)


async def test_garbage_puts_the_stream_out_of_step(headset: SimulatedHeadset) -> None:
    headset.set_faults(Faults(garbage_at=2))
    async with aclosing(eyes(headset)) as stream:
        await collect(stream, 2)
        with pytest.raises(DeviceError, match="not this stream, or out of step"):
            await anext(stream)


async def test_a_corrupt_payload_is_noticed_where_it_can_be(headset: SimulatedHeadset) -> None:
    headset.set_faults(Faults(corrupt_at=1, ports=LONG_THROW))
    async with aclosing(depth(headset)) as stream:
        await anext(stream)
        with pytest.raises(DeviceError, match="PNG"):
            await anext(stream)


async def test_a_slow_link_delays_packets_and_loses_none() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(seconds / 100)

    faults = Faults(bytes_per_s=5000, ports=frozenset({Port.EXTENDED_EYE_TRACKER}))
    clock = DeviceClock(time_scale=1000, sleep=sleep)
    async with SimulatedHeadset(room=Room(), clock=clock, faults=faults) as headset:
        times = await times_of(eyes(headset), 10)  # 168 bytes each, in pieces of 100
    assert np.diff(times).tolist() == [333_333] * 9
    assert slept.count(100 / 5000) >= 10
    assert slept.count(68 / 5000) >= 9


async def test_the_lost_tail_of_a_group_leaves_frames_until_the_next_key() -> None:
    faults = Faults(gop_kept=2, ports=frozenset({Port.PERSONAL_VIDEO}))
    async with SimulatedHeadset.of_sample(COFFEE, time_scale=10, faults=faults) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        config = pv.PvConfig.live(width=424, height=240, fps=30, gop_size=5)
        stream = client.open_pv(HOST, config, base_port=headset.base_port)
        async with aclosing(stream):
            packets = [await anext(stream) for _ in range(6)]
    keys = [is_keyframe(packet.encoded, config.profile) for packet in packets]
    assert keys == [True, False] * 3
    steps = np.diff([packet.timestamp_hns for packet in packets]) / 1e7 * 30
    np.testing.assert_allclose(steps, [1, 4, 1, 4, 1], atol=1e-4)


async def test_a_drifting_clock_shifts_times_without_a_jump() -> None:
    host_ns = [0]
    clock = DeviceClock(origin_hns=1000, monotonic_ns=lambda: host_ns[0])
    async with SimulatedHeadset(room=Room(), clock=clock) as headset:
        host_ns[0] = 10**9
        headset.set_faults(Faults(clock_drift_ppm=100))
        remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
        assert await remote.current_time() == 1000 + 10**7
        host_ns[0] += 10 * 10**9
        assert await remote.current_time() == 1000 + 10**7 + 10**8 + 10_000  # 1 ms in 10 s


@pytest.mark.parametrize(("name", "rate_hz"), [("long_throw_rate_hz", 1.0), ("ahat_rate_hz", 5.0)])
async def test_depth_rates_fall_and_rise_again(
    headset: SimulatedHeadset, name: str, rate_hz: float
) -> None:
    near = rm.AhatConfig(mode=0, bitrate_bps=1, profile=pv.VideoProfile.RAW)
    ahat = sensors.open_ahat(HOST, near, base_port=headset.base_port)
    normal_hz = 45.0 if name == "ahat_rate_hz" else 5.0
    async with aclosing(ahat if name == "ahat_rate_hz" else depth(headset)) as stream:
        first = [(await anext(stream)).timestamp_hns for _ in range(2)]
        headset.set_faults(Faults(**{name: rate_hz}))
        slow = [(await anext(stream)).timestamp_hns for _ in range(5)]
        headset.set_faults(Faults())
        again = [(await anext(stream)).timestamp_hns for _ in range(4)]
    assert np.diff(first)[0] == pytest.approx(1e7 / normal_hz, abs=1)
    assert np.diff(slow)[-1] == pytest.approx(1e7 / rate_hz, abs=1)
    assert np.diff(again)[-1] == pytest.approx(1e7 / normal_hz, abs=1)


async def drain(stream: AsyncGenerator[sensors.DepthPacket, None]) -> None:
    while True:
        await anext(stream)


async def test_a_reboot_restarts_clock_origin_and_counters(headset: SimulatedHeadset) -> None:
    app = headset.app
    assert app is not None
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        place = umq.Placement(position_m=(0, 0, 1))
        await messages.show([umq.TextPanel(text="before", placement=place)])
    async with aclosing(depth(headset)) as stream:
        before = await anext(stream)
        reboot = asyncio.create_task(headset.reboot())
        with pytest.raises((StopAsyncIteration, DeviceError)):
            await drain(stream)
        await reboot
    async with aclosing(depth(headset)) as stream:
        after = await anext(stream)
    assert after.timestamp_hns < before.timestamp_hns
    assert after.sensor_ticks_ns < before.sensor_ticks_ns
    assert app.on_show == []
    remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
    assert await remote.current_time() < before.timestamp_hns


async def test_a_reboot_moves_the_worlds_origin_to_the_head() -> None:
    def standing(time_s: float) -> np.ndarray:
        return np.array([[0, 0, 1, 5], [0, 1, 0, 1], [-1, 0, 0, 2], [0, 0, 0, 1.0]])

    async with SimulatedHeadset(room=Room(head_at=standing)) as headset:
        poses = []
        for _ in range(2):
            async with aclosing(eyes(headset)) as stream:
                pose = (await anext(stream)).pose
                assert pose is not None
                poses.append(conventions.column_matrix(pose))
            await headset.reboot()
    np.testing.assert_allclose(poses[0], standing(0), atol=1e-6)
    np.testing.assert_allclose(poses[1], np.eye(4), atol=1e-6)


async def test_published_head_poses_move_with_the_worlds_origin() -> None:
    rows = load_sensor_rows(INDUSTREAL.sensors_path or Path())
    async with SimulatedHeadset.of_sample(INDUSTREAL, time_scale=100) as headset:
        await read_head(headset)
        await headset.reboot()
        packets = await read_head(headset)
        origin_hns = headset.playback_origin_hns or 0
    worlds = []
    for packet in packets:
        assert packet.sample.head is not None
        row = rows[(packet.timestamp_hns - origin_hns) // 1_000_000]
        published = row.world_from_head_luf @ np.diag([-1, 1, -1, 1])
        worlds.append(conventions.world_from_head(packet.sample.head) @ np.linalg.inv(published))
    np.testing.assert_allclose(worlds[0], worlds[1], atol=1e-5)  # all moved alike
    np.testing.assert_allclose(worlds[0][1], [0, 1, 0, worlds[0][1, 3]], atol=1e-5)  # level
    assert np.linalg.norm(worlds[0] - np.eye(4)) > 0.01


async def read_head(headset: SimulatedHeadset) -> list[client.SpatialInputPacket]:
    """Two samples in which the head is known."""
    packets: list[client.SpatialInputPacket] = []
    stream = client.open_spatial_input(HOST, base_port=headset.base_port)
    async with aclosing(stream):
        while len(packets) < 2:
            packet = await anext(stream)
            if packet.sample.head is not None:
                packets.append(packet)
    return packets


async def test_a_rebooting_headset_refuses_and_its_camera_is_off_afterwards() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, loop=True) as headset:
        remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
        await client.start_pv(HOST, base_port=headset.base_port)
        reboot = asyncio.create_task(headset.reboot(down_s=0.3))
        await asyncio.sleep(0.1)
        with pytest.raises(DeviceError, match="refused"):
            await remote.pv_status()
        await reboot
        assert not await remote.pv_status()


async def test_the_sample_plays_on_through_a_reboot_and_ends() -> None:
    async with SimulatedHeadset.of_sample(COFFEE, time_scale=20, start_at_once=True) as headset:
        await asyncio.sleep(0.1)
        await headset.reboot()
        origin_hns = headset.playback_origin_hns
        assert origin_hns is not None
        assert headset.clock.now_hns() - origin_hns >= 20_000_000  # 0.1 s at twenty times
        await asyncio.wait_for(headset.finished.wait(), 5)


def test_rates_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="bytes_per_s is above 0"):
        Faults(bytes_per_s=0)


async def test_pictures_of_a_corrupt_video_are_never_shown() -> None:
    faults = Faults(corrupt_at=1, ports=frozenset({Port.RM_VLC_LEFTFRONT}))
    async with SimulatedHeadset(room=Room(), faults=faults) as headset:
        config = rm.VlcConfig.live()
        stream = sensors.open_vlc(HOST, config, base_port=headset.base_port)
        decoder = PictureDecoder(config.profile, width=640, height=480)
        async with aclosing(stream):
            decoder.decode((await anext(stream)).encoded)
            for _ in range(2):  # the corrupt one, and the one that builds on it
                with pytest.raises(VideoError):
                    decoder.decode((await anext(stream)).encoded)
