"""STORM-PSR: the assembly-state branch and the spatio-temporal branch fused, frame by frame.

Two fusions are built. `SharedFusion` is what the published code does: after the first frame both
branches add to and decay one vector of sums. `soft_voting` holds what the paper words.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385, fusion of the two streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, ProcedureAwareLogic, StepCompletion
from keystep_models.psr.merged_steps import MergedSteps
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.temporal import (
    WINDOW_FRAMES,
    TemporalLogic,
    check_origin,
    malformed_snapshot,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedFrame:
    """What a frame completed: by branch, and merged into one list."""

    detector: list[StepCompletion]
    temporal: list[StepCompletion]
    merged: list[StepCompletion]


class SharedFusion:
    """Both branches with one vector of sums, as published ("shared").

    Each branch keeps its own state and completes its own steps; the merged list takes the
    detector's of a frame, or, if it has none, the clips'.
    """

    method: Final = "storm-shared"

    def __init__(
        self,
        procedure: Procedure,
        *,
        threshold: float = 6.0,
        decay: float = 0.75,
        window_frames: int = WINDOW_FRAMES,
        weight: float = 0.5,
    ) -> None:
        check_weight(weight)
        self.procedure = procedure
        self.threshold = threshold
        self._decay, self._window_frames, self._weight = decay, window_frames, weight
        self._start()

    def _start(self) -> None:
        self._detector = ProcedureAwareLogic(
            self.procedure, threshold=self.threshold, decay=self._decay
        )
        self._temporal = TemporalLogic(
            self.procedure,
            threshold=self.threshold,
            decay=self._decay,
            window_frames=self._window_frames,
        )
        self._merged = MergedSteps(self.procedure)

    @property
    def state(self) -> ComponentState | None:
        """The detector branch's present value of every component, length C."""
        return self._detector.state

    def step(
        self, frame_idx: int, detections: Sequence[Detection], clip: ClipPrediction | None
    ) -> FusedFrame:
        """Take the next frame: its detections and what the clip that ends here shows.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: an input does not fit the procedure. The frame then counts as not given.
        """
        if clip is not None:  # before the first branch moves on
            clip.check(self.procedure.component_count)
        detector = self._detector.step(frame_idx, detections)
        temporal = self._temporal.step(frame_idx, clip)
        self._detector.sums.unite(self._temporal.sums, weight=self._weight)
        merged = self._merged.take(detector or temporal)
        return FusedFrame(detector=detector, temporal=temporal, merged=merged)

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done, in both branches, as of the last frame.

        Raises:
            NotFoundError: The procedure has no such step.
        """
        self._temporal.declare(step_id)
        step = self._detector.declare(step_id)
        self._merged.take([step])
        return step

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": self.method,
            "procedure": self.procedure.name,
            "threshold": self.threshold,
            "weight": self._weight,
            "detector": self._detector.snapshot(),
            "temporal": self._temporal.snapshot(),
            "merged": self._merged.snapshot(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same procedure and parameters.

        Raises:
            DataError: the snapshot is another's, or is malformed. The logic is then as it was.
        """
        fresh = SharedFusion(
            self.procedure,
            threshold=self.threshold,
            decay=self._decay,
            window_frames=self._window_frames,
            weight=self._weight,
        )
        try:
            check_origin(snapshot, self.method, self.procedure.name, self.threshold)
            if snapshot["weight"] != self._weight:
                raise DataError(f"expected weight {self._weight}, got {snapshot['weight']}")
            fresh._detector.restore(snapshot["detector"])
            fresh._temporal.restore(snapshot["temporal"])
            fresh._merged.restore(snapshot["merged"])
            has_begun = snapshot["detector"]["frame_idx"] >= 0
        except (KeyError, TypeError, AttributeError) as error:
            raise malformed_snapshot(snapshot, self.method, error) from error
        if has_begun:
            fresh._share_restored()
        self._detector, self._temporal = fresh._detector, fresh._temporal
        self._merged = fresh._merged

    def _share_restored(self) -> None:
        mine, theirs = self._detector.sums, self._temporal.sums
        if mine.snapshot()["sum_by_step"] != theirs.snapshot()["sum_by_step"]:
            raise DataError(
                "expected both branches' sums to be equal in a snapshot of a fusion that shares"
                " them; start the session anew"
            )
        theirs.share(mine)


def check_weight(weight: float) -> None:
    """ConfigError unless a weight is from 0 to 1."""
    if not 0.0 <= weight <= 1.0:
        raise ConfigError(f"expected a weight from 0 to 1, got {weight}")
