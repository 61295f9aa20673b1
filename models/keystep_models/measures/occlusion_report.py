"""Methods against how often hands hide completions: figures, the paper's beside them, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keystep_models.measures.study import (
    Figure,
    RunScore,
    Table,
    capped_delay,
    delay_change,
    delay_change_in_common,
    earlier_share,
    figure,
    mean_delay,
    mean_of,
    median_delay,
    paired,
)

CAP_S: Final = 30.0
"""What a step that is never told counts as, and the longest delay, in the capped delay."""

PUBLISHED_CHANGES: Final = (-11.2, -26.1)
"""STORM-PSR's change of the mean delay, percent, against the best earlier method: MECCANO,
IndustReal (abstract of arXiv:2510.12385)."""

_PUBLISHED: Final = (
    f"The paper (real recordings): {PUBLISHED_CHANGES[0]} % on MECCANO, {PUBLISHED_CHANGES[1]} %"
    " on IndustReal, against the best earlier method, of the mean over reported steps."
)

MEASURES: Final[Mapping[str, tuple[str, int]]] = {
    "f1": ("F1", 3),
    "pos": ("POS", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "mean_delay_s": ("mean delay of reported steps, s", 2),
    "median_delay_s": ("median delay of reported steps, s", 2),
    "capped_delay_s": (f"mean delay of all steps, {CAP_S:g} s at most and where never told, s", 2),
    "delay_change": ("change of the mean delay against branch 1, %", 1),
    "delay_change_in_common": ("the same over steps that both reported, %", 1),
    "earlier_share": ("steps told earlier than by branch 1, or not by it, share of all", 2),
}
"""Titles and digits."""

_CHANGES: Final = ("delay_change", "delay_change_in_common")


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionRow:
    """A method at one rate; `figures` by names of `MEASURES`, changes not for branch 1 itself."""

    occlusion: float
    method: str
    title: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionReport:
    """All rows, by rate, then method; `settings` is all that decided them, for JSON."""

    rows: tuple[OcclusionRow, ...]
    settings: Mapping[str, Any]

    @property
    def rates(self) -> list[float]:
        """Occlusion rates in order."""
        return sorted({row.occlusion for row in self.rows})

    @property
    def methods(self) -> dict[str, str]:
        """Titles by method."""
        return {row.method: row.title for row in self.rows}

    def row(self, occlusion: float, method: str) -> OcclusionRow:
        """One of the rows."""
        return next(r for r in self.rows if (r.occlusion, r.method) == (occlusion, method))


def run_figures(table: Table[RunScore], rate_hz: float) -> dict[str, Figure]:
    """F1, POS, precision, recall and delays (s) of a method's runs, by names of `MEASURES`."""

    def seconds(
        statistic: Callable[[Sequence[RunScore]], float],
    ) -> Callable[[Sequence[RunScore]], float]:
        return lambda runs: statistic(runs) / rate_hz

    return {
        **{name: figure(table, mean_of(name)) for name in ("f1", "pos", "precision", "recall")},
        "mean_delay_s": figure(table, seconds(mean_delay)),
        "median_delay_s": figure(table, seconds(median_delay)),
        "capped_delay_s": figure(table, seconds(capped_delay(round(CAP_S * rate_hz)))),
    }


def occlusion_rows(
    occlusion: float,
    tables: Mapping[str, Table[RunScore]],
    titles: Mapping[str, str],
    *,
    reference: str,
    rate_hz: float,
) -> list[OcclusionRow]:
    """Rows of one rate.

    Args:
        occlusion: The rate, 0 to 1.
        tables: Runs by method.
        titles: Of the methods.
        reference: The method that delays are compared with.
        rate_hz: Frames a second.
    """
    rows = []
    for method, table in tables.items():
        figures = run_figures(table, rate_hz)
        if method != reference:
            both = paired(table, tables[reference])
            figures["delay_change"] = figure(both, delay_change)
            figures["delay_change_in_common"] = figure(both, delay_change_in_common)
            figures["earlier_share"] = figure(both, earlier_share)
        rows.append(
            OcclusionRow(occlusion=occlusion, method=method, title=titles[method], figures=figures)
        )
    return rows


def as_document(report: OcclusionReport) -> dict[str, Any]:
    """Plain values for JSON; null where there is no number."""
    return {
        "what": "methods against the share of completions that hands hide",
        "published_delay_changes_percent": {
            "MECCANO": PUBLISHED_CHANGES[0],
            "IndustReal": PUBLISHED_CHANGES[1],
        },
        "settings": dict(report.settings),
        "rows": [
            {
                "occlusion": row.occlusion,
                "method": row.method,
                "title": row.title,
                **{name: figure_values(value) for name, value in row.figures.items()},
            }
            for row in report.rows
        ],
    }


def figure_values(value: Figure) -> dict[str, Any]:
    """A figure as JSON holds it; null where there is no number."""
    return {
        "mean": _number(value.mean),
        "seed_error": _number(value.seed_error),
        "person_error": _number(value.person_error),
        "seeds": [_number(each) for each in value.seeds],
    }


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def as_markdown(report: OcclusionReport, heading: str) -> str:
    """A table for each measure: methods by rate."""
    lines = [f"### {heading}", "", "Value ± standard error over seeds ± over people.", ""]
    for name, (title, digits) in MEASURES.items():
        rates = [f"{100 * rate:g} % hidden" for rate in report.rates]
        lines += [table_line([title, *rates]), table_line(["---"] * (len(rates) + 1))]
        for method, method_title in report.methods.items():
            found = [report.row(rate, method).figures.get(name) for rate in report.rates]
            if any(found):
                signed = name in _CHANGES
                cells = ["" if f is None else f.text(digits, signed=signed) for f in found]
                lines.append(table_line([method_title, *cells]))
        lines.append("")
    return "\n".join([*lines, _PUBLISHED, ""])


def table_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
