"""Guidance on the headset: drawn in whole display lists, spoken, and confirmed.

The newest guidance wins; nothing is queued. Whatever happens to the headset, `run` goes on: it
dials again, clears what an earlier client left, and draws the newest guidance once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.errors import DeviceError
from keystep_hololens.display_layout import StepImage, picture_panel, read_image, text_panels
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss.client import Backoff
from keystep_hololens.hl2ss.message_client import UnityMessageClient, open_unity_messages
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT

CHECK_EVERY_S = 2.0
"""So often an idle headset is asked whether it is still there."""
NOTE_S = 5.0
GATHER_NS = 150_000_000
"""Words that come within this are spoken as one: a headset's new sentence cuts off its last."""
ASK_AGAIN_NS = 2_000_000_000
CLEAR_S = 1.0
"""So long the end of a bridge waits for a headset that is to show nothing any more."""
_MAX_PICTURES = 16
_MAX_WORDS = 4

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """Whether a revision is on show.

    Attributes:
        revision: The guidance's.
        displayed: Whether the wearer sees it.
        time_ns: When the headset confirmed it, or when it was found that it is not shown.
        reason: A word for why not (docs/wire.md, guidance_ack).
    """

    revision: int
    displayed: bool
    time_ns: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _View:
    """All that is on show."""

    guidance: wire.Guidance | None
    note: str
    picture: str | None


