"""The life of a live session: several sources, closes, restarts, guidance, overload."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from keystep_capture import wire
from keystep_capture.errors import ConfigError
from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_capture.sender import Callbacks, Sender, Source
from keystep_server.features import APPEARANCE, GAZE, HEAD, read_ticks

SAMPLE = find_sample("industreal-03")
TRUTH = load_truth(SAMPLE)
STEPS = [(step.frame, step.id) for step in TRUTH.expected_b3]
GUIDED = {"procedure": "industreal-assy", "method": "b3", "replay": True}
FIRST = STEPS[0][0]  # the frame of the first steps


@pytest.fixture(scope="module")
def rows() -> list[list[Any]]:
    assert SAMPLE.detections_path is not None
    frames = load_detection_rows(SAMPLE.detections_path, frame_count=TRUTH.frame_count)
    return [list(frame) for frame in frames]


@pytest.fixture
def packets(rows: Any, tools: Any) -> list[dict[str, Any]]:
    return list(tools.detection_packets(rows))


def sensor_packets(stream: str, count: int) -> list[dict[str, Any]]:
    """Simulated head poses or gaze rays at 10 Hz; the number of each is in its values."""
    packets = []
    for number in range(count):
        value = np.eye(4, dtype="<f4") if stream == "head" else np.zeros((2, 3), "<f4")
        value[0, -1] = number
        encoding = {"head": "pose_f32", "gaze": "ray_f32"}[stream]
        packets.append(
            {
                "device_time_ns": number * 10**8,
                "payload": value.tobytes(),
                "encoding": encoding,
            }
        )
    return packets


class Headset:
    """What a guided headset is told, and acknowledges."""

    def __init__(self) -> None:
        self.guidance: list[Any] = []
        self.finish_asked = asyncio.Event()
        self.callbacks = Callbacks(
            on_guidance=self.guidance.append, on_finish=lambda _: self.finish_asked.set()
        )

    @property
    def latest(self) -> Any:
        return self.guidance[-1] if self.guidance else None


# -- several sources ---------------------------------------------------------------------------


async def test_two_sources_share_a_session_and_meet_in_its_ticks(
    tmp_path: Path, live: Any, packets: Any
) -> None:
    headset = await live.join("hl2", "head", "gaze", **GUIDED)
    detector = await live.join("hl2", "detections", **GUIDED)
    assert detector.session == headset.session
    assert (detector.epoch, headset.epoch) == (1, 1)
    for start in range(0, 300, 50):  # about the same time, as from one headset
        for stream in ("head", "gaze"):
            await live.send(headset, stream, sensor_packets(stream, 300)[start : start + 50])
            await live.worked_off(headset, stream, start + 50)  # two connections have no order
        await live.send(detector, "detections", packets[start : start + 50])
        await live.worked_off(detector, "detections", start + 50)
    await detector.finish(close=False)
    await headset.finish(close=True)
    ticks = read_ticks(tmp_path / "sessions" / headset.session / "ticks.rows")
    assert ticks["device_time_ns"].tolist()[-250:] == [n * 10**8 for n in range(50, 300)]
    assert np.all(ticks["cues"][-250:] == GAZE | HEAD)
    assert ticks["head"][-250:, 0, 3].tolist() == ticks["gaze"][-250:, 0, 2].tolist()
    assert ticks["head"][-1, 0, 3] == 299


async def test_rest_close_while_sources_stream_loses_nothing(live: Any, packets: Any) -> None:
    headset = Headset()
    sender = await live.join("hl2", "detections", **GUIDED, callbacks=headset.callbacks)

    async def stream_until_asked() -> int:
        for count, packet in enumerate(packets):
            if headset.finish_asked.is_set():
                return count
            await live.send(sender, "detections", [packet])
            if count % 20 == 0:
                await asyncio.sleep(0.001)
        return len(packets)

    streaming = asyncio.create_task(stream_until_asked())
    await live.worked_off(sender, "detections", 1)
    await live.close_session(sender)
    sent_count = await streaming
    stats = await live.stats(sender)
    lane = stats["streams"]["detections"]
    assert (lane["packets"], lane["lost"], lane["waiting"]) == (sent_count, 0, 0)
    assert await live.steps(sender) == [step for step in STEPS if step[0] < sent_count]
    assert stats["dropped"] == {}


async def test_source_that_does_not_finish_is_not_waited_for_forever(
    tools: Any, tmp_path: Path, clock: Any, packets: Any
) -> None:
    async with tools.live_server(tmp_path, options={"clock": clock}) as live:
        raw = tools.raw_source(live)
        await raw.join("hl2", "detections", replay=True)
        await raw.send("detections", 0, packets[0])
        await live.worked_off(raw, "detections", 1)
        closing = asyncio.create_task(live.close_session(raw))
        await raw.hear(wire.Finish)
        clock.advance(3.5)
        await closing
        raw.close()


async def test_source_that_goes_on_and_on_does_not_keep_its_session_open(
    tools: Any, tmp_path: Path, clock: Any, packets: Any
) -> None:
    async with tools.live_server(tmp_path, options={"clock": clock}) as live:
        raw = tools.raw_source(live)
        await raw.join("hl2", "detections", replay=True)
        closing = asyncio.create_task(live.close_session(raw))
        await raw.hear(wire.Finish)
        for sequence in range(16):  # never silent for the 3 s that end a wait
            await raw.send("detections", sequence, packets[sequence])
            await live.worked_off(raw, "detections", sequence + 1)
            assert not closing.done()
            clock.advance(1.9)
            await asyncio.sleep(0.05)
        clock.advance(1.0)
        await raw.send("detections", 16, packets[16])
        await closing
        raw.close()


async def test_closed_session_is_not_taken_up_again(live: Any, packets: Any) -> None:
    first = await live.join("hl2", "detections", **GUIDED)
    await first.finish(close=True)
    second = await live.join("hl2", "detections", **GUIDED)
    assert second.session != first.session
    states = {s["id"]: s["state"] for s in (await live.get("/sessions"))["sessions"]}
    assert states == {first.session: "closed", second.session: "open"}


# -- restart -----------------------------------------------------------------------------------


async def test_restarted_server_goes_on_with_the_session_where_it_stood(
    tools: Any, tmp_path: Path, packets: Any
) -> None:
    cut = STEPS[3][0] - 5  # while evidence for a step gathers
    async with tools.live_server(tmp_path) as live:
        sender = await live.join("hl2", "detections", **GUIDED)
        await live.send(sender, "detections", packets[:cut])
        await live.worked_off(sender, "detections", cut)
        running = live.senders.pop()  # outlives this server
        wire_bind = live.server.wire_endpoint
    async with tools.live_server(tmp_path, wire_bind=wire_bind) as live:
        live.senders.append(running)
        sessions = (await live.get("/sessions?state=open"))["sessions"]
        assert [session["id"] for session in sessions] == [sender.session]
        await live.send(sender, "detections", packets[cut:])
        await sender.finish(close=True)
        assert await live.steps(sender) == STEPS
        assert (await live.get(f"/sessions/{sender.session}"))["epoch"] == sender.epoch == 1
        stream = (await live.stats(sender))["streams"]["detections"]
        assert (stream["packets"], stream["lost"]) == (len(packets), 0)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def forget_guide(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guide": None}))


def count_backwards(path: Path) -> None:
    state = json.loads(path.read_text())
    state["pipeline"]["row_count"] = -5
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_text('{"logic": 7'), make_folder, forget_guide, count_backwards],
)
async def test_state_that_cannot_be_read_is_set_aside_and_said(
    tools: Any, tmp_path: Path, packets: Any, damage: Callable[[Path], object]
) -> None:
    async with tools.live_server(tmp_path) as live:
        sender = await live.join("hl2", "detections", **GUIDED)
        await live.send(sender, "detections", packets[:20])
        await live.worked_off(sender, "detections", 20)
    (state,) = tmp_path.glob("sessions/*/tracker.json")
    damage(state)
    async with tools.live_server(tmp_path) as live:
        again = await live.join("hl2", "detections", **GUIDED)
        assert again.session == sender.session
        assert again.epoch == 2
        assert "could not be read" in (await live.stats(again))["last_error"]
    assert state.with_suffix(".unreadable").exists()


async def test_killed_server_goes_on_from_what_it_had_written_down(
    tools: Any, tmp_path: Path, packets: Any
) -> None:
    """SIGKILL, a second after the last packet: nothing that was taken before is forgotten."""
    cut = STEPS[3][0] - 5
    arguments = ("serve", "--data-dir", str(tmp_path), "--rest-port", "0")
    arguments += ("--publish-bind", "tcp://127.0.0.1:*", "--wire-bind")
    source = Source(device="hl2", client="test", streams=("detections",), **GUIDED)
    process, ready = await start_server(*arguments, "tcp://127.0.0.1:*")
    sender = Sender(source, server=ready["wire"], instance="one")
    link = asyncio.create_task(sender.run())
    for packet in packets[:cut]:
        await sender.room("detections")
        sender.offer("detections", **packet)
    state = tmp_path / "sessions" / str(sender.session) / "tracker.json"
    await tools.eventually(lambda: worked(state) == cut - 1, "the state is written down")
    process.kill()
    await process.wait()
    process, ready = await start_server(*arguments, ready["wire"])
    for packet in packets[cut:]:
        await sender.room("detections")
        sender.offer("detections", **packet)
    await sender.finish(close=True)
    await link
    async with httpx.AsyncClient(base_url=ready["rest"]) as rest:
        answer = await rest.get(f"/api/v1/sessions/{sender.session}/events")
    process.terminate()
    await process.wait()
    found = [(event["frame_idx"], event["step_id"]) for event in answer.json()["events"]]
    assert found == STEPS


async def start_server(*arguments: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keystep_capture.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"READY "):
            return process, dict(part.split("=", 1) for part in line.decode().split()[1:])
    raise AssertionError("the server ended before it was ready")


def worked(state: Path) -> int:
    """The last sequence that a session's written state has worked off."""
    if not state.exists():
        return -1
    lane = json.loads(state.read_text())["lanes"].get("detections")
    return -1 if lane is None else int(lane["sequence"])


