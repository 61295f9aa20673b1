"""Plays stored packets as several headsets, each through a `Sender` of its own.

Run as a process: `python -m keystep_server.load.generator`, settings as JSON on its standard input,
one line of JSON when all have joined, and one at the end. Closing its input ends it early.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from keystep_capture.errors import KeystepError
from keystep_capture.sender import Sender, Source
from keystep_server.load.packets import StoredPackets

CLOCK_EVERY_NS = 1_000_000_000
FINISH_S = 120.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one generator process does."""

    packets: str
    server: str
    devices: list[str]
    phases: list[float]
    seconds: float | None = None
    close: bool = False
    kind: Literal["expert", "guided"] = "guided"


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Every headset's session."""

    sessions: dict[str, str]


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: packets sent and dropped for want of credit, how late they were offered."""

    sent: dict[str, dict[str, int]]
    dropped: dict[str, dict[str, int]]
    late_p95_ms: float
    late_max_ms: float


class Headset:
    """One simulated headset's packets on their way, at life speed."""

    def __init__(self, device: str, phase_s: float, stored: StoredPackets, settings: Settings):
        streams = tuple(dict.fromkeys(packet.stream for packet in stored.packets))
        source = Source(
            device=device, client="keystep bench load", streams=streams, kind=settings.kind
        )
        self.device = device
        self.late_ms: list[float] = []
        self.sender = Sender(
            source,
            server=settings.server,
            instance=f"{device}-{time.monotonic_ns()}",
        )
        self._phase_ns = round(phase_s * 1e9)
        self._stored = stored

    async def joined(self) -> None:
        """Wait until the server has welcomed it."""
        while self.sender.state == "connecting":  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.02)

    async def play(self, start_ns: int, stop: asyncio.Event, end_ns: int | None) -> None:
        """Offer each packet when it is due; a packet's device time is when it was due."""
        start_ns += self._phase_ns
        clock_due_ns = 0
        for offset_ns, packet in self._stored.endless():
            due_ns = start_ns + offset_ns
            if stop.is_set() or (end_ns is not None and due_ns >= end_ns):
                return
            now_ns = time.monotonic_ns()
            if due_ns > now_ns:
                await asyncio.sleep((due_ns - now_ns) / 1e9)
                now_ns = time.monotonic_ns()
            if now_ns >= clock_due_ns:
                self._tell_clock(now_ns)
                clock_due_ns = now_ns + CLOCK_EVERY_NS
            if packet.stream == "rgb":
                self.late_ms.append((now_ns - due_ns) / 1e6)
            self.sender.offer(
                packet.stream,
                due_ns,
                packet.payload,
                encoding=packet.encoding,
                keyframe=packet.keyframe,
                width=packet.width,
                height=packet.height,
            )

    def _tell_clock(self, now_ns: int) -> None:
        """The headset's clock is this machine's: nothing is uncertain on this hop."""
        self.sender.tell_device_clock(
            device_time_ns=now_ns, bridge_time_ns=now_ns, uncertainty_ns=0, rate=1.0
        )


async def run(settings: Settings) -> Played:
    """Play until the time is over or the input is closed."""
    stored = StoredPackets.read(Path(settings.packets))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, _stop_at_end_of_input, loop, stop)
    headsets = [
        Headset(device, phase_s, stored, settings)
        for device, phase_s in zip(settings.devices, settings.phases, strict=True)
    ]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(headset.sender.run()) for headset in headsets]
        await asyncio.gather(*(headset.joined() for headset in headsets))
        _say(Joined(sessions={h.device: str(h.sender.session) for h in headsets}))
        start_ns = time.monotonic_ns()
        end_ns = None if settings.seconds is None else start_ns + round(settings.seconds * 1e9)
        await asyncio.gather(*(headset.play(start_ns, stop, end_ns) for headset in headsets))
        if settings.close:
            await asyncio.gather(
                *(h.sender.finish(close=True, timeout_s=FINISH_S) for h in headsets)
            )
        for task in running:
            task.cancel()
    late_ms = np.concatenate([headset.late_ms for headset in headsets] or [[0.0]])
    return Played(
        sent={headset.device: headset.sender.sent() for headset in headsets},
        dropped={headset.device: headset.sender.dropped() for headset in headsets},
        late_p95_ms=float(np.percentile(late_ms, 95)),
        late_max_ms=float(late_ms.max()),
    )


def _stop_at_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(0, 1024):
        loop.remove_reader(0)
        stop.set()


def _say(message: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read the settings, play, tell."""
    settings = msgspec.json.decode(sys.stdin.readline(), type=Settings)
    try:
        played = asyncio.run(run(settings))
    except* KeystepError as errors:
        sys.exit(f"the load generator failed: {errors.exceptions[0]}")
    with contextlib.suppress(BrokenPipeError):
        _say(played)


if __name__ == "__main__":
    main()
