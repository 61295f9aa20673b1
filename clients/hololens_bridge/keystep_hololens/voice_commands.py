"""What the wearer says: heard by the headset, passed on to the server until it is answered."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.client import Backoff
from keystep_hololens.hl2ss.message_client import open_voice_input
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT
from keystep_hololens.hl2ss.voice_input import Confidence

PHRASES = ("next", "back", "done", "repeat", "pause", "go on", "start recording", "stop recording")
"""What the headset listens for: the commands of docs/wire.md, spoken as they are written."""
POLL_EVERY_S = 0.1
GIVE_UP_NS = 10_000_000_000
"""A command that the server does not answer for so long is no longer what the wearer wants."""
MAX_PENDING = 8

log = structlog.get_logger(__name__)


async def listen(
    host: str,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    on_command: Callable[[str], None],
    read_timeout_s: float = 5.0,
) -> None:
    """Hear commands on a headset; ends only when cancelled, and dials again whatever happens.

    What the headset is not fairly sure of (low confidence) is not acted on.

    Args:
        host: The headset.
        base_port: Port of its first service.
        on_command: Told of each command, in order.
        read_timeout_s: How long the headset may take to answer.
    """
    backoff, told = Backoff(initial_s=0.25, maximum_s=5.0), ""
    while True:
        try:
            async with open_voice_input(
                host, PHRASES, base_port=base_port, read_timeout_s=read_timeout_s
            ) as voice:
                while True:
                    for heard in await voice.poll():
                        phrase = voice.phrase_of(heard)
                        if phrase is not None and heard.confidence <= Confidence.MEDIUM:
                            on_command(phrase)
                    backoff.reset()
                    told = ""
                    await asyncio.sleep(POLL_EVERY_S)
        except DeviceError as error:
            if told != str(error):
                told = str(error)
                log.warning("voice commands are not heard, trying again", reason=told)
        await backoff.wait()


@dataclass(frozen=True, slots=True)
class _Pending:
    command: str
    given_ns: int


class CommandLine:
    """Commands on their way to the server: sent again, with the same id, until answered."""

    def __init__(
        self, send: Callable[[str, str], None], *, clock: Clock = time.monotonic_ns
    ) -> None:
        """Take how to send.

        Args:
            send: Sends a command and its id; it may get lost.
            clock: Monotonic clock, ns.
        """
        self._send = send
        self._clock = clock
        self._pending: OrderedDict[str, _Pending] = OrderedDict()

    def give(self, command: str) -> None:
        """Send a new command."""
        command_id = secrets.token_hex(8)
        self._pending[command_id] = _Pending(command, self._clock())
        while len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
        self._send(command, command_id)

    def send_again(self) -> None:
        """Send what is not answered yet, after the connection was made anew."""
        for command_id, pending in self._pending.items():
            self._send(pending.command, command_id)

    def take(self, result: wire.CommandResult) -> str:
        """Take an answer; what the wearer is to be told, empty for nothing (or one known)."""
        pending = self._pending.pop(result.command_id, None)
        return result.text if pending is not None else ""

    def give_up(self) -> list[str]:
        """Let go of the commands that were not answered in time, and name them."""
        limit_ns = self._clock() - GIVE_UP_NS
        late = [name for name, one in self._pending.items() if one.given_ns <= limit_ns]
        return [self._pending.pop(name).command for name in late]