async def test_two_servers_cannot_share_a_data_directory(tools: Any, tmp_path: Path) -> None:
    async with tools.live_server(tmp_path):
        with pytest.raises(ConfigError, match="another server uses"):
            async with tools.live_server(tmp_path):
                pass
    async with tools.live_server(tmp_path):  # free again
        pass


async def test_source_that_vanished_without_a_word_does_not_disturb_the_steps(
    live: Any, raw: Any, packets: Any
) -> None:
    await raw.join("hl2", "head", **GUIDED)
    detector = await live.join("hl2", "detections", **GUIDED)
    raw.close()  # as a killed bridge's: no goodbye, and no heartbeat missed yet
    await live.send(detector, "detections", packets[: FIRST + 1])
    stats = await live.worked_off(detector, "detections", FIRST + 1)
    assert stats["last_error"] is None
    steps = (await live.get(f"/sessions/{detector.session}/key-steps"))["key_steps"]
    assert sum(step["status"] == "completed" for step in steps) == 3


async def test_hello_while_its_session_is_being_closed_leaves_nothing_behind(
    live: Any, packets: Any
) -> None:
    for _ in range(5):
        sender = await live.join("hl2", "detections", **GUIDED)
        await live.send(sender, "detections", packets[:3])
        closing = asyncio.create_task(live.close_session(sender))
        await asyncio.sleep(0)
        live.connect("hl2", "head", session=sender.session)
        await closing
        assert (await live.stats(sender))["live"] is False


