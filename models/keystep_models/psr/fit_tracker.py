"""Fit a tracker model to recordings whose steps are known.

    python -m keystep_models.psr.fit_tracker --detections DIR --out FILE
        [--truth DIR] [--procedure industreal] [--leave-out 03] [--tune 60 [--weak]] [--orders DIR]

DIR holds detections (`_pred.csv.gz`) and, beside them or in `--truth`, the ground truth in any
layout that `keystep psr score` reads. `--leave-out` drops a participant (the first part of a
recording's name), so that the model can be scored on that participant's recordings. `--orders` has
further ground truth, of recordings without detections, to count orders in. `--weak` is for
detectors that are less sure, and wrong more often, than IndustReal's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.psr import (
    GroundTruthStep,
    PlainSummary,
    ReportedStep,
    score_plain,
    summarise_plain,
)
from keystep_models.psr.detections import read_detections
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import VALUE_AFTER, ComponentState, Procedure
from keystep_models.psr.recording_files import ProcedureChoice, find_detections, read_truths
from keystep_models.psr.tracker import Tracker, TrackerEvent
from keystep_models.psr.tracker_model import TrackerModel, save_tracker_model

_VIEW_GAP_FRAMES: Final = 30  # a class unseen for longer begins another view
_TARGET_DELAY_FRAMES: Final = 30.0
_DELAY_COST: Final = 0.01  # F1 or POS that a frame of mean delay above the target is worth
_WEAK_DELAY_COST: Final = 0.002  # of every frame: with a weak detector no draw reaches the target

BOX: Final = {
    "report_threshold": (0.60, 0.80),
    "confidence_neutral": (0.60, 0.67),
    "confidence_slope": (2.0, 4.0),
    "change_rate": (0.10, 0.20),
    "repair_rate": (0.20, 0.45),
    "mistake_rate": (0.015, 0.05),
    "step_rate": (0.003, 0.006),
    "glitch_rate": (0.05, 0.10),
    "glitch_rate_wrong": (0.60, 0.72),
    "visible_share": (0.55, 0.90),
    "view_frames": (20.0, 40.0),
}
"""Where `--tune` draws settings from, uniformly; `hold_frames` comes from 4 to 7."""

WEAK_BOX: Final = {
    "report_threshold": (0.55, 0.85),
    "confidence_neutral": (0.25, 0.62),
    "confidence_slope": (0.5, 4.0),
    "change_rate": (0.05, 0.60),
    "glitch_rate": (0.05, 0.50),
    "glitch_rate_wrong": (0.40, 0.80),
    "mistake_rate": (0.01, 0.08),
    "repair_rate": (0.20, 0.60),
    "step_rate": (0.004, 0.02),
    "visible_share": (0.50, 0.95),
    "view_frames": (15.0, 80.0),
    "nearness": (0.3, 1.6),
    "miss_rate": (0.02, 0.20),
    "unexpected_rate": (0.002, 0.02),
}
"""The same with `--weak`; `hold_frames` comes from 2 to 7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecording:
    """A recording to fit on: its detections by frame and what truly happened."""

    name: str
    procedure: Procedure
    frames: Sequence[Sequence[Detection]]
    truth: Sequence[GroundTruthStep]

    @property
    def participant(self) -> str:
        """Who was recorded: the first part of the name."""
        return self.name.split("_")[0]


def read_recordings(
    detections: Path, truth: Path, procedure: str = "industreal"
) -> list[FitRecording]:
    """Every recording with detections; DataError when one has no ground truth."""
    choice = ProcedureChoice(source=procedure)
    truths = read_truths(truth, choice)
    recordings = []
    for name, path in find_detections(detections).items():
        known = truths.get(name)
        if known is None:
            raise DataError(f"{truth}: expected the ground truth of {name}, found none")
        recordings.append(
            FitRecording(
                name=name,
                procedure=choice.of_recording(name, known.task),
                frames=read_detections(path, known.frame_count),
                truth=known.steps,
            )
        )
    return recordings


