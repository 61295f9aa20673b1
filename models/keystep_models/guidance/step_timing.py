"""What one expert's recording tells of time: which steps, in which order, how long, how far apart.

Ticks are those of the model clock, 10 a second by default. S steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from keystep_capture.errors import DataError

MAX_STEPS: Final = 256
"""Key steps that one filter follows at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSegment:
    """One stretch of the expert's recording in which a step is done.

    Attributes:
        step_id: Which step; a step may have several stretches.
        start_tick: Its first tick.
        end_tick: Its last tick, inclusive.
    """

    step_id: int
    start_tick: int
    end_tick: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTiming:
    """The steps in the expert's order, with their durations.

    Attributes:
        step_ids: Ids by order of first appearance, length S.
        duration_ticks: Mean length of each step's stretches, length S.
        repeatable: Whether the expert did it more than once, length S.
        gap_ticks: Mean length of what lies between two stretches.
    """

    step_ids: tuple[int, ...]
    duration_ticks: tuple[float, ...]
    repeatable: tuple[bool, ...]
    gap_ticks: float

    def __post_init__(self) -> None:
        count = len(self.step_ids)
        if not 0 < count <= MAX_STEPS or len(set(self.step_ids)) != count:
            raise DataError(f"expected 1 to {MAX_STEPS} different steps, got {count}")
        if len(self.duration_ticks) != count or len(self.repeatable) != count:
            raise DataError(f"expected a duration and a repeatable for each of {count} steps")
        numbers = np.array([*self.duration_ticks, self.gap_ticks])
        if not (np.isfinite(numbers).all() and (numbers[:-1] > 0).all() and numbers[-1] >= 0):
            raise DataError("expected finite durations above 0 and a gap of 0 or more")

    @classmethod
    def of_segments(cls, segments: Sequence[ExpertSegment]) -> StepTiming:
        """Measure the expert's stretches.

        Raises:
            DataError: There is none, they overlap, or one ends before it begins.
        """
        ordered = check_segments(segments)
        lengths: dict[int, list[int]] = {}
        for segment in ordered:
            lengths.setdefault(segment.step_id, []).append(
                segment.end_tick - segment.start_tick + 1
            )
        gaps = [
            after.start_tick - before.end_tick - 1 for before, after in itertools.pairwise(ordered)
        ]
        return cls(
            step_ids=tuple(lengths),
            duration_ticks=tuple(float(np.mean(each)) for each in lengths.values()),
            repeatable=tuple(len(each) > 1 for each in lengths.values()),
            gap_ticks=float(np.mean(gaps)) if gaps else 0.0,
        )


def check_segments(
    segments: Sequence[ExpertSegment], tick_count: int | None = None
) -> list[ExpertSegment]:
    """The stretches in order of time.

    Args:
        segments: In any order.
        tick_count: Ticks of the recording, where known.

    Raises:
        DataError: There is none, they overlap, or one does not lie within the recording.
    """
    if not segments:
        raise DataError("expected at least one key step, got none; review the recording first")
    ordered = sorted(segments, key=lambda segment: (segment.start_tick, segment.end_tick))
    end = -1
    for segment in ordered:
        where = f"step {segment.step_id} at ticks {segment.start_tick} to {segment.end_tick}"
        if segment.start_tick < 0 or segment.end_tick < segment.start_tick:
            raise DataError(f"{where}: expected a first tick of 0 or more and a last not before it")
        if segment.start_tick <= end:
            raise DataError(f"{where}: expected stretches that do not overlap, the last ends {end}")
        if tick_count is not None and segment.end_tick >= tick_count:
            raise DataError(f"{where}: expected ticks below {tick_count}, the recording's length")
        end = segment.end_tick
    return ordered
