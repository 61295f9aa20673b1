"""Procedure step recognition measured: order (POS), F1, precision, recall and delay.

Three manners. `score_plain` is ours and the one to report: one-to-one pairings with least delay.
`score_industreal` and `score_storm` reproduce the published evaluations with their accidents, so
that published figures can be compared.

Sources: Schoonbeek et al., IndustReal, WACV 2024; STORM-PSR, arXiv:2510.12385. All delays are in
frames; divide by the recording's rate for seconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol, TypeAlias

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.edit_distance import damerau_levenshtein


class TimedStep(Protocol):
    """A step at a frame: a `StepCompletion`, a `GroundTruthStep`."""

    @property
    def frame_idx(self) -> int:
        """Frame of the completion."""

    @property
    def step_id(self) -> int:
        """Which step."""


@dataclass(frozen=True, slots=True)
class GroundTruthStep:
    """A step that truly happened.

    `frame_idx` is the first frame that shows the new state; `not_before_idx` the last labelled
    frame that still shows the old one, the frame before where every frame is labelled (None).
    """

    frame_idx: int
    step_id: int
    not_before_idx: int | None = None

    @property
    def last_old_frame_idx(self) -> int:
        """A prediction after this frame is on time."""
        return self.frame_idx - 1 if self.not_before_idx is None else self.not_before_idx


@dataclass(frozen=True, slots=True)
class ReportedStep:
    """A step as a method reported it; any other type with these two fields serves as well."""

    frame_idx: int
    step_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """One step id in a recording: occurrences, how they paired, the delays of its pairs.

    The published manners count no false negative where a report was paired too early.
    """

    true_count: int
    reported_count: int
    tp_count: int
    fn_count: int
    delays_frames: tuple[float, ...]

    @property
    def fp_count(self) -> int:
        """Reports that are not right: without a partner, or paired too early."""
        return self.reported_count - self.tp_count


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainScore:
    """One recording in the plain manner; `delays_frames` of every pair, by step id, then time."""

    f1: float
    pos: float
    precision: float
    recall: float
    delays_frames: tuple[float, ...]
    by_step: Mapping[int, StepCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSummary:
    """Means over recordings; delays over all pairs of all recordings, nan where there is none."""

    recording_count: int
    f1: float
    pos: float
    precision: float
    recall: float
    median_delay_frames: float
    mean_delay_frames: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScore:
    """One recording as the papers' evaluations count it.

    Perception errors are occurrences without a partner; the system's also count a prediction
    paired before its ground truth as a false positive. `mean_delay_frames` is over the pairs that
    are not early (`delays_frames`, by ground truth); without one it is 100 (IndustReal) or 0
    (STORM).
    """

    perception_fp_count: int
    perception_fn_count: int
    system_fp_count: int
    system_fn_count: int
    system_tp_count: int
    f1: float
    pos: float
    precision: float
    recall: float
    mean_delay_frames: float
    delays_frames: tuple[float, ...]
    by_step: Mapping[int, StepCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSummary:
    """Means over recordings of the published measures."""

    recording_count: int
    f1: float
    pos: float
    mean_delay_frames: float


def procedure_order_similarity(true_ids: Sequence[int], reported_ids: Sequence[int]) -> float:
    """POS: 1 when the reported order equals the true one, 0 when nothing of it is left.

    1 - min(1, DL / number of true steps), DL the Damerau-Levenshtein distance with insertion,
    deletion and transposition at 1 and substitution at 2. With no true step: 1 if none is
    reported, else 0.
    """
    if not true_ids:
        return 0.0 if reported_ids else 1.0
    return 1.0 - min(1.0, damerau_levenshtein(true_ids, reported_ids) / len(true_ids))


# --- plain manner -----------------------------------------------------------------------------


def score_plain(
    ground_truth: Sequence[GroundTruthStep], reported: Sequence[TimedStep]
) -> PlainScore:
    """Score one recording in the plain manner.

    Per step id, ground truth and reports are paired one to one so that most pairs are on time
    (reported after `not_before_idx`), then with the least total delay; a delay counts from
    `frame_idx` and is 0 before it. F1 = 2 TP / (reports + ground truth). Nothing true and nothing
    reported scores 1; a precision or recall without anything to divide by is 0 otherwise.

    Raises:
        DataError: an on-time limit that is not before its ground truth.
    """
    for step in ground_truth:
        if step.last_old_frame_idx >= step.frame_idx:
            raise DataError(f"expected not_before_idx below frame_idx, got {step}")
    delays_of: dict[int, list[float]] = {}
    pairs = pair_plain(ground_truth, reported)
    for truth_idx, report_idx in pairs:
        true_step = ground_truth[truth_idx]
        delay = float(_delay(true_step, reported[report_idx].frame_idx))
        delays_of.setdefault(true_step.step_id, []).append(delay)
    by_step = {}
    for step_id in sorted({step.step_id for step in (*ground_truth, *reported)}):
        paired = delays_of.get(step_id, [])
        occurred = sum(step.step_id == step_id for step in ground_truth)
        by_step[step_id] = StepCounts(
            true_count=occurred,
            reported_count=sum(step.step_id == step_id for step in reported),
            tp_count=len(paired),
            fn_count=occurred - len(paired),
            delays_frames=tuple(paired),
        )
    delays = [delay for counts in by_step.values() for delay in counts.delays_frames]
    tp_count, true_count, reported_count = len(delays), len(ground_truth), len(reported)
    nothing = 1.0 if true_count + reported_count == 0 else 0.0
    true_ids = _ids_in_reported_order(ground_truth, reported, pairs)
    return PlainScore(
        f1=_ratio(2 * tp_count, reported_count + true_count, nothing),
        pos=procedure_order_similarity(true_ids, [step.step_id for step in reported]),
        precision=_ratio(tp_count, reported_count, nothing),
        recall=_ratio(tp_count, true_count, nothing),
        delays_frames=tuple(delays),
        by_step=by_step,
    )


def summarise_plain(scores: Sequence[PlainScore]) -> PlainSummary:
    """Average plain scores over recordings; ConfigError when there is none."""
    _require_scores(scores)
    delays = [delay for score in scores for delay in score.delays_frames]
    return PlainSummary(
        recording_count=len(scores),
        f1=statistics.fmean(score.f1 for score in scores),
        pos=statistics.fmean(score.pos for score in scores),
        precision=statistics.fmean(score.precision for score in scores),
        recall=statistics.fmean(score.recall for score in scores),
        median_delay_frames=statistics.median(delays) if delays else math.nan,
        mean_delay_frames=statistics.fmean(delays) if delays else math.nan,
    )


def pair_plain(
    ground_truth: Sequence[GroundTruthStep], reported: Sequence[TimedStep]
) -> list[tuple[int, int]]:
    """The plain manner's pairs, as indices into both lists, by step id, then time."""
    pairs: list[tuple[int, int]] = []
    for step_id in sorted({step.step_id for step in ground_truth}):
        mine = [idx for idx, step in enumerate(ground_truth) if step.step_id == step_id]
        theirs = [idx for idx, step in enumerate(reported) if step.step_id == step_id]
        mine.sort(key=lambda i: (ground_truth[i].frame_idx, ground_truth[i].last_old_frame_idx))
        theirs.sort(key=lambda i: reported[i].frame_idx)
        best = _least_delay_pairs(
            [ground_truth[idx] for idx in mine], [reported[idx].frame_idx for idx in theirs]
        )
        pairs += [(mine[row], theirs[column]) for row, column in best]
    return pairs


