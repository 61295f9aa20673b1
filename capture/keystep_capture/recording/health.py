"""Judges a recording: is everything there that a training or a replay needs?

One reading in order of arrival; of a packet its two times and a flag are kept, nothing else.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from keystep_capture.recording.entries import RecordedNote
from keystep_capture.recording.measures import (
    ClockHealth,
    LaneHealth,
    LaneTimes,
    TickHealth,
    is_adapting,
    measure_clock,
    measure_lane,
    measure_ticks,
)
from keystep_capture.recording.notes import ClockNote, DropNote
from keystep_capture.recording.reader import Recording

MAX_PACKETS: Final = 5_000_000
"""Packets judged; a longer recording is judged by its first ones and says so."""

_STEADY_HZ: Final = 0.1
"""Streams that are rarer come once in a while (calibration), so nothing follows from when."""

Verdict: TypeAlias = Literal["good", "usable", "poor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a verdict is made of; each limit broken gives a reason.

    Attributes:
        lost_share: Packets lost on the way, of those sent.
        slow_share: A stream's rate as a share of its nominal rate.
        tick_share: Ticks with every cue that the recording has.
        keyframe_s: Time between two key frames.
        edge_s: By how much a stream may begin later, or end sooner, than its epoch.
        drift_ppm: How fast two clocks drift apart.
    """

    lost_share: float = 0.01
    slow_share: float = 0.8
    tick_share: float = 0.9
    keyframe_s: float = 2.0
    edge_s: float = 5.0
    drift_ppm: float = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A recording's health; `reasons` say what the verdict rests on, worst first."""

    path: Path
    verdict: Verdict
    reasons: tuple[str, ...]
    finished: bool
    part_count: int
    size_bytes: int
    packet_count: int
    chunk_count: int
    unchecked_chunk_count: int
    damage: tuple[str, ...]
    dropped: dict[str, int]
    truncated: bool
    lanes: tuple[LaneHealth, ...]
    clocks: tuple[ClockHealth, ...]
    ticks: tuple[TickHealth, ...]


def check(path: Path, *, limits: Limits | None = None) -> Health:
    """Read a whole recording and judge it.

    Args:
        path: A file or a folder of parts.
        limits: What the verdict is made of.

    Raises:
        DataError: It is no recording at all.
        OSError: It cannot be read.
    """
    lanes: dict[tuple[int, str], LaneTimes] = {}
    clocks: dict[int, list[ClockNote]] = {}
    dropped: Counter[str] = Counter()
    count, truncated = 0, False
    with Recording(path) as recording:
        for entry in recording.entries(skip_damage=True):
            if isinstance(entry, RecordedNote):
                _take_note(entry, clocks, dropped)
                continue
            if count == MAX_PACKETS:
                truncated = True
                break
            count += 1
            key = (entry.header.epoch, entry.header.stream)
            lanes.setdefault(key, LaneTimes()).take(entry)
        judged = tuple(measure_lane(*key, lane) for key, lane in sorted(lanes.items()))
        epochs = sorted({epoch for epoch, _ in lanes})
        unchecked = sum(
            not part.stored_crc(idx) for part in recording.parts for idx in range(part.chunk_count)
        )
        found = Health(
            path=path,
            verdict="good",
            reasons=(),
            finished=recording.finished,
            part_count=len(recording.parts),
            size_bytes=recording.size_bytes,
            packet_count=count,
            chunk_count=sum(part.chunk_count for part in recording.parts),
            unchecked_chunk_count=unchecked,
            damage=tuple(map(str, recording.damage)),
            dropped=dict(dropped),
            truncated=truncated,
            lanes=judged,
            clocks=tuple(
                clock
                for epoch in epochs
                if (clock := measure_clock(epoch, clocks.get(epoch, ()), judged)) is not None
            ),
            ticks=tuple(
                ticks for epoch in epochs if (ticks := measure_ticks(epoch, lanes)) is not None
            ),
        )
    return _with_verdict(found, limits or Limits())


def _take_note(
    entry: RecordedNote, clocks: dict[int, list[ClockNote]], dropped: Counter[str]
) -> None:
    note = entry.note
    if isinstance(note, DropNote):
        dropped.update(note.dropped)
    elif isinstance(note, ClockNote) and (note.remote, note.local) == ("device", "server"):
        kept = clocks.setdefault(note.epoch, [])
        if len(kept) < 100_000:
            kept.append(note)


# -- the verdict -----------------------------------------------------------------------------------


def _with_verdict(health: Health, limits: Limits) -> Health:
    poor = list(_poor(health))
    weak = list(_weak(health, limits))
    verdict: Verdict = "poor" if poor else "usable" if weak else "good"
    return replace(health, verdict=verdict, reasons=(*poor, *weak))


