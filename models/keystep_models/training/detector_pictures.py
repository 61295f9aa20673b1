"""A training run in one picture: curves, what is confused, confidence, and what hands hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from keystep_models.steps.feature_folder import atomic_path

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of what draws


def draw_report(
    path: Path,
    curves: Sequence[Mapping[str, float]],
    summary: Mapping[str, Any],
    table: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    """Write the picture.

    Args:
        path: PNG.
        curves: As the run's curves.json.
        summary: Of `keystep_models.measures.detector_report.summarise`.
        table: Of its `confusion`, (C, C + 1).
        names: Of the classes.
    """
    figure, axes = pyplot.subplots(2, 2, figsize=(15, 13), constrained_layout=True)
    _draw_curves(axes[0, 0], curves)
    _draw_hidden(axes[0, 1], summary)
    _draw_confusion(axes[1, 0], table, names)
    _draw_reliability(axes[1, 1], summary)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=80)
    pyplot.close(figure)


def _draw_curves(axes: Any, curves: Sequence[Mapping[str, float]]) -> None:
    epochs = [curve["epoch"] + 1 for curve in curves]
    for name in ("place_loss", "box_loss", "name_loss"):
        axes.plot(epochs, [curve[name] for curve in curves], label=name.replace("_", " "))
    for name in ("components", "states"):
        values = [curve[name] for curve in curves]
        axes.plot(epochs, values, "--", label=f"{name} right, people held out")
    axes.set(xlabel="epoch", ylim=(0, None), title="training")
    axes.legend()


def _draw_hidden(axes: Any, summary: Mapping[str, Any]) -> None:
    parts = [part for part in summary["by_hidden"] if part["frames"]]
    places = np.arange(len(parts))
    for offset, name in ((-0.27, "detected"), (0.0, "right"), (0.27, "components")):
        values = [part[name] or 0.0 for part in parts]
        axes.bar(places + offset, values, width=0.25, label=name)
    labels = [
        f"{100 * p['hidden'][0]:.0f}-{100 * p['hidden'][1]:.0f} %\n{p['frames']} frames"
        for p in parts
    ]
    axes.set_xticks(places, labels)
    axes.set(xlabel="share of the assembly that hands hide", ylim=(0, 1), title="test people")
    axes.legend(loc="lower left")


def _draw_confusion(axes: Any, table: NDArray[np.int64], names: Sequence[str]) -> None:
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names) + 1), [*names, "nothing"], rotation=90, fontsize=6)
    rows = [f"{name} ({count})" for name, count in zip(names, table.sum(axis=1), strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=6)
    axes.set(xlabel="found", ylabel="true (frames)", title="states, test people")


def _draw_reliability(axes: Any, summary: Mapping[str, Any]) -> None:
    parts = summary["reliability"]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    sizes = [20 + 400 * part["frames"] / max(p["frames"] for p in parts) for part in parts]
    confidences = [part["confidence"] for part in parts]
    axes.scatter(confidences, [part["right"] for part in parts], s=sizes, alpha=0.6)
    error = summary["calibration_error"]
    shown = "" if error is None else f", mean distance {error:.3f}"
    axes.set(
        xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1),
        title=f"confidence, test people{shown}",
    )  # fmt: skip