def read_orders(truth: Path, procedure: str = "industreal") -> list[FitRecording]:
    """Ground truth without detections, to count orders in."""
    choice = ProcedureChoice(source=procedure)
    return [
        FitRecording(
            name=name,
            procedure=choice.of_recording(name, known.task),
            frames=(),
            truth=known.steps,
        )
        for name, known in read_truths(truth, choice).items()
    ]


def fit(
    recordings: Sequence[FitRecording],
    base: TrackerModel | None = None,
    *,
    orders: Sequence[FitRecording] = (),
) -> TrackerModel:
    """The model with the order of steps and the detector's confusions counted in recordings.

    Args:
        recordings: With detections.
        base: What is not counted.
        orders: Further recordings, to count orders in.

    Raises:
        ConfigError: there are no recordings.
    """
    if not recordings:
        raise ConfigError("expected at least one recording to fit on, got none")
    return replace(
        base or TrackerModel(),
        order_counts=_count_orders([*recordings, *orders]),
        confusions=_count_confusions(recordings),
    )


def track(recording: FitRecording, model: TrackerModel) -> list[TrackerEvent]:
    """Every event of a recording, retractions included."""
    tracker = Tracker(recording.procedure, model)
    return [
        event
        for frame_idx, frame in enumerate(recording.frames)
        for event in tracker.step(frame_idx, frame)
    ]


def steps_of(events: Sequence[TrackerEvent]) -> list[ReportedStep]:
    """Completed and removed steps as they were reported; a retracted one stays reported."""
    return [
        ReportedStep(event.frame_idx, event.step_id)
        for event in events
        if event.retracts is None and event.kind != "incorrect"
    ]


def evaluate(recordings: Sequence[FitRecording], model: TrackerModel) -> PlainSummary:
    """Plain measures over recordings."""
    return summarise_plain([score_plain(r.truth, steps_of(track(r, model))) for r in recordings])


def tune(
    recordings: Sequence[FitRecording], model: TrackerModel, draws: int, *, weak: bool = False
) -> TrackerModel:
    """The best of `draws` random settings from `BOX`, or `WEAK_BOX`, by `worth` on these."""
    candidates = draw_settings(model, draws, weak=weak)
    return max(candidates, key=lambda candidate: worth(recordings, candidate, weak=weak))


def draw_settings(model: TrackerModel, draws: int, *, weak: bool = False) -> list[TrackerModel]:
    """The model with each of `draws` random settings from the box; always the same ones."""
    rng = np.random.default_rng(0)
    box = WEAK_BOX if weak else BOX
    candidates = []
    for _ in range(draws):
        settings = {name: float(rng.uniform(low, high)) for name, (low, high) in box.items()}
        drawn = replace(model, **settings)  # type: ignore[arg-type]
        candidates.append(replace(drawn, hold_frames=int(rng.integers(2 if weak else 4, 8))))
    return candidates


def worth(recordings: Sequence[FitRecording], model: TrackerModel, *, weak: bool = False) -> float:
    """F1 + POS of a model, less a cost for a mean delay above 30 frames; if weak, for any.

    A model that reports nothing has no delay, and is worth nothing.
    """
    summary = evaluate(recordings, model)
    if math.isnan(summary.mean_delay_frames):
        return 0.0
    if weak:
        return summary.f1 + summary.pos - _WEAK_DELAY_COST * summary.mean_delay_frames
    late = max(0.0, summary.mean_delay_frames - _TARGET_DELAY_FRAMES)
    return summary.f1 + summary.pos - _DELAY_COST * late


# --- what recordings tell -------------------------------------------------------------------------


def _count_orders(recordings: Sequence[FitRecording]) -> tuple[tuple[int, int, int], ...]:
    """How often each step came in an earlier frame than each other step."""
    counts: Counter[tuple[int, int]] = Counter()
    for recording in recordings:
        for first, second in permutations(recording.truth, 2):
            if first.frame_idx < second.frame_idx:
                counts[first.step_id, second.step_id] += 1
    return tuple((*pair, count) for pair, count in sorted(counts.items()))


