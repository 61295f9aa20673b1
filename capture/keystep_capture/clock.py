"""How another machine's clock is read: offset, drift and bounds from short round trips.

The remote clock was read somewhere between the sending and the receiving of a request, however
asymmetric the path. So each exchange leaves of all lines remote = a + b * local those that pass
above one point and below another. What all kept exchanges leave is a convex polygon in (a, b): its
range at a moment is a guaranteed bound, its middle the estimate. A clock that stepped leaves
nothing, and is noticed by that.

Source: Moon, Skelly, Towsley, "Estimation and removal of clock skew from network delay
measurements", INFOCOM 1999, for the geometry.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from keystep_capture.errors import ConfigError

DRIFT_PPM = 100.0
"""Two quartz clocks drift apart by less than this."""
WANDER_PPM = 2.0
"""A quartz clock's rate changes by less than this while its exchanges are kept (it warms up)."""

_SLOWEST = 1 - DRIFT_PPM * 1e-6
_DRIFT = DRIFT_PPM * 1e-6 / _SLOWEST  # of either clock by the other, whichever is the slower
_WANDER = WANDER_PPM * 1e-6
_READING_NS = 1.01  # clocks show whole nanoseconds

Clock = Callable[[], int]
"""A monotonic clock, ns; passed in, so that tests turn it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReading:
    """One statement of how a remote clock stands to the local one.

    Attributes:
        remote_ns: What the remote clock read ...
        local_ns: ... when the local clock read this.
        uncertainty_ns: The truth lies within this of `remote_ns`, on the remote clock's scale
            divided by `rate` (local ns).
        rate: Remote seconds a local second, as estimated.
        rate_uncertainty: The true rate lies within this part of `rate`.
    """

    remote_ns: int
    local_ns: int
    uncertainty_ns: int
    rate: float = 1.0
    rate_uncertainty: float = _DRIFT

    def to_local(self, remote_ns: int) -> int:
        """The local time, ns, at which the remote clock reads `remote_ns`."""
        return self.local_ns + round((remote_ns - self.remote_ns) / self.rate)

    def uncertainty_at(self, local_ns: int) -> int:
        """Bound of the error of `to_local` near the local time `local_ns`, ns."""
        age_ns = abs(local_ns - self.local_ns)
        return self.uncertainty_ns + math.ceil(age_ns * self.rate_uncertainty)

    def drift_ppm(self, nominal_rate: float = 1.0) -> float:
        """How much faster the remote clock runs than it should, parts per million."""
        return (self.rate / nominal_rate - 1) * 1e6


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Bounds of one exchange: the remote clock read at most `high_ns` at `send_ns` ..."""

    send_ns: int
    high_ns: int
    receive_ns: int
    low_ns: int  # ... and at least this at `receive_ns`


_Lines = list[tuple[float, float]]
"""Corners of the convex set of possible lines: (offset at the newest exchange, local ns; drift).

A line is of remote time / rate less local time, both counted from the newest exchange."""


