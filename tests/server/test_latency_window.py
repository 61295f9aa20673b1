"""Latencies of a session: their spread, and every one that is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_server.latency import LatencyWindow


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=50), st.integers(1, 20))
def test_the_newest_are_kept_in_order_and_all_are_counted(values_ns: list[int], size: int) -> None:
    window = LatencyWindow(size)
    for value_ns in values_ns:
        window.add("capture_to_event", value_ns)
    found = window.values()["capture_to_event"]
    assert found["count"] == len(values_ns)
    assert found["newest_ms"] == [round(value / 1e6, 3) for value in values_ns[-size:]]


def test_a_summary_tells_the_spread_and_the_largest_uncertainty() -> None:
    window = LatencyWindow()
    for number in range(1, 101):
        window.add("arrival_to_feature", number * 1e6, uncertainty_ns=number * 1e3)
    summary = window.summary()["arrival_to_feature"]
    assert (summary["count"], summary["max_ms"], summary["uncertainty_ms"]) == (100, 100, 0.1)
    for percent in (50, 95, 99):
        expected = np.percentile(np.arange(1, 101), percent)
        assert summary[f"p{percent}_ms"] == pytest.approx(expected, abs=1e-3)


def test_stretches_do_not_mix() -> None:
    window = LatencyWindow()
    window.add("a", 1e6)
    window.add("b", 2e6)
    assert {name: one["newest_ms"] for name, one in window.values().items()} == {
        "a": [1.0],
        "b": [2.0],
    }
