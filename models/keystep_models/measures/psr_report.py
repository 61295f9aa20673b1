"""The measures of many recordings in one manner: each, all, those with and without errors.

Sources: see `measures.psr`, whose three manners are reported here. All delays are in frames.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from keystep_capture.errors import ConfigError
from keystep_models.measures.psr import (
    GroundTruthStep,
    PlainScore,
    PublishedScore,
    StepCounts,
    TimedStep,
    score_industreal,
    score_plain,
    score_storm,
)

Manner: TypeAlias = Literal["plain", "industreal", "storm"]

MANNERS: Final[tuple[Manner, ...]] = ("plain", "industreal", "storm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingScore:
    """One recording's measures, whichever the manner.

    Perception counts leave time out (occurrences without a partner); system counts are those that
    precision and recall are made of. Delays are nan where nothing was paired and the manner has no
    number for it.
    """

    name: str
    has_errors: bool | None
    f1: float
    pos: float
    precision: float
    recall: float
    median_delay_frames: float
    mean_delay_frames: float
    delays_frames: tuple[float, ...]
    perception_fp_count: int
    perception_fn_count: int
    system_tp_count: int
    system_fp_count: int
    system_fn_count: int
    by_step: Mapping[int, StepCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Means over recordings, sums of counts.

    In the plain manner delays are over all pairs of all recordings; in the published ones the mean
    is that of the recordings' means, as published, and the median that of all pairs.
    """

    recording_count: int
    f1: float
    pos: float
    precision: float
    recall: float
    median_delay_frames: float
    mean_delay_frames: float
    perception_fp_count: int
    perception_fn_count: int
    system_tp_count: int
    system_fp_count: int
    system_fn_count: int


def score_recording(
    manner: Manner,
    ground_truth: Sequence[GroundTruthStep],
    reported: Sequence[TimedStep],
    *,
    name: str,
    has_errors: bool | None = None,
    window_frames: int = 257,
) -> RecordingScore:
    """Score one recording.

    Args:
        manner: "plain", "industreal" or "storm".
        ground_truth: True steps in time.
        reported: Reported steps in the order of reporting.
        name: Name of the recording.
        has_errors: Whether a part was installed incorrectly, None where nobody knows.
        window_frames: Frames a clip spans; STORM's manner needs it.

    Raises:
        ConfigError: an unknown manner.
    """
    if manner == "plain":
        return _of_plain(score_plain(ground_truth, reported), name, has_errors)
    if manner == "industreal":
        return _of_published(score_industreal(ground_truth, reported), name, has_errors)
    if manner == "storm":
        score = score_storm(ground_truth, reported, window_frames=window_frames)
        return _of_published(score, name, has_errors)
    raise ConfigError(f"expected a manner of {', '.join(MANNERS)}, got {manner!r}")


def _of_plain(score: PlainScore, name: str, has_errors: bool | None) -> RecordingScore:
    steps = score.by_step.values()
    return RecordingScore(
        name=name,
        has_errors=has_errors,
        f1=score.f1,
        pos=score.pos,
        precision=score.precision,
        recall=score.recall,
        median_delay_frames=_median(score.delays_frames),
        mean_delay_frames=_mean(score.delays_frames),
        delays_frames=score.delays_frames,
        perception_fp_count=sum(max(0, s.reported_count - s.true_count) for s in steps),
        perception_fn_count=sum(max(0, s.true_count - s.reported_count) for s in steps),
        system_tp_count=sum(s.tp_count for s in steps),
        system_fp_count=sum(s.fp_count for s in steps),
        system_fn_count=sum(s.fn_count for s in steps),
        by_step=score.by_step,
    )


def _of_published(score: PublishedScore, name: str, has_errors: bool | None) -> RecordingScore:
    return RecordingScore(
        name=name,
        has_errors=has_errors,
        f1=score.f1,
        pos=score.pos,
        precision=score.precision,
        recall=score.recall,
        median_delay_frames=_median(score.delays_frames),
        mean_delay_frames=score.mean_delay_frames,
        delays_frames=score.delays_frames,
        perception_fp_count=score.perception_fp_count,
        perception_fn_count=score.perception_fn_count,
        system_tp_count=score.system_tp_count,
        system_fp_count=score.system_fp_count,
        system_fn_count=score.system_fn_count,
        by_step=score.by_step,
    )


