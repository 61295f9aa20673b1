"""Sessions that are followed by the tracker, or by another method they ask for."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from keystep_capture import wire
from keystep_capture.errors import RefusedError
from keystep_capture.samples import load_detection_rows
from keystep_capture.sender import Callbacks, Sender, Source

GOLDEN = Path(__file__).parents[1] / "golden" / "industreal"
RECORDINGS = json.loads((GOLDEN / "expected.json").read_text())
RETRACTING = "08_assy_0_1"  # takes a step back, which comes again later
MISTAKEN = "17_assy_1_5"  # has a step reported as incorrect, then as completed
BOX = (600.0, 300.0, 200.0, 100.0)
# Simulated: class 6 lacks the front rear pin, class 7 the rear rear pin (18) that class 6 showed.
WRONG_PIN = [row for seen in (1, 5, 6, 7) for row in [[(seen, 0.85, *BOX)]] * 30 + [[]] * 300]


def procedure_of(name: str) -> str:
    return f"industreal-{RECORDINGS[name]['procedure']}"


def packets_of(tools: Any, name: str) -> list[dict[str, Any]]:
    count = RECORDINGS[name]["n_frames"]
    frames = load_detection_rows(GOLDEN / f"{name}_pred.csv.gz", frame_count=count)
    return list(tools.detection_packets(frames))


async def offline(folder: Path, names: tuple[str, ...], method: str) -> dict[str, Any]:
    """What `keystep psr run` writes of recordings."""
    source, out = folder / "recordings", folder / "steps"
    source.mkdir()
    for name in names:
        (source / f"{name}_pred.csv.gz").symlink_to(GOLDEN / f"{name}_pred.csv.gz")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "psr", "run", "--method", method),
        *("--detections", str(source), "--procedure", "industreal"),
        *("--meta", str(GOLDEN / "expected.json"), "--out", str(out)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    return {name: json.loads((out / f"{name}.json").read_text()) for name in names}


def told(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "frame": event["frame_idx"],
        "id": event["step_id"],
        "confidence": event["confidence"],
    }


def as_written(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A session's events as `keystep psr run` would write its steps."""
    lists: dict[str, list[Any]] = {"steps": [], "incorrect_steps": [], "retracted_steps": []}
    for event in sorted(events, key=lambda event: (event["frame_idx"], event["step_id"])):
        name = "incorrect_steps" if event["kind"] == "incorrect" else "steps"
        lists["retracted_steps" if event["retracted"] else name].append(told(event))
    return {name: found for name, found in lists.items() if found or name == "steps"}


def lasting(event: dict[str, Any]) -> dict[str, Any]:
    """All of an event that a restart must not change: all but times of day and the session."""
    changing = {"id", "session_id", "detected_at", "retracted_at"}
    return {name: value for name, value in event.items() if name not in changing}


async def events_of(rest: httpx.AsyncClient, session: str | None) -> list[dict[str, Any]]:
    answer = await rest.get(f"/api/v1/sessions/{session}/events?limit=1000")
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


# -- the same steps as offline -----------------------------------------------------------------


async def test_live_steps_of_the_tracker_are_those_of_psr_run(
    live: Any, tools: Any, tmp_path: Path
) -> None:
    """To the last digit of frame, step and confidence, over the wire, the store and REST."""
    written = await offline(tmp_path, tuple(RECORDINGS), "tracker")
    assert written[RETRACTING]["retracted_steps"]
    assert written[MISTAKEN]["incorrect_steps"]
    for name in RECORDINGS:
        sender = await live.join(name, "detections", replay=True, procedure=procedure_of(name))
        await live.send(sender, "detections", packets_of(tools, name))
        await sender.finish(close=True)
        assert (await live.get(f"/sessions/{sender.session}"))["method"] == "tracker"
        assert as_written(await events_of(live.rest, sender.session)) == written[name], name


@pytest.mark.parametrize("method", ["b1", "b2"])
async def test_a_session_runs_the_method_it_asks_for(
    live: Any, tools: Any, tmp_path: Path, method: str
) -> None:
    name = "03_main_0_1"
    written = await offline(tmp_path, (name,), method)
    options = {"procedure": procedure_of(name), "method": method, "replay": True}
    sender = await live.join("hl2", "detections", **options)
    await live.send(sender, "detections", packets_of(tools, name))
    await sender.finish(close=True)
    events = await events_of(live.rest, sender.session)
    assert {event["evidence"]["method"] for event in events} == {method}
    assert sorted(map(told, events), key=str) == sorted(written[name]["steps"], key=str)


