"""A source with a spool over real sockets: nothing is lost, whatever goes away."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import structlog

from keystep_capture.errors import StateError
from keystep_capture.outbox import MAX_KEPT_BYTES
from keystep_capture.spool import UNSENT_FOLDER, Spool

pytestmark = pytest.mark.usefixtures("fast_beat")

EXPERT = {"kind": "expert", "replay": True}


@pytest.fixture(autouse=True)
def _quiet_logs() -> Any:
    with structlog.testing.capture_logs():
        yield


def picture(number: int, size: int) -> bytes:
    return struct.pack("<I", number) * (size // 4)


class Play:
    """A headset's video, gaze and hands at one moment after the other, into a sender."""

    def __init__(self, sender: Any, *, size: int = 3_000) -> None:
        self.sender = sender
        self.size = size
        self.number = 0
        self.sent: list[tuple[str, int, bytes]] = []

    def on(self, count: int) -> int:
        """Offer so many moments of each stream; how many packets were taken."""
        taken = 0
        for _ in range(count):
            taken += sum(self._offer(stream) for stream in ("gaze", "rgb", "hands"))
            self.number += 1
        return taken

    def _offer(self, stream: str) -> bool:
        number, fields = self.number, {}
        if stream == "rgb":
            payload = picture(number, self.size)
            fields = {"encoding": "h264", "keyframe": number % 15 == 0, "width": 640, "height": 360}
        elif stream == "gaze":
            payload, fields = struct.pack("<6f", number, 0, 0, 0, 0, 1), {"encoding": "ray_f32"}
        else:
            payload, fields = b"", {"encoding": "joints_f32", "valid": 0}
        self.sent.append((stream, number, payload))
        return bool(self.sender.offer(stream, number * 33_000_000, payload, **fields))

    async def steadily(self, rounds: int, count: int = 20) -> None:
        for _ in range(rounds):
            self.on(count)
            await asyncio.sleep(0.005)


