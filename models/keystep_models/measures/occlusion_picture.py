"""Draws methods against how often hands hide completions, with error bars and the paper's claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keystep_models.measures.occlusion_report import PUBLISHED_CHANGES, OcclusionReport
from keystep_models.measures.study import Figure
from keystep_models.steps.feature_folder import atomic_path

_STYLES: Final = (
    ("#3f6fb5", "o-"), ("#9cc7e0", "o--"), ("#d98f2b", "^-"),
    ("#c0504d", "s-"), ("#7a5195", "D--"), ("#3b8f4a", "v-"),
)  # fmt: skip
_PANELS: Final = (
    ("mean_delay_s", "mean delay of reported steps, s"),
    ("f1", "F1"),
    ("pos", "POS"),
    ("delay_change_in_common", "delay against branch 1, same steps, %"),
)


def draw_occlusion(
    report: OcclusionReport, path: Path, *, methods: Sequence[str], heading: str
) -> None:
    """Write the picture as PNG; bars are standard errors, of seeds and people together.

    Args:
        report: The figures.
        path: Where to; replaced at once.
        methods: Which to draw, in order; their colours repeat after six.
        heading: Above the panels.

    Raises:
        OSError: The disk does not take it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10.0, 6.8), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(2, 2).ravel()
    for axes, (name, title) in zip(panels, _PANELS, strict=True):
        _draw_panel(axes, report, name, methods)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("completions that hands hide, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    _draw_published(panels[-1])
    handles, labels = panels[0].get_legend_handles_labels()
    more = panels[-1].get_legend_handles_labels()
    known = dict(zip((*labels, *more[1]), (*handles, *more[0]), strict=True))
    canvas.legend(
        list(known.values()), list(known), loc="outside lower left", ncols=2, fontsize=8,
        frameon=False,
    )  # fmt: skip
    canvas.suptitle(heading, fontsize=10, x=0.01, ha="left")
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, format="png")


def _draw_panel(axes: Any, report: OcclusionReport, name: str, methods: Sequence[str]) -> None:
    for place, method in enumerate(methods):
        title = report.methods[method]
        shift = 0.6 * (place - (len(methods) - 1) / 2)  # so that error bars stand side by side
        found = [(rate, report.row(rate, method).figures.get(name)) for rate in report.rates]
        points = [(r, f) for r, f in found if f is not None and not math.isnan(f.mean)]
        if not points:
            continue
        colour, marks = _STYLES[place % len(_STYLES)]
        axes.errorbar(
            [100 * rate + shift for rate, _ in points], [value.mean for _, value in points],
            yerr=[_error(value) for _, value in points], fmt=marks, color=colour, label=title,
            capsize=2.5, lw=1.4, markersize=4,
        )  # fmt: skip
    axes.set_xticks([100 * rate for rate in report.rates])
    if name in ("f1", "pos"):
        axes.set_ylim(0, 1)


def _error(value: Figure) -> float:
    return math.hypot(*(e for e in (value.seed_error, value.person_error) if e is not None))


def _draw_published(axes: Any) -> None:
    axes.axhline(0, color="#3f6fb5", lw=1.0)
    low, high = min(PUBLISHED_CHANGES), max(PUBLISHED_CHANGES)
    axes.axhspan(low, high, color="#bbbbbb", alpha=0.5, lw=0, label="the paper's fusion (real)")
