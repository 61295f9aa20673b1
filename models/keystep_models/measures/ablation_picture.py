"""Draws an ablation: bars with seeds and errors, baselines as lines, the paper's figures beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keystep_models.measures.ablation_report import AblationResult, AblationRow
from keystep_models.steps.feature_folder import atomic_path

_OURS, _PAPER, _SEED = "#9cc7e0", "#c9c9c9", "#0d3d5a"
_CURVES = {
    "own": ("those trained on", "#d98f2b", "o-"),
    "own raw": ("raw features there", "#d98f2b", "^-."),
    "own uniform": ("uniform there", "#d98f2b", "s--"),
    "others": ("the other recordings", "#3f6fb5", "o-"),
}
_LINES = {
    "random": ("#999999", ":"),
    "uniform": ("#c0504d", "--"),
    "raw features": ("#7a5195", "-."),
    "linear probe, with labels": ("#3b8f4a", "-"),
}


def draw_ablation(result: AblationResult, path: Path, *, data: str, heading: str) -> None:
    """Write the picture as PNG.

    Args:
        result: What to draw.
        path: Where to; replaced at once.
        data: What was measured on, in a few words, for the title.
        heading: The table's name and title.

    Raises:
        OSError: The disk does not take it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if result.table.curve:
        figure = Figure(figsize=(8.0, 4.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _draw_curve(axes, result)
        axes.set_title(f"{heading}: F1 in %, {data}", fontsize=9, loc="left")
        _finish(figure, axes, path)
        return
    rows = result.rows
    published = [row.published[0] if row.published else None for row in rows]
    with_paper = any(value is not None for value in published)
    figure = Figure(figsize=(9.0, 1.9 + 0.42 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if with_paper:
        ours, paper = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        _draw_published(paper, published)
    else:
        ours = figure.subplots()
    _draw_rows(ours, rows, result)
    ours.set_title("ours", fontsize=9, loc="left")
    figure.suptitle(f"{heading}: F1 in %, {data}", fontsize=9, x=0.01, ha="left")
    _finish(figure, ours, path)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_curve(axes: Any, result: AblationResult) -> None:
    counts = {variant.name: variant.recordings for variant in result.table.variants}
    places = [counts[row.name] for row in result.rows]
    style: dict[str, Any] = {"capsize": 3, "lw": 1.5, "markersize": 4}
    axes.errorbar(
        places, [row.f1.mean for row in result.rows],
        yerr=[row.f1.error or 0.0 for row in result.rows],
        fmt="o-", color=_SEED, label="all recordings, ± standard error", **style,
    )  # fmt: skip
    for part, (name, colour, marks) in _CURVES.items():
        there = [(counts[r.name], r.more[part]) for r in result.rows if part in r.more]
        axes.errorbar(
            [count for count, _ in there], [value.mean for _, value in there],
            yerr=[value.error or 0.0 for _, value in there],
            fmt=marks, color=colour, label=name, **style,
        )  # fmt: skip
    for floor in result.floors:
        colour, line = _LINES.get(floor.name, ("#555555", ":"))
        axes.axhline(floor.f1.mean, color=colour, ls=line, lw=1.2, label=floor.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_xlabel("recordings trained on", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)


def _draw_rows(axes: Any, rows: Sequence[AblationRow], result: AblationResult) -> None:
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        axes.barh(
            place, row.f1.mean, height=0.62, color=_OURS, xerr=row.f1.error,
            error_kw={"capsize": 3, "lw": 1.2},
            label="ours, ± standard error" if place == 0 else "",
        )  # fmt: skip
        axes.plot(
            row.seeds, [place] * len(row.seeds), "o", color=_SEED, markersize=2.5,
            label="each seed" if place == 0 else "",
        )  # fmt: skip
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    _draw_floors(axes, rows, places, result)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(left=0)


def _draw_floors(
    axes: Any, rows: Sequence[AblationRow], places: Sequence[int], result: AblationResult
) -> None:
    """Lines through all rows, or, where K differs, through the rows of each K."""
    of_row = {variant.name: variant.clusters for variant in result.table.variants}
    named = set()
    for place, row in zip(places, rows, strict=True):
        for floor in result.floors:
            if floor.clusters != of_row[row.name]:
                continue
            colour, style = _LINES.get(floor.name, ("#555555", ":"))
            axes.plot(
                [floor.f1.mean] * 2, [place - 0.5, place + 0.5], color=colour, ls=style, lw=1.3,
                label="" if floor.name in named else floor.name,
            )  # fmt: skip
            named.add(floor.name)


def _draw_published(axes: Any, published: Sequence[float | None]) -> None:
    for place, value in zip(reversed(range(len(published))), published, strict=True):
        if value is not None:
            axes.barh(place, value, height=0.62, color=_PAPER)
            axes.text(value, place, f" {value:.1f}", va="center", fontsize=7)
    axes.set_title("the paper, MECCANO", fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
