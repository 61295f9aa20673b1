"""A recording replayed to a whole server gives the same events at any speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from keystep_capture import wire
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.replay import ReplayOptions, replay
from keystep_capture.samples import load_detection_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "industreal"
NAME = "03_assy_0_1"
FRAMES = 1500  # of ten a second


def recorded(folder: Path, tools: Any) -> Path:
    """Real detections of an assembly as a live session would have recorded them."""
    writer = RecordingWriter(folder, RecordingInfo(session="ses_1", device="hl2"))
    rows = load_detection_rows(GOLDEN / f"{NAME}_pred.csv.gz")[:FRAMES]
    for number, packet in enumerate(tools.detection_packets(rows)):
        payload = packet.pop("payload")
        header = wire.PacketHeader(
            protocol=wire.PROTOCOL,
            session="ses_1",
            epoch=1,
            stream="detections",
            sequence=number,
            send_time_ns=0,
            **packet,
        )
        arrival_ns = 10**9 + header.device_time_ns
        writer.write_packet(header, payload, receive_time_ns=arrival_ns)
    writer.close()
    return folder


async def events_of(live: Any, folder: Path, speed: float | None) -> list[dict[str, Any]]:
    options = ReplayOptions(
        server=live.server.wire_endpoint,
        speed=speed,
        device=f"at-{speed}",
        procedure="industreal-assy",
        method="b3",
    )
    with Recording(folder) as recording:
        report = await replay(recording, options)
    assert report.sent == {"detections": FRAMES}
    page = await live.get(f"/sessions/{report.session}/events?limit=1000")
    its_own = {"id", "session_id", "detected_at", "latency_ms"}
    return [{k: v for k, v in one.items() if k not in its_own} for one in page["events"]]


async def test_events_are_the_same_at_any_speed(live: Any, tools: Any, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "recorded", tools)
    fastest = await events_of(live, folder, None)
    quick = await events_of(live, folder, 100.0)
    slower = await events_of(live, folder, 25.0)
    assert len(fastest) > 2
    assert json.dumps(fastest) == json.dumps(quick) == json.dumps(slower)
    published = json.loads((GOLDEN / "expected.json").read_text())[NAME]["expected"]["b3"]["steps"]
    steps = [(one["frame_idx"], one["step_id"]) for one in fastest]
    assert steps == [(s["frame"], s["id"]) for s in published if s["frame"] < FRAMES]


def sensor_packets(count: int) -> list[tuple[int, str, dict[str, Any]]]:
    """Simulated head and gaze at 30 Hz, each packet telling its number."""
    packets = []
    for number in range(count):
        at_ns = number * 10**8 // 3
        pose = np.eye(4, dtype="<f4")
        pose[0, 3] = number
        ray = np.array([number, 0, 0, 0, 0, 1], "<f4")
        fields = {"device_time_ns": at_ns}
        packets.append(
            (at_ns, "head", fields | {"payload": pose.tobytes(), "encoding": "pose_f32"})
        )
        packets.append((at_ns, "gaze", fields | {"payload": ray.tobytes(), "encoding": "ray_f32"}))
    return packets


async def record_on(live: Any, tools: Any, coffee: Any) -> str:
    """Have the server record a guided session: real video and detections, simulated sensors."""
    body = {
        "device_id": "hl2",
        "kind": "guided",
        "replay": True,
        "record": True,
        "procedure": "industreal-assy",
        "method": "b3",
    }
    opened = await live.rest.post("/api/v1/sessions", json=body)
    assert opened.status_code == 201, opened.text
    rows = load_detection_rows(GOLDEN / f"{NAME}_pred.csv.gz")[690:750]
    packets = sensor_packets(180)
    for number, detections in enumerate(tools.detection_packets(rows)):
        at_ns = number * 10**8
        packets.append((at_ns, "rgb", coffee[number] | {"device_time_ns": at_ns}))
        packets.append((at_ns, "detections", detections))
    sender = await live.join("hl2", "rgb", "head", "gaze", "detections", replay=True)
    for _, stream, packet in sorted(packets, key=lambda one: one[0]):
        await live.send(sender, stream, [packet])
    await sender.finish(close=True)
    return str(opened.json()["id"])


async def test_a_servers_own_recording_gives_the_same_steps_and_ticks_at_any_speed(
    tools: Any, coffee: Any, tmp_path: Path
) -> None:
    results = []
    async with tools.live_server(tmp_path, inference_max_batch=1) as live:
        session = await record_on(live, tools, coffee)
        sessions = [session]
        for speed in (None, 4.0):
            options = ReplayOptions(
                server=live.server.wire_endpoint, speed=speed, device=f"at-{speed}", method="b3"
            )
            with Recording(tmp_path / "sessions" / session / "recording") as recording:
                report = await replay(recording, options)
            assert sum(report.sent.values()) == 480
            sessions.append(str(report.session))
        for one in sessions:
            page = await live.get(f"/sessions/{one}/events?limit=1000")
            its_own = {"id", "session_id", "detected_at"}
            events = [{k: v for k, v in e.items() if k not in its_own} for e in page["events"]]
            ticks = (tmp_path / "sessions" / one / "ticks.rows").read_bytes()
            results.append((json.dumps(events), ticks))
    live_events, live_ticks = results[0]
    assert len(json.loads(live_events)) >= 1
    assert len(live_ticks) > 0
    assert results[1] == results[0] == results[2]
