"""Ticks: the streams brought to one instant of the model clock.

Ticks follow the device time of the leading stream. A tick waits for each other stream only as long
as that stream's own lateness limit, in data time, so a slow or stalled sensor delays nothing: what
is missing is marked missing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from keystep_capture.errors import ConfigError
from keystep_capture.streams import STREAMS

_NS = 1_000_000_000
_MAX_HELD = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A value of a stream at one device time."""

    device_time_ns: int
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The streams at one instant.

    Attributes:
        index: 0, 1, 2 ... within an epoch.
        device_time_ns: The leading stream's sample's own time.
        samples: Per stream the newest sample at or before the tick; None where it is missing.
    """

    index: int
    device_time_ns: int
    samples: Mapping[str, Sample | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignerState:
    """All that an aligner holds between two samples, so that another can go on from it.

    Attributes:
        leading: The stream whose samples make the ticks.
        index: Of the next tick.
        next_due_ns: No leading sample before this makes a tick; None before the first.
        newest_ns: Per stream.
        late_counts: Per stream.
        waiting: Leading samples whose ticks are not complete.
        held: Per stream the samples that a tick may still need.
    """

    leading: str
    index: int
    next_due_ns: int | None
    newest_ns: Mapping[str, int]
    late_counts: Mapping[str, int]
    waiting: tuple[Sample, ...]
    held: Mapping[str, tuple[Sample, ...]]


class TickAligner:
    """Turns pushed samples into ticks; one object per session and epoch."""

    def __init__(
        self,
        *,
        leading: str,
        others: Iterable[str],
        rate_hz: float = 10.0,
        previous_tick_ns: int | None = None,
    ) -> None:
        """Start without samples.

        Args:
            leading: The stream whose samples make the ticks.
            others: The streams that are looked up at each tick.
            rate_hz: Ticks a second of device time.
            previous_tick_ns: Where ticks of another leading stream went before: the first tick is
                a period after that one, so that time never runs back.

        Raises:
            ConfigError: A stream is not in the table or the rate is not positive.
        """
        joined = tuple(others)
        self._others = tuple(name for name in joined if name != leading)
        unknown = [name for name in (leading, *self._others) if name not in STREAMS]
        if unknown or not rate_hz > 0:
            raise ConfigError(f"ticks need known streams and a rate > 0, got {unknown}, {rate_hz}")
        self._leading = leading
        self._period_ns = round(_NS / rate_hz)
        self._next_due_ns = None if previous_tick_ns is None else previous_tick_ns + self._period_ns
        self._waiting: deque[Sample] = deque()
        # The leading stream's too, for an aligner that another stream will lead.
        self._held: dict[str, deque[Sample]] = {name: deque() for name in joined}
        self._newest_ns: dict[str, int] = {}
        self._index = 0
        self.late_counts: dict[str, int] = dict.fromkeys((leading, *self._others), 0)

    def wants(self, device_time_ns: int) -> bool:
        """Whether a leading sample of this time would make a tick (so is worth converting)."""
        return self._next_due_ns is None or device_time_ns >= self._next_due_ns

    @property
    def first_waiting(self) -> Sample | None:
        """The leading sample of the oldest tick that is not complete yet."""
        return self._waiting[0] if self._waiting else None

    def push(self, stream: str, device_time_ns: int, value: Any) -> list[Tick]:
        """Take a sample; return the ticks that are complete with it, in order.

        A sample older than its stream's newest is counted late and not used. A leading sample
        that makes no tick still moves time on. Streams that ticks do not hold are ignored.
        """
        if stream not in self.late_counts:
            return []
        newest_ns = self._newest_ns.get(stream)
        if newest_ns is not None and device_time_ns < newest_ns:
            self.late_counts[stream] += 1
            return []
        self._newest_ns[stream] = device_time_ns
        sample = Sample(device_time_ns=device_time_ns, value=value)
        if stream == self._leading:
            self._lead(sample)
        held = self._held.get(stream)
        if held is not None:
            held.append(sample)
            if len(held) > _MAX_HELD:
                held.popleft()
        return self._ready(flush=False)

    def flush(self) -> list[Tick]:
        """Give out the ticks still waiting: nothing more will come."""
        return self._ready(flush=True)

    def state(self) -> AlignerState:
        """What is held now; samples' values are not copied."""
        return AlignerState(
            leading=self._leading,
            index=self._index,
            next_due_ns=self._next_due_ns,
            newest_ns=dict(self._newest_ns),
            late_counts=dict(self.late_counts),
            waiting=tuple(self._waiting),
            held={name: tuple(samples) for name, samples in self._held.items()},
        )

    def go_on_from(self, state: AlignerState) -> None:
        """Take over what another aligner held of the streams that this one has.

        If another stream led it, the ticks it made are not made again: they go on after them.
        """
        self._index = state.index
        if state.next_due_ns is not None:
            own_ns = self._next_due_ns
            self._next_due_ns = max(
                state.next_due_ns, state.next_due_ns if own_ns is None else own_ns
            )
        self._newest_ns = {k: v for k, v in state.newest_ns.items() if k in self.late_counts}
        self.late_counts |= {k: n for k, n in state.late_counts.items() if k in self.late_counts}
        for name, held in self._held.items():
            held.extend(state.held.get(name, ()))
        if state.leading == self._leading:
            self._waiting.extend(state.waiting)

    def _lead(self, sample: Sample) -> None:
        if not self.wants(sample.device_time_ns):
            return
        self._waiting.append(sample)
        if len(self._waiting) > _MAX_HELD:
            self._waiting.popleft()
        due_ns = self._next_due_ns
        if due_ns is None or sample.device_time_ns - due_ns >= self._period_ns:
            due_ns = sample.device_time_ns  # the first, or after a gap: the grid starts anew
        self._next_due_ns = due_ns + self._period_ns

    def _ready(self, *, flush: bool) -> list[Tick]:
        ticks: list[Tick] = []
        while self._waiting and (flush or self._complete(self._waiting[0].device_time_ns)):
            sample = self._waiting.popleft()
            ticks.append(self._make(sample))
        return ticks

    def _complete(self, tick_ns: int) -> bool:
        lead_ns = self._newest_ns[self._leading]
        for name in self._others:
            newest_ns = self._newest_ns.get(name)
            arrived = newest_ns is not None and newest_ns >= tick_ns
            if not arrived and lead_ns - tick_ns < STREAMS[name].lateness_s * _NS:
                return False
        return True

    def _make(self, leading: Sample) -> Tick:
        samples: dict[str, Sample | None] = {self._leading: leading}
        for name in self._others:
            samples[name] = self._at(name, leading.device_time_ns)
        tick = Tick(index=self._index, device_time_ns=leading.device_time_ns, samples=samples)
        self._index += 1
        if self._leading in self._held:
            self._at(self._leading, leading.device_time_ns)  # lets the older ones go
        return tick

    def _at(self, name: str, tick_ns: int) -> Sample | None:
        """The newest sample of a stream at or before a tick, unless it is too old."""
        held = self._held[name]
        position = bisect_right(held, tick_ns, key=lambda sample: sample.device_time_ns)
        for _ in range(position - 1):
            held.popleft()
        if position == 0 or tick_ns - held[0].device_time_ns > STREAMS[name].hold_s * _NS:
            return None
        return held[0]
