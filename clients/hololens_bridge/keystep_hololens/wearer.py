"""The wearer's side of a bridge: the display, the voice, and their messages to the server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.sender import Sender
from keystep_hololens.display import Display, Showing
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT
from keystep_hololens.voice_commands import CommandLine, listen

LOOK_EVERY_S = 1.0
ALONE_AFTER_S = 3.0
"""A server that is away for this long is told to the wearer: what is on show may be stale."""
NO_SERVER = "I can't see: the server does not answer."


@dataclass(frozen=True, slots=True, kw_only=True)
class WearerConfig:
    """What of the headset is used for its wearer.

    Attributes:
        host: The headset's address.
        base_port: Port of its first service.
        display: Draw guidance (needs a Unity app with hl2ss's plugin and scene script).
        voice: Listen for commands.
    """

    host: str
    base_port: int = DEFAULT_BASE_PORT
    display: bool = True
    voice: bool = True


class Wearer:
    """Shows what the server says and tells it what the wearer says."""

    def __init__(
        self, config: WearerConfig, sender: Sender, *, clock: Clock = time.monotonic_ns
    ) -> None:
        """Prepare; `run` connects to the headset.

        Args:
            config: What to use.
            sender: The way to the server.
            clock: Monotonic clock, ns; the sender's.
        """
        self._config = config
        self._sender = sender
        self._clock = clock
        self._commands = CommandLine(sender.command, clock=clock)
        self._heard_ns = clock()
        self.display = Display(
            config.host,
            base_port=config.base_port,
            on_showing=self._confirm,
            ask_picture=sender.request_picture,
            clock=clock,
        )

    def join(self) -> None:
        """The server has welcomed the bridge, perhaps anew."""
        self._commands.send_again()
        self._heard_ns = self._clock()
        self.display.cover("")

    def take_guidance(self, guidance: wire.Guidance) -> None:
        """Put a guidance on show, and confirm it once it is."""
        if self._config.display:
            self.display.show(guidance)
        else:
            off = Showing(
                revision=guidance.revision, displayed=False, time_ns=self._clock(), reason="off"
            )
            self._confirm(off)

    def take_picture(self, message: wire.Picture, image: bytes) -> None:
        """Take a picture that the display asked for."""
        self.display.put_picture(message.picture, image)

    def take_result(self, result: wire.CommandResult) -> None:
        """Tell the wearer what became of a command."""
        text = self._commands.take(result)
        if text:
            self.display.tell(text)

    async def run(self) -> None:
        """Serve the wearer; ends only when cancelled, and leaves nothing on show."""
        config = self._config
        try:
            await self._serve(config)
        finally:
            if config.display:
                await self.display.clear()

    async def _serve(self, config: WearerConfig) -> None:
        async with asyncio.TaskGroup() as jobs:
            jobs.create_task(self._watch_commands())
            jobs.create_task(self._watch_server())
            if config.display:
                jobs.create_task(self.display.run())
            if config.voice:
                heard = self._commands.give
                jobs.create_task(listen(config.host, base_port=config.base_port, on_command=heard))

    async def _watch_commands(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for command in self._commands.give_up():
                self.display.tell(f'The server did not answer "{command}".')

    async def _watch_server(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S / 2)
            now_ns = self._clock()
            if self._sender.is_welcome:
                self._heard_ns = now_ns
            elif now_ns - self._heard_ns > ALONE_AFTER_S * 1e9:
                self.display.cover(NO_SERVER)

    def _confirm(self, showing: Showing) -> None:
        self._sender.acknowledge_guidance(
            showing.revision,
            displayed=showing.displayed,
            displayed_time_ns=showing.time_ns,
            reason=showing.reason,
        )
