"""The table of `keystep evaluate guidance`: methods beside each other, people as the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

    from keystep_models.measures.guidance_report import Trace


def per_person(runs: Sequence[Sequence[Trace]], measure: str) -> dict[str, float]:
    """A measure of each person's sessions, averaged over runs: seeds, and experts in turn."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for trace in run:
            found.setdefault(trace.session.name, []).append(getattr(trace.score, measure))
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def with_error(values: Sequence[float] | NDArray[np.float64], sign: str = "") -> str:
    """Mean and standard error: "0.374 ± 0.040"."""
    found = np.asarray(values, np.float64)
    error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
    return f"{float(found.mean()):{sign}.3f} ± {error:.3f}"


def print_table(
    console: Console, title: str, rows: Mapping[str, Sequence[Sequence[Trace]]]
) -> None:
    """Print a row per method; its last figure but two is how far the first one's F1 is ahead."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in (
        "precision", "recall", "F1", "first ahead by", "delay, median s", "mean s", "retracted",
        "runs",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    first = per_person(next(iter(rows.values())), "f1")
    for name, runs in rows.items():
        columns = [
            with_error(list(per_person(runs, measure).values()))
            for measure in ("precision", "recall", "f1")
        ]
        own = per_person(runs, "f1")
        ahead = [first[person] - own[person] for person in first]
        columns.append(with_error(ahead, "+") if own != first else "")
        delays = [d for run in runs for t in run for d in t.score.delays_s]
        columns += [f"{np.median(delays):.1f}", f"{np.mean(delays):.1f}"] if delays else ["-", "-"]
        columns.append(f"{np.mean([t.score.retracted for run in runs for t in run]):.2f}")
        table.add_row(name, *columns, str(len(runs)))
    console.print(table)
