"""A replay sends what was recorded, in its order and with its numbers, at any speed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keystep_capture.errors import ConfigError, DataError, RefusedError, StateError
from keystep_capture.recording import Recording
from keystep_capture.recording.replay import ReplayOptions, replay

OWN = {"session": "", "epoch": 0, "send_time_ns": 0, "protocol": ""}


def played(taken: Any) -> list[tuple[Any, bytes]]:
    """What is to be the same: all but session, epoch, protocol and send time."""
    return [(msgspec.structs.replace(one.header, **OWN), one.payload) for one in taken]


def recorded_packets(folder: Path) -> list[tuple[Any, bytes]]:
    with Recording(folder) as recording:
        return played(recording.packets())


class Turning:
    """A clock that a sleep turns, so that a replay's pace is exact and takes no time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        await asyncio.sleep(0)


@pytest.mark.parametrize("speed", [0.5, 4.0, None])
async def test_a_replay_sends_what_was_recorded(
    rig: Any, recorded: Path, speed: float | None
) -> None:
    clock = Turning()
    options = ReplayOptions(server=rig.receive().endpoint, speed=speed)
    with Recording(recorded) as recording:
        report = await replay(recording, options, clock=clock, sleep=clock.sleep)
    assert played(rig.recorder.taken) == recorded_packets(recorded)
    assert report.session == rig.recorder.taken[0].session
    assert sum(report.sent.values()) == len(rig.recorder.taken)
    (hello,) = rig.recorder.hellos
    assert (hello.replay, hello.time_scale) == (True, speed or 1000.0)
    assert hello.device == "hl2-replay"
    assert rig.recorder.finished[-1].close
    if speed is not None:
        assert clock.now_ns == pytest.approx(5e9 / speed, rel=0.02)


async def test_gaps_of_a_recording_are_gaps_of_its_replay(
    rig: Any, tmp_path: Path, tools: Any
) -> None:
    sent = tools.sensor_packets("gaze", 200)
    folder = tools.record(tmp_path, sent[3:50] + sent[80:])
    options = ReplayOptions(server=rig.receive().endpoint, speed=None)
    with Recording(folder) as recording:
        await replay(recording, options)
    assert rig.recorder.sequences("gaze") == [*range(3, 50), *range(80, 200)]


async def test_each_epoch_of_a_recording_is_one_of_its_replay(
    rig: Any, tmp_path: Path, tools: Any
) -> None:
    first = tools.sensor_packets("gaze", 50)
    again = [
        (tools.packet("gaze", h.sequence, h.device_time_ns, epoch=4), payload)
        for h, payload in first
    ]
    folder = tools.record(tmp_path, [*first, *again])
    receiver = rig.receive()

    async def write_down() -> None:
        while True:  # as a server does each second
            await asyncio.sleep(0.01)
            for lane in [lane for peer in rig.recorder.here for lane in peer.lanes.values()]:
                receiver.acknowledge(lane, lane.received_sequence)

    writing = asyncio.create_task(write_down())
    with Recording(folder) as recording:
        await replay(recording, ReplayOptions(server=receiver.endpoint, speed=None))
    writing.cancel()
    assert [taken.header.epoch for taken in rig.recorder.taken] == [1] * 50 + [2] * 50
    assert len({taken.session for taken in rig.recorder.taken}) == 1
    assert [finished.close for finished in rig.recorder.finished] == [True]


async def test_some_streams_can_be_played_alone(rig: Any, recorded: Path) -> None:
    options = ReplayOptions(server=rig.receive().endpoint, speed=None, streams=("gaze",))
    with Recording(recorded) as recording:
        report = await replay(recording, options)
        assert report.sent == {"gaze": 300}
        with pytest.raises(DataError, match="has streams rgb, gaze, head, hands, detections"):
            await replay(recording, ReplayOptions(server="tcp://x:1", streams=("nose",)))


async def test_a_refused_replay_says_why(rig: Any, recorded: Path) -> None:
    rig.recorder.refusal = RefusedError("no such procedure")
    options = ReplayOptions(server=rig.receive().endpoint, speed=None)
    with Recording(recorded) as recording, pytest.raises(RefusedError, match="no such procedure"):
        await replay(recording, options)


async def test_a_server_that_is_not_there_is_told(rig: Any, recorded: Path) -> None:
    rig.receive()
    endpoint = await rig.stop_receiving()
    options = ReplayOptions(server=endpoint, speed=None, connect_timeout_s=0.3)
    with Recording(recorded) as recording, pytest.raises(StateError, match="is it running there"):
        await replay(recording, options)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), 1e9])
async def test_a_speed_that_is_none_is_told(recorded: Path, speed: float) -> None:
    with Recording(recorded) as recording, pytest.raises(ConfigError, match="above 0 and at most"):
        await replay(recording, ReplayOptions(server="tcp://x:1", speed=speed))


async def test_a_slow_server_loses_nothing(rig: Any, recorded: Path) -> None:
    options = ReplayOptions(server=rig.receive().endpoint, speed=None)
    rig.recorder.holds = True

    async def work_off() -> None:
        while True:
            await asyncio.sleep(0.01)
            rig.recorder.work_off()

    working = asyncio.create_task(work_off())
    with Recording(recorded) as recording:
        await replay(recording, options)
    working.cancel()
    assert played(rig.recorder.taken) == recorded_packets(recorded)


async def test_a_recording_that_is_damaged_midway_ends_its_replay_with_a_line(
    rig: Any, recorded: Path
) -> None:
    part = recorded / "part-000.mcap"
    data = bytearray(part.read_bytes())
    with Recording(part) as recording:
        offset = recording.parts[0].chunk_offset(1)
    data[offset + 5000] ^= 0x10
    part.write_bytes(data)
    options = ReplayOptions(server=rig.receive().endpoint, speed=None)
    with Recording(recorded) as recording, pytest.raises(DataError, match="at byte") as caught:
        await replay(recording, options)
    assert "\n" not in str(caught.value)


async def test_a_recording_of_any_times_is_replayed_without_waiting_for_ever(
    rig: Any, tmp_path: Path, tools: Any
) -> None:
    times = [2**62 - 9, 0, 5, 2**61, 10**12]
    sent = [(tools.packet("gaze", n, time_ns), bytes(24)) for n, time_ns in enumerate(times)]
    clock = Turning()
    options = ReplayOptions(server=rig.receive().endpoint, speed=1.0)
    with Recording(tools.record(tmp_path, sent)) as recording:
        report = await replay(recording, options, clock=clock, sleep=clock.sleep)
    assert report.sent["gaze"] == len(times)
    assert clock.now_ns <= 10 * 10**9 * len(times)
