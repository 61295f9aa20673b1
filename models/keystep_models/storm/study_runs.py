"""Runs the compared methods over recordings whose detections and clips are there, frame by frame.

Every method gets every frame in order, as live. Those that see clips run once for each bundle: its
training seeds. As bounds, fusions also run with a branch 2 that is always right, and with one that
never sees anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_models.measures.mistakes import (
    Change,
    MistakeOutcome,
    find_mistakes,
    judge,
    told_done,
)
from keystep_models.measures.study import RunScore, score_run
from keystep_models.psr.clip_evidence import TRACKER_CLIPS
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.methods import MethodOptions, find_method
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.recogniser import Recogniser
from keystep_models.psr.tracker_model import TrackerModel
from keystep_models.psr.tracker_recogniser import TRACKER
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.study_data import Seen, StudyRecording

BRANCH_1: Final = "b3"
"""The method that others are compared with: the assembly-state branch as IndustReal has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyMethod:
    """A compared method.

    Attributes:
        key: Its name in results.
        title: What tables call it.
        method: Name in `psr.methods`.
        options: What is set; the window and the accumulation are the bundle's where it sees clips.
        clips: Which clips it gets: those of bundles, or "true" ones, or ones that show no change.
    """

    key: str
    title: str
    method: str
    options: MethodOptions = field(default_factory=MethodOptions)
    clips: Literal["bundles", "true", "silent"] = "bundles"

    @property
    def sees_clips(self) -> bool:
        """Whether it takes clips, and a bundle's accumulation."""
        return find_method(self.method).needs_clips

    @property
    def is_bound(self) -> bool:
        """Whether it shows what another branch 2 would lead to."""
        return self.clips != "bundles"

    def start(self, procedure: Procedure, bundle: StormBundle | None) -> Recogniser:
        """The method at the start of a session; ConfigError where it does not fit."""
        method, options = find_method(self.method), self.options
        if bundle is not None:
            known = bundle.document.accumulation
            given = {
                "threshold": known.threshold,
                "decay": known.decay,
                "window_frames": known.window_ticks,
            }
            taken: dict[str, Any] = {k: v for k, v in given.items() if k in method.options}
            options = replace(options, **taken)
        return method.make(procedure, options)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyRun:
    """A method's run over a recording: its score, and what came of each mistake."""

    score: RunScore
    mistakes: tuple[MistakeOutcome, ...]
    retracted: int


def study_methods(
    fusion_threshold: float, tracker: TrackerModel | None = None
) -> tuple[StudyMethod, ...]:
    """All that are compared, branch 1 first.

    Args:
        fusion_threshold: The bundles', at which branch 1 runs alone, too.
        tracker: Settings that it runs with as well; it always runs with those it finds itself.
    """
    soft = MethodOptions(fusion="soft")
    return (
        StudyMethod(key=BRANCH_1, title="branch 1: assembly states (B3, threshold 8)", method="b3"),
        StudyMethod(
            key="b3_low", method="b3",
            title=f"branch 1 with the fusions' threshold ({fusion_threshold:g})",
            options=MethodOptions(threshold=fusion_threshold),
        ),
        StudyMethod(key="temporal", title="branch 2: spatio-temporal", method="temporal"),
        StudyMethod(key="shared", title="fusion, shared", method="storm"),
        StudyMethod(key="soft", title="fusion, soft", method="storm", options=soft),
        StudyMethod(
            key="tracker", title="tracker, detector only, settings as shipped", method=TRACKER
        ),
        StudyMethod(
            key="tracker_clips", title="tracker, both branches, settings as shipped",
            method=TRACKER_CLIPS,
        ),
        *_fitted(tracker),
        StudyMethod(
            key="shared_true", title="bound: shared, branch 2 always right", method="storm",
            clips="true",
        ),
        StudyMethod(
            key="soft_true", title="bound: soft, branch 2 always right", method="storm",
            options=soft, clips="true",
        ),
        StudyMethod(
            key="shared_silent", title="bound: shared, branch 2 sees nothing", method="storm",
            clips="silent",
        ),
        StudyMethod(
            key="soft_silent", title="bound: soft, branch 2 sees nothing", method="storm",
            options=soft, clips="silent",
        ),
    )  # fmt: skip


def _fitted(tracker: TrackerModel | None) -> tuple[StudyMethod, ...]:
    if tracker is None:
        return ()
    options = MethodOptions(tracker_model=tracker)
    return tuple(
        StudyMethod(key=key, title=f"tracker, {what}, settings given", method=name, options=options)
        for key, what, name in (
            ("tracker_fitted", "detector only", TRACKER),
            ("tracker_clips_fitted", "both branches", TRACKER_CLIPS),
        )
    )


