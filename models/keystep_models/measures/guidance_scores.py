"""How well reported steps fit the steps that were done: precision, recall, F1 and delay.

A report is right when it comes between the middle of the step and `tolerance_s` after its end, and
no other report has taken that step. Everything else that was reported is wrong: too early, too
late, a step that was done wrongly or never.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE_S = 10.0
"""How late a report may come: about the time between two steps' ends in the simulated sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneStep:
    """A step that was done, or reported: `label`, first and last time in seconds."""

    label: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScore:
    """One session's counts.

    Attributes:
        right: Reports that are right.
        reported: All reports that stood at the end.
        done: Steps that were done.
        delays_s: Of right reports, after the step's end; negative before it.
        retracted: Reports that were taken back.
    """

    right: int
    reported: int
    done: int
    delays_s: tuple[float, ...]
    retracted: int = 0

    @property
    def precision(self) -> float:
        """Share of the reports that are right; 0 where there is none."""
        return self.right / self.reported if self.reported else 0.0

    @property
    def recall(self) -> float:
        """Share of the steps that were reported rightly; 0 where there is none."""
        return self.right / self.done if self.done else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        total = self.reported + self.done
        return 2 * self.right / total if total else 0.0


def done_steps(labels: NDArray[np.int64], times_s: NDArray[np.float64]) -> list[DoneStep]:
    """Stretches of one label other than 0, in order; labels (T,), times (T,)."""
    cuts = np.flatnonzero(np.diff(labels)) + 1
    bounds = [0, *cuts.tolist(), len(labels)]
    return [
        DoneStep(
            label=int(labels[start]), start_s=float(times_s[start]), end_s=float(times_s[end - 1])
        )
        for start, end in itertools.pairwise(bounds)
        if end > start and labels[start] > 0
    ]


def score_session(
    reports: Sequence[tuple[int, float]],
    truth: Sequence[DoneStep],
    *,
    tolerance_s: float = TOLERANCE_S,
    retracted: int = 0,
) -> SessionScore:
    """Compare reports, (label, time in seconds) each, with the steps that were done."""
    taken: set[int] = set()
    delays = []
    for label, time_s in sorted(reports, key=lambda report: report[1]):
        for place, step in enumerate(truth):
            earliest = (step.start_s + step.end_s) / 2
            in_time = earliest <= time_s <= step.end_s + tolerance_s
            if place not in taken and step.label == label and in_time:
                taken.add(place)
                delays.append(time_s - step.end_s)
                break
    return SessionScore(
        right=len(taken), reported=len(reports), done=len(truth), delays_s=tuple(delays),
        retracted=retracted,
    )  # fmt: skip
