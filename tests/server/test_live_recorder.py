"""What a session's recording holds, and that nothing waits for its disk."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.recording import Recording, RecordingWriter

POSE = np.eye(4, dtype="<f4").tobytes()
RAY = struct.pack("<6f", 0, 0, 0, 0, 0, 1)


def sensors(count: int) -> dict[str, list[dict[str, Any]]]:
    times = [number * 10**8 // 3 for number in range(count)]
    return {
        "head": [{"device_time_ns": t, "payload": POSE, "encoding": "pose_f32"} for t in times],
        "gaze": [{"device_time_ns": t, "payload": RAY, "encoding": "ray_f32"} for t in times],
    }


async def stream(live: Any, coffee: Any, **options: Any) -> Any:
    sender = await live.join("hl2", "rgb", "head", "gaze", **{"replay": True, **options})
    for name, packets in sensors(60).items():
        await live.send(sender, name, packets)
    await live.send(sender, "rgb", coffee[:60])
    return sender


def recorded(folder: Path, sender: Any) -> tuple[Counter[str], Counter[str]]:
    """Packets per stream and notes per kind."""
    with Recording(folder / "sessions" / str(sender.session) / "recording") as recording:
        assert recording.info.device == "hl2"
        packets = Counter(packet.header.stream for packet in recording.packets())
        return packets, Counter(note.kind for note in recording.notes())


async def test_an_experts_session_is_recorded_as_it_streams(
    live: Any, coffee: Any, tmp_path: Path
) -> None:
    sender = await stream(live, coffee, kind="expert")
    await sender.finish(close=True)
    packets, notes = recorded(tmp_path, sender)
    assert packets == {"rgb": 60, "head": 60, "gaze": 60}
    stats = await live.stats(sender)
    assert notes["tick"] == stats["ticks"] > 10
    assert notes["session"] >= 2
    assert stats["recording"]["packets"] == 180
    assert stats["recording"]["dropped"] == {}
    metrics = (await live.rest.get("/metrics")).text
    assert "keystep_recorded_packets_total 180.0" in metrics


async def test_notes_have_their_place_among_the_packets(live: Any, tmp_path: Path) -> None:
    begin_ns = 10**15  # a headset's clock does not begin at zero
    packets = [
        packet | {"device_time_ns": begin_ns + packet["device_time_ns"]}
        for packet in sensors(60)["head"]
    ]
    sender = await live.join("hl2", "head", kind="expert", replay=True)
    await live.send(sender, "head", packets)
    await sender.finish(close=True)
    with Recording(tmp_path / "sessions" / str(sender.session) / "recording") as recording:
        events = [entry.note.event for entry in recording.notes("session")]  # type: ignore[union-attr]
        assert recording.device_span_ns == (begin_ns, packets[-1]["device_time_ns"])
    assert (events[0], events[-1]) == ("joined", "closed")


async def test_of_a_guided_session_the_video_is_kept_and_all_where_that_is_asked(
    live: Any, coffee: Any, tmp_path: Path
) -> None:
    body = {"device_id": "hl2", "kind": "guided", "replay": True}
    sender = await stream(live, coffee)
    await sender.finish(close=True)
    assert recorded(tmp_path, sender) == ({"rgb": 60}, {})
    opened = await live.rest.post("/api/v1/sessions", json={**body, "record": True})
    sender = await stream(live, coffee)
    assert sender.session == opened.json()["id"]
    await sender.finish(close=True)
    assert recorded(tmp_path, sender)[0] == {"rgb": 60, "head": 60, "gaze": 60}


async def test_recording_begins_and_ends_on_request(live: Any, coffee: Any, tmp_path: Path) -> None:
    async def say(command: str) -> dict[str, Any]:
        url = f"/api/v1/sessions/{sender.session}/commands"
        answer = await live.rest.post(url, json={"command": command})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    sender = await live.join("hl2", "head", replay=True)
    packets = sensors(90)["head"]
    await live.send(sender, "head", packets[:30])
    await live.worked_off(sender, "head", 30)
    assert not (await say("stop recording"))["accepted"]
    assert (await say("start recording"))["accepted"]
    assert not (await say("start recording"))["accepted"]
    await live.send(sender, "head", packets[30:60])
    await live.worked_off(sender, "head", 60)
    assert (await say("stop recording"))["accepted"]
    await live.send(sender, "head", packets[60:])
    await sender.finish(close=True)
    with Recording(tmp_path / "sessions" / str(sender.session) / "recording") as recording:
        times = [packet.header.device_time_ns for packet in recording.packets()]
    assert times == [packet["device_time_ns"] for packet in packets[30:60]]


async def test_a_session_is_recorded_on_request_before_its_headset_comes(
    live: Any, tmp_path: Path
) -> None:
    body = {"device_id": "hl2", "kind": "guided", "replay": True}
    session = (await live.rest.post("/api/v1/sessions", json=body)).json()["id"]
    url = f"/api/v1/sessions/{session}/recording"
    answer = await live.rest.put(url, json={"on": True})
    assert (answer.status_code, answer.json()) == (200, {"session_id": session, "on": True})
    sender = await live.join("hl2", "head", replay=True)
    packets = sensors(60)["head"]
    await live.send(sender, "head", packets[:30])
    await live.worked_off(sender, "head", 30)
    for _ in range(2):
        assert (await live.rest.put(url, json={"on": False})).status_code == 200
    await live.send(sender, "head", packets[30:])
    await sender.finish(close=True)
    with Recording(tmp_path / "sessions" / session / "recording") as recording:
        events = [entry.note.event for entry in recording.notes("session")]  # type: ignore[union-attr]
        assert len(list(recording.packets())) == 30
    assert events.count("recording stopped") == 1
    assert (await live.rest.put(url, json={"on": True})).status_code == 409
    assert (await live.rest.put(url, json={"on": 1})).status_code == 422


class StoppedDisk:
    """Lets no recording be written until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        write = RecordingWriter.write_packet

        def late(writer: RecordingWriter, *values: Any, **named: Any) -> None:
            self.go_on.wait(60)
            write(writer, *values, **named)

        monkeypatch.setattr(RecordingWriter, "write_packet", late)


