"""Recordings played on hl2ss's ports, through the bridge: what comes out is what was recorded."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from keystep_capture import wire
from keystep_capture.errors import DeviceError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.notes import SessionNote
from keystep_capture.samples import find_sample
from keystep_capture.simulation.generate import generate_session
from keystep_capture.simulation.session import SessionSpec
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.device_streams import DEFAULT_STREAMS, DEVICE_STREAMS
from keystep_hololens.hl2ss import client, sensor_client
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.personal_video import PvConfig, VideoProfile
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import DeviceClock, RecordedHeadset, Room, SimulatedHeadset

if TYPE_CHECKING:
    from conftest import RecordingServer

pytestmark = pytest.mark.timeout(300)  # a generated session takes a minute on a busy machine
HOST = "127.0.0.1"
TICK_NS = 100
NEAR = ("depth_ahat", "depth_ahat_ab")
FAR = tuple(stream for stream in DEVICE_STREAMS if stream not in NEAR)
Packets = list[tuple[wire.PacketHeader, bytes]]


@asynccontextmanager
async def bridging(
    headset: SimulatedHeadset | RecordedHeadset, server: RecordingServer, **options: Any
) -> AsyncIterator[Bridge]:
    """A bridge without display and voice that runs, and is stopped at the end."""
    config = BridgeConfig(
        host=HOST,
        base_port=headset.base_port,
        server=server.endpoint,
        display=False,
        voice=False,
        **options,
    )
    bridge = Bridge(config)
    running = asyncio.create_task(bridge.run())
    try:
        yield bridge
    finally:
        bridge.stop()
        async with asyncio.timeout(30):
            await running


def write(path: Path, packets: Iterable[tuple[wire.PacketHeader, bytes]]) -> Path:
    """Record packets, in their order."""
    writer = RecordingWriter(path, RecordingInfo(session="ses-recorded", device="hl2"))
    for number, (header, payload) in enumerate(packets):
        writer.write_packet(header, payload, receive_time_ns=number)
    writer.close()
    return path


def taken(server: RecordingServer) -> Packets:
    return list(zip(server.headers, server.payloads, strict=True))


def forget(server: RecordingServer) -> None:
    server.headers.clear()
    server.payloads.clear()


async def replayed(
    path: Path,
    server: RecordingServer,
    again: Path,
    *,
    time_scale: float = 4.0,
    **options: Any,
) -> Path:
    """Play a recording as a headset through a bridge; what its server received, recorded."""
    forget(server)
    async with RecordedHeadset(path, time_scale=time_scale) as headset:
        async with bridging(headset, server, time_scale=time_scale, **options):
            async with asyncio.timeout(90):
                await headset.finished.wait()
            carried = streams(path) & set(options.get("streams", DEFAULT_STREAMS))
            last = {name: packets(path, name)[-1][0].device_time_ns for name in carried}
            await server.until(lambda: all(reached(server, *one) for one in last.items()))
        assert headset.failure is None
    return write(again, taken(server))


def reached(server: RecordingServer, stream: str, time_ns: int) -> bool:
    """Whether a stream has come so far; what is in sockets is not lost with the headset."""
    return any(
        header.device_time_ns >= time_ns // TICK_NS * TICK_NS for header, _ in server.of(stream)
    )


def packets(path: Path, stream: str) -> Packets:
    """A stream by device time."""
    with Recording(path) as recording:
        found = recording.packets((stream,), order="device_time")
        return [(packet.header, packet.payload) for packet in found]


def streams(path: Path) -> set[str]:
    with Recording(path) as recording:
        return {lane.stream for lane in recording.lanes}


def at(packets: Packets) -> list[int]:
    """Device times in ticks."""
    return [header.device_time_ns // TICK_NS for header, _ in packets]


SAME = ("encoding", "keyframe", "width", "height", "intrinsics", "valid", "upright_turns")


def about(header: wire.PacketHeader, names: Iterable[str] = SAME) -> list[Any]:
    return [getattr(header, name) for name in names]


def assert_poses_close(one: Packets, other: Packets) -> None:
    """Poses are float32 on hl2ss's wire; where a sensor sits is taken out of them and put back."""
    assert len(one) == len(other)
    for (ours, _), (theirs, _) in zip(one, other, strict=True):
        assert (ours.pose is None) == (theirs.pose is None)
        if ours.pose is not None:
            np.testing.assert_allclose(ours.pose, theirs.pose, atol=2e-6)


