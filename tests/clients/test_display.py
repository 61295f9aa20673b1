"""Guidance on the simulated headset: what is drawn, spoken and confirmed, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import structlog

from keystep_capture import wire
from keystep_hololens import display_layout as layout
from keystep_hololens.display import Display, Showing
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss.message_client import open_unity_messages
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import AppKind, Room, SimulatedHeadset, UnityApp

HOST = "127.0.0.1"


def guidance(revision: int = 1, text: str = "Fit the wheel.", **changes: Any) -> wire.Guidance:
    values: dict[str, Any] = {
        "severity": "info",
        "current_step": wire.StepName(id=3, title="Fit the wheel"),
        "next_step": wire.StepName(id=6, title="Tighten the nut"),
        "progress": (2, 9),
        "device_time_ns": 5,
        "spoken": text,
        "spoken_revision": revision,
    }
    return wire.Guidance(
        protocol=wire.PROTOCOL, revision=revision, text=text, **{**values, **changes}
    )


def jpeg(width: int = 80, height: int = 60) -> bytes:
    pixels = np.random.default_rng(7).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


class Wearer:
    """A simulated headset that can go away and come back, and a display that runs."""

    def __init__(self, headset: SimulatedHeadset, **options: Any) -> None:
        self.shown: list[Showing] = []
        self.asked: list[str] = []
        assert headset.app is not None
        self.app: UnityApp = headset.app
        self.display = Display(
            HOST,
            base_port=headset.base_port,
            on_showing=self.shown.append,
            ask_picture=self.asked.append,
            **options,
        )

    @property
    def states(self) -> list[tuple[int, bool, str]]:
        return [(one.revision, one.displayed, one.reason) for one in self.shown]


def headset_with(kind: AppKind = AppKind.SCENE, base_port: int = 0) -> SimulatedHeadset:
    return SimulatedHeadset(room=Room(), app=UnityApp(kind=kind), base_port=base_port)


@asynccontextmanager
async def running(wearer: Wearer) -> AsyncIterator[Wearer]:
    task = asyncio.create_task(wearer.display.run())
    try:
        yield wearer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], Any]) -> None:
    """Wait until something holds; 30 seconds are a hung test, not a measurement."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.005)


@pytest.fixture
async def wearer() -> AsyncIterator[Wearer]:
    async with headset_with() as headset, running(Wearer(headset)) as watching:
        yield watching


# -- what is drawn -------------------------------------------------------------------------------


async def test_each_text_of_a_guidance_is_on_show_and_confirmed(wearer: Wearer) -> None:
    wearer.display.show(guidance(4))
    await until(lambda: wearer.shown)
    assert wearer.app.texts_on_show == [
        "Fit the wheel.",
        "Next: Tighten the nut",
        "2 of 9 steps done",
    ]
    assert wearer.states == [(4, True, "")]


async def test_a_caution_stands_above_the_step_and_has_its_colour(wearer: Wearer) -> None:
    wearer.display.show(guidance(text="Check this: the nut.", severity="caution"))
    await until(lambda: wearer.shown)
    assert wearer.app.texts_on_show[:2] == ["Check this: the nut.", "Now: Fit the wheel"]
    assert wearer.app.on_show[0].rgba == pytest.approx(layout.AMBER)


async def test_nothing_stale_is_on_show_while_the_work_is_not_seen(wearer: Wearer) -> None:
    wearer.display.show(guidance(1, picture="wheel"))
    wearer.display.put_picture("wheel", jpeg())
    await until(lambda: any(one.texture for one in wearer.app.on_show))
    wearer.display.show(guidance(2, "I can't see.", severity="cannot_see", picture="wheel"))
    await until(lambda: wearer.states[-1:] == [(2, True, "")])
    assert wearer.app.texts_on_show == ["I can't see.", "2 of 9 steps done"]
    assert len(wearer.app.on_show) == 2  # nor its picture


async def test_a_revision_is_one_display_list_so_nothing_half_drawn_is_seen() -> None:
    async with headset_with() as headset, running(Wearer(headset)) as wearer:
        wearer.display.show(guidance(1, spoken=""))
        await until(lambda: wearer.shown)
        frames = wearer.app.frame_count
        wearer.display.show(guidance(2, "Turn the crank.", spoken=""))
        await until(lambda: len(wearer.shown) == 2)
        assert wearer.app.frame_count == frames + 1
        assert len(wearer.app.objects) == 3  # the old ones are gone


