"""Ways in which the simulated headset fails on request, and the switch that sets them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss.protocol import Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How a headset fails; packets are counted per connection from 0.

    Attributes:
        silent: Accept and never answer.
        truncate_at: Send half of this packet and close.
        oversize_at: Send this packet with an absurd length field.
        drop_at: Close instead of sending this packet.
        stall: Open connections stay open and nothing more is sent, until this is taken back.
        reorder_at: Send this packet after the one that follows it.
        garbage_at: Send random bytes in place of this packet, header and all.
        corrupt_at: Send this packet with random bytes in its payload; its framing holds.
        bytes_per_s: The link carries no more than this, per connection.
        gop_kept: Of each group of pictures only the first so many frames are sent.
        clock_drift_ppm: The headset's clock runs fast by this, from now on.
        ahat_rate_hz, long_throw_rate_hz: The depth cameras fall to these rates.
        ports: The services that the packet faults, `silent`, `stall` and `bytes_per_s` concern;
            None: all.
    """

    silent: bool = False
    truncate_at: int | None = None
    oversize_at: int | None = None
    drop_at: int | None = None
    stall: bool = False
    reorder_at: int | None = None
    garbage_at: int | None = None
    corrupt_at: int | None = None
    bytes_per_s: float | None = None
    gop_kept: int | None = None
    clock_drift_ppm: float = 0.0
    ahat_rate_hz: float | None = None
    long_throw_rate_hz: float | None = None
    ports: frozenset[Port] | None = None

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "ahat_rate_hz", "long_throw_rate_hz", "gop_kept"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is above 0, got {value}")

    def on(self, kind: Port) -> Faults:
        """Return what concerns one service; rates and clock always do."""
        if self.ports is None or kind in self.ports:
            return self
        return Faults(
            clock_drift_ppm=self.clock_drift_ppm,
            ahat_rate_hz=self.ahat_rate_hz,
            long_throw_rate_hz=self.long_throw_rate_hz,
        )


class FaultSwitch:
    """Holds the faults in force; they may be set at any moment."""

    def __init__(
        self, faults: Faults, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Start with these faults; `sleep` (host seconds) slows the link."""
        self._faults, self.sleep = faults, sleep
        self._changed = asyncio.Event()

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._faults

    def set(self, faults: Faults) -> None:
        """Put other faults in force, at once and for open connections too."""
        self._faults = faults
        self._changed.set()
        self._changed = asyncio.Event()

    async def while_stalled(self, kind: Port) -> None:
        """Return when this service is not stalled."""
        while self._faults.on(kind).stall:
            await self._changed.wait()

    async def while_silent(self, kind: Port) -> None:
        """Return when this service answers those who connect."""
        while self._faults.on(kind).silent:
            await self._changed.wait()
