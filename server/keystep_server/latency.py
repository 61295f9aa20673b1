"""Latencies of one session: recent values, their spread and how well the clocks were known.

The latency from capture to display is the one that the wearer feels: from the moment the headset
captured the evidence to the moment it confirmed what it shows because of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Stretch:
    """One stretch's newest latencies and the bounds of their errors, ns, oldest first."""

    latencies_ns: deque[float]
    uncertainties_ns: deque[float]
    count: int = 0


@dataclass(slots=True)
class LatencyWindow:
    """The newest latencies of each stretch (`capture_to_event`, say)."""

    size: int = 4096
    _stretches: dict[str, _Stretch] = field(default_factory=dict)

    def add(self, stretch: str, latency_ns: float, uncertainty_ns: float = 0.0) -> None:
        """Note one latency, ns."""
        found = self._stretches.get(stretch)
        if found is None:
            found = _Stretch(deque(maxlen=self.size), deque(maxlen=self.size))
            self._stretches[stretch] = found
        found.latencies_ns.append(latency_ns)
        found.uncertainties_ns.append(uncertainty_ns)
        found.count += 1

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per stretch: how many are kept, p50, p95, p99, largest, ms, and largest uncertainty."""
        return {name: _summary(stretch) for name, stretch in self._stretches.items()}

    def values(self) -> dict[str, dict[str, Any]]:
        """Per stretch: how many there ever were, and the newest `size` of them in ms, in order."""
        return {
            name: {
                "count": stretch.count,
                "newest_ms": [round(value / 1e6, 3) for value in stretch.latencies_ns],
            }
            for name, stretch in self._stretches.items()
        }


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


def _summary(stretch: _Stretch) -> dict[str, Any]:
    values_ms = np.array(stretch.latencies_ns) / 1e6
    p50, p95, p99 = np.percentile(values_ms, [50, 95, 99])
    return {
        "count": len(values_ms),
        "p50_ms": round(float(p50), 3),
        "p95_ms": round(float(p95), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(float(values_ms.max()), 3),
        "uncertainty_ms": round(max(stretch.uncertainties_ns) / 1e6, 3),
    }