def _delay(true_step: GroundTruthStep, frame_idx: int) -> int:
    return max(0, frame_idx - true_step.frame_idx)


def _least_delay_pairs(
    ordered: Sequence[GroundTruthStep], frames: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The best pairing of one step's occurrences, both in time: (true index, frame's index).

    Delay is convex in the difference and both sides are ordered in time, so pairs need never
    cross; a table over prefixes finds the best. An entry is (-pairs, total delay, pairs).
    """
    Best: TypeAlias = tuple[int, int, tuple[tuple[int, int], ...]]
    nothing: Best = (0, 0, ())
    row: list[Best] = [nothing] * (len(frames) + 1)
    for idx, step in enumerate(ordered):
        above, row = row, [nothing]
        for column, frame in enumerate(frames, start=1):
            options = [above[column], row[column - 1]]
            if frame > step.last_old_frame_idx:
                count, total, pairs = above[column - 1]
                options.append(
                    (count - 1, total + _delay(step, frame), (*pairs, (idx, column - 1)))
                )
            row.append(min(options, key=lambda option: option[:2]))
    return row[-1][2]


def _ids_in_reported_order(
    ground_truth: Sequence[GroundTruthStep],
    reported: Sequence[TimedStep],
    pairs: Sequence[tuple[int, int]],
) -> list[int]:
    """True ids in time; those of one frame, whose order nobody knows, as they were reported.

    A step stands where its pair was reported; one without a pair where its id was first.
    """
    first_report: dict[int, int] = {}
    for order, step in enumerate(reported):
        first_report.setdefault(step.step_id, order)
    place = dict(pairs)

    def key(truth_idx: int) -> tuple[int, int]:
        step = ground_truth[truth_idx]
        unpaired = first_report.get(step.step_id, len(reported))
        return step.frame_idx, place.get(truth_idx, unpaired)

    return [ground_truth[idx].step_id for idx in sorted(range(len(ground_truth)), key=key)]


def _ratio(part: float, whole: float, if_nothing: float) -> float:
    return part / whole if whole else if_nothing


# --- published manners ------------------------------------------------------------------------

_NOT_FREE: Final = 10**9  # where the published code places entries that cannot be paired
_TINY: Final = 1e-6
_INDUSTREAL_DELAY_WITHOUT_PAIR: Final = 100.0

_Entry: TypeAlias = tuple[int, int]  # (frame_idx, step_id)
_Distance: TypeAlias = Callable[[int, int], float]  # (own frame, candidate's frame)


def score_industreal(
    ground_truth: Sequence[TimedStep], reported: Sequence[TimedStep]
) -> PublishedScore:
    """Score one recording as IndustReal's published evaluation does.

    Its accidents are kept: an occurrence is paired with the nearest strictly later one, and, when
    none is left, with the first entry of the whole list that is no free occurrence of the step.
    """
    truth, reports = _entries(ground_truth), _entries(reported)
    pos = procedure_order_similarity([e[1] for e in truth], [e[1] for e in reports])
    return _published_score(
        truth, reports, _strictly_later, pos, delay_without_pair=_INDUSTREAL_DELAY_WITHOUT_PAIR
    )


def score_storm(
    ground_truth: Sequence[TimedStep],
    reported: Sequence[TimedStep],
    *,
    window_frames: int = 257,
) -> PublishedScore:
    """Score one recording as STORM-PSR's published evaluation does.

    Its accidents are kept: an occurrence is paired with the nearest one in absolute time, but
    never one at the same frame, and POS is taken after two kinds of reordering are let pass.

    Args:
        ground_truth: True steps in time.
        reported: Reported steps in the order of reporting.
        window_frames: Frames a clip spans; closer neighbours may be swapped for POS.
    """
    truth, reports = _entries(ground_truth), _entries(reported)
    eased = _ease_order(truth, reports, window_frames)
    pos = procedure_order_similarity([e[1] for e in truth], [e[1] for e in eased])
    return _published_score(truth, reports, _nearest_elsewhere, pos, delay_without_pair=0.0)


def summarise_published(scores: Sequence[PublishedScore]) -> PublishedSummary:
    """Average published scores over recordings; ConfigError when there is none."""
    _require_scores(scores)
    return PublishedSummary(
        recording_count=len(scores),
        f1=statistics.fmean(score.f1 for score in scores),
        pos=statistics.fmean(score.pos for score in scores),
        mean_delay_frames=statistics.fmean(score.mean_delay_frames for score in scores),
    )


def _published_score(
    truth: list[_Entry],
    reports: list[_Entry],
    distance: _Distance,
    pos: float,
    *,
    delay_without_pair: float,
) -> PublishedScore:
    fn_count = unpaired_count = early_count = 0
    delay_by_truth: dict[int, int] = {}
    by_step: dict[int, StepCounts] = {}
    for step_id in sorted({entry[1] for entry in (*truth, *reports)}):
        mine = [idx for idx, entry in enumerate(truth) if entry[1] == step_id]
        theirs = [idx for idx, entry in enumerate(reports) if entry[1] == step_id]
        fn_count += max(0, len(mine) - len(theirs))
        unpaired_count += max(0, len(theirs) - len(mine))
        if len(mine) <= len(theirs):
            pairs = _pair(mine, truth, reports, step_id, distance)
        else:
            taken = _pair(theirs, reports, truth, step_id, distance)
            pairs = [(truth_idx, report_idx) for report_idx, truth_idx in taken]
        delays = [(t, reports[r][0] - truth[t][0]) for t, r in pairs]
        on_time = [(truth_idx, delay) for truth_idx, delay in delays if delay >= 0]
        early_count += len(pairs) - len(on_time)
        # A ground truth paired a second time keeps the later delay.
        delay_by_truth.update(on_time)
        by_step[step_id] = StepCounts(
            true_count=len(mine),
            reported_count=len(theirs),
            tp_count=len(on_time),
            fn_count=max(0, len(mine) - len(theirs)),
            delays_frames=tuple(float(delay) for _, delay in on_time),
        )
    kept = [float(delay) for delay in delay_by_truth.values()]
    fp_count = unpaired_count + early_count
    tp_count = len(reports) - fp_count
    precision = tp_count / ((tp_count + fp_count) or _TINY)
    recall = tp_count / ((tp_count + fn_count) or _TINY)
    return PublishedScore(
        perception_fp_count=unpaired_count,
        perception_fn_count=fn_count,
        system_fp_count=fp_count,
        system_fn_count=fn_count,
        system_tp_count=tp_count,
        f1=2 * precision * recall / (precision + recall + _TINY),
        pos=pos,
        precision=precision,
        recall=recall,
        mean_delay_frames=sum(kept) / len(kept) if kept else delay_without_pair,
        delays_frames=tuple(kept),
        by_step=by_step,
    )


def _pair(
    own: Sequence[int],
    own_entries: Sequence[_Entry],
    others: Sequence[_Entry],
    step_id: int,
    distance: _Distance,
) -> list[tuple[int, int]]:
    """Let each own occurrence (an index) take one entry of the others: pairs of indices."""
    taken: set[int] = set()
    pairs = []
    for own_idx in own:
        own_frame = own_entries[own_idx][0]
        distances = [
            distance(own_frame, frame if other == step_id and idx not in taken else _NOT_FREE)
            for idx, (frame, other) in enumerate(others)
        ]
        chosen = distances.index(min(distances))
        taken.add(chosen)
        pairs.append((own_idx, chosen))
    return pairs


def _strictly_later(own: int, candidate: int) -> float:
    return candidate - own if candidate > own else math.inf


def _nearest_elsewhere(own: int, candidate: int) -> float:
    return abs(candidate - own) if candidate != own else math.inf


def _ease_order(truth: list[_Entry], reports: list[_Entry], window_frames: int) -> list[_Entry]:
    """The reports with the reorderings that STORM's evaluation lets pass."""
    eased = list(reports)
    if not eased:
        return eased
    first_frame = eased[0][0]
    started = {step_id for frame, step_id in truth if frame <= first_frame}
    if started == {step_id for frame, step_id in eased if frame == first_frame}:
        reach = min(len(truth), len(eased))
        eased[:reach] = [(eased[k][0], truth[k][1]) for k in range(reach)]
    swappable = {(later[1], earlier[1]) for earlier, later in pairwise(truth)}
    for k in range(1, len(eased)):
        earlier, later = eased[k - 1], eased[k]
        close = abs(later[0] - earlier[0]) < window_frames
        if close and (earlier[1], later[1]) in swappable:
            eased[k - 1], eased[k] = later, earlier
    return eased


def _entries(steps: Sequence[TimedStep]) -> list[_Entry]:
    return [(step.frame_idx, step.step_id) for step in steps]


def _require_scores(scores: Sequence[object]) -> None:
    if not scores:
        raise ConfigError("expected the scores of at least one recording, got none")