# -- guidance ----------------------------------------------------------------------------------


async def test_wearer_is_told_the_step_on_joining_and_the_next_one_when_it_is_done(
    live: Any, tools: Any, packets: Any
) -> None:
    headset = Headset()
    wearer = await live.join("hl2", "head", **GUIDED, callbacks=headset.callbacks)
    detector = await live.join("hl2", "detections", **GUIDED)
    await tools.eventually(lambda: headset.latest, "first guidance")
    first = headset.latest
    assert (first.revision, first.severity, first.progress[0]) == (1, "info", 0)
    assert first.current_step.title in first.text
    await live.send(detector, "detections", packets[: FIRST + 1])
    await tools.eventually(lambda: headset.latest.revision > 1, "guidance after the first steps")
    then = headset.latest
    assert then.progress == (3, first.progress[1])
    assert then.device_time_ns == packets[FIRST]["device_time_ns"]
    assert {then.current_step.id, then.next_step.id}.isdisjoint({s for f, s in STEPS if f == FIRST})
    wearer.acknowledge_guidance(then.revision, displayed=True)
    await acknowledged(live, wearer, then.revision)


async def acknowledged(live: Any, sender: Any, revision: int) -> None:
    expected = {"revision": revision, "acknowledged_revision": revision}
    async with asyncio.timeout(20):
        while (await live.stats(sender))["guidance"] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_acknowledgement_of_guidance_that_was_never_given_does_not_count(
    live: Any, packets: Any
) -> None:
    wearer = await live.join("hl2", "head", "detections", **GUIDED)
    wearer.acknowledge_guidance(99, displayed=True)
    await live.send(wearer, "detections", packets[:1])
    stats = await live.worked_off(wearer, "detections", 1)
    assert stats["guidance"] == {"revision": 1, "acknowledged_revision": 0}


