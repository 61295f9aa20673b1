"""Plays a recording to a server through the same wire, losing nothing.

Packets go in their recorded order of arrival with their recorded numbers, so a gap in the recording
is a gap for the server, too. Only session, epoch, protocol and send time are the replay's own.
Where the recording's epoch goes up, the replay begins a new one as a restarted headset does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from keystep_capture import wire
from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_capture.key_files import DeviceKey
from keystep_capture.recording.entries import RecordedPacket
from keystep_capture.recording.reader import Recording
from keystep_capture.sender import Callbacks, Sender, Source

MAX_SPEED = 1000.0
"""The fastest `time_scale` the wire knows; said for a replay as fast as the server takes it."""
LONGEST_PAUSE_NS = 10_000_000_000
"""A pause between two packets is not played longer than this (of the recording's time)."""
FINISH_TIMEOUT_S = 600.0

# What a packet gets anew; all its other fields are played as they are.
_OWN_FIELDS = frozenset(
    {"protocol", "session", "epoch", "stream", "device_time_ns", "send_time_ns"}
)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a recording is played.

    Attributes:
        server: The server's endpoint, e.g. `tcp://127.0.0.1:8041`.
        speed: Recorded seconds a second; None: as fast as the server takes it.
        device: The device it is played as; None: the recorded one's id with `-replay`, so that it
            never enters a live session of the headset.
        kind: `expert` or `guided`; None: as recorded.
        task: None: as recorded.
        procedure: None: as recorded.
        method: The method that recognises steps; None: the server's choice.
        streams: Those played; None: all.
        key: What the device's key file holds; needed off loopback. It is then played as its device.
        close: Close the session at the end.
        connect_timeout_s: How long to wait for the server's first answer.
    """

    server: str
    speed: float | None = 1.0
    device: str | None = None
    kind: wire.SessionKind | None = None
    task: str | None = None
    procedure: str | None = None
    method: str | None = None
    streams: tuple[str, ...] | None = None
    key: DeviceKey | None = None
    close: bool = True
    connect_timeout_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What was played.

    Attributes:
        session: The server's name of the session.
        sent: Packets per stream.
        moved_count: Packets of an older epoch that came after a newer one had begun (of another
            source, say); they were played in the newer one.
        guidance_count: How often guidance came back.
    """

    session: str | None = None
    moved_count: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    guidance_count: int = 0


async def replay(
    recording: Recording,
    options: ReplayOptions,
    *,
    on_guidance: Callable[[wire.Guidance], None] = lambda _: None,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Sleep = asyncio.sleep,
) -> ReplayReport:
    """Play a recording to its end.

    Args:
        recording: Open for reading.
        options: Where to and how.
        on_guidance: Told of what the server would tell the wearer.
        clock: Monotonic clock, ns.
        sleep: How to wait until a packet's time.

    Raises:
        ConfigError: The speed is not above 0 and at most 1000.
        DataError: The recording is damaged, or has none of the streams.
        WireError: The server refused it.
        StateError: The server does not answer, or does not finish the session.
    """
    speed = options.speed
    if speed is not None and not 0 < speed <= MAX_SPEED:
        raise ConfigError(f"a replay's speed is above 0 and at most {MAX_SPEED:g}, got {speed:g}")
    streams = _streams(recording, options)
    report = ReplayReport()

    def heard(guidance: wire.Guidance) -> None:
        report.guidance_count += 1
        on_guidance(guidance)

    sender = Sender(
        _source(recording, options, streams),
        server=options.server,
        instance=secrets.token_hex(8),
        key=options.key,
        callbacks=Callbacks(on_guidance=heard),
        clock=clock,
    )
    running = asyncio.create_task(sender.run())
    playing = asyncio.create_task(
        _play(
            sender,
            recording.packets(streams),
            _Pace(speed, clock, sleep),
            report,
            options.connect_timeout_s,
        )
    )
    try:
        await asyncio.wait({running, playing}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            running.result()  # why it ended
        await playing
        await sender.finish(close=options.close, timeout_s=FINISH_TIMEOUT_S)
    finally:
        playing.cancel()
        running.cancel()
        await asyncio.gather(running, playing, return_exceptions=True)
    report.session = sender.session
    return report


async def _play(
    sender: Sender,
    packets: Iterable[RecordedPacket],
    pace: _Pace,
    report: ReplayReport,
    connect_timeout_s: float,
) -> None:
    epoch: int | None = None
    for packet in packets:
        if epoch is None:
            await _welcomed(sender, packet.header.stream, connect_timeout_s)
        await pace.wait_for(packet)
        header = packet.header
        if epoch is not None and header.epoch > epoch:
            await sender.acknowledged()
            sender.restart(secrets.token_hex(8))
        elif epoch is not None and header.epoch < epoch:
            report.moved_count += 1
        epoch = max(header.epoch, epoch if epoch is not None else 0)
        await sender.room(header.stream)
        fields = msgspec.structs.asdict(header)
        own = {name: value for name, value in fields.items() if name not in _OWN_FIELDS}
        sender.offer(header.stream, header.device_time_ns, packet.payload, **own)
        report.sent[header.stream] += 1


async def _welcomed(sender: Sender, stream: str, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await sender.room(stream)
    except TimeoutError:
        raise StateError(
            f"no answer from the server within {timeout_s:g} s: is it running there?"
        ) from None


def _streams(recording: Recording, options: ReplayOptions) -> tuple[str, ...]:
    there = tuple(dict.fromkeys(lane.stream for lane in recording.lanes))
    wanted = there if options.streams is None else options.streams
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise DataError(
            f"{recording.path}: has streams {', '.join(there) or 'none'}; "
            f"expected {', '.join(missing) or 'at least one'}"
        )
    return tuple(wanted)


def _source(recording: Recording, options: ReplayOptions, streams: tuple[str, ...]) -> Source:
    info = recording.info
    recorded_kind: wire.SessionKind = "expert" if info.kind == "expert" else "guided"
    device = options.device or f"{info.device[:50] or 'recording'}-replay"
    return Source(
        device=device if options.key is None else options.key.name,
        client="keystep replay",
        streams=streams,
        kind=options.kind or recorded_kind,
        task=options.task or info.task or None,
        procedure=options.procedure or info.procedure or None,
        method=options.method,
        replay=True,
        time_scale=options.speed or MAX_SPEED,
    )


class _Pace:
    """Waits for packets' times: arrival times where they are known, else device times."""

    def __init__(self, speed: float | None, clock: Callable[[], int], sleep: Sleep) -> None:
        self._speed = speed
        self._clock = clock
        self._sleep = sleep
        self._last_ns: int | None = None
        self._due_ns = 0.0

    async def wait_for(self, packet: RecordedPacket) -> None:
        if self._speed is None:
            return
        time_ns = packet.receive_time_ns or packet.header.device_time_ns
        if self._last_ns is None:
            self._due_ns = self._clock()
        else:
            pause_ns = min(max(0, time_ns - self._last_ns), LONGEST_PAUSE_NS)
            self._due_ns += pause_ns / self._speed
        self._last_ns = time_ns
        if (ahead_s := (self._due_ns - self._clock()) / 1e9) > 0.002:
            await self._sleep(ahead_s)
