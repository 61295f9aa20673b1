"""How another machine's clock is read: offset and uncertainty from short round trips.

The remote clock was read somewhere between the sending and the receiving of a request, so one
exchange bounds its offset to half a round trip, however asymmetric the path. The estimator keeps
recent exchanges and uses the one whose bound, grown by the drift that quartz allows, is smallest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from keystep_capture.errors import ConfigError

DRIFT_PPM = 100.0
"""Two quartz clocks drift apart by less than this; the bound grows with an exchange's age by it."""

_SLOWEST = 1 - DRIFT_PPM * 1e-6
_GROWTH = DRIFT_PPM * 1e-6 / _SLOWEST  # so the age may itself be measured by the slower clock

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
        rate: Remote seconds a local second; 1 but for replayed or simulated time.
    """

    remote_ns: int
    local_ns: int
    uncertainty_ns: int
    rate: float = 1.0

    def to_local(self, remote_ns: int) -> int:
        """The local time, ns, at which the remote clock reads `remote_ns`."""
        return self.local_ns + round((remote_ns - self.remote_ns) / self.rate)

    def uncertainty_at(self, local_ns: int) -> int:
        """Bound of the error of `to_local` near the local time `local_ns`, ns."""
        age_ns = abs(local_ns - self.local_ns)
        return self.uncertainty_ns + math.ceil(age_ns * _GROWTH)


class ClockEstimator:
    """Bounds a remote clock's offset from exchanges with it."""

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
        self._readings: deque[ClockReading] = deque(maxlen=window)

    def add(
        self,
        *,
        send_ns: int,
        remote_receive_ns: int,
        receive_ns: int,
        remote_reply_ns: int | None = None,
    ) -> None:
        """Take one exchange.

        Args:
            send_ns: Local clock when the request left.
            remote_receive_ns: Remote clock when it was read (or the request arrived).
            receive_ns: Local clock when the answer came.
            remote_reply_ns: Remote clock when the answer left, where it is known.
        """
        reply_ns = remote_receive_ns if remote_reply_ns is None else remote_reply_ns
        if receive_ns < send_ns or reply_ns < remote_receive_ns:
            return  # a clock that went back says nothing
        held_ns = int((reply_ns - remote_receive_ns) / self._rate * _SLOWEST)
        round_trip_ns = receive_ns - send_ns - held_ns
        if round_trip_ns < 0:
            return  # no request can be held for longer than its round trip
        self._readings.append(
            ClockReading(
                remote_ns=(remote_receive_ns + reply_ns) // 2,
                local_ns=(send_ns + receive_ns) // 2,
                uncertainty_ns=round_trip_ns // 2 + 1,
                rate=self._rate,
            )
        )

    def reading(self, now_ns: int) -> ClockReading | None:
        """The best reading at local time `now_ns`; None before the first exchange."""
        if not self._readings:
            return None
        return min(self._readings, key=lambda reading: reading.uncertainty_at(now_ns))

    def reset(self) -> None:
        """Forget all: the remote clock was restarted."""
        self._readings.clear()


def chain(outer: ClockReading, inner: ClockReading) -> ClockReading:
    """Join two hops: `outer` reads clock B on ours, `inner` reads clock C on B's.

    Args:
        outer: The middle machine's clock, read here.
        inner: The far clock, read by the middle machine.

    Returns:
        The far clock, read here; the uncertainties add up.
    """
    local_ns = outer.to_local(inner.local_ns)
    return ClockReading(
        remote_ns=inner.remote_ns,
        local_ns=local_ns,
        uncertainty_ns=outer.uncertainty_at(local_ns)
        + math.ceil(inner.uncertainty_ns / (outer.rate * _SLOWEST)),
        rate=outer.rate * inner.rate,
    )