# -- retraction --------------------------------------------------------------------------------


class Wearer:
    """What a headset is told."""

    def __init__(self) -> None:
        self.guidance: list[wire.Guidance] = []
        self.callbacks = Callbacks(on_guidance=self.guidance.append)


async def test_a_step_taken_back_leaves_key_steps_and_guidance(live: Any, tools: Any) -> None:
    wearer = Wearer()
    guided = {"procedure": "industreal-assy", "replay": True}
    sender = await live.join("hl2", "head", "detections", **guided, callbacks=wearer.callbacks)
    packets = tools.detection_packets(WRONG_PIN)
    await live.send(sender, "detections", packets[:720])
    await live.worked_off(sender, "detections", 720)
    (before,) = [e for e in await events_of(live.rest, sender.session) if e["step_id"] == 18]
    assert (before["retracted"], before["retracted_at"]) == (False, None)
    assert await status_of(live, sender, 18) == "completed"
    done_before = wearer.guidance[-1].progress[0]
    await live.send(sender, "detections", packets[720:1020])  # the last 30 show class 7
    await live.worked_off(sender, "detections", 1020)
    events = await events_of(live.rest, sender.session)
    (gone,) = [event for event in events if event["retracted"]]
    assert (gone["id"], gone["confidence"]) == (before["id"], before["confidence"])
    assert gone["ordinal"] > before["ordinal"]
    assert gone["retracted_by"] == "tracker"
    evidence = gone["retraction_evidence"]
    assert 990 <= evidence["frame_idx"] < 1020  # while class 7 is seen
    assert evidence["device_time_ns"] == str(evidence["frame_idx"] * 10**8)
    assert 0.5 < evidence["confidence"] <= 1
    assert await status_of(live, sender, 18) in ("pending", "current")
    assert await status_of(live, sender, 15) == "completed"
    shown = wearer.guidance[-1]
    assert (shown.severity, shown.current_step.id) == ("info", 18)
    assert shown.progress[0] == done_before  # 15 came, 18 went
    await sender.finish(close=True)


async def status_of(live: Any, sender: Any, step_id: int) -> str:
    steps = (await live.get(f"/sessions/{sender.session}/key-steps"))["key_steps"]
    return next(str(step["status"]) for step in steps if step["step_id"] == step_id)


async def test_retractions_reach_those_who_stream_events(live: Any, tools: Any) -> None:
    """A reader who only ever reads on from the last ordinal ends with what REST lists."""
    sender = await live.join("hl2", "detections", procedure="industreal-assy", replay=True)
    reading = asyncio.create_task(read_stream(live, sender.session))
    await live.send(sender, "detections", tools.detection_packets(WRONG_PIN))
    await sender.finish(close=True)
    messages = await reading
    assert [m["ordinal"] for m in messages] == list(range(1, len(messages) + 1))
    assert [m["step_id"] for m in messages if m["retracted"]] == [18]
    heard = {message["id"]: message for message in messages}
    listed = await events_of(live.rest, sender.session)
    assert sorted(heard.values(), key=lambda e: e["ordinal"]) == listed
    assert len(messages) == len(listed) + 1


async def read_stream(live: Any, session: str) -> list[dict[str, Any]]:
    messages, name = [], ""
    url, accept = f"/api/v1/sessions/{session}/events", {"accept": "text/event-stream"}
    async with live.rest.stream("GET", url, headers=accept, timeout=60) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "step_event":
                messages.append(json.loads(line.removeprefix("data: ")))
    assert name == "session_closed"
    return messages


# -- what the tracker knows of the view and of mistakes ----------------------------------------


async def test_wearer_is_told_when_the_work_is_out_of_view(live: Any, tools: Any) -> None:
    wearer = Wearer()
    guided = {"procedure": "industreal-assy", "replay": True}
    sender = await live.join("hl2", "head", "detections", **guided, callbacks=wearer.callbacks)
    seen = [[(1, 0.85, *BOX)]] * 30
    packets, sent = tools.detection_packets(seen + [[]] * 100 + seen), 0
    for end, severity in ((30, "info"), (130, "cannot_see"), (160, "info")):
        await live.send(sender, "detections", packets[sent:end])
        await live.worked_off(sender, "detections", end)
        sent = end
        await tools.eventually(lambda: wearer.guidance[-1].severity == severity)  # noqa: B023
    assert [g.severity for g in wearer.guidance] == ["info", "cannot_see", "info"]
    assert "not in view" in wearer.guidance[1].text
    assert wearer.guidance[0].current_step == wearer.guidance[2].current_step
    await sender.finish(close=True)