def _count_confusions(recordings: Sequence[FitRecording]) -> tuple[tuple[int, int, int], ...]:
    """Views of a wrong class while the truth knows the state, by (class of state, class shown)."""
    counts: Counter[tuple[int, int]] = Counter()
    for recording in recordings:
        class_of = {state: idx for idx, state in enumerate(recording.procedure.states) if state}
        last_seen: dict[tuple[int, int], int] = {}
        for frame_idx, state, shown in _wrong_detections(recording):
            pair = (class_of.get(state, -1), shown)
            if pair[0] >= 0 and frame_idx - last_seen.get(pair, -(10**9)) > _VIEW_GAP_FRAMES:
                counts[pair] += 1
            last_seen[pair] = frame_idx
    return tuple((*pair, count) for pair, count in sorted(counts.items()))


def _wrong_detections(recording: FitRecording) -> Iterator[tuple[int, ComponentState, int]]:
    """(frame, state, class shown) wherever the state is known and another one is shown."""
    spans = list(_spans(recording))
    position = 0
    for frame_idx, frame in enumerate(recording.frames):
        while frame_idx >= spans[position][0]:
            position += 1
        _, before, after = spans[position]
        for detection in frame if before == after else ():
            shown = recording.procedure.states[detection.class_id]
            if shown is not None and shown != before:
                yield frame_idx, before, detection.class_id


def _spans(recording: FitRecording) -> Iterator[tuple[int, ComponentState, ComponentState]]:
    """(end frame, state at the beginning, state at the end) of labelled and open spans."""
    state = recording.procedure.initial_state
    steps = sorted(recording.truth, key=lambda step: step.frame_idx)
    for frame_idx in sorted({step.frame_idx for step in steps}):
        now = [step for step in steps if step.frame_idx == frame_idx]
        values = list(state)
        for step in now:
            known = recording.procedure.step(step.step_id)
            values[known.component_idx] = VALUE_AFTER[known.kind]
        after = tuple(values)
        yield max(step.last_old_frame_idx for step in now) + 1, state, state
        yield frame_idx, state, after
        state = after
    yield len(recording.frames) + 1, state, state


def main(
    detections: Annotated[Path, typer.Option(help="Folder with _pred.csv.gz files.")],
    out: Annotated[Path, typer.Option(help="Where the model goes, JSON.")],
    truth: Annotated[Path | None, typer.Option(help="Ground truth, if it lies elsewhere.")] = None,
    procedure: Annotated[str, typer.Option(help="As keystep psr run takes it.")] = "industreal",
    leave_out: Annotated[str | None, typer.Option(help="Participant not to fit on.")] = None,
    tune_draws: Annotated[int, typer.Option("--tune", help="Settings to try; 0: keep.")] = 0,
    weak: Annotated[bool, typer.Option("--weak", help="Try settings of weak detectors.")] = False,
    orders: Annotated[
        Path | None, typer.Option(help="Further ground truth, without detections, for orders.")
    ] = None,
) -> None:
    """Fit a tracker model and say how it does on the recordings fitted on, and left out."""
    recordings = read_recordings(detections, truth or detections, procedure)
    kept = [recording for recording in recordings if recording.participant != leave_out]
    held_out = [recording for recording in recordings if recording.participant == leave_out]
    if leave_out is not None and not held_out:
        raise ConfigError(f"expected recordings of participant {leave_out!r}, found none")
    further = [] if orders is None else read_orders(orders, procedure)
    model = fit(kept, orders=[one for one in further if one.participant != leave_out])
    if tune_draws:
        model = tune(kept, model, tune_draws, weak=weak)
    source = f"{len(kept)} recordings" + (f" without {leave_out}" if leave_out else "")
    save_tracker_model(model, out, source=source)
    for title, group in (("fitted on", kept), ("left out", held_out)):
        if group:
            typer.echo(f"{title}: {evaluate(group, model)}")


if __name__ == "__main__":
    typer.run(main)
