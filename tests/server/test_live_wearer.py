"""Wearer, simulated headset, bridge and server together: what is said, shown and measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from keystep_capture import wire
from keystep_capture.sender import Callbacks
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.simulator import AppKind, Room, SimulatedHeadset, UnityApp, VoiceControl

GUIDED = {"procedure": "industreal-assy", "method": "b3"}
FRONT, PIN, REAR = "Install front chassis", "Install front chassis pin", "Install rear chassis"
REAR_AND_ITS_PIN = 2  # the detector's class with rear chassis (step 9) and its rear pin (step 18)


class Wearer:
    """Who wears the simulated headset."""

    def __init__(self, live: Any, headset: SimulatedHeadset, bridge: Bridge, tools: Any) -> None:
        assert headset.app is not None
        assert headset.voice is not None
        self.live, self.headset, self.bridge, self.tools = live, headset, bridge, tools
        self.app, self.voice = headset.app, headset.voice

    async def hears_us(self) -> None:
        await self.tools.eventually(lambda: self.voice.phrases, "the headset listens")

    async def sees(self, *texts: str) -> None:
        def on_show() -> bool:
            return all(any(t in shown for shown in self.app.texts_on_show) for t in texts)

        try:
            await self.tools.eventually(on_show, str(texts))
        except AssertionError:
            raise AssertionError(f"{texts} not in {self.app.texts_on_show}") from None

    async def hears(self, text: str) -> None:
        def heard() -> bool:  # on a busy machine in two utterances
            return text in " ".join(self.app.spoken)

        await self.tools.eventually(heard, f"hears {text!r}")

    @property
    def session(self) -> str:
        assert self.bridge.sender.session is not None
        return self.bridge.sender.session

    async def events(self) -> list[dict[str, Any]]:
        found = await self.live.get(f"/sessions/{self.session}/events")
        return list(found["events"])

    async def stats(self) -> dict[str, Any]:
        return dict((await self.live.get(f"/sessions/{self.session}/stats"))["stats"])

    async def show_state(self, class_id: int, first_frame: int = 0, count: int = 12) -> None:
        """A detector sees a state in so many frames, taken now."""
        detector = await self.live.join("hl2", "detections", **GUIDED)
        taken = (await self.stats())["streams"].get("detections", {"packets": 0})["packets"]
        rows = [[(class_id, 1.0, 10.0, 10.0, 5.0, 5.0)]] * count
        now_ns = self.headset.clock.now_hns() * 100
        for packet in self.tools.detection_packets(rows, first_frame):
            packet["device_time_ns"] = now_ns + packet["frame_idx"]
            await self.live.send(detector, "detections", [packet])
        await self.live.worked_off(detector, "detections", taken + count)
        await detector.finish(close=False)


@asynccontextmanager
async def worn(
    live: Any, tools: Any, kind: AppKind = AppKind.SCENE, **options: Any
) -> AsyncIterator[Wearer]:
    """A simulated headset with a scene and a voice, bridged into a guided session."""
    headset = SimulatedHeadset(room=Room(), app=UnityApp(kind=kind), voice=VoiceControl())
    async with headset:
        config = BridgeConfig(
            host="127.0.0.1",
            base_port=headset.base_port,
            server=live.server.wire_endpoint,
            device="hl2",
            **{**GUIDED, **options},
        )
        bridge = Bridge(config)
        running = asyncio.create_task(bridge.run())
        wearer = Wearer(live, headset, bridge, tools)
        try:
            await tools.eventually(lambda: bridge.sender.state == "open", "the bridge is welcome")
            await wearer.hears_us()
            yield wearer
        finally:
            bridge.stop()
            await asyncio.wait_for(running, 30)


@pytest.fixture
async def wearer(live: Any, tools: Any) -> AsyncIterator[Wearer]:
    async with worn(live, tools) as wearing:
        await wearing.sees(f"{FRONT}.")
        yield wearing


# -- what is shown -------------------------------------------------------------------------------


async def test_current_step_next_step_and_progress_reach_the_headset(wearer: Wearer) -> None:
    await wearer.sees(f"{FRONT}.", f"Next: {PIN}", "0 of 9 steps done")
    await wearer.hears(f"{FRONT}.")
    await wearer.show_state(REAR_AND_ITS_PIN)
    await wearer.sees(f"{FRONT}.", "2 of 9 steps done")
    assert wearer.app.spoken == [f"{FRONT}."]  # progress alone says nothing again


def knows_device_clock(stats: dict[str, Any]) -> bool:
    return any("device_uncertainty_ms" in clock for clock in stats["clocks"])


async def test_capture_to_display_is_measured_with_its_uncertainty(
    wearer: Wearer, live: Any
) -> None:
    async with asyncio.timeout(20):
        while not knows_device_clock(await wearer.stats()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    began_ns = time.monotonic_ns()
    await wearer.show_state(REAR_AND_ITS_PIN)
    await wearer.sees("2 of 9 steps done")
    async with asyncio.timeout(20):
        while "capture_to_display" not in (await wearer.stats())["latency"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    took_ms = (time.monotonic_ns() - began_ns) / 1e6
    stats = await wearer.stats()
    measured = stats["latency"]["capture_to_display"]
    assert measured["count"] == 1
    assert measured["uncertainty_ms"] > 0
    assert -measured["uncertainty_ms"] <= measured["p50_ms"]
    assert measured["p50_ms"] <= took_ms + measured["uncertainty_ms"]
    assert stats["display"] == "showing"
    assert stats["guidance"]["acknowledged_revision"] == stats["guidance"]["revision"]
    metrics = (await live.rest.get("/metrics")).text
    assert "keystep_capture_to_display_seconds_count 1.0" in metrics


@pytest.mark.parametrize(("hours", "count"), [(-1, 0), (1, 0), (0, 1)])
async def test_only_a_time_of_display_that_can_be_is_measured(
    live: Any, tools: Any, hours: int, count: int
) -> None:
    told: list[wire.Guidance] = []
    callbacks = Callbacks(on_guidance=told.append)
    sender = await live.join("hl2", "head", **GUIDED, callbacks=callbacks)
    sender.tell_device_clock(  # a headset whose clock shows what this machine's does
        device_time_ns=time.monotonic_ns(),
        bridge_time_ns=time.monotonic_ns(),
        uncertainty_ns=10**6,
        rate=1.0,
    )
    async with asyncio.timeout(20):
        while not knows_device_clock(await live.stats(sender)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    detector = await live.join("hl2", "detections", **GUIDED)
    for packet in tools.detection_packets([[(REAR_AND_ITS_PIN, 1.0, 1, 1, 1, 1)]] * 12):
        packet["device_time_ns"] = time.monotonic_ns()
        await live.send(detector, "detections", [packet])
    await tools.eventually(lambda: told[-1].progress == (2, 9))
    displayed_ns = time.monotonic_ns() + hours * 3600 * 10**9
    for _ in range(2):  # an acknowledgement that comes again measures nothing more
        sender.acknowledge_guidance(
            told[-1].revision, displayed=True, displayed_time_ns=displayed_ns
        )
    async with asyncio.timeout(20):
        while (await live.stats(sender))["display"] != "showing":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    sender.command("repeat", "c1")  # what comes after it has been taken
    await tools.eventually(lambda: told[-1].revision == told[-2].revision + 1)
    latency = (await live.stats(sender))["latency"]
    assert latency.get("capture_to_display", {"count": 0})["count"] == count


async def test_a_headset_without_a_scene_is_told_to_the_server(live: Any, tools: Any) -> None:
    async with worn(live, tools, AppKind.STAND_ALONE) as wearer:
        async with asyncio.timeout(20):
            while (await wearer.stats())["display"] != "no_scene":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert wearer.app.objects == {}
        wearer.voice.say("done")  # a voice does not need a scene
        async with asyncio.timeout(20):
            while not await wearer.events():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_the_exemplar_of_a_step_is_on_show_with_it(tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / "procedures" / "industreal-assy"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(3).integers(0, 255, (900, 1200, 3), np.uint8)
    cv2.imwrite(str(folder / "3.jpg"), pixels)
    (folder / "6.jpg").write_bytes(b"no picture")
    async with tools.live_server(tmp_path) as live, worn(live, tools) as wearer:
        await tools.eventually(lambda: [o for o in wearer.app.on_show if o.texture], "a picture")
        (square,) = [one for one in wearer.app.on_show if one.texture]
        shown = cv2.imdecode(np.frombuffer(square.texture, np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (480, 640, 3)
        assert len(square.texture) <= wire.MAX_PICTURE_BYTES
        wearer.voice.say("next")
        await wearer.sees(f"Later: {PIN}.")
        assert not [one for one in wearer.app.on_show if one.texture]


# -- what is said --------------------------------------------------------------------------------


async def test_next_and_back_move_what_is_shown_and_not_what_is_recognised(wearer: Wearer) -> None:
    wearer.voice.say("next")
    await wearer.sees(f"Later: {PIN}.", f"Next: {REAR}", "0 of 9 steps done")
    await wearer.hears(f"Later: {PIN}.")
    key_steps = await wearer.live.get(f"/sessions/{wearer.session}/key-steps")
    (current,) = [one for one in key_steps["key_steps"] if one["status"] == "current"]
    assert current["title"] == FRONT
    wearer.voice.say("back")
    await wearer.sees(f"{FRONT}.", f"Next: {PIN}")
    assert await wearer.events() == []


async def test_new_evidence_returns_to_what_is_recognised(wearer: Wearer) -> None:
    for _ in range(2):
        shown = list(wearer.app.texts_on_show)
        wearer.voice.say("next")
        await wearer.tools.eventually(lambda s=shown: wearer.app.texts_on_show != s)
    await wearer.sees(f"Later: {REAR}.")
    await wearer.show_state(REAR_AND_ITS_PIN)
    await wearer.sees(f"{FRONT}.", "2 of 9 steps done")


async def test_there_is_nothing_before_the_first_step(wearer: Wearer) -> None:
    wearer.voice.say("back")
    await wearer.hears("This is the first step.")
    await wearer.sees("This is the first step.", f"{FRONT}.")


async def test_done_is_a_step_event_that_the_recognition_goes_on_from(wearer: Wearer) -> None:
    wearer.voice.say("done")
    await wearer.sees(f"{PIN}.", "1 of 9 steps done")
    await wearer.hears(f"Done: {FRONT}. {PIN}.")
    (event,) = await wearer.events()
    assert (event["step_id"], event["kind"], event["branch"]) == (3, "completed", "wearer")
    assert event["evidence"]["method"] == "wearer"
    assert event["frame_idx"] is None
    await wearer.show_state(REAR_AND_ITS_PIN)  # a state without the front chassis
    await wearer.sees(f"{PIN}.", "3 of 9 steps done")
    assert [one["step_id"] for one in await wearer.events()] == [3, 9, 18]


async def test_done_is_about_the_step_on_show(wearer: Wearer) -> None:
    wearer.voice.say("next")
    await wearer.sees(f"Later: {PIN}.")
    wearer.voice.say("done")
    await wearer.sees(f"{FRONT}.", "1 of 9 steps done")
    (event,) = await wearer.events()
    assert event["step_id"] == 6
    for _ in range(8):
        wearer.voice.say("done")
    await wearer.sees("All steps are done.", "9 of 9 steps done")
    assert len(await wearer.events()) == 9
    wearer.voice.say("back")
    await wearer.sees("Done already: Install rear wheel assy.")
    wearer.voice.say("done")
    await wearer.hears("Install rear wheel assy: that is done already.")


async def test_repeat_says_it_again(wearer: Wearer) -> None:
    await wearer.hears(f"{FRONT}.")
    wearer.voice.say("repeat")
    await wearer.tools.eventually(lambda: wearer.app.spoken == [f"{FRONT}."] * 2)


async def test_while_paused_no_step_is_reported_and_none_is_lost(wearer: Wearer) -> None:
    wearer.voice.say("pause")
    await wearer.sees('Paused. Say "go on" to go on.')
    assert (await wearer.live.get(f"/sessions/{wearer.session}"))["state"] == "paused"
    await wearer.show_state(REAR_AND_ITS_PIN)
    wearer.voice.say("done")
    await wearer.hears('The session is paused. Say "go on" first.')
    assert await wearer.events() == []
    wearer.voice.say("go on")
    await wearer.sees(f"{FRONT}.", "0 of 9 steps done")
    assert (await wearer.live.get(f"/sessions/{wearer.session}"))["state"] == "open"
    await wearer.show_state(REAR_AND_ITS_PIN, first_frame=100)
    await wearer.sees("2 of 9 steps done")


async def test_the_wearer_begins_and_ends_a_recording(wearer: Wearer) -> None:
    wearer.voice.say("start recording")
    await wearer.hears("Recording.")
    stats = (await wearer.live.get(f"/sessions/{wearer.session}/stats"))["stats"]
    assert stats["recording"]["everything"]
    wearer.voice.say("stop recording")
    await wearer.hears("Recording stopped.")
    wearer.voice.say("stop recording")
    await wearer.hears("This is not being recorded.")


# -- commands over the wire and REST -------------------------------------------------------------


async def test_a_command_that_comes_again_is_answered_alike_and_does_nothing(
    live: Any, tools: Any
) -> None:
    results: list[wire.CommandResult] = []
    callbacks = Callbacks(on_command_result=results.append)
    sender = await live.join("hl2", "head", **GUIDED, callbacks=callbacks)
    for _ in range(3):
        sender.command("done", "c1")
    await tools.eventually(lambda: len(results) == 3)
    assert results[0] == results[1] == results[2]
    assert (results[0].accepted, results[0].text) == (True, f"Done: {FRONT}.")
    events = (await live.get(f"/sessions/{sender.session}/events"))["events"]
    assert [event["step_id"] for event in events] == [3]


async def test_words_that_are_no_command_and_too_many_commands_are_refused(
    live: Any, tools: Any
) -> None:
    results: list[wire.CommandResult] = []
    callbacks = Callbacks(on_command_result=results.append)
    sender = await live.join("hl2", "head", **GUIDED, callbacks=callbacks)
    sender.command("format the disk", "c0")
    await tools.eventually(lambda: results)
    assert (results[0].accepted, results[0].text) == (
        False,
        "I don't know the command 'format the disk'.",
    )
    for number in range(1, 101):
        sender.command("repeat", f"c{number}")
    await tools.eventually(lambda: len(results) == 101)
    assert {r.text for r in results[1:] if not r.accepted} <= {"Too many commands at once."}
    assert any(r.accepted for r in results[1:])


async def test_a_restarted_server_keeps_what_commands_did(tools: Any, tmp_path: Path) -> None:
    async def answers(live: Any, *commands: tuple[str, str]) -> tuple[Any, list[Any], list[Any]]:
        results: list[Any] = []
        guidance: list[Any] = []
        callbacks = Callbacks(on_command_result=results.append, on_guidance=guidance.append)
        sender = await live.join("hl2", "head", **GUIDED, callbacks=callbacks, instance="i1")
        await tools.eventually(lambda: guidance, "guidance")
        for count, (command, command_id) in enumerate(commands, start=1):
            sender.command(command, command_id)
            await tools.eventually(lambda n=count: len(results) == n, command)
        return sender, results, guidance

    async with tools.live_server(tmp_path) as live:
        _, before, _ = await answers(live, ("done", "c1"), ("next", "c2"), ("pause", "c3"))
    async with tools.live_server(tmp_path) as live:
        sender, after, guidance = await answers(
            live, ("done", "c1"), ("pause", "c3"), ("go on", "c4")
        )
        assert after[0] == before[0]
        assert guidance[0].text == 'Paused. Say "go on" to go on.'
        assert guidance[0].spoken_revision < guidance[0].revision  # it was said before
        await tools.eventually(lambda: guidance[-1].text == f"Later: {REAR}.")
        assert guidance[-1].progress == (1, 9)
        assert len((await live.get(f"/sessions/{sender.session}/events"))["events"]) == 1


async def test_commands_are_taken_over_rest(live: Any, tools: Any) -> None:
    headset: list[Any] = []
    sender = await live.join(
        "hl2", "head", **GUIDED, callbacks=Callbacks(on_guidance=headset.append)
    )
    path = f"/api/v1/sessions/{sender.session}/commands"
    answer = await live.rest.post(path, json={"command": "done", "command_id": "c1"})
    assert answer.status_code == 200
    assert answer.json() == {
        "command": "done",
        "command_id": "c1",
        "accepted": True,
        "text": f"Done: {FRONT}.",
    }
    again = await live.rest.post(path, json={"command": "done", "command_id": "c1"})
    assert again.json() == answer.json()
    await tools.eventually(lambda: headset[-1].progress == (1, 9))
    refused = (await live.rest.post(path, json={"command": "go on"})).json()
    assert (refused["accepted"], refused["text"]) == (False, "It is not paused.")
    assert refused["command_id"]


async def test_rest_refuses_commands_with_problems(live: Any) -> None:
    sender = await live.join("hl2", "head", **GUIDED)
    created = await live.rest.post(
        "/api/v1/sessions", json={"device_id": "other", "kind": "guided"}
    )
    commands = {
        "ses_" + "0" * 26: ({"command": "done"}, 404),
        created.json()["id"]: ({"command": "done"}, 409),  # its headset never came
        sender.session: ({"command": "dance"}, 422),
    }
    for session_id, (body, status) in commands.items():
        answer = await live.rest.post(f"/api/v1/sessions/{session_id}/commands", json=body)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
    path = f"/api/v1/sessions/{sender.session}/commands"
    for bad in ({}, {"command": "done", "command_id": "a b"}, {"command": "done", "more": 1}):
        assert (await live.rest.post(path, json=bad)).status_code == 422
    await live.close_session(sender)
    assert (await live.rest.post(path, json={"command": "done"})).status_code == 409


async def test_a_session_without_a_procedure_refuses_what_needs_one(live: Any) -> None:
    sender = await live.join("hl2", "head")
    path = f"/api/v1/sessions/{sender.session}/commands"
    done = (await live.rest.post(path, json={"command": "done"})).json()
    assert (done["accepted"], done["text"]) == (False, "This session has no procedure.")
    paused = (await live.rest.post(path, json={"command": "pause"})).json()
    assert (paused["accepted"], paused["text"]) == (True, "Paused.")
    assert (await live.get(f"/sessions/{sender.session}"))["state"] == "paused"