async def test_wearer_is_warned_of_an_incorrect_step_until_it_is_put_right(
    live: Any, tools: Any, tmp_path: Path
) -> None:
    name, wearer = MISTAKEN, Wearer()
    written = (await offline(tmp_path, (name,), "tracker"))[name]
    (wrong,) = written["incorrect_steps"]
    mended = next(s for s in written["steps"] if s["id"] == wrong["id"] - 1)
    assert mended["frame"] > wrong["frame"]  # or so the tracker believes
    options = {"procedure": procedure_of(name), "callbacks": wearer.callbacks, "replay": True}
    sender = await live.join("hl2", "head", "detections", **options)
    packets, sent = packets_of(tools, name), 0
    for end, severity in ((wrong["frame"] + 1, "caution"), (mended["frame"] + 1, "info")):
        await live.send(sender, "detections", packets[sent:end])
        await live.worked_off(sender, "detections", end)
        sent = end
        await tools.eventually(lambda: wearer.guidance[-1].severity == severity)  # noqa: B023
    events = await events_of(live.rest, sender.session)
    (event,) = [event for event in events if event["kind"] == "incorrect"]
    (warning,) = [g for g in wearer.guidance if g.severity == "caution"]
    assert warning.text == f"Check this: {event['title']}."
    assert warning.device_time_ns == int(event["device_time_ns"]) == wrong["frame"] * 10**8
    await sender.finish(close=True)


async def test_a_maintenance_is_done_when_parts_are_out_and_in_again(live: Any, tools: Any) -> None:
    name, wearer = "10_main_0_1", Wearer()
    options = {"procedure": procedure_of(name), "callbacks": wearer.callbacks, "replay": True}
    sender = await live.join("hl2", "head", "detections", **options)
    packets = packets_of(tools, name)
    steps = [e["frame"] for e in RECORDINGS[name]["expected"]["b3"]["steps"]]
    await live.send(sender, "detections", packets[: max(steps) + 30])
    await live.worked_off(sender, "detections", max(steps) + 30)
    assert wearer.guidance[0].progress == (0, 8)
    assert max(g.progress for g in wearer.guidance) == (8, 8)
    await sender.finish(close=True)


# -- restart -----------------------------------------------------------------------------------


async def undisturbed(tools: Any, folder: Path, name: str) -> list[dict[str, Any]]:
    async with tools.live_server(folder) as live:
        sender = await live.join(name, "detections", replay=True, procedure=procedure_of(name))
        await live.send(sender, "detections", packets_of(tools, name))
        await sender.finish(close=True)
        return [lasting(event) for event in await events_of(live.rest, sender.session)]


async def test_restarts_in_the_middle_change_nothing(tools: Any, tmp_path: Path) -> None:
    expected = await undisturbed(tools, tmp_path / "whole", RETRACTING)
    packets = packets_of(tools, RETRACTING)
    retracted_at = next(e["retraction_evidence"] for e in expected if e["retracted"])["frame_idx"]
    cuts = (500, 1360, retracted_at - 2, retracted_at + 1, len(packets))
    options = {"replay": True, "procedure": procedure_of(RETRACTING)}
    sent, wire_bind, running = 0, "tcp://127.0.0.1:*", None
    for cut in cuts:
        async with tools.live_server(tmp_path / "cut", wire_bind=wire_bind) as live:
            wire_bind = live.server.wire_endpoint
            if running is None:
                await live.join(RETRACTING, "detections", **options)
                running = live.senders.pop()  # outlives its servers
            sender = running[0]
            await live.send(sender, "detections", packets[sent:cut])
            sent = cut
            await live.worked_off(sender, "detections", cut)
            if cut == len(packets):
                live.senders.append(running)
                await sender.finish(close=True)
                found = [lasting(event) for event in await events_of(live.rest, sender.session)]
    assert found == expected


