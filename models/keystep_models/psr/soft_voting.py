"""STORM-PSR's fusion as the paper words it: two vectors of sums and a weighted vote per frame.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385, fusion of the two streams; what the words
leave open (one common state, reset of both sums) is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from keystep_capture.errors import DataError, StateError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.confidence_sums import ConfidenceSums
from keystep_models.psr.fusion import check_weight
from keystep_models.psr.logic import (
    Detection,
    StepCompletion,
    check_detections,
    check_threshold,
)
from keystep_models.psr.procedure import ComponentState, Procedure, ProcedureStep
from keystep_models.psr.temporal import (
    WINDOW_FRAMES,
    RecentChanges,
    check_origin,
    clip_proposals,
    completions,
    malformed_snapshot,
    reset_component,
    state_after,
)


class SoftVoting:
    """Both branches with sums of their own and one common state ("soft").

    A step that gained in a frame, in either branch, is completed when
    (1 - weight) x detector sum + weight x clip sum exceeds the threshold; both sums are then reset.
    One branch alone therefore needs threshold / (1 - weight), or threshold / weight.
    """

    method: Final = "storm-soft"

    def __init__(
        self,
        procedure: Procedure,
        *,
        threshold: float = 6.0,
        decay: float = 0.75,
        window_frames: int = WINDOW_FRAMES,
        weight: float = 0.5,
    ) -> None:
        check_threshold(threshold)
        check_weight(weight)
        self.procedure = procedure
        self.threshold = threshold
        self._weight = weight
        self._detector_sums = ConfidenceSums(decay=decay)
        self._clip_sums = ConfidenceSums(decay=decay)
        self._recent = RecentChanges(window_frames)
        self._state: ComponentState = procedure.initial_state
        self._frame_idx = -1

    @property
    def state(self) -> ComponentState:
        """Present value of every component, length C."""
        return self._state

    def step(
        self, frame_idx: int, detections: Sequence[Detection], clip: ClipPrediction | None
    ) -> list[StepCompletion]:
        """Take the next frame and return the steps it completes, in component order.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: an input does not fit the procedure. The frame then counts as not given.
        """
        if frame_idx <= self._frame_idx:
            raise StateError(
                f"expected a frame after {self._frame_idx}, got frame {frame_idx}; frames must come"
                " in order, a new recording needs a new logic object"
            )
        check_detections(self.procedure, detections)
        if clip is not None:
            clip.check(self.procedure.component_count)
        self._frame_idx = frame_idx
        gained = self._gain_from_detections(detections)
        gained |= self._gain_from_clip(frame_idx, clip)
        completed = self._vote(gained)
        self._detector_sums.decay()
        if completed:
            self._state = state_after(self._state, completed)
            self._recent.add(frame_idx, [step.component_idx for step in completed])
        return completions(frame_idx, completed)

    def _gain_from_detections(self, detections: Sequence[Detection]) -> dict[int, ProcedureStep]:
        seen = self.procedure.states[detections[0].class_id] if detections else None
        if seen is None:
            return {}
        steps = self.procedure.steps_between(self._state, seen)
        for step in steps:
            self._detector_sums.add(step.id, detections[0].confidence)
        return {step.id: step for step in steps}

    def _gain_from_clip(
        self, frame_idx: int, clip: ClipPrediction | None
    ) -> dict[int, ProcedureStep]:
        if clip is None:
            return {}
        if not any(clip.predicted):
            self._clip_sums.decay()
            return {}
        believed = self._recent.flipped_before(frame_idx)
        proposals = clip_proposals(self.procedure, self._state, clip, believed)
        for step, confidence in proposals:
            self._clip_sums.add(step.id, confidence)
        return {step.id: step for step, _ in proposals}

    def _vote(self, gained: Mapping[int, ProcedureStep]) -> list[ProcedureStep]:
        completed: dict[int, ProcedureStep] = {}  # by component: it changes once a frame
        for step in sorted(gained.values(), key=lambda step: (step.component_idx, step.id)):
            vote = self._detector_sums.blended(self._clip_sums, step.id, weight=self._weight)
            if vote > self.threshold:
                self._detector_sums.reset(step.id)
                self._clip_sums.reset(step.id)
                if step.expected:
                    completed.setdefault(step.component_idx, step)
        return list(completed.values())

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done, as of the last frame; clips that show it add nothing for a window.

        Raises:
            NotFoundError: The procedure has no such step.
        """
        step = self.procedure.step(step_id)
        self._state = state_after(self._state, [step])
        self._recent.add(self._frame_idx, [step.component_idx])
        for sums in (self._detector_sums, self._clip_sums):
            reset_component(sums, self.procedure, step.component_idx)
        return completions(self._frame_idx, [step])[0]

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": self.method,
            "procedure": self.procedure.name,
            "threshold": self.threshold,
            "weight": self._weight,
            "frame_idx": self._frame_idx,
            "state": list(self._state),
            "detector_sums": self._detector_sums.snapshot(),
            "clip_sums": self._clip_sums.snapshot(),
            "recent": self._recent.snapshot(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same procedure and parameters.

        Raises:
            DataError: the snapshot is another's, or is malformed. The logic is then as it was.
        """
        before = self.snapshot()
        try:
            check_origin(snapshot, self.method, self.procedure.name, self.threshold)
            if snapshot["weight"] != self._weight:
                raise DataError(f"expected weight {self._weight}, got {snapshot['weight']}")
            self._take_over(snapshot)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            self._take_over(before)
            if isinstance(error, DataError):
                raise
            raise malformed_snapshot(snapshot, self.method, error) from error

    def _take_over(self, snapshot: Mapping[str, Any]) -> None:
        self.procedure.check_state(snapshot["state"], "state of the snapshot")
        self._detector_sums.restore(snapshot["detector_sums"])
        self._clip_sums.restore(snapshot["clip_sums"])
        self._recent.restore(snapshot["recent"])
        self._state = tuple(snapshot["state"])
        self._frame_idx = int(snapshot["frame_idx"])
