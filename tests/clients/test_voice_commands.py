"""The wearer's commands: heard on the simulated headset, sent until the server answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from keystep_capture import wire
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.hl2ss.voice_input import Confidence
from keystep_hololens.simulator import Room, SimulatedHeadset, UnityApp, VoiceControl
from keystep_hololens.voice_commands import GIVE_UP_NS, PHRASES, CommandLine, listen

if TYPE_CHECKING:
    from conftest import RecordingServer

HOST = "127.0.0.1"


def listening(base_port: int = 0) -> SimulatedHeadset:
    return SimulatedHeadset(room=Room(), app=UnityApp(), voice=VoiceControl(), base_port=base_port)


async def until(true: Callable[[], Any]) -> None:
    """Wait until something holds; 30 seconds are a hung test, not a measurement."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.005)


def say(headset: SimulatedHeadset, phrase: str, confidence: Confidence = Confidence.HIGH) -> None:
    assert headset.voice is not None
    headset.voice.say(phrase, confidence)


def result(command_id: str, text: str = "") -> wire.CommandResult:
    return wire.CommandResult(
        protocol=wire.PROTOCOL, command_id=command_id, accepted=True, text=text
    )


# -- hearing -------------------------------------------------------------------------------------


async def test_every_command_is_heard_and_what_is_unsure_is_not_acted_on() -> None:
    heard: list[str] = []
    async with listening() as headset:
        task = asyncio.create_task(
            listen(HOST, base_port=headset.base_port, on_command=heard.append)
        )
        await until(lambda: headset.voice is not None and headset.voice.phrases)
        say(headset, "done", Confidence.LOW)
        say(headset, "done", Confidence.REJECTED)
        say(headset, "what now")
        for phrase in PHRASES:
            say(headset, phrase, Confidence.MEDIUM)
        await until(lambda: len(heard) >= len(PHRASES))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert heard == list(PHRASES)


async def test_a_headset_that_comes_back_is_listened_to_again() -> None:
    heard: list[str] = []
    async with listening() as headset:
        base_port = headset.base_port
        task = asyncio.create_task(listen(HOST, base_port=base_port, on_command=heard.append))
        await until(lambda: headset.voice is not None and headset.voice.phrases)
    async with listening(base_port) as again:
        await until(lambda: again.voice is not None and again.voice.phrases)
        say(again, "next")
        await until(lambda: heard == ["next"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- sending -------------------------------------------------------------------------------------


def test_a_command_is_sent_with_the_same_id_until_it_is_answered() -> None:
    sent: list[tuple[str, str]] = []
    line = CommandLine(lambda command, command_id: sent.append((command, command_id)))
    line.give("done")
    line.give("next")
    line.send_again()
    assert sent[:2] == sent[2:]
    assert len({command_id for _, command_id in sent}) == 2
    assert line.take(result(sent[0][1], "Done: the wheel.")) == "Done: the wheel."
    assert line.take(result(sent[0][1], "Done: the wheel.")) == ""  # said already
    line.send_again()
    assert sent[4:] == [sent[1]]


def test_a_command_without_an_answer_is_given_up_and_named() -> None:
    now_ns = itertools.count(0, GIVE_UP_NS // 2)
    line = CommandLine(lambda _command, _id: None, clock=lambda: next(now_ns))
    line.give("done")
    assert line.give_up() == []
    assert line.give_up() == ["done"]
    assert line.give_up() == []


def test_only_so_many_commands_wait() -> None:
    sent: list[str] = []
    line = CommandLine(lambda command, _id: sent.append(command))
    for _ in range(50):
        line.give("next")
    sent.clear()
    line.send_again()
    assert len(sent) == 8


# -- through a bridge ----------------------------------------------------------------------------


@pytest.fixture
async def headset() -> Any:
    async with listening() as simulated:
        yield simulated


async def test_a_command_that_got_lost_is_sent_again_when_the_server_is_back(
    server: RecordingServer, headset: SimulatedHeadset
) -> None:
    config = BridgeConfig(host=HOST, base_port=headset.base_port, server=server.endpoint)
    bridge = Bridge(config)
    running = asyncio.create_task(bridge.run())
    await server.until(lambda: server.peers)
    await until(lambda: headset.voice is not None and headset.voice.phrases)
    await server.go_away()
    say(headset, "repeat")
    await asyncio.sleep(0.3)
    server.come_back()
    await server.until(lambda: server.commands)
    (command,) = server.commands
    assert command.command == "repeat"
    assert server.receiver.send(server.peers[-1], result(command.command_id, "Again."))
    assert headset.app is not None
    app = headset.app
    await until(lambda: app.spoken == ["Again."])
    assert app.texts_on_show == ["Again."]
    bridge.stop()
    await asyncio.wait_for(running, 30)


async def test_display_and_voice_can_be_switched_off(
    server: RecordingServer, headset: SimulatedHeadset
) -> None:
    config = BridgeConfig(
        host=HOST, base_port=headset.base_port, server=server.endpoint, display=False, voice=False
    )
    bridge = Bridge(config)
    running = asyncio.create_task(bridge.run())
    await server.has("head", 5)
    guidance = wire.Guidance(
        protocol=wire.PROTOCOL,
        revision=2,
        severity="info",
        current_step=None,
        next_step=None,
        text="All steps are done.",
        progress=(9, 9),
        device_time_ns=0,
    )
    assert server.receiver.send(server.peers[0], guidance)
    await server.until(lambda: server.acknowledged)
    (ack,) = server.acknowledged
    assert (ack.displayed, ack.reason) == (False, "off")
    assert headset.app is not None
    assert headset.voice is not None
    assert headset.app.message_count == 0
    assert headset.voice.phrases == ()
    bridge.stop()
    await asyncio.wait_for(running, 30)
