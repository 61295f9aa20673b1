"""Methods compared over people and training seeds: measures, their errors, and differences.

A *table of runs* is a list per seed of a list per person, in the same order everywhere; a method
that is not trained anew for each seed has one list. Figures are means over seeds. Their errors:

- over seeds: standard deviation of the seeds' values over the root of their number; None for one;
- over people: jackknife, leaving one person out at a time (of a mean it equals the standard error);
  None for one person.

Delays are in frames.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from keystep_capture.errors import ShapeError
from keystep_models.measures.psr import GroundTruthStep, TimedStep, pair_plain, score_plain

T = TypeVar("T")
Table: TypeAlias = Sequence[Sequence[T]]
"""By seed, then person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScore:
    """One method on one recording with one seed, in the plain manner.

    Attributes:
        f1, pos, precision, recall: As `measures.psr`.
        delays: Delay of each true step that was reported, by its place in the ground truth.
        true_count: True steps.
    """

    f1: float
    pos: float
    precision: float
    recall: float
    delays: Mapping[int, int]
    true_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with its errors, and each seed's own; nan where there is nothing to measure."""

    mean: float
    seed_error: float | None
    person_error: float | None
    seeds: tuple[float, ...]

    def text(self, digits: int, *, factor: float = 1.0, signed: bool = False) -> str:
        """As "value ± over seeds ± over people"; an error that is not known as "-"."""
        if math.isnan(self.mean):
            return "-"
        errors = [
            "-" if error is None else f"{factor * error:.{digits}f}"
            for error in (self.seed_error, self.person_error)
        ]
        sign = "+" if signed else ""
        return f"{factor * self.mean:{sign}.{digits}f} ± {errors[0]} ± {errors[1]}"


def score_run(truth: Sequence[GroundTruthStep], reported: Sequence[TimedStep]) -> RunScore:
    """Score a recording in the plain manner, delays kept by true step."""
    score = score_plain(truth, reported)
    return RunScore(
        f1=score.f1,
        pos=score.pos,
        precision=score.precision,
        recall=score.recall,
        delays={
            place: max(0, reported[report].frame_idx - truth[place].frame_idx)
            for place, report in pair_plain(truth, reported)
        },
        true_count=len(truth),
    )


def figure(table: Table[T], statistic: Callable[[Sequence[T]], float]) -> Figure:
    """A statistic of the people's runs, over seeds, with errors.

    Args:
        table: Runs by seed, then person.
        statistic: Of one seed's runs, by person; nan where it has none.

    Raises:
        ShapeError: There is no run, or seeds have other numbers of people.
    """
    people = {len(runs) for runs in table}
    if len(people) != 1 or 0 in people:
        raise ShapeError(f"expected as many runs, 1 or more, of each seed, got {sorted(people)}")
    values = [statistic(runs) for runs in table]
    left_out = [
        _mean([statistic([*runs[:idx], *runs[idx + 1 :]]) for runs in table])
        for idx in range(people.pop())
    ]
    return Figure(
        mean=_mean(values),
        seed_error=_standard_error(values),
        person_error=_jackknife(left_out),
        seeds=tuple(values),
    )


def paired(table: Table[T], other: Table[T]) -> list[list[tuple[T, T]]]:
    """Runs of two methods side by side; one that has a single seed stands beside every seed.

    Raises:
        ShapeError: The numbers of seeds or of people do not fit.
    """
    seeds = max(len(table), len(other))
    if any(len(each) not in (1, seeds) for each in (table, other)):
        raise ShapeError(f"expected 1 or {seeds} seeds of each, got {len(table)}, {len(other)}")
    rows = [(table[s % len(table)], other[s % len(other)]) for s in range(seeds)]
    if any(len(own) != len(theirs) for own, theirs in rows):
        raise ShapeError("expected runs of the same people")
    return [list(zip(own, theirs, strict=True)) for own, theirs in rows]


# --- statistics of one seed's runs ----------------------------------------------------------------


def mean_of(name: str) -> Callable[[Sequence[RunScore]], float]:
    """The mean over people of a field of `RunScore`: f1, pos, precision, recall."""
    return lambda runs: _mean([float(getattr(run, name)) for run in runs])


def mean_delay(runs: Sequence[RunScore]) -> float:
    """Mean delay over all reported steps of all people."""
    return _mean([float(delay) for run in runs for delay in run.delays.values()])


def median_delay(runs: Sequence[RunScore]) -> float:
    """Median delay over all reported steps of all people."""
    delays = [delay for run in runs for delay in run.delays.values()]
    return float(statistics.median(delays)) if delays else math.nan


def capped_delay(cap_frames: int) -> Callable[[Sequence[RunScore]], float]:
    """Mean delay over all true steps, each counted as `cap_frames` at most, also if never told.

    Unlike the mean over reported steps, it cannot be made small by missing what is hard.
    """

    def statistic(runs: Sequence[RunScore]) -> float:
        total = sum(min(delay, cap_frames) for run in runs for delay in run.delays.values())
        missed = sum(run.true_count - len(run.delays) for run in runs)
        steps = sum(run.true_count for run in runs)
        return (total + cap_frames * missed) / steps if steps else math.nan

    return statistic


def delay_change(runs: Sequence[tuple[RunScore, RunScore]]) -> float:
    """Mean delay of the first against the second, in percent, each over what it reported."""
    return _percent(mean_delay([a for a, _ in runs]), mean_delay([b for _, b in runs]))


def delay_change_in_common(runs: Sequence[tuple[RunScore, RunScore]]) -> float:
    """The same over the true steps that both reported."""
    common = [(a, b, place) for a, b in runs for place in a.delays if place in b.delays]
    own = _mean([float(a.delays[place]) for a, _, place in common])
    return _percent(own, _mean([float(b.delays[place]) for _, b, place in common]))


def earlier_share(runs: Sequence[tuple[RunScore, RunScore]]) -> float:
    """Share of the true steps that the first told earlier than the second, or it alone."""
    steps = sum(a.true_count for a, _ in runs)
    earlier = sum(
        place not in b.delays or delay < b.delays[place]
        for a, b in runs
        for place, delay in a.delays.items()
    )
    return earlier / steps if steps else math.nan


def difference_of(name: str) -> Callable[[Sequence[tuple[RunScore, RunScore]]], float]:
    """The mean difference of a field of `RunScore`, first minus second."""
    return lambda runs: _mean([float(getattr(a, name)) - float(getattr(b, name)) for a, b in runs])


# --- errors -----------------------------------------------------------------------------------


def _percent(value: float, reference: float) -> float:
    if not math.isfinite(value) or not math.isfinite(reference) or reference == 0:
        return math.nan
    return 100.0 * (value - reference) / reference


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; nan of none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _standard_error(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def _jackknife(left_out: Sequence[float]) -> float | None:
    known = [value for value in left_out if not math.isnan(value)]
    if len(known) < 2:
        return None
    mean = statistics.fmean(known)
    spread = sum((value - mean) ** 2 for value in known)
    return math.sqrt((len(known) - 1) / len(known) * spread)