class ClockEstimator:
    """Bounds a remote clock's offset and drift from exchanges with it."""

    def __init__(self, *, rate: float = 1.0, window: int = 64) -> None:
        """Start without any exchange.

        Args:
            rate: Nominal remote seconds per local second.
            window: Exchanges kept.

        Raises:
            ConfigError: `rate` or `window` is not positive.
        """
        if not rate > 0 or window < 1:
            raise ConfigError(f"clock needs rate > 0 and window >= 1, got {rate} and {window}")
        self._rate = rate
        self._exchanges: deque[_Exchange] = deque(maxlen=window)
        self._lines: _Lines = []
        self._local_ns = self._remote_ns = (
            0  # of the newest exchange: where the lines are seen from
        )
        self.step_count = 0

    def add(
        self,
        *,
        send_ns: int,
        remote_receive_ns: int,
        receive_ns: int,
        remote_reply_ns: int | None = None,
    ) -> bool:
        """Take one exchange.

        Args:
            send_ns: Local clock when the request left.
            remote_receive_ns: Remote clock when it was read (or the request arrived).
            receive_ns: Local clock when the answer came.
            remote_reply_ns: Remote clock when the answer left, where it is known.

        Returns:
            Whether one of the clocks must have stepped: no line fits what was known and this. What
            was known before is then forgotten, and counted in `step_count`.
        """
        reply_ns = remote_receive_ns if remote_reply_ns is None else remote_reply_ns
        if receive_ns < send_ns or reply_ns < remote_receive_ns:
            return False  # a clock that went back says nothing
        held_ns = int((reply_ns - remote_receive_ns) / self._rate * _SLOWEST)
        if receive_ns - send_ns < held_ns:
            return False  # no request can be held for longer than its round trip
        self._exchanges.append(
            _Exchange(send_ns, remote_receive_ns, receive_ns, reply_ns),
        )
        self._local_ns, self._remote_ns = receive_ns, reply_ns
        self._lines = self._possible_lines()
        if self._lines:
            return False
        newest = self._exchanges.pop()
        self._exchanges.clear()
        self._exchanges.append(newest)
        self._lines = self._possible_lines()
        self.step_count += 1
        return True

    def reading(self, now_ns: int) -> ClockReading | None:
        """What is known at local time `now_ns`; None before the first exchange."""
        if not self._lines:
            return None
        ahead_ns = now_ns - self._local_ns
        offsets = [offset_ns + drift * ahead_ns for offset_ns, drift in self._lines]
        lowest_ns, highest_ns = min(offsets), max(offsets)
        slowest = min(drift for _, drift in self._lines)
        fastest = max(drift for _, drift in self._lines)
        drift = (slowest + fastest) / 2
        offset_ns = (lowest_ns + highest_ns) / 2
        bound_ns = (highest_ns - lowest_ns) / 2 + _WANDER * abs(ahead_ns)
        return ClockReading(
            remote_ns=self._remote_ns + round(self._rate * ahead_ns + self._rate * offset_ns),
            local_ns=now_ns,
            uncertainty_ns=math.ceil(bound_ns / _SLOWEST) + 1,
            rate=self._rate * (1 + drift),
            rate_uncertainty=((fastest - slowest) / 2 + _WANDER) / _SLOWEST,
        )

    def reset(self) -> None:
        """Forget all: the remote clock was restarted."""
        self._exchanges.clear()
        self._lines = []

    def _possible_lines(self) -> _Lines:
        """Cut the plane of lines down by every exchange; empty where none is left."""
        newest = self._exchanges[-1]
        high_ns = self._offset_ns(newest.high_ns, newest.send_ns)
        trip_ns = newest.receive_ns - newest.send_ns
        # Wide enough for the newest exchange; the cuts make it exact.
        margin_ns = 1_000 + abs(high_ns) + 2 * trip_ns
        lines: _Lines = [
            (-margin_ns, -_DRIFT),
            (margin_ns, -_DRIFT),
            (margin_ns, _DRIFT),
            (-margin_ns, _DRIFT),
        ]
        for exchange in reversed(self._exchanges):
            sent, received = exchange.send_ns, exchange.receive_ns
            lines = self._cut(lines, sent, self._offset_ns(exchange.high_ns, sent), 1.0)
            lines = self._cut(lines, received, self._offset_ns(exchange.low_ns, received), -1.0)
            if not lines:
                break
        return lines

    def _offset_ns(self, remote_ns: int, local_ns: int) -> float:
        """Remote minus local time, both counted from the newest exchange, in local ns."""
        return (remote_ns - self._remote_ns) / self._rate - (local_ns - self._local_ns)

    def _cut(self, lines: _Lines, local_ns: int, offset_ns: float, side: float) -> _Lines:
        """Keep the lines that pass below (`side` 1) or above (-1) a point."""
        at_ns = local_ns - self._local_ns
        slack_ns = _READING_NS / min(1.0, self._rate) + _WANDER * abs(at_ns)
        # How far each corner's line passes on the wrong side of the point.
        excesses = [
            side * (corner_ns + drift * at_ns - offset_ns) - slack_ns for corner_ns, drift in lines
        ]
        if max(excesses, default=0.0) <= 0:
            return lines
        kept: _Lines = []
        for position, excess in enumerate(excesses):
            corner, before = lines[position], lines[position - 1]
            excess_before = excesses[position - 1]
            if (excess > 0) != (excess_before > 0):  # the edge is cut between these two
                share = excess_before / (excess_before - excess)
                kept.append(
                    (
                        before[0] + share * (corner[0] - before[0]),
                        before[1] + share * (corner[1] - before[1]),
                    )
                )
            if excess <= 0:
                kept.append(corner)
        return kept


def chain(outer: ClockReading, inner: ClockReading) -> ClockReading:
    """Join two hops: `outer` reads clock B on ours, `inner` reads clock C on B's.

    Args:
        outer: The middle machine's clock, read here.
        inner: The far clock, read by the middle machine.

    Returns:
        The far clock, read here; the uncertainties, of rates too, add up.
    """
    local_ns = outer.to_local(inner.local_ns)
    return ClockReading(
        remote_ns=inner.remote_ns,
        local_ns=local_ns,
        uncertainty_ns=outer.uncertainty_at(local_ns)
        + math.ceil(inner.uncertainty_ns / (outer.rate * _SLOWEST)),
        rate=outer.rate * inner.rate,
        rate_uncertainty=outer.rate_uncertainty + inner.rate_uncertainty,
    )