def taken(rig: Any, epoch: int = 1) -> list[tuple[str, int, bytes]]:
    """(stream, moment, payload) of an epoch in their order of arrival."""
    return [
        (t.header.stream, t.header.device_time_ns // 33_000_000, t.payload)
        for t in rig.recorder.taken
        if t.header.epoch == epoch
    ]


def acknowledge(rig: Any) -> None:
    """Write all down that came in."""
    for session in rig.recorder.sessions.values():
        for lane in session.lanes.values():
            rig.receivers[-1].acknowledge(lane, lane.received_sequence)


async def kill(rig: Any) -> str:
    """The server dies with all that it has not written down; its endpoint."""
    endpoint: str = await rig.stop_receiving()
    for session in rig.recorder.sessions.values():
        for name, lane in session.lanes.items():
            lane.received_sequence = lane.acknowledged_sequence
            rig.recorder.taken = [
                t
                for t in rig.recorder.taken
                if (t.header.stream, t.header.epoch) != (name, lane.epoch)
                or t.header.sequence <= lane.acknowledged_sequence
            ]
    return endpoint


def connect(rig: Any, spool: Spool, **options: Any) -> Any:
    return rig.connect("rgb", "gaze", "hands", source=EXPERT, spool=spool, **options)


async def finish(rig: Any, sender: Any) -> None:
    await sender.finish(close=True, timeout_s=10)
    await rig.running(sender)
    assert not any(sender.dropped().values())


# -- outages -------------------------------------------------------------------------------------


async def test_an_outage_is_caught_up_in_order_and_leaves_nothing(rig: Any, tmp_path: Path) -> None:
    rig.receive()
    spool = Spool(tmp_path, segment_bytes=100_000)
    sender = connect(rig, spool)
    play = Play(sender)
    await rig.eventually(lambda: sender.state == "open")
    await play.steadily(10)
    acknowledge(rig)
    play.on(5)
    endpoint = await kill(rig)
    await rig.eventually(lambda: not sender.is_welcome)
    assert play.on(2_000) == 6_000  # a minute of video
    assert sender.behind().in_spool
    assert sender.behind().duration_ns > 60e9 / 33 * 30 * 0.9
    held = sum(box.kept_bytes for box in sender._outboxes)
    assert held < 2_000_000 < spool.size_bytes
    rig.receive(endpoint)
    await play.steadily(20)  # and it goes on meanwhile
    await rig.eventually(lambda: not sender.behind().byte_count)
    assert (await finish(rig, sender), taken(rig)) == (None, play.sent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


async def test_a_server_killed_again_and_again_lacks_nothing_in_the_end(
    rig: Any, tmp_path: Path
) -> None:
    moments = random.Random(3)
    receiver = rig.receive()
    sender = connect(rig, Spool(tmp_path, segment_bytes=50_000))
    play = Play(sender)
    for _ in range(8):
        await play.steadily(moments.randrange(12), count=moments.randrange(40))
        if moments.random() < 0.6:
            acknowledge(rig)
            await asyncio.sleep(0.01)
        play.on(moments.randrange(60))
        endpoint = await kill(rig)
        play.on(moments.randrange(300))
        if moments.random() < 0.5:
            await rig.eventually(lambda: not sender.is_welcome)
        receiver = rig.receive(endpoint)
        await rig.eventually(lambda: sender.is_welcome)
    await finish(rig, sender)
    order = dict.fromkeys(("gaze", "rgb", "hands"), 0)
    for stream, number, _ in taken(rig):
        assert number == order[stream]  # each packet once, in its stream's order
        order[stream] += 1
    assert Counter(taken(rig)) == Counter(play.sent)
    assert receiver.dropped.keys() <= {"hello_required"}


async def test_a_server_that_is_slow_is_waited_for(rig: Any, tmp_path: Path) -> None:
    rig.receive()
    rig.recorder.holds = True
    sender = connect(rig, Spool(tmp_path))
    play = Play(sender)
    await rig.eventually(lambda: sender.state == "open")
    play.on(1_500)
    assert sender.behind().in_spool
    rig.recorder.holds = False
    rig.recorder.work_off()
    await finish(rig, sender)
    assert taken(rig) == play.sent


async def test_what_a_full_server_does_not_write_down_stays_within_the_limit(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path))
    play = Play(sender, size=1_000_000)
    await rig.eventually(lambda: sender.state == "open")
    for _ in range(MAX_KEPT_BYTES // 1_000_000 + 40):  # taken, and not acknowledged
        play.on(1)
        await asyncio.sleep(0)
    await rig.eventually(lambda: sender.sent()["rgb"] >= MAX_KEPT_BYTES // 1_000_000 - 1)
    await asyncio.sleep(0.1)
    assert sum(box.kept_bytes for box in sender._outboxes) <= MAX_KEPT_BYTES + 1_000_000
    assert sender.behind().in_spool
    acknowledge(rig)
    await finish(rig, sender)
    assert [found[:2] for found in taken(rig)] == [sent[:2] for sent in play.sent]


# -- restarts ------------------------------------------------------------------------------------

KILLED = """
import asyncio, os, signal, struct, sys
from pathlib import Path
from keystep_capture.sender import Sender, Source
from keystep_capture.spool import Spool

async def main():
    folder, server, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    source = Source(device="hl2", client="killed", streams=("gaze",), kind="expert", replay=True)
    sender = Sender(source, server=server, instance="killed", spool=Spool(folder))
    running = asyncio.create_task(sender.run())
    await asyncio.sleep(0.2)
    for number in range(count):
        ray = struct.pack("<6f", number, 0, 0, 0, 0, 1)
        assert sender.offer("gaze", number * 33_000_000, ray, encoding="ray_f32")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_killed_source_sends_what_it_had_in_its_epoch_when_it_is_back(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    endpoint = await rig.stop_receiving()
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(tmp_path), endpoint, "3000")
    )
    assert await killed.wait() == -signal.SIGKILL
    spool = Spool(tmp_path)
    assert [life.instance for life in spool.lives] == ["killed"]
    sender = connect(rig, spool, instance="new", endpoint=endpoint)
    play = Play(sender)
    play.on(50)
    rig.receive(endpoint)
    play.on(50)
    await rig.eventually(lambda: len(rig.recorder.taken) >= 3_300)
    await finish(rig, sender)
    assert [number for _, number, _ in taken(rig, epoch=1)] == list(range(3_000))
    assert taken(rig, epoch=2) == play.sent
    assert [hello.instance for hello in rig.recorder.hellos] == ["killed", "new"]
    assert {t.header.epoch for t in rig.recorder.taken} == {1, 2}


async def test_what_a_killed_source_had_sent_already_is_not_sent_twice(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    left, image = tmp_path / "left", tmp_path / "image"
    sender = connect(rig, Spool(left, segment_bytes=20_000), instance="old")
    play = Play(sender)
    endpoint = await kill(rig)
    play.on(400)
    rig.receive(endpoint)
    await rig.eventually(lambda: len(rig.recorder.taken) == 1_200)
    shutil.copytree(left, image)  # all of it: nothing is acknowledged
    rig.running(sender).cancel()
    again = connect(rig, Spool(image), instance="new")
    await rig.eventually(lambda: again.epoch == 2)
    await finish(rig, again)
    assert taken(rig) == play.sent


async def test_a_headset_that_restarts_in_an_outage_begins_its_epoch_behind_the_old_one(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path, segment_bytes=20_000), instance="i1")
    await rig.eventually(lambda: sender.state == "open")
    plays = [Play(sender)]
    plays[0].on(100)
    endpoint = await kill(rig)
    plays[0].on(600)
    for instance in ("i2", "i3"):
        sender.restart(instance)
        sender.restart(f"{instance}b")  # seen twice: there is nothing in the first
        plays.append(Play(sender))
        plays[-1].on(300)
    rig.receive(endpoint)
    await plays[-1].steadily(10)
    await finish(rig, sender)
    for epoch, play in enumerate(plays, start=1):
        assert taken(rig, epoch) == play.sent
    assert len(rig.recorder.taken) == sum(len(play.sent) for play in plays)
    # On a busy machine a hello is said twice: its welcome comes late.
    said = [
        instance
        for instance, _ in itertools.groupby(hello.instance for hello in rig.recorder.hellos)
    ]
    assert said == ["i1", "i2b", "i3b"]
    assert [hello.instance for hello in rig.recorder.hellos].count("i1") >= 2  # and after the kill


async def test_a_headset_that_restarts_while_all_is_well_begins_a_new_epoch(
    rig: Any, tmp_path: Path
) -> None:
    receiver = rig.receive()
    sender = connect(rig, Spool(tmp_path))
    await rig.eventually(lambda: sender.state == "open")
    before = Play(sender)
    before.on(10)
    sender.restart("i2")  # what was just sent is acknowledged first
    after = Play(sender)
    after.on(10)
    await rig.eventually(lambda: sender.epoch == 2)
    await finish(rig, sender)
    assert (taken(rig, 1), taken(rig, 2)) == (before.sent, after.sent)
    assert not receiver.dropped


async def test_packets_of_a_session_that_was_closed_are_set_aside(rig: Any, tmp_path: Path) -> None:
    rig.receive()
    endpoint = await rig.stop_receiving()
    source = {**EXPERT, "session": "ses-lost"}
    spool = Spool(tmp_path)
    sender = rig.connect("gaze", device="hl2", source=source, spool=spool, endpoint=endpoint)
    assert sender.offer("gaze", 0, bytes(24), encoding="ray_f32")
    await asyncio.sleep(0)  # it has begun
    rig.running(sender).cancel()
    await asyncio.gather(rig.running(sender), return_exceptions=True)
    rig.receive(endpoint)
    await rig.open("gaze", device="another", source={"session": "ses-lost"})  # it is not hl2's
    with structlog.testing.capture_logs() as logs:
        again = connect(rig, Spool(tmp_path), instance="new")
        play = Play(again)
        play.on(5)
        await finish(rig, again)
    assert [t for t in rig.recorder.taken if t.session == "ses-lost"] == []
    assert taken(rig) == play.sent
    assert len(list((tmp_path / UNSENT_FOLDER).iterdir())) == 1
    assert any("set aside" in entry["event"] for entry in logs)


# -- trouble -------------------------------------------------------------------------------------


async def test_without_a_usable_folder_what_memory_holds_arrives_and_the_rest_is_counted(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    (tmp_path / "file").write_bytes(b"")
    with structlog.testing.capture_logs() as logs:
        sender = connect(rig, Spool(tmp_path / "file" / "spool"))
        await rig.eventually(lambda: sender.state == "open")
        play = Play(sender, size=300_000)
        play.on(10)
        endpoint = await kill(rig)
        await rig.eventually(lambda: not sender.is_welcome)
        missing = 3 * 1_000 - play.on(1_000)
    assert 0 < missing == sum(sender.dropped().values())
    assert sender.dropped()["rgb"] > 0
    assert [entry["reason"] for entry in logs if "spool" in entry["event"]] == ["Not a directory"]
    assert sum(box.kept_bytes for box in sender._outboxes) <= MAX_KEPT_BYTES + 300_000
    rig.receive(endpoint)
    await rig.eventually(lambda: sender.is_welcome and not sender.behind().byte_count)
    acknowledge(rig)
    play.on(15)  # live goes on, from the next key frame
    await sender.finish(close=True, timeout_s=10)
    found = taken(rig)
    assert len(found) == len(play.sent) - sum(sender.dropped().values())
    assert found == [packet for packet in play.sent if packet in set(found)]
    pictures = [number for stream, number, _ in found if stream == "rgb"]
    for before, after in itertools.pairwise(pictures):
        assert after == before + 1 or after % 15 == 0  # no picture without those it depends on


async def test_at_the_limit_the_oldest_is_kept_and_live_goes_on_after_it(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path, limit_bytes=3_000_000, segment_bytes=300_000))
    await rig.eventually(lambda: sender.state == "open")
    endpoint = await kill(rig)
    await rig.eventually(lambda: not sender.is_welcome)
    play = Play(sender)
    kept = play.on(3_000)
    assert sum(sender.dropped().values()) == 9_000 - kept > 0
    rig.receive(endpoint)
    await rig.eventually(lambda: not sender.behind().byte_count)
    acknowledge(rig)
    live = Play(sender)
    live.number = 3_000
    await asyncio.sleep(0.3)
    assert live.on(15) == 45
    await sender.finish(close=True, timeout_s=10)
    found = taken(rig)
    assert found[:kept] == [packet for packet in play.sent if packet in set(found)]
    assert found[kept:] == live.sent


async def test_spoiled_segments_cost_what_is_in_them_only(rig: Any, tmp_path: Path) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path, segment_bytes=100_000))
    await rig.eventually(lambda: sender.state == "open")
    endpoint = await kill(rig)
    await rig.eventually(lambda: not sender.is_welcome)
    play = Play(sender)
    play.on(1_000)
    second = sorted(tmp_path.glob("*.spool"))[-2]
    content = bytearray(second.read_bytes())
    content[40_000:60_000] = os.urandom(20_000)
    second.write_bytes(content)
    rig.receive(endpoint)
    await sender.finish(close=True, timeout_s=10)
    found = taken(rig)
    assert found == [packet for packet in play.sent if packet in set(found)]
    assert 0 < len(play.sent) - len(found) < 40
    assert sum(sender.dropped().values()) == len(play.sent) - len(found)


async def test_a_stream_the_server_does_not_grant_holds_nothing_up(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    rig.recorder.unknown_streams.add("hands")
    sender = connect(rig, Spool(tmp_path))
    play = Play(sender)
    play.on(1_000)  # before anything is known of the server
    await rig.eventually(lambda: sender.state == "open")
    play.on(10)
    await sender.finish(close=True, timeout_s=10)
    assert taken(rig) == [packet for packet in play.sent if packet[0] != "hands"]
    assert sender.dropped() == {"rgb": 0, "gaze": 0, "hands": 1_010}


async def test_packets_that_the_server_refuses_hold_nothing_up(rig: Any, tmp_path: Path) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path))
    await rig.eventually(lambda: sender.state == "open")
    day_ns = 24 * 3600 * 10**9
    for number, time_ns in enumerate((0, 3 * day_ns, 4 * day_ns)):  # wild: refused, not taken
        sender.offer("gaze", time_ns + number, bytes(24), encoding="ray_f32")
    sender.restart("i2")
    sender.offer("gaze", 5, bytes(24), encoding="ray_f32")
    await rig.eventually(lambda: sender.epoch == 2)
    await sender.finish(close=True, timeout_s=10)
    assert [(t.header.epoch, t.header.sequence) for t in rig.recorder.taken] == [(1, 0), (2, 0)]
    assert sender.dropped()["gaze"] == 2


async def test_a_sender_that_ends_without_its_server_leaves_all_on_the_disk(
    rig: Any, tmp_path: Path
) -> None:
    rig.receive()
    sender = connect(rig, Spool(tmp_path))
    await rig.eventually(lambda: sender.state == "open")
    play = Play(sender)
    play.on(5)
    await kill(rig)
    with pytest.raises(StateError, match="did not finish"):
        await sender.finish(close=True, timeout_s=0.1)
    rig.running(sender).cancel()
    await asyncio.gather(rig.running(sender), return_exceptions=True)
    spool = Spool(tmp_path)
    found = []
    while packet := spool.read("i1"):
        found.append((packet.header.stream, packet.header.sequence, packet.payload))
    assert found == play.sent
    spool.close()