async def test_the_newest_guidance_wins_and_none_is_queued(wearer: Wearer) -> None:
    for revision in range(1, 200):
        wearer.display.show(guidance(revision, f"Step {revision}."))
    await until(lambda: wearer.shown)
    assert wearer.states == [(199, True, "")]
    assert wearer.app.texts_on_show[0] == "Step 199."


async def test_the_same_guidance_again_is_confirmed_again_and_not_drawn_again(
    wearer: Wearer,
) -> None:
    wearer.display.show(guidance(3))
    await until(lambda: wearer.shown)
    await until(lambda: wearer.app.spoken)
    count = wearer.app.message_count
    wearer.display.show(guidance(3))
    assert wearer.states == [(3, True, ""), (3, True, "")]
    assert wearer.shown[0].time_ns == wearer.shown[1].time_ns
    await asyncio.sleep(0.1)
    assert wearer.app.message_count == count
    assert wearer.app.spoken == ["Fit the wheel."]


async def test_what_an_earlier_client_left_is_removed_on_connect() -> None:
    async with headset_with() as headset:
        old = umq.TextPanel(text="old", placement=umq.Placement(position_m=(0, 0, 1)))
        async with open_unity_messages(HOST, base_port=headset.base_port) as messages:
            await messages.show([old])
        async with running(Wearer(headset)) as wearer:
            await until(lambda: not wearer.app.objects)


# -- what is spoken ------------------------------------------------------------------------------


async def test_words_are_spoken_once_for_each_change_and_not_for_each_revision(
    wearer: Wearer,
) -> None:
    wearer.display.show(guidance(1))
    await until(lambda: wearer.app.spoken)
    wearer.display.show(guidance(2, spoken_revision=1, progress=(3, 9)))
    await until(lambda: "3 of 9 steps done" in wearer.app.texts_on_show)
    wearer.display.show(guidance(3, "Turn the crank."))
    await until(lambda: len(wearer.app.spoken) == 2)
    wearer.display.show(guidance(4, "Turn the crank."))  # the wearer said "repeat"
    await until(lambda: len(wearer.app.spoken) == 3)
    assert wearer.app.spoken == ["Fit the wheel.", "Turn the crank.", "Turn the crank."]


async def test_a_note_is_shown_and_spoken_with_what_came_beside_it_and_goes_away_by_itself() -> (
    None
):
    now_ns = [0]
    async with (
        headset_with() as headset,
        running(Wearer(headset, clock=lambda: now_ns[0])) as wearer,
    ):
        wearer.display.show(guidance(1))
        await until(lambda: wearer.shown)
        wearer.display.tell("Done: the wheel.")  # just after the guidance that follows from it
        await until(lambda: "Done: the wheel." in wearer.app.texts_on_show)
        now_ns[0] = 200_000_000
        await until(lambda: wearer.app.spoken)
        now_ns[0] = 6_000_000_000
        wearer.display.show(guidance(1))  # wakes it
        await until(lambda: "Done: the wheel." not in wearer.app.texts_on_show)
    assert wearer.app.spoken == ["Done: the wheel. Fit the wheel."]  # neither cuts the other off


# -- pictures ------------------------------------------------------------------------------------


async def test_a_picture_is_asked_for_once_shown_in_its_proportions_and_not_sent_again(
    wearer: Wearer,
) -> None:
    wearer.display.show(guidance(1, picture="wheel"))
    await until(lambda: wearer.shown)
    assert wearer.asked == ["wheel"]
    assert wearer.app.texts_on_show[0] == "Fit the wheel."  # the text does not wait for it
    image = jpeg(80, 40)
    wearer.display.put_picture("wheel", image)
    await until(lambda: any(one.texture for one in wearer.app.on_show))
    (square,) = [one for one in wearer.app.on_show if one.texture]
    assert square.texture == image
    assert square.placement is not None
    assert square.placement.scale[0] == pytest.approx(2 * square.placement.scale[1])
    wearer.display.show(guidance(2, "Turn it.", picture="wheel"))
    await until(lambda: wearer.app.texts_on_show[0] == "Turn it.")
    assert [one.key for one in wearer.app.on_show if one.texture] == [square.key]
    assert wearer.asked == ["wheel"]
    wearer.display.show(guidance(3))
    await until(lambda: not any(one.texture for one in wearer.app.on_show))


