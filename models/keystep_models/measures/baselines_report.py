"""Trainings of the spatio-temporal branch compared, differences paired by seed and person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from keystep_models.measures.occlusion_report import (
    MEASURES,
    figure_values,
    run_figures,
    table_line,
)
from keystep_models.measures.study import (
    Figure,
    RunScore,
    Table,
    difference_of,
    figure,
    paired,
)

Verdict: TypeAlias = Literal["worse", "better", "open"]

_SHOWN: Final = ("f1", "pos", "precision", "recall", "mean_delay_s", "capped_delay_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """One setting: `figures` by names of `MEASURES`, differences of F1 and POS to the first."""

    name: str
    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]

    def verdict(self, measure: str) -> Verdict:
        """Against the first; open within two standard errors, seeds' and people's together."""
        difference = self.differences[measure]
        errors = [e for e in (difference.seed_error, difference.person_error) if e is not None]
        if math.isnan(difference.mean) or abs(difference.mean) <= 2 * math.hypot(*errors):
            return "open"
        return "worse" if difference.mean < 0 else "better"


def baseline_rows(tables: Mapping[str, Table[RunScore]], rate_hz: float) -> list[BaselineRow]:
    """A row for each setting, the first the reference; seeds and people in the same order."""
    reference = next(iter(tables.values()))
    rows = []
    for name, table in tables.items():
        differences = {}
        if table is not reference:
            both = paired(table, reference)
            differences = {key: figure(both, difference_of(key)) for key in ("f1", "pos")}
        rows.append(
            BaselineRow(name=name, figures=run_figures(table, rate_hz), differences=differences)
        )
    return rows


def as_document(rows: Sequence[BaselineRow], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "what": "trainings of the spatio-temporal branch, alone",
        "settings": dict(settings),
        "rows": [
            {
                "name": row.name,
                **{name: figure_values(value) for name, value in row.figures.items()},
                "differences": {
                    name: {**figure_values(value), "verdict": row.verdict(name)}
                    for name, value in row.differences.items()
                },
            }
            for row in rows
        ],
    }


def as_markdown(rows: Sequence[BaselineRow], heading: str) -> str:
    """One table, the reference first."""
    titles = ["", *(MEASURES[name][0] for name in _SHOWN), "F1 minus first", "POS minus first"]
    lines = [f"### {heading}", "", "Value ± standard error over seeds ± over people.", ""]
    lines += [table_line(titles), table_line(["---"] * len(titles))]
    for row in rows:
        cells = [row.figures[name].text(MEASURES[name][1]) for name in _SHOWN]
        for name in ("f1", "pos"):
            found = row.differences.get(name)
            words = "" if found is None else f"{found.text(3, signed=True)}: {row.verdict(name)}"
            cells.append(words)
        lines.append(table_line([row.name, *cells]))
    note = "Worse or better: beyond two standard errors, those of seeds and people together."
    return "\n".join([*lines, "", note, ""])
