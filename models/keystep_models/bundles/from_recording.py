"""Bundles of a recording's raw features and its key steps, given in seconds.

Raw features, since on simulated people encoders trained on the one recording were worse
(docs/guidance.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.bundles.bundle import Bundle
from keystep_models.bundles.making import ExpertPart, make_bundle
from keystep_models.guidance.emissions import PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import ExpertSegment

PREFERRED_CUES: Final = ("appearance",)
"""Parts of a bundle where nothing else is chosen: more cues were not better (docs/guidance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """A key step of the recording.

    Attributes:
        step_id: Its number in the bundle.
        start_s: On the recording's timeline, of its first tick.
        end_s: Of its last tick.
        exemplar_s: Of the tick that shows it best; None: its middle.
    """

    step_id: int
    start_s: float
    end_s: float
    exemplar_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedCue:
    """A cue of the recording, a row per tick, and what made it."""

    rows: PartRows
    source: Mapping[str, Any]


def make_raw_bundle(
    folder: Path,
    cues: Mapping[str, RecordedCue],
    steps: Sequence[TimedStep],
    times_s: NDArray[np.float64],
    rate_hz: float,
) -> Bundle:
    """Make a bundle whose parts are raw features.

    Args:
        folder: Where to; must not exist.
        cues: The parts by their cue.
        steps: The key steps; where they overlap, the time between is shared.
        times_s: Of every tick, (T,).
        rate_hz: Ticks a second.

    Raises:
        StateError: The folder exists.
        DataError: Steps or cues are not as documented.
        OSError: The disk does not take it.
    """
    parts = {
        name: ExpertPart(cue=name, is_encoded=False, rows=cue.rows, source=cue.source)
        for name, cue in cues.items()
    }
    filtering = FilterSettings(tick_rate_hz=rate_hz)
    return make_bundle(folder, parts, segments_of(steps, times_s), filtering=filtering)


def segments_of(steps: Sequence[TimedStep], times_s: NDArray[np.float64]) -> list[ExpertSegment]:
    """Steps in seconds as stretches of ticks that do not overlap.

    Where two overlap the time they share is halved, but each keeps its exemplar; what of a step
    lies beyond one within it is left to neither.

    Args:
        steps: In any order.
        times_s: Of every tick, (T,), never decreasing.

    Raises:
        DataError: There is no step, or no tick in one; or two have one exemplar.
    """
    found = []
    for step in sorted(steps, key=_exemplar_s):
        first, after = np.searchsorted(times_s, [step.start_s - 1e-6, step.end_s + 1e-6]).tolist()
        if after <= first:
            raise DataError(
                f"key step {step.step_id} ({step.start_s:.1f} to {step.end_s:.1f} s) has no tick of"
                " the recording"
            )
        best = int(np.searchsorted(times_s, _exemplar_s(step) - 1e-6))
        found.append([step.step_id, first, after - 1, min(max(best, first), after - 1)])
    if not found:
        raise DataError("expected at least one key step, got none; review the recording first")
    for before, later in itertools.pairwise(found):
        if later[1] <= before[2]:
            middle = (later[1] + before[2]) // 2
            cut = min(max(middle, before[3]), later[3] - 1)
            if cut < before[3]:
                raise DataError(
                    f"key steps {before[0]} and {later[0]} have one exemplar: merge them"
                )
            before[2], later[1] = cut, cut + 1
    return [
        ExpertSegment(step_id=step_id, start_tick=start, end_tick=end)
        for step_id, start, end, _ in found
    ]


def _exemplar_s(step: TimedStep) -> float:
    return (step.start_s + step.end_s) / 2 if step.exemplar_s is None else step.exemplar_s