async def test_wearer_who_joins_again_is_shown_the_newest_guidance(
    live: Any, tools: Any, packets: Any
) -> None:
    detector = await live.join("hl2", "detections", **GUIDED)
    await live.send(detector, "detections", packets[: FIRST + 1])
    await live.worked_off(detector, "detections", FIRST + 1)
    headset = Headset()
    await live.join("hl2", "head", **GUIDED, callbacks=headset.callbacks)
    await tools.eventually(lambda: headset.latest, "guidance")
    assert headset.latest.progress[0] == 3


async def test_wearer_is_told_when_nothing_can_be_seen_and_when_it_can_again(
    tools: Any, tmp_path: Path, clock: Any, packets: Any
) -> None:
    headset = Headset()
    async with tools.live_server(tmp_path, options={"clock": clock}) as live:
        await live.join("hl2", "head", **GUIDED, callbacks=headset.callbacks)
        detector = await live.join("hl2", "detections", **GUIDED)
        await live.send(detector, "detections", packets[:10])
        await live.worked_off(detector, "detections", 10)
        assert headset.latest.severity == "info"
        before = headset.latest
        clock.advance(3.5)
        await tools.eventually(lambda: headset.latest.severity == "cannot_see")
        await live.send(detector, "detections", packets[10:11])
        await tools.eventually(lambda: headset.latest.severity == "info")
        assert headset.latest.current_step == before.current_step
        assert [g.revision for g in headset.guidance] == [1, 2, 3]


async def test_key_steps_show_the_progress_of_an_open_session(live: Any, packets: Any) -> None:
    sender = await live.join("hl2", "detections", **GUIDED)
    steps = (await live.get(f"/sessions/{sender.session}/key-steps"))["key_steps"]
    assert {step["source"] for step in steps} == {"procedure"}
    assert [step["status"] for step in steps].count("current") == 1
    assert {step["status"] for step in steps[1:]} == {"pending"}
    await live.send(sender, "detections", packets[: FIRST + 1])
    await live.worked_off(sender, "detections", FIRST + 1)
    steps = (await live.get(f"/sessions/{sender.session}/key-steps"))["key_steps"]
    done = [step for step in steps if step["status"] == "completed"]
    assert {step["step_id"] for step in done} == {s for f, s in STEPS if f == FIRST}
    assert {(step["start_s"], step["end_s"]) for step in done} == {(0.0, FIRST / 10)}
    assert [step["status"] for step in steps].count("current") == 1


# -- overload ----------------------------------------------------------------------------------


async def test_live_source_faster_than_the_model_keeps_the_newest_and_counts_the_rest(
    tmp_path: Path, live: Any, coffee: Any
) -> None:
    burst = [{**p, "device_time_ns": n * 10**8} for n, p in enumerate(coffee[:30])]
    sender = await live.join("hl2", "rgb", kind="expert")
    await live.send(sender, "rgb", burst)  # three seconds' frames at once, each to be a tick
    await sender.finish(close=True)
    stats = await live.stats(sender)
    superseded = stats["features_left_out"]["superseded"]
    assert superseded > 0
    assert stats["appearance_features"] + superseded == stats["ticks"] == 30
    ticks = read_ticks(tmp_path / "sessions" / sender.session / "ticks.rows")
    assert np.all(ticks["cues"][-2:] & APPEARANCE)  # as many as may wait: the newest are kept


async def test_live_source_without_credit_drops_to_the_next_key_frame_and_says_so(
    live: Any, coffee: Any
) -> None:
    sender = await live.join("hl2", "rgb", kind="expert")
    taken = [sender.offer("rgb", **packet) for packet in coffee[:60]]  # no credit comes meanwhile
    assert taken == [number < 32 for number in range(60)]
    await live.worked_off(sender, "rgb", 32)
    await live.send(sender, "rgb", coffee[60:])
    await sender.finish(close=True)
    stats = await live.stats(sender)
    lane = stats["streams"]["rgb"]
    assert sender.dropped() == {"rgb": 28}
    assert lane["packets"] + lane["lost"] == len(coffee)
    assert (lane["lost"], stats["dropped"]) == (28, {})
