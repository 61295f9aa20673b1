"""Bundles of a recording's raw features and its key steps, given in seconds.

Raw features, since on simulated people encoders trained on the one recording were worse
(docs/guidance.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.bundles.bundle import Bundle
from keystep_models.bundles.making import ExpertPart, make_bundle
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.guidance.emissions import EmissionSettings, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import ExpertSegment

WHOLE_PICTURE: Final = "appearance"
LEAST_GAZE_SHARE: Final = 0.5
"""Of the ticks in steps: with less of it, a bundle looks at the whole picture."""
INSTEAD_OF: Final = "instead_of"
BECAUSE: Final = "because"


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


def why_not_gaze(valid: NDArray[np.bool_] | None, segments: Sequence[ExpertSegment]) -> str | None:
    """Why a bundle is not made of what is around the expert's gaze, but of the whole picture.

    Args:
        valid: Where the cue is there, (T,); None where it is not at all.
        segments: The key steps.

    Returns:
        None: it can be. Guidance by it is better (docs/guidance.md).
    """
    if valid is None:
        return "the recording has no gaze, or no camera poses"
    by_step: dict[int, list[bool]] = {}
    for segment in segments:
        own = valid[segment.start_tick : segment.end_tick + 1]
        by_step.setdefault(segment.step_id, []).extend(own.tolist())
    share = float(np.mean([there for step in by_step.values() for there in step]))
    if share < LEAST_GAZE_SHARE:
        return f"gaze is there in {100 * share:.0f} % of the steps' time only"
    if lost := [step_id for step_id, step in by_step.items() if not any(step)]:
        return f"step {lost[0]} has no gaze"
    return None


def raw_emissions(cues: Iterable[str]) -> EmissionSettings:
    """How prototypes of raw features are made: the whole picture stands in for lost gaze."""
    both = {GAZE_APPEARANCE, WHOLE_PICTURE} <= set(cues)
    return EmissionSettings(stand_ins={WHOLE_PICTURE: GAZE_APPEARANCE} if both else {})


def whole_picture_source(source: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The provenance of a part that stands in for what is around the gaze point."""
    return {**source, INSTEAD_OF: GAZE_APPEARANCE, BECAUSE: reason}


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
    return make_bundle(
        folder,
        parts,
        segments_of(steps, times_s),
        emissions=raw_emissions(cues),
        filtering=filtering,
    )


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