async def test_a_kill_in_the_middle_changes_nothing(tools: Any, tmp_path: Path) -> None:
    """SIGKILL a few frames after a retraction, when these were written down."""
    expected = await undisturbed(tools, tmp_path / "whole", RETRACTING)
    packets = packets_of(tools, RETRACTING)
    cut = 5 + next(e["retraction_evidence"] for e in expected if e["retracted"])["frame_idx"]
    arguments = ("serve", "--data-dir", str(tmp_path / "killed"), "--rest-port", "0")
    arguments += ("--publish-bind", "tcp://127.0.0.1:*", "--wire-bind")
    source = Source(
        device=RETRACTING,
        client="test",
        streams=("detections",),
        procedure=procedure_of(RETRACTING),
        replay=True,
    )
    process, ready = await start_server(*arguments, "tcp://127.0.0.1:*")
    sender = Sender(source, server=ready["wire"], instance="one")
    link = asyncio.create_task(sender.run())
    await send(sender, packets[:cut])
    state = tmp_path / "killed" / "sessions" / str(sender.session) / "tracker.json"
    await tools.eventually(lambda: worked(state) == cut - 1, "the state is written down")
    process.kill()
    await process.wait()
    process, ready = await start_server(*arguments, ready["wire"])
    await send(sender, packets[cut:])
    await sender.finish(close=True)
    await link
    async with httpx.AsyncClient(base_url=ready["rest"]) as rest:
        found = [lasting(event) for event in await events_of(rest, sender.session)]
    process.terminate()
    await process.wait()
    assert found == expected


async def send(sender: Sender, packets: list[dict[str, Any]]) -> None:
    for packet in packets:
        await sender.room("detections")
        sender.offer("detections", **packet)


def worked(state: Path) -> int:
    """The last sequence that a session's written state has worked off."""
    if not state.exists():
        return -1
    lane = json.loads(state.read_text())["lanes"].get("detections")
    return -1 if lane is None else int(lane["sequence"])


async def start_server(*arguments: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"READY "):
            return process, dict(part.split("=", 1) for part in line.decode().split()[1:])
    raise AssertionError("the server ended before it was ready")


# -- choosing ----------------------------------------------------------------------------------


async def test_sessions_over_rest_say_what_they_run(live: Any) -> None:
    async def opened(device: str, **more: Any) -> Any:
        body = {"device_id": device, "kind": "guided", **more}
        return await live.rest.post("/api/v1/sessions", json=body)

    assembly = {"procedure": "industreal-assy"}
    assert (await opened("a", **assembly)).json()["method"] == "tracker"
    assert (await opened("b", **assembly, method="b2")).json()["method"] == "b2"
    assert (await opened("c")).json()["method"] is None
    for wrong, detail in (
        ({**assembly, "method": "b9"}, "no method 'b9'; there are b1, b2, b3, temporal, storm, tr"),
        ({**assembly, "method": "storm"}, "only where its procedure pins a storm bundle"),
        ({"method": "b3"}, "there is no procedure whose steps it could recognise"),
    ):
        refused = await opened("d", **wrong)
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/problem+json"
        assert detail in refused.json()["detail"]
    sessions = (await live.get("/sessions"))["sessions"]
    assert [s["device_id"] for s in sessions] == ["c", "b", "a"]


@pytest.mark.parametrize("method", ["b9", "storm"])
async def test_a_hello_for_a_method_that_cannot_be_had_is_refused_for_good(
    live: Any, method: str
) -> None:
    source = Source(
        device="hl2",
        client="test",
        streams=("detections",),
        procedure="industreal-assy",
        method=method,
    )
    sender = Sender(source, server=live.server.wire_endpoint, instance="one")
    with pytest.raises(RefusedError, match=method):
        await asyncio.wait_for(sender.run(), 20)
    assert (await live.get("/sessions"))["sessions"] == []


async def test_the_servers_default_holds_where_no_method_is_asked_for(
    tools: Any, tmp_path: Path
) -> None:
    async with tools.live_server(tmp_path, default_method="b1") as live:
        sender = await live.join("hl2", "detections", procedure="industreal-assy")
        assert (await live.get(f"/sessions/{sender.session}"))["method"] == "b1"


async def test_a_sessions_method_outlives_another_default(tools: Any, tmp_path: Path) -> None:
    async with tools.live_server(tmp_path, default_method="b2") as live:
        sender = await live.join("hl2", "detections", procedure="industreal-assy", replay=True)
        session = sender.session
    async with tools.live_server(tmp_path, default_method="b1") as live:
        sender = await live.join("hl2", "detections", procedure="industreal-assy", replay=True)
        assert sender.session == session
        await live.send(sender, "detections", tools.detection_packets(WRONG_PIN[:400]))
        await live.worked_off(sender, "detections", 400)
        events = await events_of(live.rest, session)
    assert {event["evidence"]["method"] for event in events} == {"b2"}