async def test_a_picture_that_cannot_be_decoded_is_left_out_and_said(wearer: Wearer) -> None:
    with structlog.testing.capture_logs() as logs:
        wearer.display.put_picture("wheel", b"no picture")
    assert "cannot be decoded" in logs[0]["event"]
    wearer.display.show(guidance(1, picture="wheel"))
    await until(lambda: wearer.shown)
    assert not any(one.texture for one in wearer.app.on_show)
    assert wearer.asked == []


# -- trouble -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"), [(AppKind.STAND_ALONE, "no_scene"), (AppKind.NO_SCRIPT, "no_answer")]
)
async def test_a_headset_that_shows_nothing_is_noticed_and_said_once(
    kind: AppKind, reason: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with (
            headset_with(kind) as headset,
            running(Wearer(headset, read_timeout_s=0.1)) as wearer,
        ):
            wearer.display.show(guidance(1))
            await until(lambda: wearer.shown)
            wearer.display.show(guidance(2))
            assert wearer.states == [(1, False, reason), (2, False, reason)]
            await asyncio.sleep(1.0)  # several attempts
    assert wearer.states == [(1, False, reason), (2, False, reason)]
    assert [one["reason"] for one in logs if "not on the headset" in one["event"]] == [reason]


async def test_a_scene_that_appears_later_gets_the_newest_guidance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keystep_hololens.display.CHECK_EVERY_S", 0.05)
    async with headset_with(AppKind.STAND_ALONE) as headset, running(Wearer(headset)) as wearer:
        wearer.display.show(guidance(1))
        await until(lambda: wearer.shown)
        wearer.app.kind = AppKind.SCENE
        await until(lambda: wearer.app.texts_on_show)
        wearer.app.kind = AppKind.STAND_ALONE
        await until(lambda: len(wearer.shown) == 4)
    assert wearer.states == [
        (1, False, "no_scene"),
        (1, True, ""),
        (1, False, "lost"),
        (1, False, "no_scene"),
    ]


async def test_a_headset_that_comes_back_is_drawn_the_newest_revision_once() -> None:
    async with headset_with() as headset:
        base_port = headset.base_port
        wearer = Wearer(headset)
        task = asyncio.create_task(wearer.display.run())
        wearer.display.show(guidance(1))
        await until(lambda: wearer.app.spoken)
    wearer.display.show(guidance(2, "Turn the crank."))
    wearer.display.show(guidance(3, "Close the cover."))
    await until(lambda: any(not displayed for _, displayed, _ in wearer.states))
    async with headset_with(base_port=base_port) as again:
        app = again.app
        assert app is not None
        await until(lambda: app.spoken)
        assert app.texts_on_show[0] == "Close the cover."
        assert app.spoken == ["Close the cover."]
        await until(lambda: wearer.states[-1] == (3, True, ""))
        # remove-all, one list of three panels of six commands, and one sentence
        assert app.message_count == 3 + 2 + 3 * 6 + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_headset_lost_in_the_middle_of_a_list_shows_the_whole_one_afterwards() -> None:
    """A relay passes the remove-all and then a part of the list, and hangs up."""
    async with headset_with() as headset:
        app = headset.app
        assert app is not None
        relay = CuttingRelay(port(Port.UNITY_MESSAGE_QUEUE, headset.base_port), after=8 * 3 + 100)
        async with relay as base_port:
            shown: list[Showing] = []
            display = Display(HOST, base_port=base_port, on_showing=shown.append)
            task = asyncio.create_task(display.run())
            display.show(guidance(5))
            await until(lambda: any(one.displayed for one in shown))
            assert app.texts_on_show == [
                "Fit the wheel.",
                "Next: Tighten the nut",
                "2 of 9 steps done",
            ]
            assert relay.cut_count == 1
            assert [(one.displayed, one.reason) for one in shown] == [(False, "lost"), (True, "")]
            task.cancel()  # before the relay, which lets its connections go
            await asyncio.gather(task, return_exceptions=True)


class CuttingRelay:
    """A TCP relay to the headset's UMQ port that breaks its first connection mid-way."""

    def __init__(self, target_port: int, *, after: int) -> None:
        self.cut_count = 0
        self._target_port, self._after = target_port, after
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        return int(self._server.sockets[0].getsockname()[1]) - (port(Port.UNITY_MESSAGE_QUEUE, 0))

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_headset, to_headset = await asyncio.open_connection(HOST, self._target_port)
        back = asyncio.create_task(self._pass_on(from_headset, writer))
        left = self._after if self.cut_count == 0 else 2**40
        try:
            while left > 0 and (data := await reader.read(min(64, left))):
                to_headset.write(data)
                left -= len(data)
            self.cut_count += left <= 0
        finally:
            back.cancel()
            for ending in (to_headset, writer):
                ending.close()
            await asyncio.gather(
                back, to_headset.wait_closed(), writer.wait_closed(), return_exceptions=True
            )

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)


