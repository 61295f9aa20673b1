"""`keystep replay` at any speed and `keystep psr run`: the same step events, byte for byte."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from keystep_capture import wire
from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.samples import load_detection_rows
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.steps_files import StepReport, write_steps

pytestmark = pytest.mark.timeout(300)
NAME = "03_assy_0_1"
DETECTIONS = Path(__file__).parents[1] / "golden" / "industreal" / f"{NAME}_pred.csv.gz"
PROCEDURE = "industreal-assy"
SHORT = range(640, 760)  # twelve seconds; the first steps are completed in them


def cut_out(path: Path, frames: range) -> Path:
    """The detections of some frames, numbered from 0."""
    with gzip.open(DETECTIONS, "rt", newline="") as source, path.open("w", newline="") as target:
        rows = csv.DictReader(source)
        assert rows.fieldnames is not None
        writer = csv.DictWriter(target, rows.fieldnames)
        writer.writeheader()
        for row in rows:
            if (number := int(row["framenr"])) in frames:
                writer.writerow(row | {"framenr": number - frames.start})
    return path


def record(folder: Path, detections: Path, tools: Any) -> Path:
    """A detector's rows as a live session would have recorded them."""
    writer = RecordingWriter(folder, RecordingInfo(session="ses_1", device="hl2"))
    for number, packet in enumerate(tools.detection_packets(load_detection_rows(detections))):
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
        writer.write_packet(header, payload, receive_time_ns=10**9 + header.device_time_ns)
    writer.close()
    return folder


async def keystep(*arguments: object) -> str:
    """Run the command to its end; what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def offline(detections: Path, out: Path, method: str) -> bytes:
    """Steps as `keystep psr run` writes them."""
    await keystep(
        *("psr", "run", "--method", method, "--procedure", PROCEDURE),
        *("--detections", detections, "--out", out),
    )
    return out.read_bytes()


async def replayed(live: Any, recording: Path, out: Path, method: str, speed: str) -> bytes:
    """A replayed session's step events, written as `keystep psr run` writes them."""
    said = await keystep(
        *("replay", recording, "--server", live.server.wire_endpoint, "--speed", speed),
        *("--procedure", PROCEDURE, "--method", method, "--device", f"{method}-{speed}"),
    )
    session = re.match(r"session (\S+): sent detections \d+", said)
    assert session is not None, said
    events = (await live.get(f"/sessions/{session[1]}/events?limit=1000"))["events"]
    lists: dict[str, list[StepReport]] = {"steps": [], "incorrect": [], "retracted": []}
    for event in events:
        kind = "incorrect" if event["kind"] == "incorrect" else "steps"
        lists["retracted" if event["retracted"] else kind].append(
            StepReport(event["frame_idx"], event["step_id"], event["confidence"])
        )
    steps = lists.pop("steps")
    more = {name: found for name, found in lists.items() if found}
    write_steps(out, steps, builtin_procedure(PROCEDURE), more=more)
    return out.read_bytes()


@pytest.mark.parametrize("method", ["b3", "tracker"])
async def test_a_whole_recording_replayed_gives_the_steps_of_an_offline_run(
    live: Any, tools: Any, tmp_path: Path, method: str
) -> None:
    recording = record(tmp_path / "recorded", DETECTIONS, tools)
    expected = await offline(DETECTIONS, tmp_path / "offline.json", method)
    assert len(json.loads(expected)["steps"]) == 9
    assert await replayed(live, recording, tmp_path / "live.json", method, "max") == expected


@pytest.mark.parametrize(
    "speeds",
    [("4", "max"), pytest.param(("0.5", "1"), marks=pytest.mark.slow)],
    ids=["fast", "as it was and slower"],
)
async def test_every_speed_gives_the_steps_of_an_offline_run(
    live: Any, tools: Any, tmp_path: Path, speeds: tuple[str, ...]
) -> None:
    detections = cut_out(tmp_path / f"{NAME}_pred.csv", SHORT)
    recording = record(tmp_path / "recorded", detections, tools)
    for method in ("b3", "tracker"):
        expected = await offline(detections, tmp_path / f"{method}.json", method)
        assert len(json.loads(expected)["steps"]) == 3
        results = await asyncio.gather(
            *(
                replayed(live, recording, tmp_path / f"{method}-{speed}.json", method, speed)
                for speed in speeds
            )
        )
        assert results == [expected] * len(speeds), method