def _poor(health: Health) -> list[str]:
    reasons = []
    if not health.packet_count:
        reasons.append("it holds no packet")
    broken = [one for one in health.damage if "checksum" in one or "unpack" in one]
    if broken:
        reasons.append(f"{len(broken)} damaged chunks, the first: {broken[0]}")
    for lane in health.lanes:
        if lane.starts_with_keyframe is not None and not lane.keyframe_count:
            reasons.append(f"{_name(lane)} has no key frame: its video cannot be decoded")
    return reasons


def _weak(health: Health, limits: Limits) -> list[str]:
    reasons = []
    if not health.finished:
        reasons.append(f"it was not closed: {health.damage[0] if health.damage else ''}".strip())
    elif health.damage:
        reasons.append(f"damaged: {health.damage[0]}")
    if health.truncated:
        reasons.append(f"only its first {MAX_PACKETS} packets were judged")
    if health.unchecked_chunk_count:
        reasons.append(f"{health.unchecked_chunk_count} chunks have no checksum")
    if health.dropped:
        lost = ", ".join(f"{name} {count}" for name, count in sorted(health.dropped.items()))
        reasons.append(f"left out while it was recorded: {lost}")
    for lane in health.lanes:
        reasons.extend(_weak_lane(lane, limits))
    reasons.extend(_cut_short(health.lanes, limits))
    for clock in health.clocks:
        if clock.drift_ppm is not None and abs(clock.drift_ppm) > limits.drift_ppm:
            reasons.append(f"epoch {clock.epoch}: clocks drift by {clock.drift_ppm:.0f} ppm")
    for ticks in health.ticks:
        if ticks.complete_share < limits.tick_share:
            worst = min(ticks.cue_shares, key=ticks.cue_shares.__getitem__)
            reasons.append(
                f"epoch {ticks.epoch}: {ticks.complete_share:.0%} of the ticks have every cue; "
                f"{worst} is in {ticks.cue_shares[worst]:.0%}"
            )
    return reasons


def _weak_lane(lane: LaneHealth, limits: Limits) -> list[str]:
    name, reasons = _name(lane), []
    lost_share = lane.lost_count / (lane.lost_count + lane.packet_count)
    if lost_share > limits.lost_share:
        reasons.append(f"{name} lost {lane.lost_count} packets ({lost_share:.1%})")
    rate_hz = None if is_adapting(lane.stream) else lane.rate_hz
    if rate_hz is not None and rate_hz < limits.slow_share * lane.nominal_hz:
        reasons.append(f"{name} has {rate_hz:.1f} Hz, nominal {lane.nominal_hz:g}")
    if lane.stall_count:
        reasons.append(f"{name} stalled {lane.stall_count} times, up to {lane.longest_gap_s:.1f} s")
    if lane.reordered_count:
        reasons.append(f"{name} has {lane.reordered_count} packets out of order")
    if lane.repeated_count:
        reasons.append(f"{name} has {lane.repeated_count} packets with a number used before")
    if lane.starts_with_keyframe is False and lane.keyframe_count:
        reasons.append(f"{name} begins without a key frame: its first pictures are lost")
    spacing_s = lane.keyframe_spacing_s
    if spacing_s is not None and spacing_s > limits.keyframe_s:
        reasons.append(f"{name} has {spacing_s:.1f} s between key frames")
    return reasons


def _cut_short(lanes: Iterable[LaneHealth], limits: Limits) -> Iterator[str]:
    """Streams that came later or ended sooner than the others of their epoch.

    No gap tells of that: a sensor that fell silent for good has a perfect rate until then.
    """
    steady = [lane for lane in lanes if lane.nominal_hz >= _STEADY_HZ]
    for _, group in itertools.groupby(steady, key=lambda lane: lane.epoch):
        mine = [(lane, int(lane.times_ns.min()), int(lane.times_ns.max())) for lane in group]
        first_ns, last_ns = min(one[1] for one in mine), max(one[2] for one in mine)
        for lane, begin_ns, end_ns in mine:
            slack_s = max(limits.edge_s, 3 / lane.nominal_hz)
            late_s, missing_s = (begin_ns - first_ns) / 1e9, (last_ns - end_ns) / 1e9
            if late_s > slack_s:
                yield f"{_name(lane)} begins {late_s:.0f} s after the first stream"
            if missing_s > slack_s:
                yield f"{_name(lane)} ends {missing_s:.0f} s before the last stream"


def _name(lane: LaneHealth) -> str:
    return lane.stream if lane.epoch <= 1 else f"{lane.stream} (epoch {lane.epoch})"
