"""The simulated headset's clock, and when its sample plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keystep_capture.errors import ConfigError

_FILETIME_OF_UNIX_EPOCH_HNS = 116_444_736_000_000_000
_ONE_HOUR_HNS = 36_000_000_000


@dataclass(slots=True, kw_only=True)
class DeviceClock:
    """QueryPerformanceCounter of the headset in 100 ns since boot, one clock for all streams.

    Attributes:
        origin_hns: What it shows when made; a headset has been on for a while.
        time_scale: Device seconds per host second; streams pace by this clock.
        monotonic_ns, sleep, unix_ns: The host's clocks, injected.
    """

    origin_hns: int = _ONE_HOUR_HNS
    time_scale: float = 1.0
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    unix_ns: Callable[[], int] = time.time_ns
    utc_offset_hns: int = field(init=False)
    _base_hns: int = field(init=False)
    _started_ns: int = field(init=False)
    _drift_ppm: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.time_scale < float("inf"):
            raise ConfigError(f"time scale is above 0 and finite, got {self.time_scale}")
        self.restart(self.origin_hns)

    def restart(self, origin_hns: int) -> None:
        """Show this time now, as after a reboot; the offset to UTC is taken anew."""
        self._base_hns, self._started_ns = origin_hns, self.monotonic_ns()
        filetime_hns = self.unix_ns() // 100 + _FILETIME_OF_UNIX_EPOCH_HNS
        self.utc_offset_hns = filetime_hns - origin_hns

    def drift(self, ppm: float) -> None:
        """Run fast by so many parts per million from now on; the time shown does not jump."""
        self._base_hns, self._started_ns = self.now_hns(), self.monotonic_ns()
        self._drift_ppm = ppm

    def now_hns(self) -> int:
        """Read the clock."""
        elapsed_ns = self.monotonic_ns() - self._started_ns
        rate = self.time_scale * (1 + self._drift_ppm * 1e-6)
        return self._base_hns + round(elapsed_ns * rate / 100)

    def utc_hns(self) -> int:
        """Read the clock as UTC FILETIME (100 ns since 1601); the offset is fixed at the start."""
        return self.now_hns() + self.utc_offset_hns

    async def sleep_until(self, device_time_hns: int) -> None:
        """Return when the clock has reached this time."""
        while (missing_hns := device_time_hns - self.now_hns()) > 0:
            await self.sleep(missing_hns / 1e7 / self.time_scale)


@dataclass(slots=True, kw_only=True)
class Playback:
    """When the sample plays: once, from one instant of device time, whoever listens."""

    clock: DeviceClock
    started: asyncio.Event = field(default_factory=asyncio.Event)
    _origin_hns: int | None = field(default=None, init=False)

    @property
    def origin_hns(self) -> int | None:
        """Device time of frame 0; None before the first client streams."""
        return self._origin_hns

    def begin(self) -> int:
        """Start playing unless it plays already; returns the device time of frame 0."""
        if self._origin_hns is None:
            self._origin_hns = self.clock.now_hns()
            self.started.set()
        return self._origin_hns

    def resume(self, elapsed_hns: int) -> None:
        """Go on so far into the sample, after the clock was restarted."""
        if self._origin_hns is not None:
            self._origin_hns = self.clock.now_hns() - elapsed_hns
