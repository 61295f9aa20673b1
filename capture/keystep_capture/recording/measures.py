"""What a recording's health is made of: streams, clocks and ticks, measured from packets' times."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from keystep_capture.align import TickAligner
from keystep_capture.recording.entries import RecordedPacket
from keystep_capture.recording.notes import ClockNote
from keystep_capture.streams import STREAMS

TICK_RATE_HZ: Final = 10.0

Times: TypeAlias = NDArray[np.int64]

_NS = 1e9
# Order in which a stream is tried as the one that leads the ticks.
_LEADING = ("rgb", "detections", "head", "gaze", "hands")
_CUES = (*_LEADING, "depth", "depth_ahat")
_STALL_S, _ADAPTING_STALL_S = 1.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneHealth:
    """One stream of one epoch.

    Attributes:
        stream: The stream.
        epoch: The epoch.
        packet_count: Packets recorded.
        byte_count: Their payloads.
        rate_hz: Packets a second of device time; None below two packets.
        nominal_hz: What the table of streams says.
        lost_count: Numbers missing in its sequence.
        gap_count: Places where numbers are missing.
        longest_gap_s: Longest time between two packets, device time.
        stall_count: Times without a packet of more than three periods and a second; three seconds,
            where the sensor slows down as it likes.
        jitter_ms: 95th percentile of how far an interval is from the median one; None below three.
        reordered_count: Packets whose device time is before an earlier packet's.
        repeated_count: Packets whose number came before.
        empty_count: Packets in which the sensor had nothing (`valid` 0).
        keyframe_count: Key frames, of a video.
        keyframe_spacing_s: Longest time between key frames; None below two.
        starts_with_keyframe: Whether the first picture can be decoded; None: no video.
        times_ns: Device times, in order of arrival.
        arrival_ns: Arrival times.
        keyframe_times_ns: Device times of key frames.
    """

    stream: str
    epoch: int
    packet_count: int
    byte_count: int
    rate_hz: float | None
    nominal_hz: float
    lost_count: int
    gap_count: int
    longest_gap_s: float
    stall_count: int
    jitter_ms: float | None
    reordered_count: int
    repeated_count: int
    empty_count: int
    keyframe_count: int
    keyframe_spacing_s: float | None
    starts_with_keyframe: bool | None
    times_ns: Times = field(repr=False)
    arrival_ns: Times = field(repr=False)
    keyframe_times_ns: Times = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockHealth:
    """How the device's clock stood to the arrival clock in one epoch.

    Attributes:
        epoch: The epoch.
        source: `measured` by round trips, or taken from the `arrivals` (then the shortest delay
            on the way is part of the offset).
        offset_ns: Arrival clock minus device clock at the beginning.
        drift_ppm: How many microseconds a second the offset grows; None below ten seconds.
        uncertainty_ns: Bound of the offset's error; None from arrivals.
    """

    epoch: int
    source: Literal["measured", "arrivals"]
    offset_ns: int
    drift_ppm: float | None
    uncertainty_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TickHealth:
    """Ticks of one epoch at 10 Hz and the share of them that has each cue.

    `complete_share` counts those that have every cue that the epoch has at all.
    """

    epoch: int
    leading: str
    tick_count: int
    complete_share: float
    cue_shares: dict[str, float]
    complete_times_ns: Times = field(repr=False)


class LaneTimes:
    """What is kept of a lane while it is read: 17 bytes a packet."""

    def __init__(self) -> None:
        self.times, self.arrivals = array("q"), array("q")
        self.keyframes = array("q")
        self.valid = bytearray()
        self.byte_count = self.lost = self.gaps = self.repeated = 0
        self.newest_sequence = -1
        self.first_is_keyframe = self.is_video = False

    def take(self, packet: RecordedPacket) -> None:
        """Take the next packet in order of arrival."""
        header = packet.header
        if not self.times:
            self.first_is_keyframe = header.keyframe
            self.is_video = STREAMS[header.stream].encodings[header.encoding].video
        elif header.sequence > self.newest_sequence + 1:
            self.lost += header.sequence - self.newest_sequence - 1
            self.gaps += 1
        elif header.sequence <= self.newest_sequence:
            self.repeated += 1
        self.newest_sequence = max(self.newest_sequence, header.sequence)
        self.times.append(header.device_time_ns)
        self.arrivals.append(min(packet.receive_time_ns, 2**63 - 1))
        self.valid.append(header.valid != 0)
        self.byte_count += len(packet.payload)
        if header.keyframe:
            self.keyframes.append(header.device_time_ns)


def is_adapting(stream: str) -> bool:
    """Whether a stream's rate is the sensor's choice (depth, grey cameras) or of no matter."""
    return STREAMS[stream].lateness_s == 0.0


def measure_lane(epoch: int, stream: str, lane: LaneTimes) -> LaneHealth:
    """Measure one stream of one epoch; it has at least one packet."""
    spec = STREAMS[stream]
    times = np.array(lane.times, np.int64)
    in_order = np.sort(times)
    intervals = np.diff(in_order)
    span_ns = int(in_order[-1] - in_order[0])
    shortest_s = _ADAPTING_STALL_S if is_adapting(stream) else _STALL_S
    stall_ns = max(shortest_s, 3 / spec.rate_hz) * _NS
    keyframes = np.sort(np.array(lane.keyframes, np.int64))
    # A packet is reordered when any before it is newer.
    newest_before = np.maximum.accumulate(times)[:-1]
    return LaneHealth(
        stream=stream,
        epoch=epoch,
        packet_count=len(times),
        byte_count=lane.byte_count,
        rate_hz=(len(times) - 1) * _NS / span_ns if span_ns else None,
        nominal_hz=spec.rate_hz,
        lost_count=lane.lost,
        gap_count=lane.gaps,
        longest_gap_s=float(intervals.max(initial=0)) / _NS,
        stall_count=int((intervals > stall_ns).sum()),
        jitter_ms=_jitter_ms(intervals),
        reordered_count=int((times[1:] < newest_before).sum()),
        repeated_count=lane.repeated,
        empty_count=lane.valid.count(0),
        keyframe_count=len(keyframes),
        keyframe_spacing_s=float(np.diff(keyframes).max()) / _NS if len(keyframes) > 1 else None,
        starts_with_keyframe=lane.first_is_keyframe if lane.is_video else None,
        times_ns=times,
        arrival_ns=np.array(lane.arrivals, np.int64),
        keyframe_times_ns=keyframes,
    )


def _jitter_ms(intervals: Times) -> float | None:
    if len(intervals) < 2:
        return None
    away = np.abs(intervals - np.median(intervals))
    return float(np.percentile(away, 95)) / 1e6


def measure_clock(
    epoch: int, notes: Sequence[ClockNote], lanes: Sequence[LaneHealth]
) -> ClockHealth | None:
    """How an epoch's clocks stood to each other; None where nothing tells.

    Args:
        epoch: The epoch.
        notes: Its readings of the device's clock on the server's.
        lanes: What was measured of the streams, used where there are no readings.
    """
    if notes:
        remote = np.array([note.remote_time_ns for note in notes], np.float64)
        offsets = np.array([note.local_time_ns - note.remote_time_ns for note in notes], np.float64)
        return ClockHealth(
            epoch=epoch,
            source="measured",
            offset_ns=notes[0].local_time_ns - notes[0].remote_time_ns,
            drift_ppm=_slope_ppm(remote, offsets),
            uncertainty_ns=min(note.uncertainty_ns for note in notes),
        )
    mine = [lane for lane in lanes if lane.epoch == epoch and lane.arrival_ns.any()]
    if not mine:
        return None
    lane = max(mine, key=lambda one: one.packet_count)
    delays = lane.arrival_ns - lane.times_ns
    centres, lowest = _lower_envelope(lane.times_ns, delays)
    return ClockHealth(
        epoch=epoch,
        source="arrivals",
        offset_ns=int(delays[: max(1, len(delays) // 20)].min()),
        drift_ppm=_slope_ppm(centres, lowest),
        uncertainty_ns=None,
    )


def _lower_envelope(times: Times, delays: Times) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shortest delay in each of up to fifty stretches: those that waited in no queue."""
    edges = np.array_split(np.argsort(times, kind="stable"), min(50, max(1, len(times) // 20)))
    best = [stretch[np.argmin(delays[stretch])] for stretch in edges]
    return times[best].astype(np.float64), delays[best].astype(np.float64)


def _slope_ppm(times: NDArray[np.float64], offsets: NDArray[np.float64]) -> float | None:
    """Drift by the median slope between both halves (Theil 1950); stray points hardly move it."""
    if len(times) < 4 or times.max() - times.min() < 10 * _NS:
        return None
    half = len(times) // 2
    spans = times[-half:] - times[:half]
    usable = spans > 0
    if not usable.any():
        return None
    return float(np.median((offsets[-half:] - offsets[:half])[usable] / spans[usable])) * 1e6


def measure_ticks(epoch: int, lanes: Mapping[tuple[int, str], LaneTimes]) -> TickHealth | None:
    """Bring the packets' times into ticks, as a live session would."""
    streams = [stream for of, stream in lanes if of == epoch and stream in _CUES]
    leading = next((name for name in _LEADING if name in streams), None)
    if leading is None:
        return None
    aligner = TickAligner(leading=leading, others=streams, rate_hz=TICK_RATE_HZ)
    merged = _merged(lanes[epoch, stream] for stream in streams)
    present: Counter[str] = Counter()
    complete = array("q")
    count = 0
    pushed = (aligner.push(streams[rank], time, valid) for time, rank, valid in merged)
    for ticks in itertools.chain(pushed, (aligner.flush() for _ in range(1))):
        for tick in ticks:
            count += 1
            there = [name for name, one in tick.samples.items() if one is not None and one.value]
            present.update(there)
            if len(there) == len(streams):
                complete.append(tick.device_time_ns)
    if not count:
        return None
    return TickHealth(
        epoch=epoch,
        leading=leading,
        tick_count=count,
        complete_share=len(complete) / count,
        cue_shares={name: present[name] / count for name in streams},
        complete_times_ns=np.array(complete, np.int64),
    )


def _merged(lanes: Iterable[LaneTimes]) -> Iterator[tuple[int, int, bool]]:
    """Device time, lane and whether it is valid, of all packets in their order of arrival."""
    streams = list(lanes)
    arrivals = np.concatenate([np.array(lane.arrivals, np.int64) for lane in streams])
    times = np.concatenate([np.array(lane.times, np.int64) for lane in streams])
    valid = np.concatenate([np.frombuffer(bytes(lane.valid), np.uint8) for lane in streams])
    ranks = np.repeat(np.arange(len(streams)), [len(lane.times) for lane in streams])
    order = np.argsort(arrivals, kind="stable")
    for some in np.array_split(order, max(1, len(order) // 100_000)):
        yield from zip(
            times[some].tolist(),
            ranks[some].tolist(),
            valid[some].astype(bool).tolist(),
            strict=True,
        )