# -- recordings ----------------------------------------------------------------------------------


async def record_sample(
    server: RecordingServer, path: Path, name: str, *wanted: str, until: tuple[str, int]
) -> Path:
    """A sample with every sensor, simulated, as a bridge passes it on; recorded."""
    headset = SimulatedHeadset.of_sample(find_sample(name), whole=True, microphone=True)
    async with headset, bridging(headset, server, streams=wanted):
        await server.has(*until)
        for name in wanted:  # the slowest to begin as well
            await server.has(name, 1)
    return write(path, in_pairs(taken(server)))


def in_pairs(packets: Packets) -> Packets:
    """Without a last depth image whose brightness was not waited for."""
    times = [
        {header.device_time_ns for header, _ in packets if header.stream == stream}
        for stream in ("depth", "depth_ab")
    ]
    alone = times[0] ^ times[1] if all(times) else set()
    return [
        (header, payload)
        for header, payload in packets
        if header.device_time_ns not in alone or header.stream != "depth"
    ]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of a generated session."""
    folder = tmp_path_factory.mktemp("generated") / "person_000"
    generate_session(
        SessionSpec(task="cart", seed=1, person=0, profile="full"), folder, limit_s=8.0
    )
    return folder


# -- round trips ---------------------------------------------------------------------------------


async def test_a_sample_with_every_sensor_comes_back_as_it_was_recorded(
    server: RecordingServer, tmp_path: Path
) -> None:
    path = await record_sample(
        server, tmp_path / "recorded", "pour-coffee", *FAR, until=("vlc_right_right", 6)
    )
    assert streams(path) == {*FAR, "calibration"}
    again = await replayed(path, server, tmp_path / "again", streams=FAR, time_scale=2.0)
    assert streams(again) == streams(path)
    for stream in FAR:
        before, after = packets(path, stream), packets(again, stream)
        assert at(after) == at(before), stream
        assert [about(h) for h, _ in after] == [about(h) for h, _ in before], stream
        assert_poses_close(after, before)
        if stream == "gyroscope":  # radians to degrees and back
            for (ours, mine), (theirs, other) in zip(after, before, strict=True):
                np.testing.assert_allclose(
                    read_array(ours, mine), read_array(theirs, other), rtol=3e-7
                )
        elif stream in ("gaze", "eye_tracking"):  # directions are made of unit length anew
            for (ours, mine), (theirs, other) in zip(after, before, strict=True):
                np.testing.assert_allclose(
                    np.frombuffer(mine, "<f4"), np.frombuffer(other, "<f4"), atol=1.2e-7
                )
                assert ours.valid == theirs.valid
        else:
            assert [payload for _, payload in after] == [payload for _, payload in before], stream


async def test_constants_come_back_as_they_were_recorded(
    server: RecordingServer, tmp_path: Path
) -> None:
    wanted = ("vlc_left_front", "depth", "accelerometer")
    path = await record_sample(
        server, tmp_path / "recorded", "pour-coffee", *wanted, until=("depth", 2)
    )
    again = await replayed(path, server, tmp_path / "again", streams=wanted)
    before = {h.calibrates: (h, payload) for h, payload in packets(path, "calibration")}
    after = {h.calibrates: (h, payload) for h, payload in packets(again, "calibration")}
    assert before.keys() == after.keys() == set(wanted)
    for name, (header, payload) in after.items():
        same = ("encoding", "width", "height", "depth_unit_m")
        assert about(header, same) == about(before[name][0], same)
        assert payload == before[name][1]
        np.testing.assert_allclose(
            header.rig_from_sensor, before[name][0].rig_from_sensor, atol=1e-6
        )


async def test_published_head_poses_and_gaze_come_back_as_they_were_recorded(
    server: RecordingServer, tmp_path: Path
) -> None:
    headset = SimulatedHeadset.of_sample(find_sample("industreal-03"), time_scale=60.0)
    wanted = ("head", "gaze", "hands")
    async with headset, bridging(headset, server, streams=wanted, time_scale=60.0):
        await server.has("hands", 900)
    path = write(tmp_path / "recorded", taken(server))
    again = await replayed(path, server, tmp_path / "again", streams=wanted, time_scale=60.0)
    assert len(packets(path, "head")) >= 900
    for stream in wanted:
        before, after = packets(path, stream), packets(again, stream)
        assert at(after) == at(before)
        assert [h.valid for h, _ in after] == [h.valid for h, _ in before]
        if stream == "head":
            assert [payload for _, payload in after] == [payload for _, payload in before]
        for (_, mine), (_, other) in zip(after, before, strict=True):
            values = np.frombuffer(mine, "<f4"), np.frombuffer(other, "<f4")
            np.testing.assert_allclose(*values, atol=1.2e-7)


async def test_a_generated_session_comes_back_at_its_times(
    server: RecordingServer, tmp_path: Path, generated: Path
) -> None:
    again = await replayed(generated, server, tmp_path / "again")
    for stream in ("rgb", "depth"):  # encoded pictures, bit for bit
        before, after = packets(generated, stream), packets(again, stream)
        assert at(after) == at(before)
        assert [payload for _, payload in after] == [payload for _, payload in before]
        same = ("encoding", "keyframe", "width", "height", "depth_unit_m")
        assert [about(h, same) for h, _ in after] == [about(h, same) for h, _ in before]
        assert_poses_close(after, before)
    for (ours, _), (theirs, _) in zip(
        packets(again, "rgb"), packets(generated, "rgb"), strict=True
    ):
        assert ours.intrinsics == pytest.approx(theirs.intrinsics)
    for stream in ("gaze", "head", "hands"):
        played = {h.device_time_ns: (h, payload) for h, payload in packets(again, stream)}
        for header, payload in packets(generated, stream):
            ours, mine = played[header.device_time_ns]
            valid = header.valid
            assert ours.valid == valid
            if valid:
                values = read_array(ours, mine), read_array(header, payload)
                sides = [side for side in range(2) if valid >> side & 1]
                picked = [v[sides] if stream == "hands" else v for v in values]
                np.testing.assert_allclose(*picked, atol=1e-6)


async def test_near_depth_comes_back_but_for_its_video(
    server: RecordingServer, tmp_path: Path
) -> None:
    headset = SimulatedHeadset(room=Room(), clock=DeviceClock())
    async with headset, bridging(headset, server, streams=NEAR):
        await server.has("depth_ahat_ab", 12)
    path = write(tmp_path / "recorded", taken(server))
    again = await replayed(path, server, tmp_path / "again", streams=NEAR)
    assert at(packets(again, "depth_ahat")) == at(packets(path, "depth_ahat"))
    assert_poses_close(packets(again, "depth_ahat"), packets(path, "depth_ahat"))
    last = read_image(*packets(again, "depth_ahat")[-1]).astype(int)
    recorded = read_image(*packets(path, "depth_ahat")[-1]).astype(int)
    assert np.abs(last - recorded).mean() < 12  # millimetres; video blurs edges a second time


async def test_near_depth_is_exact_for_a_client_that_asks_for_it_raw(
    server: RecordingServer, tmp_path: Path
) -> None:
    headset = SimulatedHeadset(room=Room(), clock=DeviceClock())
    async with headset, bridging(headset, server, streams=NEAR):
        await server.has("depth_ahat_ab", 5)
    path = write(tmp_path / "recorded", taken(server))
    config = rm.AhatConfig(mode=1, bitrate_bps=1, profile=VideoProfile.RAW)
    async with RecordedHeadset(path) as playing:
        opened = sensor_client.open_ahat(HOST, config, base_port=playing.base_port)
        async with aclosing(opened):
            frames = [packet async for packet in opened]
    recorded = zip(packets(path, "depth_ahat"), packets(path, "depth_ahat_ab"), strict=False)
    for frame, (depth, brightness) in zip(frames, recorded, strict=False):
        assert frame.timestamp_hns == depth[0].device_time_ns // TICK_NS
        np.testing.assert_array_equal(frame.frame.depth_mm, read_image(*depth))
        np.testing.assert_array_equal(frame.frame.active_brightness, read_image(*brightness))
    assert len(frames) >= 5


# -- clients -------------------------------------------------------------------------------------


async def test_who_comes_late_gets_what_plays_then_and_begins_with_a_key_frame(
    generated: Path,
) -> None:
    recorded = packets(generated, "rgb")
    keys = [h.device_time_ns // TICK_NS for h, _ in recorded if h.keyframe]
    config = PvConfig.live(width=1280, height=720, fps=30)
    async with RecordedHeadset(generated, time_scale=0.5) as headset:
        await client.start_pv(HOST, base_port=headset.base_port)
        opened = client.open_pv(HOST, config, base_port=headset.base_port)
        async with aclosing(opened):
            first = await anext(opened)
        remote = client.RemoteConfigurationClient(host=HOST, base_port=headset.base_port)
        clock_hns = await remote.current_time()
        opened = client.open_pv(HOST, config, base_port=headset.base_port)
        async with aclosing(opened):
            later = await anext(opened)
    assert first.timestamp_hns == keys[0] == at(recorded)[0]
    assert (first.metadata.width, first.metadata.height) == (640, 360)  # not what was asked for
    assert keys[0] <= clock_hns <= later.timestamp_hns
    assert later.timestamp_hns in keys[1:]


async def test_video_of_another_codec_is_refused_with_the_reason(generated: Path) -> None:
    config = PvConfig.live(width=640, height=360, fps=30, profile=VideoProfile.HEVC_MAIN)
    with capture_logs() as logs:
        async with RecordedHeadset(generated) as headset:
            await client.start_pv(HOST, base_port=headset.base_port)
            opened = client.open_pv(HOST, config, base_port=headset.base_port)
            with pytest.raises(DeviceError, match="closed without data"):
                await anext(opened)
    reasons = [log["reason"] for log in logs if log["event"] == "closed a client"]
    assert reasons == ["rgb is recorded as h264, the client asks for hevc"]


async def test_a_new_epoch_is_a_restarted_headset(
    server: RecordingServer, tmp_path: Path, generated: Path
) -> None:
    first = [one for one in packets(generated, "gaze") if one[0].valid][:60]
    later = [
        (msgspec.structs.replace(h, epoch=3, device_time_ns=h.device_time_ns % 10**9), payload)
        for h, payload in first[:1]
    ]
    path = write(tmp_path / "two", [*first, *later])
    again = await replayed(path, server, tmp_path / "again", streams=("gaze",))
    played = [(h.epoch, h.device_time_ns // TICK_NS) for h, _ in taken(server)]
    assert played == [
        *((1, h.device_time_ns // TICK_NS) for h, _ in first),
        (2, later[0][0].device_time_ns // TICK_NS),
    ]
    assert streams(again) == {"gaze"}


async def test_video_gets_the_delimiters_that_hl2ss_wants_and_gaps_wait_for_a_key_frame(
    server: RecordingServer, tmp_path: Path, generated: Path
) -> None:
    recorded = packets(generated, "rgb")[:60]
    assert all(payload[:6] == b"\0\0\0\1\x09" + payload[5:6] for _, payload in recorded)
    bare = [(header, payload[6:]) for header, payload in recorded]
    path = write(tmp_path / "bare", bare[:20] + bare[22:])  # keys are 0, 15, 30, 45
    headset = RecordedHeadset(path)
    assert any("access unit delimiters" in remark for remark in headset.remarks)
    again = await replayed(path, server, tmp_path / "again", streams=("rgb",))
    played = packets(again, "rgb")
    assert [h.device_time_ns for h, _ in played] == [
        h.device_time_ns for h, _ in recorded[:20] + recorded[30:]
    ]
    expected = [b"\0\0\0\1\x09\xf0" + payload for _, payload in bare[:20] + bare[30:]]
    assert [payload for _, payload in played] == expected


async def test_what_nobody_recorded_of_a_video_is_not_made_up(
    server: RecordingServer, tmp_path: Path, generated: Path
) -> None:
    unknown = {"intrinsics": None, "pose": None, "width": None, "height": None}
    recorded = packets(generated, "rgb")[:45]
    bare = [(msgspec.structs.replace(header, **unknown), payload) for header, payload in recorded]
    path = write(tmp_path / "bare", bare)
    assert "rgb: intrinsics and pose and exposure" in " ".join(RecordedHeadset(path).remarks)
    again = await replayed(path, server, tmp_path / "again", streams=("rgb",))
    played = packets(again, "rgb")
    assert [payload for _, payload in played] == [payload for _, payload in recorded]
    assert {(h.intrinsics, h.pose) for h, _ in played} == {(None, None)}
    assert {(h.width, h.height) for h, _ in played} == {(640, 360)}  # off the picture itself


async def test_constants_that_nobody_recorded_are_not_made_up(
    server: RecordingServer, tmp_path: Path
) -> None:
    path = await record_sample(
        server, tmp_path / "recorded", "pour-coffee", "vlc_left_front", until=("vlc_left_front", 2)
    )
    bare = write(tmp_path / "bare", packets(path, "vlc_left_front"))
    async with RecordedHeadset(bare, catch_up_s=0.0) as headset:
        with pytest.raises(DeviceError, match="inside a message"):
            await sensor_client.read_camera_calibration(
                HOST, Port.RM_VLC_LEFTFRONT, base_port=headset.base_port
            )
        opened = sensor_client.open_vlc(HOST, rm.VlcConfig.live(), base_port=headset.base_port)
        async with aclosing(opened):
            pictures = [(p.timestamp_hns, bytes(p.encoded), p.pose) async for p in opened]
    assert any("its constants were not recorded" in remark for remark in headset.remarks)
    expected = [
        (header.device_time_ns // TICK_NS, payload, None)
        for header, payload in packets(path, "vlc_left_front")
    ]
    assert pictures == expected


# -- errors --------------------------------------------------------------------------------------


def played_by_command(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (
        "-m",
        "keystep_capture.cli",
        "simulate",
        "--recording",
        str(path),
        "--base-port",
        "0",
    )
    return subprocess.run(
        [sys.executable, *command, *options], capture_output=True, text=True, timeout=60
    )


def test_what_is_no_recording_is_one_line(tmp_path: Path, generated: Path) -> None:
    foreign, empty = tmp_path / "foreign.mcap", tmp_path / "empty.mcap"
    foreign.write_bytes(b"\x89PNG\r\n" + bytes(500))
    empty.write_bytes(b"")
    nothing = tmp_path / "nothing"
    writer = RecordingWriter(nothing, RecordingInfo(session="s"))
    writer.write_note(SessionNote(event="closed"), device_time_ns=1, receive_time_ns=1)
    writer.close()
    header = wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session="s",
        epoch=1,
        stream="detections",
        sequence=0,
        device_time_ns=1,
        send_time_ns=0,
        encoding="detections_f64",
    )
    detections = write(tmp_path / "detections", [(header, bytes(48))])
    for path, said in (
        (foreign, "expected an MCAP recording"),
        (empty, "the file is empty"),
        (tmp_path / "missing", "No such file"),
        (nothing, "nothing that a headset could play: it has no packets"),
        (detections, "detections: hl2ss has no port for it"),
    ):
        done = played_by_command(path)
        assert (done.returncode, done.stdout) == (1, ""), done
        (line,) = done.stderr.splitlines()
        assert said in line
        assert str(path) in line
    done = played_by_command(generated, "--loop")
    assert done.returncode == 2
    assert done.stderr == "keystep: --loop and --recording exclude each other\n"


async def test_damage_on_the_way_ends_the_command_with_one_line(
    tmp_path: Path, generated: Path
) -> None:
    path = tmp_path / "part-000.mcap"
    data = bytearray((generated / "part-000.mcap").read_bytes())
    path.write_bytes(data)
    async with RecordedHeadset(path, time_scale=100.0) as headset:
        with Recording(path) as recording:
            data[recording.parts[0].chunk_offset(2) + 5000] ^= 255
        path.write_bytes(data)
        opened = client.open_spatial_input(HOST, base_port=headset.base_port)
        async with aclosing(opened):
            count = len([packet async for packet in opened])
        assert headset.finished.is_set()
    assert 0 < count < 1400
    damaged = rf"{path}: at byte \d+: the chunk's checksum is wrong: expected \w+"
    assert re.fullmatch(damaged, str(headset.failure))
    done = played_by_command(path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"keystep: {damaged}\n", done.stderr)


async def test_the_command_plays_to_the_end_and_says_what_it_cannot_tell(
    server: RecordingServer, generated: Path
) -> None:
    command = ("simulate", "--recording", generated, "--base-port", "0", "--time-scale", "8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", *map(str, command)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert b"Simulated HoloLens 2" in await process.stdout.readline()
        ready = re.fullmatch(rb"READY base_port=(\d+)\n", await process.stdout.readline())
        assert ready is not None
        config = BridgeConfig(
            host=HOST, base_port=int(ready[1]), server=server.endpoint, time_scale=8.0
        )
        bridge = Bridge(config)
        running = asyncio.create_task(bridge.run())
        _, said = await asyncio.wait_for(process.communicate(), 90)
        last_ns = packets(generated, "rgb")[-1][0].device_time_ns
        await server.until(lambda: reached(server, "rgb", last_ns))
        bridge.stop()
        await asyncio.wait_for(running, 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b"rgb: exposure, focus and white balance not recorded, sent as zeros" in said
    assert [payload for _, payload in server.of("rgb")] == [
        payload for _, payload in packets(generated, "rgb")
    ]
