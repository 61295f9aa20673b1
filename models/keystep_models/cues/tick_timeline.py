"""Where ticks lie on a session's timeline: one number per tick, gaps and restarts included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keystep_capture.errors import DataError

MAX_GAP_S: Final = 10.0
"""Ticks stand for so much of a gap; a device's restart counts as so long."""
_NS: Final = 1_000_000_000
_GAP_PERIODS: Final = 2.5  # a tick that comes later than so many periods follows a gap


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPlace:
    """A tick on the timeline.

    Attributes:
        index: Its number; ticks that stand for a gap have numbers too.
        time_ns: Since the first tick; epochs follow each other.
        missing_ns: Times of the ticks before it that stand for a gap and lack every cue.
        follows: Whether the tick before it is the one that came before it.
        starts_epoch: Whether it is the first of its epoch.
        note: What people should know of the gap; empty where there is nothing.
    """

    index: int
    time_ns: int
    missing_ns: tuple[int, ...] = ()
    follows: bool = True
    starts_epoch: bool = False
    note: str = ""


class TickTimeline:
    """Places a session's ticks, one after the other."""

    def __init__(self, rate_hz: float) -> None:
        """Start before the first tick, of `rate_hz` ticks a second."""
        self.rate_hz = rate_hz
        self._epoch = -1
        self._origin = (0, 0)  # device time and time of the epoch's first tick, ns
        self._last_ns = 0
        self._count = 0

    @property
    def count(self) -> int:
        """Ticks so far, those that stand for gaps included."""
        return self._count

    def place(self, epoch: int, device_time_ns: int) -> TickPlace:
        """Place the next tick."""
        if self._count == 0:
            return self._begin(epoch, device_time_ns, 0, (), "")
        if epoch != self._epoch:
            start = self._last_ns + round(MAX_GAP_S * _NS)
            note = f"the device restarted before {start / _NS:.1f} s"
            return self._begin(epoch, device_time_ns, start, self._missing(start), note)
        time_ns = device_time_ns - self._origin[0] + self._origin[1]
        elapsed = time_ns - self._last_ns
        missing: tuple[int, ...] = ()
        note = ""
        follows = elapsed <= _GAP_PERIODS * _NS / self.rate_hz
        if not follows:
            missing = self._missing(time_ns)
            if elapsed > MAX_GAP_S * _NS:
                note = f"nothing for {elapsed / _NS:.1f} s from {self._last_ns / _NS:.1f} s"
        return self._take(time_ns, missing, follows=follows, note=note)

    def _begin(
        self, epoch: int, device_time_ns: int, start: int, missing: tuple[int, ...], note: str
    ) -> TickPlace:
        self._epoch, self._origin = epoch, (device_time_ns, start)
        return self._take(start, missing, follows=False, note=note, starts_epoch=True)

    def _take(
        self,
        time_ns: int,
        missing: tuple[int, ...],
        *,
        follows: bool,
        note: str,
        starts_epoch: bool = False,
    ) -> TickPlace:
        index = self._count + len(missing)
        self._count, self._last_ns = index + 1, time_ns
        return TickPlace(
            index=index, time_ns=time_ns, missing_ns=missing, follows=follows,
            starts_epoch=starts_epoch, note=note,
        )  # fmt: skip

    def _missing(self, until_ns: int) -> tuple[int, ...]:
        """Times of ticks in a gap, so that numbers keep pace with time (10 s at most)."""
        period = _NS / self.rate_hz
        begin = self._last_ns
        most = round(MAX_GAP_S * self.rate_hz)
        count = min(round((until_ns - begin) / period), most) - 1
        return tuple(
            begin + round(number * (until_ns - begin) / (count + 1))
            for number in range(1, count + 1)
        )

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "rate_hz": self.rate_hz,
            "epoch": self._epoch,
            "origin": list(self._origin),
            "last_ns": self._last_ns,
            "count": self._count,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`.

        Raises:
            DataError: It is malformed or of another rate; nothing has changed then.
        """
        try:
            epoch, last_ns, count = (int(snapshot[name]) for name in ("epoch", "last_ns", "count"))
            first, second = snapshot["origin"]
            origin = (int(first), int(second))
            if float(snapshot["rate_hz"]) != self.rate_hz or count < 0:
                raise ValueError(f"rate {snapshot['rate_hz']}, count {count}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no state of a timeline at {self.rate_hz} Hz: {error}") from error
        self._epoch, self._origin, self._last_ns, self._count = epoch, origin, last_ns, count
