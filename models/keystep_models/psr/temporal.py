"""Branch 2's step logic: components that change within clips accumulate into completed steps.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385, spatio-temporal stream; the accumulation as
published with it, in float64 and its order, so results equal the published ones exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.confidence_sums import ConfidenceSums
from keystep_models.psr.logic import StepCompletion, check_threshold
from keystep_models.psr.procedure import VALUE_AFTER, ComponentState, Procedure, ProcedureStep

WINDOW_FRAMES: Final = 257
"""Frames a published clip spans: 65 frames, every fourth, 25.7 s at 10 fps."""


class RecentChanges:
    """Which components the last accepted changes flipped, as far as a clip still shows them.

    A clip that reaches back over an accepted change predicts it again; those components are not
    believed for one window. Changes within a window of the last one are XORed into it.
    """

    def __init__(self, window_frames: int = WINDOW_FRAMES) -> None:
        if window_frames < 1:
            raise ConfigError(f"expected a window of 1 frame or more, got {window_frames}")
        self.window_frames = window_frames
        self._changes: list[tuple[int, tuple[int, ...]]] = []  # (frame, flipped components)

    def add(self, frame_idx: int, component_idxs: Sequence[int]) -> None:
        """Remember an accepted change; those more than a window older are forgotten."""
        self._changes = [c for c in self._changes if frame_idx - c[0] < self.window_frames]
        self._changes.append((frame_idx, tuple(component_idxs)))

    def flipped_before(self, frame_idx: int) -> frozenset[int]:
        """Components that the last change flipped less than one window before this frame."""
        if not self._changes or frame_idx - self._changes[-1][0] >= self.window_frames:
            return frozenset()
        flipped: frozenset[int] = frozenset()
        for _, component_idxs in self._changes:
            flipped ^= frozenset(component_idxs)
        return flipped

    def snapshot(self) -> dict[str, Any]:
        """The window and the changes, as values that JSON holds exactly."""
        return {
            "window_frames": self.window_frames,
            "changes": [[frame_idx, list(flipped)] for frame_idx, flipped in self._changes],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over a `snapshot`; DataError, and no change, when it is malformed."""
        try:
            if snapshot["window_frames"] != self.window_frames:
                raise DataError(
                    f"expected changes within {self.window_frames} frames, got a window of"
                    f" {snapshot['window_frames']}"
                )
            changes = [
                (int(frame_idx), tuple(int(idx) for idx in flipped))
                for frame_idx, flipped in snapshot["changes"]
            ]
        except (KeyError, TypeError) as error:
            raise DataError(f"expected a snapshot of recent changes, got {snapshot!r}") from error
        self._changes = changes


def clip_proposals(
    procedure: Procedure,
    state: ComponentState,
    clip: ClipPrediction,
    believed_already: frozenset[int],
) -> list[tuple[ProcedureStep, float]]:
    """Steps that flip the predicted components of a state, each with its sigmoid value.

    Args:
        procedure: Whose steps.
        state: Present value of every component, length C.
        clip: The frame's prediction, length C.
        believed_already: Components whose change the clip merely shows again.
    """
    proposals = []
    for idx, predicted in enumerate(clip.predicted):
        if predicted and idx not in believed_already:
            step = procedure.step_for(idx, "removed" if state[idx] == 1 else "completed")
            if step is not None:
                proposals.append((step, clip.confidences[idx]))
    return proposals


