"""Servers killed with SIGKILL while they record: what was acknowledged is in the files.

A hundred kills: `KEYSTEP_TEST_KILLS=100 pytest -m slow tests/server/test_recorder_crash.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture import wire
from keystep_capture.outbox import Pending
from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.notes import StepEventNote, TickNote
from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_capture.sender import Sender, Source
from keystep_capture.streams import VLC_HEIGHT, VLC_WIDTH

STREAMS = ("rgb", "head", "gaze")
SLOW_SECONDS = 180


class Noting(Sender):
    """A real source that notes what it is told to be written down.

    An acknowledged number says nothing of packets before it that never reached the server: so what
    was sent over the connection of an acknowledgement is noted, too, as `promised`.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.acknowledged: dict[str, int] = defaultdict(lambda: -1)
        self.promised: dict[str, set[int]] = defaultdict(set)
        self._under_way: dict[str, set[int]] = defaultdict(set)

    def on_message(self, message: wire.ServerMessage | None, payload: bytes) -> None:
        if isinstance(message, wire.Credit) and message.acknowledged_sequence is not None:
            self._note(message.stream, message.acknowledged_sequence)
        elif isinstance(message, wire.Welcome):
            for stream, grant in message.streams.items():
                if grant.acknowledged_sequence is not None:
                    self._note(stream, grant.acknowledged_sequence)
            self._under_way.clear()
        super().on_message(message, payload)

    def _note(self, stream: str, sequence: int) -> None:
        self.acknowledged[stream] = max(self.acknowledged[stream], sequence)
        taken = {number for number in self._under_way[stream] if number <= sequence}
        self.promised[stream] |= taken
        self._under_way[stream] -= taken

    def _transmit(self, stream: str, pending: Pending) -> bool:
        sent = super()._transmit(stream, pending)
        if sent:
            self._under_way[stream].add(pending.sequence)
        return sent


def payload_of(stream: str, number: int, coffee: list[Any]) -> dict[str, Any]:
    at_ns = number * 10**8 // 3
    if stream == "rgb":
        return dict(coffee[number % len(coffee)]) | {"device_time_ns": at_ns}
    if stream == "head":
        pose = np.eye(4, dtype="<f4")
        pose[0, 3] = number
        return {"device_time_ns": at_ns, "payload": pose.tobytes(), "encoding": "pose_f32"}
    ray = np.array([number, 0, 0, 0, 0, 1], "<f4")
    return {"device_time_ns": at_ns, "payload": ray.tobytes(), "encoding": "ray_f32"}


async def send_on(sender: Sender, coffee: list[Any], *, replay: bool) -> None:
    """Packets of all streams at 30 Hz, those of a replay as there is room for them."""
    number = 0
    while True:
        for stream in STREAMS:
            if replay:
                await sender.room(stream)
            assert sender.offer(stream, **payload_of(stream, number, coffee)) or not replay
        number += 1
        await asyncio.sleep(0.03)


def read(folder: Path, coffee: list[Any]) -> dict[str, list[int]]:
    """Sequence numbers per stream of what can be read; each packet must be as it was sent."""
    found: dict[str, list[int]] = defaultdict(list)
    with Recording(folder) as recording:
        for packet in recording.packets(skip_damage=True):
            header = packet.header
            number = round(header.device_time_ns * 3 / 10**8)
            assert packet.payload == payload_of(header.stream, number, coffee)["payload"]
            found[header.stream].append(header.sequence)
    return found


def check_notes(folder: Path) -> dict[str, list[Any]]:
    """Each tick and each step event is given once, whatever stands in the parts; their keys."""
    with Recording(folder) as recording:
        notes = [entry.note for entry in recording.notes("tick", "step_event", skip_damage=True)]
    ticks = [(note.epoch, note.device_time_ns) for note in notes if isinstance(note, TickNote)]
    steps = [(note.id, note.retracted) for note in notes if isinstance(note, StepEventNote)]
    assert len(ticks) == len(set(ticks))
    assert len(steps) == len(set(steps))
    return {"tick": ticks, "step_event": steps}


def check(folder: Path, sender: Noting, coffee: list[Any], *, replay: bool) -> None:
    """All that was acknowledged can be read, each packet once."""
    check_notes(folder)
    if max(sender.acknowledged.values(), default=-1) < 0:
        return
    found = read(folder, coffee)
    for stream in STREAMS:
        assert len(found[stream]) == len(set(found[stream]))
        assert sender.promised[stream] <= set(found[stream])
        missing = set(range(sender.acknowledged[stream] + 1)) - set(found[stream])
        if replay:
            assert not missing, (stream, sorted(missing)[:5], sender.acknowledged[stream])
        elif stream != "rgb":  # live video is not sent again: what never came is not there
            assert len(missing) <= sender.dropped()[stream]