# -- layout --------------------------------------------------------------------------------------


LONGEST = "Install the rear chassis with both of its long screws and the washers"
PICTURE = layout.StepImage(image=jpeg(), width_px=80, height_px=60)


@pytest.mark.parametrize("severity", ["info", "caution", "cannot_see"])
@pytest.mark.parametrize("picture", [None, PICTURE], ids=["no picture", "picture"])
@pytest.mark.parametrize("text", ["Fit it.", LONGEST, LONGEST * 5])
def test_all_lies_inside_the_field_of_view_and_nothing_overlaps(
    severity: wire.Severity, picture: layout.StepImage | None, text: str
) -> None:
    step = wire.StepName(id=1, title=text[:120])
    told = guidance(text=text, severity=severity, current_step=step, next_step=step)
    panels: list[umq.Panel] = [
        *layout.text_panels(told, "Done: the wheel.", with_picture=picture is not None)
    ]
    panels += [layout.picture_panel(picture)] if picture else []
    boxes = [box_of(panel) for panel in panels]
    half = np.tan(np.radians(layout.FIELD_OF_VIEW_DEG) / 2) * layout.DISTANCE_M
    for left, bottom, right, top in boxes:
        assert -half[0] < left < right < half[0]
        assert -half[1] < bottom < top < half[1]
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def box_of(panel: umq.Panel) -> tuple[float, float, float, float]:
    """Left, bottom, right, top in metres."""
    x, y, _ = panel.placement.position_m
    width, height = layout.extent_m(panel)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def test_letters_are_large_enough_to_read_at_arms_length_and_the_middle_stays_free() -> None:
    for panel in layout.text_panels(guidance(text=LONGEST * 5, severity="caution")):
        em_deg = np.degrees(panel.font_size * layout.EM_M / layout.DISTANCE_M)
        assert em_deg > 1.0  # small letters are half as high: 0.5 degrees
        assert panel.placement.head_locked
        assert panel.placement.position_m[2] == layout.DISTANCE_M
        assert box_of(panel)[1] > 0


def test_no_title_can_format_the_display() -> None:
    step = wire.StepName(id=1, title="Torque <size=900>")
    told = guidance(text="<b>Torque</b> < 5 Nm", severity="caution", current_step=step)
    for panel in layout.text_panels(told, "<sprite=1>"):
        assert "<" not in panel.text


async def test_what_covers_the_guidance_is_not_confirmed_as_the_guidance(wearer: Wearer) -> None:
    wearer.display.cover("I can't see: the server does not answer.")
    await until(lambda: wearer.app.texts_on_show)
    wearer.display.show(guidance(4))
    await until(lambda: "2 of 9 steps done" in wearer.app.texts_on_show)
    assert " ".join(wearer.app.texts_on_show[0].split()).startswith("I can't see")
    assert wearer.states == []
    wearer.display.cover("")
    await until(lambda: wearer.states == [(4, True, "")])
    assert wearer.app.texts_on_show[0] == "Fit the wheel."


async def test_a_cleared_display_shows_nothing() -> None:
    async with headset_with() as headset:
        watching = Wearer(headset)
        async with running(watching):
            watching.display.show(guidance(4))
            await until(lambda: watching.shown)
        assert watching.app.texts_on_show
        await watching.display.clear()
        assert watching.app.texts_on_show == []
