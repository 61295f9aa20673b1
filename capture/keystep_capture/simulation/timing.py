"""Clocks and links of a simulated headset: when each sample is stamped, sent and received.

The device's clock starts at boot and runs a little fast or slow; stamps jitter; packets wait on
their way. Stamps and arrivals of one stream never go back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import Array
from keystep_capture.simulation.seeding import generator

Times = NDArray[np.int64]

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """One session's clocks.

    Attributes:
        boot_ns: The device's clock at the session's start.
        drift: Device seconds a true second, less one.
        bridge_ns: The bridge's clock at the session's start; it runs true.
        server_ns: Likewise the server's.
    """

    boot_ns: int
    drift: float
    bridge_ns: int
    server_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """Of each sample of a stream, ns: on the device's, the bridge's and the server's clock."""

    device: Times
    sent: Times
    received: Times


def make_clocks(*names: int | str) -> Clocks:
    """Draw a session's clocks; `names` are the seed and what it is for."""
    rng = generator(*names, "clocks")
    return Clocks(
        boot_ns=int(rng.integers(600, 30_000)) * _NS + int(rng.integers(_NS)) // 100 * 100,
        drift=float(rng.normal(0.0, 25e-6)),
        bridge_ns=int(rng.integers(1_000, 90_000)) * _NS,
        server_ns=int(rng.integers(1_000, 90_000)) * _NS,
    )


def stamp(
    times_s: Array, clocks: Clocks, jitter_ms: float, delay_ms: float, *names: int | str
) -> Stamps:
    """Stamp the samples of a stream.

    Args:
        times_s: True times since the session's start, rising.
        clocks: Of the session.
        jitter_ms: Standard deviation of a stamp's error.
        delay_ms: Median time from capture to the bridge.
        names: The seed, then the stream's name.
    """
    rng = generator(*names, "stamps")
    error_s = np.clip(rng.normal(0.0, jitter_ms / 1000, len(times_s)), -0.004, 0.004)
    device_s = times_s * (1.0 + clocks.drift) + error_s + 0.01
    device = clocks.boot_ns + np.rint(device_s * 1e7).astype(np.int64) * 100  # HoloLens's ticks
    way_s = delay_ms / 1000 * np.exp(rng.normal(0.0, 0.35, len(times_s)))
    sent = clocks.bridge_ns + np.rint((times_s + way_s) * _NS).astype(np.int64)
    network = np.rint(rng.gamma(2.0, 0.4e6, len(times_s))).astype(np.int64)
    sent = np.maximum.accumulate(sent)
    received = np.maximum.accumulate(sent - clocks.bridge_ns + clocks.server_ns + network)
    return Stamps(device=_rising(device), sent=sent, received=received)


def _rising(times: Times) -> Times:
    """At least one tick between neighbours."""
    return np.maximum.accumulate(times - 100 * np.arange(len(times))) + 100 * np.arange(len(times))
