"""A round's figures as JSON values and as a table."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import onnxruntime
from rich.table import Table

from keystep_capture.streams import STREAMS
from keystep_server.load.bare import EXTRACT_EVERY
from keystep_server.load.measure import TICK_RATE_HZ, WRITTEN, Round
from keystep_server.load.packets import DEPTH_RATE_HZ, RATE_HZ, SIZE, SPATIAL_RATE_HZ

TARGET_RATIO = 1.25
TARGET_FAIRNESS = 0.8


def round_report(measured: Round, bare_ms: dict[str, float]) -> dict[str, Any]:
    """One round's figures; `bare_ms` are the parts' CPU ms per extracted frame around it."""
    before, after, plan = measured.before, measured.after, measured.plan
    rates_hz = _rates_hz(measured, "features")
    mean_hz = statistics.fmean(rates_hz)
    total = sum(rates_hz) * measured.seconds
    decoded = sum(_rates_hz(measured, "decoded")) * measured.seconds
    cpu_s = _difference(before.server_cpu_s, after.server_cpu_s)
    bare_sum_ms = sum(bare_ms.values())
    # In an overload more frames are decoded than the three for each extracted one.
    bare_work_s = (
        decoded * bare_ms["decode"] / EXTRACT_EVERY
        + total * (bare_ms["preprocess"] + bare_ms["inference"])
    ) / 1e3
    server_ms = None if cpu_s is None or not total else 1e3 * cpu_s / total
    return {
        "headsets": plan.headsets,
        "seconds": round(measured.seconds, 2),
        "inference_threads": plan.inference_threads,
        "inference_calls": plan.inference_calls,
        "pipeline_workers": plan.pipeline_workers,
        "ticks_due": round(measured.seconds * TICK_RATE_HZ * plan.headsets),
        "features": round(total),
        "left_out": _counts(measured, "left_out"),
        "tick_rate_hz": {
            "min": round(min(rates_hz), 2),
            "mean": round(mean_hz, 2),
            "max": round(max(rates_hz), 2),
        },
        "fairness": round(min(rates_hz) / mean_hz, 3) if mean_hz else 0.0,
        "server_cores": None if cpu_s is None else round(cpu_s / measured.seconds, 3),
        "generator_cores": round(
            (after.generator_cpu_s - before.generator_cpu_s) / measured.seconds, 3
        ),
        "server_ms_per_frame": None if server_ms is None else round(server_ms, 3),
        "bare_ms_per_frame": {name: round(value, 3) for name, value in bare_ms.items()},
        "ratio": None if server_ms is None else round(server_ms / bare_sum_ms, 3),
        "ratio_to_work_done": None if cpu_s is None else round(cpu_s / bare_work_s, 3),
        "latency_ms": {name: _spread(measured.latencies_ms[name]) for name in WRITTEN},
        "dropped_by_server": _counts(measured, "dropped"),
        "dropped_by_senders": _counts(measured, "sender_dropped"),
        "generator_late_ms": {
            "p95": round(max(played.late_p95_ms for played in measured.played), 2),
            "max": round(max(played.late_max_ms for played in measured.played), 2),
        },
    }


def whole_report(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All rounds, what they were measured with and on."""
    return {
        "benchmark": "keystep bench load",
        "headset": {
            "rgb": f"{SIZE[0]}x{SIZE[1]}@{RATE_HZ} h264",
            "spatial_input_hz": SPATIAL_RATE_HZ,
            "features_hz": TICK_RATE_HZ,
            "depth_hz": DEPTH_RATE_HZ if "depth" in STREAMS else 0,
            "data": "real video; head, gaze, hands and depth simulated",
        },
        "target_ratio": TARGET_RATIO,
        "target_fairness": TARGET_FAIRNESS,
        "rounds": list(rounds),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "av": av.__version__,
        },
    }


def table(rounds: Sequence[dict[str, Any]]) -> Table:
    """The rounds for people: CPU ms per extracted frame, bare CPU ms, latencies in ms."""
    shown = Table(title="keystep bench load (simulated headsets)", padding=(0, 0))
    for name in (
        *("heads", "thr", "cost", "bare", "ratio", "work", "cores", "gen"),
        *("Hz", "fair", "p50", "p95", "p99", "left out", "unsent"),
    ):
        shown.add_column(name, justify="right")
    for found in rounds:
        latency = found["latency_ms"]["capture_to_written"]
        calls, workers = (found[name] or "-" for name in ("inference_calls", "pipeline_workers"))
        shown.add_row(
            str(found["headsets"]),
            f"{found['inference_threads']}x{calls}+{workers}",
            _shown(found["server_ms_per_frame"]),
            _shown(sum(found["bare_ms_per_frame"].values())),
            _shown(found["ratio"]),
            _shown(found["ratio_to_work_done"]),
            _shown(found["server_cores"]),
            _shown(found["generator_cores"]),
            _shown(found["tick_rate_hz"]["mean"]),
            _shown(found["fairness"]),
            *(_shown(latency[name], 0) for name in ("p50", "p95", "p99")),
            str(sum(found["left_out"].values())),
            str(sum(found["dropped_by_senders"].values())),
        )
    return shown


def _shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _rates_hz(measured: Round, name: str) -> list[float]:
    """How fast a count grew in each session, by the times at which it was asked."""
    return [
        (getattr(after, name) - getattr(before, name)) / (after.time_s - before.time_s)
        for device, after in measured.after.sessions.items()
        for before in (measured.before.sessions[device],)
    ]


def _counts(measured: Round, name: str) -> dict[str, int]:
    """What was counted between the two snapshots, all sessions together, zeros left out."""
    total: Counter[str] = Counter()
    for device, counted in measured.after.sessions.items():
        total.update(getattr(counted, name))
        total.subtract(getattr(measured.before.sessions[device], name))
    return {key: count for key, count in sorted(total.items()) if count}


def _spread(values_ms: Sequence[float]) -> dict[str, Any]:
    if not values_ms:
        return {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}
    p50, p95, p99 = np.percentile(values_ms, [50, 95, 99])
    return {
        "count": len(values_ms),
        "p50": round(float(p50), 1),
        "p95": round(float(p95), 1),
        "p99": round(float(p99), 1),
        "max": round(float(max(values_ms)), 1),
    }
