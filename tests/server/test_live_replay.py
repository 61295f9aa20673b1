"""A recording replayed to a whole server gives the same events at any speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