def total(manner: Manner, scores: Sequence[RecordingScore]) -> Totals:
    """Average over recordings; ConfigError when there is none."""
    if not scores:
        raise ConfigError("expected the scores of at least one recording, got none")
    delays = [delay for score in scores for delay in score.delays_frames]
    means = [score.mean_delay_frames for score in scores]
    return Totals(
        recording_count=len(scores),
        f1=statistics.fmean(score.f1 for score in scores),
        pos=statistics.fmean(score.pos for score in scores),
        precision=statistics.fmean(score.precision for score in scores),
        recall=statistics.fmean(score.recall for score in scores),
        median_delay_frames=_median(delays),
        mean_delay_frames=_mean(delays) if manner == "plain" else statistics.fmean(means),
        perception_fp_count=sum(score.perception_fp_count for score in scores),
        perception_fn_count=sum(score.perception_fn_count for score in scores),
        system_tp_count=sum(score.system_tp_count for score in scores),
        system_fp_count=sum(score.system_fp_count for score in scores),
        system_fn_count=sum(score.system_fn_count for score in scores),
    )


def groups(scores: Sequence[RecordingScore]) -> dict[str, list[RecordingScore]]:
    """All recordings, those with errors, those without, those of which it is not known.

    Groups without a recording are left out.
    """
    found = {
        "all": list(scores),
        "with errors": [score for score in scores if score.has_errors is True],
        "without errors": [score for score in scores if score.has_errors is False],
        "errors unknown": [score for score in scores if score.has_errors is None],
    }
    return {name: members for name, members in found.items() if members}


def steps_total(scores: Sequence[RecordingScore]) -> dict[int, StepCounts]:
    """Per step id the counts and delays of all recordings, by id."""
    ids = sorted({step_id for score in scores for step_id in score.by_step})
    return {
        step_id: _add([s.by_step[step_id] for s in scores if step_id in s.by_step])
        for step_id in ids
    }


def _add(counts: Sequence[StepCounts]) -> StepCounts:
    return StepCounts(
        true_count=sum(c.true_count for c in counts),
        reported_count=sum(c.reported_count for c in counts),
        tp_count=sum(c.tp_count for c in counts),
        fn_count=sum(c.fn_count for c in counts),
        delays_frames=tuple(delay for c in counts for delay in c.delays_frames),
    )


def as_json(
    manner: Manner, scores: Sequence[RecordingScore], titles: Mapping[int, str]
) -> dict[str, Any]:
    """Everything of a scoring as values that JSON holds; null where there is no number."""
    return {
        "manner": manner,
        "totals": {
            name.replace(" ", "_"): _fields(total(manner, members))
            for name, members in groups(scores).items()
        },
        "recordings": {score.name: _recording_json(score) for score in scores},
        "steps": [
            {"id": step_id, "title": titles.get(step_id, ""), **_counts_json(counts)}
            for step_id, counts in steps_total(scores).items()
        ],
    }


def _recording_json(score: RecordingScore) -> dict[str, Any]:
    values = _fields(score)
    del values["name"]
    values["by_step"] = {str(i): _counts_json(counts) for i, counts in score.by_step.items()}
    return values


def _counts_json(counts: StepCounts) -> dict[str, Any]:
    return {
        "true": counts.true_count,
        "reported": counts.reported_count,
        "tp": counts.tp_count,
        "fp": counts.fp_count,
        "fn": counts.fn_count,
        "median_delay_frames": _number(_median(counts.delays_frames)),
        "mean_delay_frames": _number(_mean(counts.delays_frames)),
    }


def _fields(values: RecordingScore | Totals) -> dict[str, Any]:
    found = {name: getattr(values, name) for name in values.__slots__}
    return {name: _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _median(delays: Sequence[float]) -> float:
    return statistics.median(delays) if delays else math.nan


def _mean(delays: Sequence[float]) -> float:
    return statistics.fmean(delays) if delays else math.nan
