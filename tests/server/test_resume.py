"""Servers killed with SIGKILL: the session goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.recording import Recording
from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_capture.sender import Callbacks, Sender, Source
from keystep_server.features import read_ticks
from keystep_server.storage import Branch, StepEvent, StepEventKind, step_event_id

SAMPLE = find_sample("industreal-03")
FIRST_FRAME = 690  # three steps are done at frame 727, two more at 1277
STREAMS = ("rgb", "head", "gaze", "hands", "detections")
EXACT = ["device_time_ns", "epoch", "cues", "gaze", "head"]


@pytest.fixture(scope="module")
def detections() -> list[list[Any]]:
    assert SAMPLE.detections_path is not None
    frame_count = load_truth(SAMPLE).frame_count
    return [list(f) for f in load_detection_rows(SAMPLE.detections_path, frame_count=frame_count)]


def packets_of(frames: int, detections: list[Any], coffee: list[Any], tools: Any) -> list[Any]:
    """A session's packets in the order of their times: real video and detections, 10 Hz each;
    simulated head, gaze and hands, 30 Hz, of which each tells its number."""
    numbered: list[tuple[int, str, dict[str, Any]]] = []
    rows = detections[FIRST_FRAME : FIRST_FRAME + frames]
    for packet in tools.detection_packets(rows):
        numbered.append((packet["device_time_ns"], "detections", packet))
    for number in range(frames):
        picture = coffee[number % len(coffee)] | {"device_time_ns": number * 10**8}
        numbered.append((picture["device_time_ns"], "rgb", picture))
    for number in range(3 * frames):
        at_ns = number * 10**8 // 3
        eye = np.eye(4, dtype="<f4")
        eye[0, 3] = number
        values = {
            "head": (eye.tobytes(), "pose_f32"),
            "gaze": (struct.pack("<6f", number, 0, 0, 0, 0, 1), "ray_f32"),
            "hands": (b"", "joints_f32"),
        }
        for stream, (payload, encoding) in values.items():
            fields = {"device_time_ns": at_ns, "payload": payload, "encoding": encoding}
            numbered.append((at_ns, stream, fields | ({"valid": 0} if not payload else {})))
    return sorted(numbered, key=lambda entry: (entry[0], STREAMS.index(entry[1])))


@dataclass
class Result:
    """What a session left behind."""

    session: str
    events: list[dict[str, Any]]
    ticks: Any
    video: list[int]
    stats: dict[str, Any]
    revisions: list[int] = field(default_factory=list)


async def run_session(server: Any, packets: list[Any], *, kill_at: list[int], seed: int) -> Result:
    """Stream packets as a replay; kill the server while those of the given numbers are sent."""
    pauses = random.Random(seed)
    revisions: list[int] = []
    sender = Sender(
        Source(
            device="hl2",
            client="test",
            streams=STREAMS,
            procedure="industreal-assy",
            method="b3",
            replay=True,
        ),
        server=server.wire,
        instance="one",
        callbacks=Callbacks(on_guidance=lambda guidance: revisions.append(guidance.revision)),
    )
    link = asyncio.create_task(sender.run())
    killed: asyncio.Task[None] | None = None

    async def kill_and_start() -> None:
        await asyncio.sleep(pauses.uniform(0, 0.2))
        await server.kill()
        await server.start()

    due = sorted(kill_at)
    for number, (_, stream, packet) in enumerate(packets):
        if due and number >= due[0] and (killed is None or killed.done()):
            due.pop(0)
            killed = asyncio.create_task(kill_and_start())
        await sender.room(stream)
        assert sender.offer(stream, **packet)
        if killed is not None and not killed.done():
            await asyncio.sleep(0.002)  # the source goes on while its server is about to die
    if killed is not None:
        await killed
    assert not due
    await sender.finish(close=True, timeout_s=120)
    await link
    session = str(sender.session)
    events = (await server.get(f"/sessions/{session}/events?limit=1000"))["events"]
    stats = (await server.get(f"/sessions/{session}/stats"))["stats"]
    folder = server.folder / "sessions" / session
    return Result(
        session=session,
        events=events,
        ticks=read_ticks(folder / "ticks.rows"),
        video=recorded(folder),
        stats=stats,
        revisions=revisions,
    )


def recorded(folder: Path) -> list[int]:
    """Device times of the recorded video packets, over all parts."""
    with Recording(folder / "recording") as recording:
        packets = recording.packets(("rgb",), skip_damage=True)
        times = [packet.header.device_time_ns for packet in packets]
    return times


def steps(result: Result) -> list[tuple[Any, ...]]:
    keys = ("ordinal", "frame_idx", "step_id", "kind", "device_time_ns", "epoch", "retracted")
    return [tuple(event[key] for key in keys) for event in result.events]


def expected_id(session: str, event: dict[str, Any]) -> str:
    stored = StepEvent(
        step_id=event["step_id"],
        title=event["title"],
        kind=StepEventKind(event["kind"]),
        frame_idx=event["frame_idx"],
        device_time_ns=int(event["device_time_ns"]),
        epoch=event["epoch"],
        detected_at=datetime.now(UTC),
        confidence=event["confidence"],
        branch=Branch(event["branch"]),
    )
    return step_event_id(session, stored)


def assert_same(disturbed: Result, calm: Result) -> None:
    assert steps(disturbed) == steps(calm)
    assert steps(calm)
    ids = [event["id"] for event in disturbed.events]
    assert ids == [expected_id(disturbed.session, event) for event in calm.events]
    for name in EXACT:
        assert np.array_equal(disturbed.ticks[name], calm.ticks[name]), name
    # The model's batches differ from run to run, and with them the last bits of its sums.
    assert np.allclose(disturbed.ticks["appearance"], calm.ticks["appearance"], atol=1e-3)
    assert disturbed.video == calm.video
    for name in STREAMS:
        lane, calm_lane = disturbed.stats["streams"][name], calm.stats["streams"][name]
        counts = ("packets", "bytes", "lost", "last_sequence")
        assert [lane[key] for key in counts] == [calm_lane[key] for key in counts], name
    assert disturbed.revisions == sorted(disturbed.revisions)


async def test_killed_server_makes_the_same_steps_and_ticks_as_an_undisturbed_one(
    make_server: Any, detections: Any, coffee: Any, tools: Any
) -> None:
    packets = packets_of(60, detections, coffee, tools)
    calm = await run_session(await make_server("calm"), packets, kill_at=[], seed=0)
    assert len(calm.ticks) == 60
    disturbed = await run_session(await make_server("killed"), packets, kill_at=[230, 470], seed=1)
    assert_same(disturbed, calm)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [11])
async def test_server_killed_at_twenty_random_moments_loses_and_doubles_nothing(
    make_server: Any, detections: Any, coffee: Any, tools: Any, seed: int
) -> None:
    packets = packets_of(620, detections, coffee, tools)
    calm = await run_session(await make_server("calm"), packets, kill_at=[], seed=0)
    moments = random.Random(seed).sample(range(len(packets) - 200), 20)
    disturbed = await run_session(await make_server("killed"), packets, kill_at=moments, seed=seed)
    assert_same(disturbed, calm)


async def test_live_video_that_a_killed_server_had_not_written_is_lost_and_counted(
    make_server: Any, coffee: Any
) -> None:
    server = await make_server("live")
    source = Source(device="hl2", client="test", streams=("rgb", "head"), kind="expert")
    sender = Sender(source, server=server.wire, instance="one")
    link = asyncio.create_task(sender.run())
    pose = np.eye(4, dtype="<f4").tobytes()
    taken = 0
    for number in range(120):
        if number == 60:
            await server.kill()
            await server.start()
        await sender.room("head")
        at_ns = number * 10**8 // 3
        assert sender.offer("head", at_ns, pose, encoding="pose_f32")
        taken += sender.offer("rgb", **(coffee[number % len(coffee)] | {"device_time_ns": at_ns}))
        await asyncio.sleep(0.005)
    assert taken > 60
    await sender.finish(close=True, timeout_s=60)
    await link
    streams = (await server.get(f"/sessions/{sender.session}/stats"))["stats"]["streams"]
    # Not acknowledged, and older than a stream's age limit when the server was back: given up.
    given_up = sender.dropped()["head"]
    assert streams["head"]["lost"] == given_up
    assert streams["head"]["packets"] == 120 - given_up
    assert streams["rgb"]["packets"] + streams["rgb"]["lost"] == 120
    ticks = read_ticks(server.folder / "sessions" / str(sender.session) / "ticks.rows")
    assert np.all(np.diff(ticks["device_time_ns"]) > 0)
    assert set(ticks["epoch"]) == {1}
