"""What methods make of parts that are put in wrongly, over people and seeds; see `mistakes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from keystep_models.measures.mistakes import MistakeCounts, MistakeOutcome, count
from keystep_models.measures.occlusion_report import figure_values, table_line
from keystep_models.measures.study import Figure, Table, figure

Outcomes: TypeAlias = Sequence[MistakeOutcome]
"""Of one run."""

MEASURES: Final[Mapping[str, tuple[str, int]]] = {
    "called_share": ("wrong parts called completed", 2),
    "wrong_s": ("until guidance is right again, s", 1),
    "repairs_told_share": ("repairs told", 2),
    "repair_delay_s": ("delay of these, s", 1),
}
"""Titles and digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MistakeRow:
    """A method: `figures` by names of `MEASURES`, and the counts of all seeds together."""

    method: str
    title: str
    figures: Mapping[str, Figure]
    counts: MistakeCounts
    seeds: int


def mistake_row(method: str, title: str, table: Table[Outcomes], rate_hz: float) -> MistakeRow:
    """A method's row from its runs' outcomes, by seed, then person."""

    def over(
        value: Callable[[MistakeCounts], float], divisor: float = 1.0
    ) -> Callable[[Sequence[Outcomes]], float]:
        return lambda runs: value(count([each for run in runs for each in run])) / divisor

    return MistakeRow(
        method=method,
        title=title,
        figures={
            "called_share": figure(table, over(lambda c: c.called_share)),
            "wrong_s": figure(table, over(lambda c: c.mean_wrong_frames, rate_hz)),
            "repairs_told_share": figure(table, over(lambda c: c.repairs_told_share)),
            "repair_delay_s": figure(table, over(lambda c: c.mean_repair_delay_frames, rate_hz)),
        },
        counts=count([each for seed in table for run in seed for each in run]),
        seeds=len(table),
    )


def as_document(rows: Sequence[MistakeRow], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "what": "parts put in wrongly: called completed, and until guidance is right again",
        "settings": dict(settings),
        "rows": [
            {
                "method": row.method,
                "title": row.title,
                "seeds": row.seeds,
                "mistakes": row.counts.mistakes,
                "called_completed": row.counts.called,
                "never_right_again": row.counts.never_right,
                "repairs": row.counts.repairs,
                "repairs_told": row.counts.repairs_told,
                **{name: figure_values(value) for name, value in row.figures.items()},
            }
            for row in rows
        ],
    }


def as_markdown(rows: Sequence[MistakeRow], heading: str) -> str:
    """One table, a row per method."""
    titles = ["", *(title for title, _ in MEASURES.values())]
    titles[3:3] = ["of these never"]
    lines = [f"### {heading}", "", "Value ± standard error over seeds ± over people.", ""]
    lines += [table_line(titles), table_line(["---"] * len(titles))]
    for row in rows:
        cells = [row.figures[name].text(digits) for name, (_, digits) in MEASURES.items()]
        cells[2:2] = [f"{row.counts.never_right} of {row.counts.called}"]
        lines.append(table_line([row.title, *cells]))
    total = rows[0].counts.mistakes // rows[0].seeds if rows else 0
    note = (
        f"{total} mistakes. Counts of methods that see clips are of all seeds together. A time that"
        " the recording cuts off counts up to its end."
    )
    return "\n".join([*lines, "", note, ""])