def check_methods(
    methods: Sequence[StudyMethod], procedure: Procedure, bundles: Sequence[StormBundle]
) -> None:
    """ConfigError, before anything is computed, where a method cannot follow the procedure."""
    for method in methods:
        method.start(procedure, bundles[0] if method.sees_clips else None)


def check_bundles(bundles: Sequence[StormBundle]) -> None:
    """ConfigError unless bundles are one training with several seeds."""
    if not bundles:
        raise ConfigError("expected a bundle of `keystep train storm` or more, one for each seed")
    seeds: dict[Any, StormBundle] = {}
    for bundle in bundles:
        seed = bundle.document.training.get("settings", {}).get("seed")
        if seed in seeds:
            raise ConfigError(
                f"{bundle.folder} and {seeds[seed].folder} have the same seed, {seed}: give runs"
                " that differ in their seed"
            )
        seeds[seed] = bundle
        if _but_seed(bundle) != _but_seed(bundles[0]):
            raise ConfigError(
                f"{bundle.folder} and {bundles[0].folder} differ in more than their seed; compare"
                " settings with `keystep evaluate baselines`"
            )


def _but_seed(bundle: StormBundle) -> dict[str, Any]:
    training = dict(bundle.document.training)
    settings = dict(training.get("settings", {}))
    settings.pop("seed", None)
    return {**training, "settings": settings, "input_source": bundle.document.input_source}


def trained_on(bundles: Sequence[StormBundle], names: Sequence[str]) -> list[str]:
    """Those of the recordings' names that a bundle says it was trained on."""
    known = {name for b in bundles for name in b.document.training.get("sessions", ())}
    return [name for name in dict.fromkeys(names) if name in known]


def run_method(
    method: StudyMethod,
    procedure: Procedure,
    recording: StudyRecording,
    seen: Seen,
    bundles: Sequence[StormBundle],
) -> list[StudyRun]:
    """A method's runs over a recording: one for each bundle, or one where it sees no clips."""
    inputs: list[tuple[StormBundle | None, Sequence[ClipPrediction | None]]]
    if not method.sees_clips:
        inputs = [(None, [None] * recording.frame_count)]
    elif method.is_bound:
        window = bundles[0].document.accumulation.window_ticks
        silent = method.clips == "silent"
        inputs = [(bundles[0], bound_clips(recording.states, window, silent=silent))]
    else:
        inputs = [(bundle, seen.clips[bundle.id]) for bundle in bundles]
    found = find_mistakes(recording.states)
    runs = []
    for bundle, clips in inputs:
        changes = _follow(method.start(procedure, bundle), seen, clips)
        told = told_done(changes, procedure.initial_state, recording.frame_count)
        steps, retracted = _standing(changes)
        runs.append(
            StudyRun(
                score=score_run(recording.truth, steps),
                mistakes=tuple(judge(mistake, recording.states, told) for mistake in found),
                retracted=retracted,
            )
        )
    return runs


def bound_clips(
    states: NDArray[np.int8], window_frames: int, *, silent: bool
) -> list[ClipPrediction]:
    """What a branch 2 would say that is always right and sure, or one that never sees a change.

    Args:
        states: True states, (F, C) of -1, 0, 1; wrong counts as absent.
        window_frames: Frames of a clip; before the first full one it begins with the recording.
        silent: Whether it never sees a change.
    """
    right = np.maximum(states, 0)
    starts = np.maximum(np.arange(len(right)) - (window_frames - 1), 0)
    changed = (right != right[starts]) & (not silent)
    return [ClipPrediction.of(row.astype(float).tolist()) for row in changed]


def _follow(
    recogniser: Recogniser, seen: Seen, clips: Sequence[ClipPrediction | None]
) -> list[Change]:
    return [
        change
        for frame_idx, (detections, clip) in enumerate(zip(seen.detections, clips, strict=True))
        for change in recogniser.step(frame_idx, detections, clip).changes
    ]


def _standing(changes: Sequence[Change]) -> tuple[list[StepCompletion], int]:
    """Completed and removed parts as reported and never taken back; how many were."""
    steps: list[StepCompletion] = []
    retracted = 0
    for change in changes:
        if isinstance(change, StepCompletion):
            steps.append(change)
        else:
            steps.remove(change.step)
            retracted += 1
    return [step for step in steps if step.kind != "incorrect"], retracted


Runs = Mapping[str, Sequence[Sequence[StudyRun]]]
"""By method's key: by seed, then recording."""


def by_seed(of_people: Sequence[Sequence[StudyRun]]) -> list[list[StudyRun]]:
    """From runs by recording, then seed, to runs by seed, then recording."""
    return [list(runs) for runs in zip(*of_people, strict=True)]
