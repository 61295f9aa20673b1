"""Latencies of one session: recent values, their spread and how well the clocks were known."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np


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
