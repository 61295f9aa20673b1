"""Simulated headset -> bridge -> receiver, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from keystep_capture import wire
from keystep_capture.errors import ConfigError, RefusedError
from keystep_capture.samples import find_sample, load_gaze_camera, load_sensor_rows
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.hl2ss.client import RemoteConfigurationClient
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import (
    DeviceClock,
    Faults,
    SensorSource,
    SimulatedHeadset,
    VideoSource,
)

if TYPE_CHECKING:
    from conftest import RecordingServer

HOST = "127.0.0.1"
COFFEE, INDUSTREAL = find_sample("pour-coffee"), find_sample("industreal-03")
PERIOD_NS = 100_000_000
ROWS = load_sensor_rows(INDUSTREAL.sensors_path)  # type: ignore[arg-type]
CAMERA = load_gaze_camera(INDUSTREAL.camera_path)  # type: ignore[arg-type]
HOUR_HNS = 36_000_000_000


def sensors(frame_count: int = 60, *, loop: bool = False) -> SensorSource:
    """Frames 550 on of the recording, in frames 10 to 39 of this one."""
    rows = {frame_idx: ROWS[540 + frame_idx] for frame_idx in range(10, 40)}
    return SensorSource(
        rows=rows, camera=CAMERA, frame_count=frame_count, frame_rate_hz=10.0, loop=loop
    )


def wearing(*, time_scale: float = 8.0, loop: bool = True, **options: Any) -> SimulatedHeadset:
    """A headset with head and eyes only."""
    clock = DeviceClock(time_scale=time_scale, origin_hns=options.pop("origin_hns", HOUR_HNS))
    return SimulatedHeadset(sensors=sensors(loop=loop), clock=clock, **options)


def filming(**options: Any) -> SimulatedHeadset:
    """A headset with a camera only, playing at life speed."""
    assert COFFEE.video_path is not None
    return SimulatedHeadset(video=VideoSource.open(COFFEE.video_path), **options)


@asynccontextmanager
async def bridging(
    headset: SimulatedHeadset | int, server: RecordingServer, **options: Any
) -> AsyncIterator[Bridge]:
    """A bridge that runs, and is stopped at the end."""
    on_guidance = options.pop("on_guidance", lambda _: None)
    base_port = headset if isinstance(headset, int) else headset.base_port
    config = BridgeConfig(host=HOST, base_port=base_port, server=server.endpoint, **options)
    bridge = Bridge(config, on_guidance=on_guidance)
    running = asyncio.create_task(bridge.run())
    try:
        yield bridge
    finally:
        bridge.stop()
        async with asyncio.timeout(30):
            await running


def decodes_at_once(packets: list[tuple[wire.PacketHeader, bytes]]) -> bool:
    """Whether each access unit gives its picture without waiting for the next."""
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_type = "SLICE"
    pictures = [decoder.decode(av.Packet(payload)) for _, payload in packets]
    return all(
        len(shown) == 1 and (shown[0].width, shown[0].height) == (header.width, header.height)
        for shown, (header, _) in zip(pictures, packets, strict=True)
    )


def starts_a_group(payload: bytes) -> bool:
    """Whether an access unit has a picture of NAL type 5 (IDR)."""
    return any(unit[0] & 31 == 5 for unit in payload.split(b"\x00\x00\x01")[1:])


# -- what arrives --------------------------------------------------------------------------------


async def test_video_arrives_whole_with_key_frames_marked_from_a_headset_without_spatial_input(
    server: RecordingServer,
) -> None:
    async with filming() as headset, bridging(headset, server):
        await server.has("rgb", 40)
        packets = server.of("rgb")[:40]
    assert [header.sequence for header, _ in packets] == list(range(40))
    marked = [header.sequence for header, _ in packets if header.keyframe]
    assert marked == [header.sequence for header, unit in packets if starts_a_group(unit)]
    assert marked == [0, 15, 30]
    assert decodes_at_once(packets)
    assert {(h.width, h.height, h.encoding) for h, _ in packets} == {(640, 360, "h264")}


async def test_video_carries_intrinsics_and_times_and_no_pose_where_the_headset_has_none(
    server: RecordingServer,
) -> None:
    async with filming() as headset, bridging(headset, server):
        await server.has("rgb", 10)
        origin_hns = headset.playback_origin_hns
    assert origin_hns is not None
    focal = 320 / np.tan(np.radians(64.69 / 2))  # the simulated camera's nominal field of view
    for frame_idx, (header, _) in enumerate(server.of("rgb")[:10]):
        assert header.intrinsics == pytest.approx((focal, focal, 320, 180))
        assert header.pose is None
        assert header.device_time_ns == (origin_hns + frame_idx * 10_000_000 // 30) * 100


async def test_head_and_gaze_are_the_recordings_from_a_headset_without_a_camera(
    server: RecordingServer,
) -> None:
    async with wearing(loop=False) as headset, bridging(headset, server, time_scale=8.0):
        await server.has("gaze", 60)
        origin_hns = headset.playback_origin_hns
    assert origin_hns is not None
    for stream in ("head", "gaze"):
        headers = [header for header, _ in server.of(stream)]
        assert [header.sequence for header in headers] == list(range(60))
        expected_ns = [origin_hns * 100 + n * PERIOD_NS for n in range(60)]
        assert [header.device_time_ns for header in headers] == expected_ns
    for frame_idx in range(10, 40):
        row = ROWS[540 + frame_idx]
        left, up, forward, position = row.world_from_head_luf[:3].T
        expected = np.column_stack((-left, up, -forward, position))
        head = np.frombuffer(server.of("head")[frame_idx][1], "<f4").reshape(4, 4)
        np.testing.assert_allclose(head[:3], expected, atol=1e-6)
        np.testing.assert_array_equal(head[3], (0, 0, 0, 1))
        header, payload = server.of("gaze")[frame_idx]
        if row.gaze_px is None:
            assert (header.valid, payload) == (0, b"")
            continue
        across = (row.gaze_px[0] - CAMERA.width / 2) / CAMERA.focal_length_px
        down = (row.gaze_px[1] - CAMERA.height / 2) / CAMERA.focal_length_px
        direction = forward - across * left - down * up
        origin, ray = np.frombuffer(payload, "<f4").reshape(2, 3)
        np.testing.assert_allclose(origin, position, atol=1e-6)
        np.testing.assert_allclose(ray, direction / np.linalg.norm(direction), atol=1e-6)


async def test_what_the_sensors_did_not_see_is_sent_as_not_valid(server: RecordingServer) -> None:
    async with wearing(loop=False) as headset, bridging(headset, server, time_scale=8.0):
        await server.has("hands", 60)
    blind = [n for n in range(60) if not 10 <= n < 40]
    for stream, unseen in (("head", blind), ("hands", range(60))):
        packets = server.of(stream)
        assert [n for n in range(60) if packets[n][0].valid == 0] == list(unseen)
        assert all((payload == b"") == (header.valid == 0) for header, payload in packets)


@pytest.mark.parametrize("time_scale", [1.0, 4.0])
async def test_the_headsets_clock_is_passed_on_within_its_stated_uncertainty(
    server: RecordingServer, time_scale: float
) -> None:
    async with (
        wearing(time_scale=time_scale) as headset,
        bridging(headset, server, time_scale=time_scale),
    ):
        await server.until(lambda: server.peers and server.peers[-1].device_clock)
        before_ns = time.monotonic_ns()
        device_ns = headset.clock.now_hns() * 100
        after_ns = time.monotonic_ns()
        told = server.peers[-1].device_clock
    assert told is not None
    assert abs(told.rate / time_scale - 1) < 1e-3
    # Bridge and test read the same clock, so the truth is known but for the reading itself.
    then_ns = told.bridge_time_ns + (device_ns - told.device_time_ns) / told.rate
    assert before_ns - told.uncertainty_ns - 100 <= then_ns <= after_ns + told.uncertainty_ns + 100
    assert 0 < told.uncertainty_ns < 1e9


# -- what goes wrong -----------------------------------------------------------------------------


async def test_a_dropped_video_connection_comes_back_with_a_key_frame(
    server: RecordingServer,
) -> None:
    async with filming(faults=Faults(drop_at=20)) as headset, bridging(headset, server):
        await server.has("rgb", 45)
    packets = server.of("rgb")[:45]
    assert [header.sequence for header, _ in packets] == list(range(45))
    assert [header.sequence for header, _ in packets if header.keyframe] == [0, 15, 20, 35, 40]
    assert decodes_at_once(packets)
    assert len(server.hellos) == server.epoch == 1


@pytest.mark.parametrize("fault", [Faults(truncate_at=8), Faults(oversize_at=8)])
async def test_a_broken_packet_costs_its_connection_and_not_the_session(
    server: RecordingServer, fault: Faults
) -> None:
    async with wearing(faults=fault) as headset, bridging(headset, server, time_scale=8.0):
        await server.has("head", 20)
    assert [header.sequence for header, _ in server.of("head")[:20]] == list(range(20))
    assert len(server.hellos) == server.epoch == 1


@pytest.mark.parametrize("later_hns", [-HOUR_HNS // 2, HOUR_HNS])
async def test_a_restarted_headset_begins_a_new_epoch_with_its_first_packet(
    server: RecordingServer, later_hns: int
) -> None:
    async with wearing() as headset:
        base_port = headset.base_port
        bridge = bridging(base_port, server, time_scale=8.0)
        await bridge.__aenter__()
        await server.has("head", 10)
        await server.until(lambda: server.peers[-1].device_clock)
    restarted = wearing(base_port=base_port, origin_hns=HOUR_HNS + later_hns)
    async with restarted:
        await server.has("head", 10, epoch=2)
        await bridge.__aexit__(None, None, None)
    origin_hns = restarted.playback_origin_hns
    assert origin_hns is not None
    headers = [header for header, _ in server.of("head", epoch=2)]
    assert [header.sequence for header in headers] == list(range(len(headers)))
    assert headers[0].device_time_ns == origin_hns * 100
    first = [header.device_time_ns for header, _ in server.of("head", epoch=1)]
    assert HOUR_HNS * 100 <= min(first) <= max(first) < HOUR_HNS * 100 + 60e9
    assert [hello.session for hello in server.hellos] == [None, server.session]


async def test_a_server_that_went_away_gets_what_it_missed_in_the_same_session(
    server: RecordingServer,
) -> None:
    async with wearing(time_scale=1.0) as headset, bridging(headset, server):
        await server.has("head", 5)
        await server.go_away()
        taken = len(server.of("head"))
        await asyncio.sleep(0.3)  # three packets' time
        server.come_back()
        await server.has("head", taken + 8)
    sequences = [header.sequence for header, _ in server.of("head")]
    assert sequences == list(range(len(sequences)))
    assert server.epoch == 1
    assert server.hellos[-1].session == server.session


async def test_a_bridge_started_before_server_and_headset_waits_for_both(
    server: RecordingServer,
) -> None:
    await server.go_away()
    async with wearing() as headset:
        base_port = headset.base_port
    async with bridging(base_port, server, time_scale=8.0):
        await asyncio.sleep(0.1)
        server.come_back()
        await server.until(lambda: server.peers)
        async with wearing(base_port=base_port):
            await server.has("head", 5)
    assert server.of("head")[0][0].sequence == 0


@pytest.mark.parametrize("silent", [Port.PERSONAL_VIDEO, Port.SPATIAL_INPUT])
async def test_a_port_that_accepts_and_stays_silent_holds_up_no_other(
    server: RecordingServer, silent: Port
) -> None:
    headset = filming() if silent is Port.SPATIAL_INPUT else wearing()
    async with headset:
        address = (HOST, port(silent, headset.base_port))
        with socket.create_server(address):
            time_scale = headset.clock.time_scale
            async with bridging(headset, server, time_scale=time_scale):
                await server.has("rgb" if silent is Port.SPATIAL_INPUT else "head", 20)
    assert {header.stream for header in server.headers} in ({"rgb"}, {"head", "gaze", "hands"})


# -- guidance and the end ------------------------------------------------------------------------


async def test_guidance_is_handed_on_and_acknowledged_as_not_displayed(
    server: RecordingServer,
) -> None:
    shown: list[wire.Guidance] = []
    guidance = wire.Guidance(
        protocol=wire.PROTOCOL,
        revision=7,
        severity="info",
        current_step=wire.StepName(id=3, title="Fit the wheel"),
        next_step=None,
        text="Fit the wheel.",
        progress=(1, 9),
        device_time_ns=5,
    )
    async with wearing() as headset, bridging(headset, server, on_guidance=shown.append):
        await server.until(lambda: server.peers)
        assert server.receiver.send(server.peers[0], guidance)
        await server.until(lambda: server.acknowledged)
    assert shown == [guidance]
    assert [(ack.revision, ack.displayed) for ack in server.acknowledged] == [(7, False)]


async def test_stopping_hands_over_what_was_sent_and_switches_the_camera_off(
    server: RecordingServer,
) -> None:
    async with filming() as headset:
        remote = RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
        async with bridging(headset, server):
            await server.has("rgb", 5)
            assert await remote.pv_status()
        async with asyncio.timeout(10):
            while await remote.pv_status():  # noqa: ASYNC110 (a switch is never answered)
                await asyncio.sleep(0.02)
    (finished,) = server.finished
    assert not finished.close
    assert finished.last_sequences["rgb"] == server.of("rgb")[-1][0].sequence


async def test_a_bridge_ends_with_its_headset_and_has_the_session_closed_if_told(
    server: RecordingServer,
) -> None:
    options: dict[str, Any] = {"time_scale": 8.0, "exit_when_silent_s": 0.5, "close_at_end": True}
    async with wearing(loop=False) as headset:
        config = BridgeConfig(
            host=HOST, base_port=headset.base_port, server=server.endpoint, **options
        )
        async with asyncio.timeout(30):
            await Bridge(config).run()
    assert server.finished[-1].close
    assert len(server.of("gaze")) == 60


async def test_silence_is_counted_from_the_first_welcome_on(server: RecordingServer) -> None:
    await server.go_away()
    options: dict[str, Any] = {"time_scale": 8.0, "exit_when_silent_s": 0.3, "close_at_end": True}
    async with wearing(loop=False) as headset:
        config = BridgeConfig(
            host=HOST, base_port=headset.base_port, server=server.endpoint, **options
        )
        running = asyncio.create_task(Bridge(config).run())
        await asyncio.wait([running], timeout=1.5)  # no one welcomes it meanwhile
        assert not running.done()
        server.come_back()
        async with asyncio.timeout(30):
            await running
    assert server.finished[-1].close
    assert len(server.of("gaze")) == 60


async def test_a_session_closed_while_a_replay_waits_for_credit_ends_the_bridge_well(
    server: RecordingServer,
) -> None:
    server.consumes = False
    async with wearing(time_scale=100) as headset, bridging(headset, server, time_scale=100.0):
        await server.has("head", 512)  # all the credit there is
        server.receiver.dismiss(server.peers[0])


async def test_a_refusal_for_good_is_raised(server: RecordingServer) -> None:
    server.refusal = RefusedError("the session is another headset's", "other_device")
    async with wearing() as headset:
        config = BridgeConfig(host=HOST, base_port=headset.base_port, server=server.endpoint)
        with pytest.raises(RefusedError, match="another headset's"):
            await Bridge(config).run()


async def test_stopping_does_not_wait_for_a_headset_that_stays_silent(
    server: RecordingServer,
) -> None:
    async with wearing(faults=Faults(silent=True)) as headset, bridging(headset, server):
        await server.until(lambda: server.peers)
    assert server.headers == []
    assert len(server.finished) == 1


async def test_stopping_does_not_wait_for_a_server_that_never_answered() -> None:
    with socket.create_server((HOST, 0)) as nobody:
        endpoint = f"tcp://{HOST}:{nobody.getsockname()[1]}"
        async with wearing() as headset:
            bridge = Bridge(BridgeConfig(host=HOST, base_port=headset.base_port, server=endpoint))
            running = asyncio.create_task(bridge.run())
            await asyncio.sleep(0.1)
            bridge.stop()
            async with asyncio.timeout(10):
                await running


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"server": "127.0.0.1:8041"}, "expected e.g. tcp://127.0.0.1:8041"),
        ({"server": "tcp://10.1.2.3:8041"}, "key file"),
        ({"device": "two words"}, "letters, digits"),
        ({"width": 641}, "no video format 641x360@30; it offers 424x240@15"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BridgeConfig(host=HOST, **wrong)
