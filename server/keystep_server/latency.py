"""Latencies of one session: recent values, their spread and how well the clocks were known.

The latency from capture to display is the one that the wearer feels: from the moment the headset
captured the evidence to the moment it confirmed what it shows because of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from keystep_capture import wire
from keystep_capture.peers import Peer

MAX_SHOWN = 32
"""Revisions whose acknowledgement is waited for; older ones were superseded."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency and the bound of its error, ms."""

    latency_ms: float
    uncertainty_ms: float


class LatencyWindow:
    """The newest latencies of each stretch (`capture_to_event`, say)."""

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._stretches: dict[str, deque[Latency]] = {}

    def add(self, stretch: str, latency_ns: float, uncertainty_ns: float = 0.0) -> None:
        """Note one latency, ns."""
        window = self._stretches.setdefault(stretch, deque(maxlen=self._size))
        window.append(Latency(latency_ns / 1e6, uncertainty_ns / 1e6))

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per stretch: count, p50, p95 and largest in ms, and the largest uncertainty."""
        return {name: _summary(window) for name, window in self._stretches.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a revision of the guidance rests on.

    Attributes:
        device_time_ns: When it was captured, on the device's clock of `epoch`.
        sent_ns: When the revision was made, on the server's clock.
    """

    device_time_ns: int
    epoch: int
    sent_ns: int


class DisplayLatencies:
    """Closes the measurement from capture to display, one revision at a time."""

    def __init__(self) -> None:
        self._waiting: dict[int, Evidence] = {}

    def expect(self, revision: int, evidence: Evidence) -> None:
        """Wait for a revision's acknowledgement."""
        self._waiting[revision] = evidence
        while len(self._waiting) > MAX_SHOWN:
            del self._waiting[next(iter(self._waiting))]

    def close(self, peer: Peer, ack: wire.GuidanceAck, now_ns: int) -> Latency | None:
        """The latency that an acknowledgement closes, measured once for each revision.

        Capture and display are both read on the bridge's clock, so only the headset's hop adds to
        the uncertainty; the server's hop tells whether the time can be true.

        Args:
            peer: Who acknowledges.
            ack: The acknowledgement.
            now_ns: The server's clock.

        Returns:
            None where nothing was displayed, the revision is not waited for, a clock was not
            measured yet or began anew, or the time cannot be true.
        """
        evidence = self._waiting.get(ack.revision) if ack.displayed else None
        device, bridge = peer.bridge_reading(), peer.clock.reading(now_ns)
        if evidence is None or device is None or bridge is None or evidence.epoch != peer.epoch:
            return None
        del self._waiting[ack.revision]
        shown_ns = bridge.to_local(ack.displayed_time_ns)
        slack_ns = bridge.uncertainty_at(shown_ns)
        if not evidence.sent_ns - slack_ns <= shown_ns <= now_ns + slack_ns:
            return None
        latency_ns = ack.displayed_time_ns - device.to_local(evidence.device_time_ns)
        uncertainty_ns = device.uncertainty_at(ack.displayed_time_ns)
        return Latency(latency_ns / 1e6, uncertainty_ns / 1e6)


def _summary(window: deque[Latency]) -> dict[str, Any]:
    values = np.array([entry.latency_ms for entry in window])
    p50, p95 = np.percentile(values, [50, 95])
    return {
        "count": len(values),
        "p50_ms": round(float(p50), 3),
        "p95_ms": round(float(p95), 3),
        "max_ms": round(float(values.max()), 3),
        "uncertainty_ms": round(max(entry.uncertainty_ms for entry in window), 3),
    }