class TemporalLogic:
    """Accumulates clip predictions as B3 does detections: known initial state, expected steps.

    Sums decay only in frames whose clip shows no change at all.
    """

    method: Final = "temporal"

    def __init__(
        self,
        procedure: Procedure,
        *,
        threshold: float = 6.0,
        decay: float = 0.75,
        window_frames: int = WINDOW_FRAMES,
    ) -> None:
        check_threshold(threshold)
        self.procedure = procedure
        self.threshold = threshold
        self.sums = ConfidenceSums(decay=decay)
        self._state: ComponentState = procedure.initial_state
        self._recent = RecentChanges(window_frames)
        self._frame_idx = -1

    @property
    def state(self) -> ComponentState:
        """Present value of every component, length C."""
        return self._state

    def step(self, frame_idx: int, clip: ClipPrediction | None) -> list[StepCompletion]:
        """Take the next frame and return the steps it completes, in component order.

        Args:
            frame_idx: Index of the frame; must grow from call to call.
            clip: What the clip that ends here shows; None before the first full clip.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: `clip` does not fit the procedure. The frame then counts as not given.
        """
        if frame_idx <= self._frame_idx:
            raise StateError(
                f"expected a frame after {self._frame_idx}, got frame {frame_idx}; frames must come"
                " in order, a new recording needs a new logic object"
            )
        if clip is not None:
            clip.check(self.procedure.component_count)
        self._frame_idx = frame_idx
        if clip is None:
            return []
        if not any(clip.predicted):
            self.sums.decay()
            return []
        return self._accumulate(frame_idx, clip)

    def _accumulate(self, frame_idx: int, clip: ClipPrediction) -> list[StepCompletion]:
        believed = self._recent.flipped_before(frame_idx)
        completed = []
        for step, confidence in clip_proposals(self.procedure, self._state, clip, believed):
            if self.sums.add(step.id, confidence) > self.threshold:
                self.sums.reset(step.id)
                if step.expected:
                    completed.append(step)
        if completed:
            self._state = state_after(self._state, completed)
            self._recent.add(frame_idx, [step.component_idx for step in completed])
        return completions(frame_idx, completed)

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done, as of the last frame; clips that show it add nothing for a window.

        Raises:
            NotFoundError: The procedure has no such step.
        """
        step = self.procedure.step(step_id)
        self._state = state_after(self._state, [step])
        self._recent.add(self._frame_idx, [step.component_idx])
        reset_component(self.sums, self.procedure, step.component_idx)
        return completions(self._frame_idx, [step])[0]

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": self.method,
            "procedure": self.procedure.name,
            "frame_idx": self._frame_idx,
            "state": list(self._state),
            "threshold": self.threshold,
            "sums": self.sums.snapshot(),
            "recent": self._recent.snapshot(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same procedure and parameters.

        Raises:
            DataError: the snapshot is another's, or is malformed. The logic is then as it was.
        """
        try:
            check_origin(snapshot, self.method, self.procedure.name, self.threshold)
            state, frame_idx = snapshot["state"], int(snapshot["frame_idx"])
            self.procedure.check_state(state, "state of the snapshot")
            recent = RecentChanges(self._recent.window_frames)
            recent.restore(snapshot["recent"])
            self.sums.restore(snapshot["sums"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise malformed_snapshot(snapshot, self.method, error) from error
        self._state, self._recent, self._frame_idx = tuple(state), recent, frame_idx


def check_origin(
    snapshot: Mapping[str, Any], method: str, procedure_name: str, threshold: float
) -> None:
    """DataError unless a snapshot was made by the same method, procedure and threshold."""
    expected = (method, procedure_name, threshold)
    came = (snapshot["method"], snapshot["procedure"], snapshot["threshold"])
    if came != expected:
        raise DataError(
            f"expected a snapshot of {method} for procedure {procedure_name!r} with threshold"
            f" {threshold}, got one of {came[0]} for {came[1]!r} with threshold {came[2]}"
        )


def malformed_snapshot(snapshot: object, method: str, error: Exception) -> DataError:
    """The error for a snapshot that cannot be read."""
    return DataError(
        f"expected a snapshot of {method} as `snapshot` returns it, got {snapshot!r}"
        f" ({type(error).__name__}: {error}); start the session anew"
    )


def state_after(state: ComponentState, steps: Sequence[ProcedureStep]) -> ComponentState:
    """The state once these steps have happened."""
    values = list(state)
    for step in steps:
        values[step.component_idx] = VALUE_AFTER[step.kind]
    return tuple(values)


def reset_component(sums: ConfidenceSums, procedure: Procedure, component_idx: int) -> None:
    """Drop the sums of all steps that change a component."""
    for step in procedure.steps:
        if step.component_idx == component_idx:
            sums.reset(step.id)


def completions(frame_idx: int, steps: Sequence[ProcedureStep]) -> list[StepCompletion]:
    """Report steps at a frame; the published methods give every step the confidence 1."""
    return [StepCompletion(frame_idx, s.id, 1.0, s.component_idx, s.kind) for s in steps]
