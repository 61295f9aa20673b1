"""An ablation's results: rows with errors, differences paired by seed, the paper's beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from keystep_models.measures.ablation_tables import AblationTable, Published, published_floor

Verdict: TypeAlias = Literal["as published", "opposite", "open", "-"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Mean and standard error in percent; the error is None for a single value."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of fractions, at least one."""
        percent = 100 * np.asarray(values)
        spread = float(percent.std(ddof=1)) / math.sqrt(len(percent)) if len(percent) > 1 else None
        return cls(mean=float(percent.mean()), error=spread)

    def text(self, *, signed: bool = False) -> str:
        """As a cell."""
        words = f"{self.mean:+.1f}" if signed else f"{self.mean:.1f}"
        return words if self.error is None else f"{words} ± {self.error:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One row.

    Attributes:
        name: As the table shows it.
        f1, iou: Over seeds.
        difference: F1 minus the reference row's, seed by seed; None for the reference.
        published: The paper's F1 and IoU.
        verdict: Whether the difference to the reference has the paper's sign: "open" where it is
            within two standard errors of nothing (or the paper sees none).
        seeds: F1 in percent of each seed.
        more: F1 on parts of the recordings, where not all were trained on.
    """

    name: str
    f1: Estimate
    iou: Estimate
    difference: Estimate | None
    published: Published | None
    verdict: Verdict
    seeds: tuple[float, ...]
    more: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRow:
    """A baseline at one K."""

    name: str
    clusters: int
    f1: Estimate
    iou: Estimate
    published: Published | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationResult:
    """A table's results.

    Attributes:
        table: What was compared.
        rows: In the table's order.
        floors: Baselines, for every K of the table.
        settings: Everything that decided the figures, for JSON.
    """

    table: AblationTable
    rows: tuple[AblationRow, ...]
    floors: tuple[FloorRow, ...]
    settings: Mapping[str, Any]


Scores = Mapping[str, Mapping[str, float]]


def ablation_rows(
    table: AblationTable, scores: Mapping[str, Sequence[Scores]]
) -> tuple[AblationRow, ...]:
    """From each row's scores, one of each seed in the same order."""
    reference = _f1(scores[table.reference])
    known = {variant.name: variant.published for variant in table.variants}
    rows = []
    for name, runs in scores.items():
        values = _f1(runs)
        difference = None
        if name != table.reference:
            difference = Estimate.of([a - b for a, b in zip(values, reference, strict=True)])
        parts = {part for run in runs for part in run} - {"all"}
        rows.append(
            AblationRow(
                name=name,
                f1=Estimate.of(values),
                iou=Estimate.of([run["all"]["iou"] for run in runs]),
                difference=difference,
                published=known[name],
                verdict=verdict(difference, known[name], known[table.reference]),
                seeds=tuple(round(100 * value, 3) for value in values),
                more={p: Estimate.of([run[p]["f1"] for run in runs]) for p in sorted(parts)},
            )
        )
    return tuple(rows)


def verdict(
    difference: Estimate | None, published: Published | None, reference: Published | None
) -> Verdict:
    """Whether a difference has the paper's sign."""
    if difference is None or published is None or reference is None:
        return "-"
    if published[0] is None or reference[0] is None or difference.error is None:
        return "-"
    theirs = published[0] - reference[0]
    if abs(difference.mean) <= 2 * difference.error or theirs == 0:
        return "open"
    return "as published" if difference.mean * theirs > 0 else "opposite"


def floor_rows(
    found: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]],
) -> tuple[FloorRow, ...]:
    """From K to baseline to the measures of its draws."""
    return tuple(
        FloorRow(
            name=name,
            clusters=clusters,
            f1=Estimate.of([draw["f1"] for draw in draws]),
            iou=Estimate.of([draw["iou"] for draw in draws]),
            published=published_floor(name, clusters),
        )
        for clusters, rows in found.items()
        for name, draws in rows.items()
    )


def as_document(result: AblationResult) -> dict[str, Any]:
    """Plain values for JSON."""
    table = result.table
    return {
        "table": table.key,
        "title": table.title,
        "note": table.note,
        "reference": table.reference,
        "settings": dict(result.settings),
        "rows": [asdict(row) for row in result.rows],
        "baselines": [asdict(row) for row in result.floors],
    }


def as_markdown(result: AblationResult, heading: str) -> str:
    """The results as a Markdown table, baselines first."""
    several = len({row.clusters for row in result.floors}) > 1
    parts = [part for part in _PART_TITLES if any(part in row.more for row in result.rows)]
    titles = ["", "F1", "IoU", *(_PART_TITLES[part] for part in parts)]
    titles += ["F1 minus reference", "paper: F1 / IoU", "paper: difference", "ordering"]
    reference = next(r.published for r in result.rows if r.name == result.table.reference)
    lines = [f"### {heading}", "", _line(titles), _line(["---"] * len(titles))]
    for floor in result.floors:
        name = f"{floor.name}, K = {floor.clusters}" if several else floor.name
        cells = [f"*{name}*", floor.f1.text(), floor.iou.text(), *("" for _ in parts)]
        lines.append(_line([*cells, "", _pair(floor.published), "", ""]))
    for row in result.rows:
        cells = [row.name, row.f1.text(), row.iou.text()]
        cells += [row.more[part].text() if part in row.more else "" for part in parts]
        cells.append("reference" if row.difference is None else row.difference.text(signed=True))
        cells += [_pair(row.published), _published_difference(row, reference)]
        lines.append(_line([*cells, "" if row.difference is None else row.verdict]))
    if result.table.note:
        lines += ["", result.table.note]
    return "\n".join([*lines, ""])


_PART_TITLES = {
    "own": "F1, those trained on",
    "own raw": "raw features there",
    "own uniform": "uniform there",
    "others": "F1, the others",
}


def _f1(runs: Sequence[Scores]) -> list[float]:
    return [run["all"]["f1"] for run in runs]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pair(published: Published | None) -> str:
    if published is None:
        return ""
    return " / ".join("-" if value is None else f"{value:.1f}" for value in published)


def _published_difference(row: AblationRow, reference: Published | None) -> str:
    if row.difference is None or row.published is None or reference is None:
        return ""
    if row.published[0] is None or reference[0] is None:
        return ""
    return f"{row.published[0] - reference[0]:+.1f}"
