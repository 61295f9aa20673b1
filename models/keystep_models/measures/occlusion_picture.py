"""Draws methods against how often hands hide completions, with error bars and the paper's claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keystep_models.measures.occlusion_report import PUBLISHED_CHANGES, OcclusionReport
from keystep_models.measures.study import Figure
from keystep_models.steps.feature_folder import atomic_path

_STYLES: Final = {
    "b3": ("#3f6fb5", "o-"),
    "b3_low": ("#9cc7e0", "o--"),
    "temporal": ("#d98f2b", "^-"),
    "shared": ("#c0504d", "s-"),
    "soft": ("#7a5195", "D--"),
    "tracker": ("#3b8f4a", "v-"),
    "tracker_clips": ("#b08c1c", "<-"),
    "tracker_fitted": ("#8fce9a", "v--"),
    "tracker_clips_fitted": ("#dfc56b", "<--"),
}
_OTHER_STYLE: Final = ("#777777", "x:")
_RATIO: Final = "delay_change_in_common"  # drawn as a ratio
_PANELS: Final = (
    ("mean_delay_s", "mean delay of reported steps, s"),
    ("f1", "F1"),
    ("pos", "POS"),
    (_RATIO, "mean delay over branch 1's, same steps (log scale)"),
)


def draw_occlusion(
    report: OcclusionReport, path: Path, *, methods: Sequence[str], heading: str
) -> None:
    """Write the picture as PNG; bars are standard errors, of seeds and people together.

    Args:
        report: The figures.
        path: Where to; replaced at once.
        methods: Which to draw, in order.
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
        colour, marks = _STYLES.get(method, _OTHER_STYLE)
        means, errors = zip(*(_drawn(value, name) for _, value in points), strict=True)
        axes.errorbar(
            [100 * rate + shift for rate, _ in points], means, yerr=errors, fmt=marks,
            color=colour, label=title, capsize=2.5, lw=1.4, markersize=4,
        )  # fmt: skip
    axes.set_xticks([100 * rate for rate in report.rates])
    if name in ("f1", "pos"):
        axes.set_ylim(0, 1)


def _drawn(value: Figure, name: str) -> tuple[float, float]:
    """A figure and its error as drawn; a change in percent becomes a ratio."""
    errors = [each for each in (value.seed_error, value.person_error) if each is not None]
    mean, error = value.mean, math.hypot(*errors)
    if name == _RATIO:
        mean, error = 1 + mean / 100, error / 100
        error = min(error, 0.9 * mean)  # a bar cannot reach 0 on a logarithmic scale
    return mean, error


def _draw_published(axes: Any) -> None:
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(1, color="#3f6fb5", lw=1.0)
    low, high = (1 + change / 100 for change in sorted(PUBLISHED_CHANGES))
    axes.axhspan(low, high, color="#bbbbbb", alpha=0.6, lw=0, label="the paper's fusion (real)")
