"""Watching the headset's clock: where it stands to ours, and whether it began anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from keystep_capture.clock import Clock, ClockEstimator
from keystep_capture.sender import Sender
from keystep_hololens.hl2ss import client, conventions
from keystep_hololens.uplink import CLOCK_JUMP_NS

CLOCK_PROBES = 6


log = structlog.get_logger(__name__)


class ClockWatch:
    """Measures the headset's clock by short round trips."""

    def __init__(
        self,
        remote: client.RemoteConfigurationClient,
        remote_free: asyncio.Lock,
        sender: Sender,
        *,
        rate: float,
        clock: Clock,
        on_restart: Callable[[], None],
    ) -> None:
        """Start without a measurement.

        Args:
            remote: Asks the headset.
            remote_free: Held while asking: the port serves one client at a time.
            sender: Passes the readings on.
            rate: Device seconds a second.
            clock: Monotonic clock, ns.
            on_restart: Told when the headset's clock is not where it would be, had it gone on;
                must call `reset`.
        """
        self.read_ns: int | None = None
        self._remote, self._remote_free, self._sender = remote, remote_free, sender
        self._clock = clock
        self._on_restart = on_restart
        self._estimator = ClockEstimator(rate=rate)

    def reset(self) -> None:
        """Forget what was measured: the headset's clock began anew."""
        self._estimator.reset()

    async def read(self) -> None:
        """Measure the headset's clock, notice a restart by it, and pass it on.

        Raises:
            DeviceError: The headset does not answer.
        """
        async with self._remote_free:
            began_ns = self._clock()
            probes = await self._remote.probe_clock(self._clock, count=CLOCK_PROBES)
        if self._has_jumped(probes[-1]):
            self._on_restart()
        self.read_ns = began_ns
        for probe in probes:
            stepped = self._estimator.add(
                send_ns=probe.local_send_ns,
                remote_receive_ns=conventions.device_time_ns(probe.device_time_hns),
                receive_ns=probe.local_receive_ns,
            )
            if stepped:
                log.warning("the headset's clock or ours stepped: its offset is measured anew")
        reading = self._estimator.reading(self._clock())
        if reading is not None:
            self._sender.tell_device_clock(
                device_time_ns=reading.remote_ns,
                bridge_time_ns=reading.local_ns,
                uncertainty_ns=reading.uncertainty_at(self._clock()),
                rate=reading.rate,
            )

    def _has_jumped(self, probe: client.ClockProbe) -> bool:
        """Whether the headset's clock is not where it would be, had it gone on."""
        known = self._estimator.reading(probe.local_receive_ns)
        if known is None:
            return False
        then_ns = known.to_local(conventions.device_time_ns(probe.device_time_hns))
        slack_ns = CLOCK_JUMP_NS + known.uncertainty_at(probe.local_receive_ns)
        return not probe.local_send_ns - slack_ns <= then_ns <= probe.local_receive_ns + slack_ns