class Display:
    """One headset's display; all methods belong to one event loop."""

    def __init__(
        self,
        host: str,
        *,
        base_port: int = DEFAULT_BASE_PORT,
        on_showing: Callable[[Showing], None] = lambda _: None,
        ask_picture: Callable[[str], None] = lambda _: None,
        clock: Clock = time.monotonic_ns,
        read_timeout_s: float = 5.0,
    ) -> None:
        """Prepare; `run` connects.

        Args:
            host: The headset.
            base_port: Port of its first service.
            on_showing: Told of each revision that is on show, or why it is not.
            ask_picture: Asked for a picture; `put_picture` brings it.
            clock: Monotonic clock, ns.
            read_timeout_s: How long the headset may take to answer.
        """
        self._host, self._base_port = host, base_port
        self._on_showing, self._ask_picture = on_showing, ask_picture
        self._clock = clock
        self._read_timeout_s = read_timeout_s
        self._guidance: wire.Guidance | None = None
        self._blind = ""  # what is said in the guidance's place
        self._shown_ns: int | None = None  # when the newest guidance was confirmed; None: not yet
        self._note, self._note_until_ns = "", 0
        self._words: deque[str] = deque(maxlen=_MAX_WORDS)
        self._spoken_revision = 0
        self._speak_due_ns: int | None = None
        self._speech_refused = False
        self._pictures: OrderedDict[str, StepImage | None] = OrderedDict()
        self._asked_ns: dict[str, int] = {}
        self._trouble = ""
        self._told = ""
        self._wake = asyncio.Event()
        self._on_show: _View | None = None
        self._text_keys: tuple[int, ...] = ()
        self._picture_key: int | None = None

    # -- what the caller does --------------------------------------------------------------------

    def show(self, guidance: wire.Guidance) -> None:
        """Put a guidance on show in place of all before it; the same again is confirmed again."""
        if guidance != self._guidance:
            self._guidance, self._shown_ns = guidance, None
        if self._trouble:
            self._report(displayed=False)
        elif self._shown_ns is not None:
            self._report(displayed=True)
        self._wake.set()

    def cover(self, text: str) -> None:
        """Show this in the guidance's place, which may be stale; empty: the guidance again."""
        if text != self._blind:
            self._blind = text
            self._wake.set()

    async def clear(self) -> None:
        """Take everything off the display, if the headset is there; not beside `run`."""
        with contextlib.suppress(DeviceError, TimeoutError):
            async with (
                asyncio.timeout(CLEAR_S),
                open_unity_messages(self._host, base_port=self._base_port) as messages,
            ):
                await messages.exchange(*umq.display_list(umq.REMOVE_ALL))

    def tell(self, text: str) -> None:
        """Show a short note for some seconds and speak it."""
        self._note = text
        self._note_until_ns = self._clock() + int(NOTE_S * 1e9)
        self._words.append(text)
        self._wake.set()

    def put_picture(self, picture: str, image: bytes) -> None:
        """Take a picture that was asked for."""
        read = read_image(image)
        if read is None:
            log.warning("a picture cannot be decoded and is not shown", picture=picture)
        self._pictures[picture] = read
        while len(self._pictures) > _MAX_PICTURES:
            self._pictures.popitem(last=False)
        self._asked_ns.pop(picture, None)
        self._wake.set()

    async def run(self) -> None:
        """Keep the newest guidance on show; ends only when cancelled."""
        backoff = Backoff(initial_s=0.25, maximum_s=5.0)
        while True:
            reason = "unreachable"
            try:
                async with open_unity_messages(
                    self._host, base_port=self._base_port, read_timeout_s=self._read_timeout_s
                ) as messages:
                    reason = "no_answer"
                    await self._begin(messages)
                    reason = "lost"
                    backoff.reset()
                    await self._keep_showing(messages)
            except DeviceError as error:
                self._fail(reason, str(error))
            await backoff.wait()

    # -- one connection --------------------------------------------------------------------------

    async def _begin(self, messages: UnityMessageClient) -> None:
        """Clear what an earlier client left; wait while there is no scene to put anything in."""
        while umq.NO_SCENE in await messages.exchange(*umq.display_list(umq.REMOVE_ALL)):
            self._fail(
                "no_scene",
                "the headset runs hl2ss's stand-alone app, which shows nothing: start a Unity app"
                " with hl2ss's plugin and remote scene script",
            )
            await asyncio.sleep(CHECK_EVERY_S)
        self._on_show, self._text_keys, self._picture_key = None, (), None
        self._shown_ns = None
        if self._trouble:
            log.info("the headset's display is there", host=self._host)
        self._trouble = self._told = ""

    async def _keep_showing(self, messages: UnityMessageClient) -> None:
        while True:
            self._wake.clear()
            self._ask_for_picture()
            wanted = self._wanted()
            if wanted != self._on_show:
                await self._draw(messages, wanted)
            await self._speak(messages)
            if not await self._changed() and not await messages.has_scene():
                raise DeviceError("the headset's app has no scene any more")

    async def _changed(self) -> bool:
        """Wait until there may be something to draw; False where nothing came for a while."""
        due_ns = [self._note_until_ns] if self._note else []
        due_ns += [] if self._speak_due_ns is None else [self._speak_due_ns]
        now_ns = self._clock()
        wait_s = min([CHECK_EVERY_S, *((max(0, due - now_ns) + 1e6) / 1e9 for due in due_ns)])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        return self._wake.is_set() or bool(due_ns)

    def _wanted(self) -> _View:
        if self._note and self._clock() >= self._note_until_ns:
            self._note = ""
        guidance = self._guidance
        if self._blind:
            guidance = _unseeing(guidance, self._blind)
        picture = guidance.picture if guidance is not None else None
        if picture is None or self._pictures.get(picture) is None:
            picture = None
        if guidance is not None and guidance.severity == "cannot_see":
            picture = None
        return _View(guidance, self._note, picture)

    async def _draw(self, messages: UnityMessageClient, view: _View) -> None:
        """Replace what is on show, in one rendered frame; a picture that stays is not sent again.

        Raises:
            DeviceError: The headset is gone or refused; it is unknown then what it shows.
        """
        picture = self._pictures[view.picture] if view.picture is not None else None
        panels = text_panels(view.guidance, view.note, with_picture=picture is not None)
        keeps = self._on_show is not None and view.picture == self._on_show.picture
        gone = list(self._text_keys)
        recipes = [message for panel in panels for message in umq.panel_recipe(panel)]
        if not keeps:
            gone += [] if self._picture_key is None else [self._picture_key]
            recipes += [] if picture is None else umq.panel_recipe(picture_panel(picture))
        keys = await messages.run(*map(umq.remove, gone), *recipes)
        self._text_keys = keys[: len(panels)]
        if not keeps:
            self._picture_key = keys[-1] if picture is not None else None
        confirmed_ns, self._on_show = self._clock(), view
        if view.guidance is not None and view.guidance == self._guidance and not self._shown_ns:
            self._shown_ns = confirmed_ns
            self._report(displayed=True)

    async def _speak(self, messages: UnityMessageClient) -> None:
        """Say, in one sentence, what came within a moment and was not said yet."""
        guidance, words = self._guidance, list(self._words)
        revision = self._spoken_revision if guidance is None else guidance.spoken_revision
        if guidance is not None and revision != self._spoken_revision:
            words.append(guidance.spoken)
        text = " ".join(filter(None, words))
        if text:
            now_ns = self._clock()
            if self._speak_due_ns is None:
                self._speak_due_ns = now_ns + GATHER_NS
            if now_ns < self._speak_due_ns:
                return
            said = len(self._words)
            await self._say(messages, text)
            for _ in range(said):
                self._words.popleft()
        self._spoken_revision, self._speak_due_ns = revision, None

    async def _say(self, messages: UnityMessageClient, text: str) -> None:
        """Say a sentence; a headset without a voice is named once and left at that."""
        (reply,) = await messages.exchange(umq.say(text))
        if reply != umq.DONE and not self._speech_refused:
            self._speech_refused = True
            log.warning("the headset's app does not speak; guidance is shown only")

    # -- pictures and reports --------------------------------------------------------------------

    def _ask_for_picture(self) -> None:
        picture = self._guidance.picture if self._guidance is not None else None
        if picture is None or picture in self._pictures:
            return
        now_ns, asked_ns = self._clock(), self._asked_ns.get(picture)
        if asked_ns is None or now_ns - asked_ns >= ASK_AGAIN_NS:
            self._asked_ns = {picture: now_ns}
            self._ask_picture(picture)

    def _fail(self, reason: str, message: str) -> None:
        """Say once what is wrong, in the log and with the newest revision to the server."""
        if self._told != message:
            self._told = message
            log.warning("guidance is not on the headset", reason=reason, error=message)
        self._shown_ns = None
        if self._trouble != reason:
            self._trouble = reason
            self._report(displayed=False)

    def _report(self, *, displayed: bool) -> None:
        if self._guidance is None:
            return
        self._on_showing(
            Showing(
                revision=self._guidance.revision,
                displayed=displayed,
                time_ns=self._shown_ns if displayed and self._shown_ns else self._clock(),
                reason="" if displayed else self._trouble,
            )
        )


def _unseeing(guidance: wire.Guidance | None, text: str) -> wire.Guidance:
    """A guidance that says only that nothing can be said."""
    if guidance is None:
        return wire.Guidance(
            protocol=wire.PROTOCOL,
            revision=0,
            severity="cannot_see",
            current_step=None,
            next_step=None,
            text=text,
            progress=(0, 0),
            device_time_ns=0,
        )
    return msgspec.structs.replace(guidance, severity="cannot_see", text=text)
