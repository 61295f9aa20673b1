"""Draws an ablation: bars with seeds and errors, baselines as lines, the paper's figures beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keystep_models.measures.ablation_report import AblationResult, AblationRow
from keystep_models.steps.feature_folder import atomic_path

_OURS, _PAPER, _SEED = "#2a78a5", "#b9b9b9", "#0d3d5a"
_LINES = {
    "random": ("#999999", ":"),
    "uniform": ("#c0504d", "--"),
    "raw features": ("#7a5195", "-."),
    "elapsed time, with labels": ("#d98f2b", "--"),
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
    ours.set_title(f"{heading}: F1 in %, {data}", fontsize=9, loc="left")
    handles, labels = ours.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


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
