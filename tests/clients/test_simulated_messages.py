"""Unity app, its messages and voice input of the simulated headset, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss import guest_messages as gmq
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss import voice_input as vi
from keystep_hololens.hl2ss.message_client import (
    open_guest_messages,
    open_unity_messages,
    open_voice_input,
)
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import AppKind, Room, SimulatedHeadset, UnityApp, VoiceControl

HOST = "127.0.0.1"
AHEAD = umq.Placement(position_m=(0.0, 0.1, 1.0))
STEP = umq.TextPanel(text="Fit the wheel", placement=AHEAD)


def talking(kind: AppKind = AppKind.SCENE) -> SimulatedHeadset:
    return SimulatedHeadset(room=Room(), app=UnityApp(kind=kind), voice=VoiceControl())


def app_of(headset: SimulatedHeadset) -> UnityApp:
    assert headset.app is not None
    return headset.app


@pytest.fixture
async def headset() -> AsyncIterator[SimulatedHeadset]:
    async with talking() as simulated:
        yield simulated


async def test_panels_are_on_show_once_the_call_returns(headset: SimulatedHeadset) -> None:
    picture = umq.PicturePanel(image=b"\x89PNG", placement=umq.Placement(position_m=(0, 0, 2)))
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        keys = await messages.show([STEP, picture])
        assert app_of(headset).texts_on_show == ["Fit the wheel"]
        text, square = app_of(headset).on_show
        assert keys == (text.key, square.key)
        assert all(key >= 2**31 for key in keys)  # negative as i32
    assert text.placement is not None
    assert text.placement.head_locked
    assert text.placement.position_m == pytest.approx((0, 0.1, 1))
    assert (square.primitive, square.texture) == (umq.Primitive.QUAD, b"\x89PNG")


async def test_a_display_list_takes_one_frame_and_single_commands_one_each(
    headset: SimulatedHeadset,
) -> None:
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        await messages.show([STEP, STEP])
        assert app_of(headset).frame_count == 1
        await messages.exchange(umq.CREATE_TEXT, umq.REMOVE_ALL)
        assert app_of(headset).frame_count == 3


async def test_objects_outlive_their_client_and_the_next_one_clears_them(
    headset: SimulatedHeadset,
) -> None:
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        await messages.show([STEP])
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        assert await messages.has_scene()
        assert app_of(headset).texts_on_show == ["Fit the wheel"]
        await messages.show([umq.TextPanel(text="Done", placement=AHEAD)], keep=True)
        assert app_of(headset).texts_on_show == ["Fit the wheel", "Done"]
        await messages.remove_all()
    assert app_of(headset).objects == {}


async def test_what_is_on_show_can_be_changed(headset: SimulatedHeadset) -> None:
    square = umq.PicturePanel(image=b"old", placement=AHEAD)
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        text_key, square_key = await messages.show([STEP, square])
        await messages.set_text(text_key, "Next: the screw", font_size=0.6, rgba=(1, 0, 0, 1))
        await messages.set_texture(square_key, b"new" * 300_000)
        await messages.say("Well done")
        await messages.debug_text("seen")
        await messages.remove(square_key)
    app = app_of(headset)
    (text,) = app.on_show
    assert (text.text, text.rgba) == ("Next: the screw", (1, 0, 0, 1))
    assert (app.spoken, app.debug_texts) == (["Well done"], ["seen"])


async def test_commands_the_app_refuses_are_errors(headset: SimulatedHeadset) -> None:
    square = umq.PicturePanel(image=b"", placement=AHEAD)
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        (key,) = await messages.show([square])
        with pytest.raises(DeviceError, match="refused remove"):
            await messages.remove(key + 1)
        with pytest.raises(DeviceError, match="refused set_text"):
            await messages.set_text(key, "not on a square", font_size=1)
        refused = await messages.exchange(
            umq.UnityMessage(umq.UnityCommand.LOAD_MESH, bytes(4)),
            umq.UnityMessage(umq.UnityCommand.SET_ACTIVE, b"\0"),
            umq.UnityMessage(12_345),
            umq.UnityMessage(umq.UnityCommand.SET_COLOR, struct.pack("<I4f", key, 1, 0, 0, 1)),
        )
        assert refused == (0, 0, 0, 1)


async def test_the_stand_alone_app_says_that_it_has_no_scene() -> None:
    async with talking(AppKind.STAND_ALONE) as headset:
        async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
            assert not await messages.has_scene()
            with pytest.raises(DeviceError, match="has no scene"):
                await messages.show([STEP])
            assert await messages.exchange(umq.debug_text("hello")) == (0,)
        async with open_guest_messages(HOST, base_port=headset.base_port) as guest:
            assert await guest.poll() == (gmq.HELLO, b"Hello from HoloLens 2")
    assert app_of(headset).debug_texts == ["hello"]


async def test_a_plugin_without_a_script_is_silent() -> None:
    async with (
        talking(AppKind.NO_SCRIPT) as headset,
        open_unity_messages(HOST, base_port=headset.base_port, read_timeout_s=0.2) as messages,
    ):
        with pytest.raises(DeviceError, match="stays silent"):
            await messages.has_scene()


async def test_a_display_list_of_a_lost_client_is_forgotten(headset: SimulatedHeadset) -> None:
    where = (HOST, port(Port.UNITY_MESSAGE_QUEUE, headset.base_port))
    with socket.create_connection(where) as lost:
        lost.sendall(b"".join(map(umq.encode_message, (umq.BEGIN_DISPLAY_LIST, umq.CREATE_TEXT))))
        lost.setblocking(False)
        for _ in range(2):
            await asyncio.get_running_loop().sock_recv(lost, 4)
    frames = app_of(headset).frame_count
    async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
        await messages.exchange(umq.CREATE_TEXT, umq.CREATE_TEXT)
    assert app_of(headset).frame_count == frames + 2


# --- messages from the app ------------------------------------------------------------------------


async def test_guest_messages_are_taken_one_by_one_and_answered(headset: SimulatedHeadset) -> None:
    app_of(headset).offer(gmq.GuestMessage(7, b"next"))
    app_of(headset).offer(gmq.GuestMessage(8))
    async with open_guest_messages(HOST, base_port=headset.base_port) as guest:
        assert await guest.poll() == (7, b"next")
        await guest.answer(1)
        assert await guest.poll() == (8, b"")
        await guest.answer(0)
        assert await guest.poll() is None
        with pytest.raises(ConfigError, match="cannot be a result"):
            await guest.answer(0xFFFFFFFF)
    assert app_of(headset).guest_results == [1, 0]


# --- voice ----------------------------------------------------------------------------------------


def voice_of(headset: SimulatedHeadset) -> VoiceControl:
    assert headset.voice is not None
    return headset.voice


@pytest.mark.parametrize("with_mark", [True, False])
async def test_phrases_are_heard_with_a_mark_or_without(
    headset: SimulatedHeadset, with_mark: bool
) -> None:
    phrases = ("next", "back", "start recording")
    voice = voice_of(headset)
    voice.say("next")  # nobody listens yet
    async with open_voice_input(
        HOST, phrases, with_mark=with_mark, base_port=headset.base_port
    ) as listening:
        assert await listening.poll() == []
        assert voice.phrases == phrases
        voice.say("start recording")
        voice.say("next", vi.Confidence.REJECTED)
        voice.say("what now")
        heard = await listening.poll()
        assert [listening.phrase_of(one) for one in heard] == ["start recording", None, None]
        assert heard[2].phrase_idx == 3
        ended = heard[0].start_filetime_hns + heard[0].duration_hns
        assert 0 <= headset.clock.utc_hns() - ended < 50_000_000
        assert await listening.poll() == []


async def test_a_connection_can_listen_for_other_phrases(headset: SimulatedHeadset) -> None:
    async with open_voice_input(HOST, ["next"], base_port=headset.base_port) as listening:
        assert await listening.poll() == []
        await listening.listen_for(["back"])
        assert await listening.poll() == []
        voice_of(headset).say("back")
        assert [listening.phrase_of(one) for one in await listening.poll()] == ["back"]


async def test_no_phrases_close_the_connection(headset: SimulatedHeadset) -> None:
    with socket.create_connection((HOST, port(Port.VOICE_INPUT, headset.base_port))) as asking:
        asking.setblocking(False)
        asking.send(b"\0\0")
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().sock_recv(asking, 4) == b""