async def test_packets_are_worked_off_while_the_disk_stands_still_and_not_acknowledged(
    live: Any, coffee: Any, tools: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = StoppedDisk(monkeypatch)
    sender = await stream(live, coffee, kind="expert")
    for name in ("rgb", "head", "gaze"):
        stats = await live.worked_off(sender, name, 60)
    assert stats["recording"]["packets"] == 0
    await asyncio.sleep(1.5)  # longer than a checkpoint takes to become due
    lanes = live.server.ingest._live[sender.session].lanes
    assert {lane.acknowledged_sequence for lane in lanes.values()} == {-1}
    disk.go_on.set()
    for name in ("head", "gaze"):
        await tools.eventually(lambda name=name: lanes[name].acknowledged_sequence == 59)
    assert lanes["rgb"].acknowledged_sequence >= 0  # a replay's is kept from its key frame on
    assert recorded(tmp_path, sender)[0] == {"rgb": 60, "head": 60, "gaze": 60}
    await sender.finish(close=True)


async def test_a_full_disk_costs_the_recording_and_is_said(
    live: Any, coffee: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_values: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordingWriter, "write_packet", full)
    sender = await stream(live, coffee, kind="expert")
    for name in ("rgb", "head", "gaze"):
        stats = await live.worked_off(sender, name, 60)
    await live.until_stats(sender, lambda s: sum(s["recording"]["dropped"].values()) >= 180)
    stats = await live.stats(sender)
    assert "No space left" in stats["last_error"]
    assert stats["decoded_frames"] == 60
    await sender.finish(close=True)
    metrics = (await live.rest.get("/metrics")).text
    assert 'keystep_recording_dropped_packets_total{stream="head"} 60.0' in metrics