async def endure(
    server: Any, coffee: list[Any], *, kills: int, seconds: float, seed: int, replay: bool
) -> dict[str, Any]:
    """Kill a recording server again and again; counts, when all is checked and repaired."""
    moments = random.Random(seed)
    source = Source(device="hl2", client="test", streams=STREAMS, kind="expert", replay=replay)
    sender = Noting(source, server=server.wire, instance="one")
    link = asyncio.create_task(sender.run())
    sending = asyncio.create_task(send_on(sender, coffee, replay=replay))
    deadline = time.monotonic() + seconds
    count = 0
    while count < kills and time.monotonic() < deadline:
        before = sender.acknowledged["head"]
        while sender.acknowledged["head"] <= before:
            assert not sending.done(), sending.exception()
            await asyncio.sleep(0.01)
        await asyncio.sleep(moments.uniform(0, 1.5))
        await server.kill()
        folder = server.folder / "sessions" / str(sender.session) / "recording"
        check(folder, sender, coffee, replay=replay)
        count += 1
        if count < kills and time.monotonic() < deadline:
            await server.start()
    sending.cancel()
    link.cancel()
    await asyncio.gather(sending, link, return_exceptions=True)
    await repaired(folder, sender, coffee, replay=replay)
    found = {stream: set(numbers) for stream, numbers in read(folder, coffee).items()}
    return {
        "kills": count,
        "acknowledged": {stream: sender.acknowledged[stream] + 1 for stream in STREAMS},
        "promised": {stream: len(sender.promised[stream]) for stream in STREAMS},
        "not_there": {
            stream: sum(n not in found[stream] for n in range(sender.acknowledged[stream] + 1))
            for stream in STREAMS
        },
        "given_up_by_sender": dict(sender.dropped()),
        "in_parts": notes_in_parts(folder),
        "read": {kind: len(keys) for kind, keys in check_notes(folder).items()},
    }


async def repaired(folder: Path, sender: Noting, coffee: list[Any], *, replay: bool) -> None:
    """`keystep recording repair` closes what the last kill left open, and loses nothing."""
    target = folder.with_name("repaired")
    repair = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "recording", "repair", str(folder)),
        *("--out", str(target)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await repair.wait() == 0
    with Recording(folder) as broken, Recording(target) as whole:
        assert not broken.finished
        assert whole.finished
        assert whole.damage == []
    assert len(part_paths(target)) == len(part_paths(folder))
    assert read(target, coffee) == read(folder, coffee)
    check(target, sender, coffee, replay=replay)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("replay", [True, False])
async def test_what_was_acknowledged_survives_three_kills(
    make_server: Any, coffee: Any, replay: bool
) -> None:
    server = await make_server("killed")
    counts = await endure(server, coffee, kills=3, seconds=240, seed=1, replay=replay)
    assert counts["kills"] == 3
    assert counts["promised"]["head"] > 0


def notes_in_parts(folder: Path) -> dict[str, int]:
    """How many ticks and step events stand in the parts, each part read by itself."""
    counts = {"tick": 0, "step_event": 0}
    for part in part_paths(folder):
        with Recording(part) as recording:
            for entry in recording.notes(*counts, skip_damage=True):
                counts[entry.kind] += 1
    return counts


@pytest.mark.timeout(300)
async def test_a_live_sessions_ticks_and_step_events_are_read_once_after_kills(
    make_server: Any, coffee: Any, tools: Any, record_property: Callable[[str, object], None]
) -> None:
    sample = find_sample("industreal-03")
    assert sample.detections_path is not None
    frame_count = load_truth(sample).frame_count
    frames = list(load_detection_rows(sample.detections_path, frame_count=frame_count))
    detections = tools.detection_packets(frames[690:800])  # three steps at frame 727
    server = await make_server("live")
    source = Source(
        device="hl2",
        client="test",
        streams=("rgb", "detections", "vlc_left_front"),
        kind="expert",
        procedure="industreal-assy",
        method="b3",
    )
    sender = Sender(source, server=server.wire, instance="one")
    link = asyncio.create_task(sender.run())
    for number, detection in enumerate(detections):
        at_ns = number * 10**8 // 3
        await sender.room("detections")
        # So much that chunks reach the file between two checkpoints.
        sender.offer("vlc_left_front", at_ns, bytes(VLC_WIDTH * VLC_HEIGHT), encoding="grey8")
        sender.offer("rgb", **payload_of("rgb", number, coffee))
        assert sender.offer("detections", **(detection | {"device_time_ns": at_ns}))
        if number in (40, 60, 80):
            await stored_steps(server, sender)
            await server.kill()
            await server.start()
        await asyncio.sleep(0.02)
    await sender.finish(close=True, timeout_s=60)
    await link
    folder = server.folder / "sessions" / str(sender.session) / "recording"
    found = check_notes(folder)
    assert len(found["tick"]) > 10
    assert {event_id for event_id, _ in found["step_event"]} == await stored_steps(server, sender)
    record_property("notes_in_parts", notes_in_parts(folder))
    record_property("notes_read", {kind: len(keys) for kind, keys in found.items()})


async def stored_steps(server: Any, sender: Sender) -> set[str]:
    """Ids of the session's step events, when there are any."""
    while True:
        page = await server.get(f"/sessions/{sender.session}/events?limit=1000")
        if page["events"]:
            return {event["id"] for event in page["events"]}
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("replay", [True, False])
async def test_what_was_acknowledged_survives_many_kills(
    make_server: Any, coffee: Any, replay: bool, record_property: Callable[[str, object], None]
) -> None:
    kills = int(os.environ.get("KEYSTEP_TEST_KILLS", "0"))
    server = await make_server("killed")
    seconds = 3400 if kills else SLOW_SECONDS
    counts = await endure(
        server, coffee, kills=kills or 1000, seconds=seconds, seed=2, replay=replay
    )
    for name, value in counts.items():
        record_property(name, value)
    count = counts["kills"]
    assert count == kills or (not kills and count > 3)
