"""From detected assembly states to completed steps: B1, B2 and B3, one frame at a time.

A session holds one logic object and gives it every frame in order, empty ones included. All
arithmetic is float64 in the published order, so results equal the published ones exactly.

Source: Schoonbeek et al., IndustReal, WACV 2024, section on procedure step recognition baselines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeAlias

from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_models.psr.confidence_sums import ConfidenceSums
from keystep_models.psr.procedure import (
    VALUE_AFTER,
    ComponentState,
    Procedure,
    ProcedureStep,
    StepKind,
)

Method: TypeAlias = Literal["b1", "b2", "b3"]

_NAIVE_CONFIDENCE: Final = 0.5  # B1 believes a detection above this


@dataclass(frozen=True, slots=True)
class Detection:
    """One assembly state seen in a frame: detector class, confidence in [0, 1], box.

    The box is (centre x, centre y, width, height) in pixels, or None where the detector sent none.
    """

    class_id: int
    confidence: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class StepCompletion:
    """A step recognised in a frame; the published methods give every step the confidence 1."""

    frame_idx: int
    step_id: int
    confidence: float
    component_idx: int
    kind: StepKind


class StepLogic(ABC):
    """What B1, B2 and B3 share: the present state, the order of frames, snapshots."""

    method: ClassVar[Method]

    def __init__(self, procedure: Procedure) -> None:
        self.procedure = procedure
        self._state: ComponentState | None = None
        self._frame_idx = -1

    @property
    def state(self) -> ComponentState | None:
        """Present value of every component, length C; None until a detection has set it."""
        return self._state

    @property
    @abstractmethod
    def is_at_rest(self) -> bool:
        """Whether a frame without detections would change nothing but the frame's number."""

    def step(self, frame_idx: int, detections: Sequence[Detection]) -> list[StepCompletion]:
        """Take the next frame and return the steps it completes, in component order.

        Args:
            frame_idx: Index of the frame; must grow from call to call. Decay is per call: a frame
                that was seen, with or without detections, is one call.
            detections: The frame's detections in the detector's order; empty when it saw nothing.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: a class the procedure's detector does not have, or a confidence outside
                [0, 1]. The frame then counts as not given.
        """
        if frame_idx <= self._frame_idx:
            raise StateError(
                f"expected a frame after {self._frame_idx}, got frame {frame_idx}; frames must come"
                " in order, a new recording needs a new logic object"
            )
        check_detections(self.procedure, detections)
        self._frame_idx = frame_idx
        return [
            StepCompletion(frame_idx, step.id, 1.0, step.component_idx, step.kind)
            for step in self._advance(detections)
        ]

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done because a person says so; detections go on from there.

        The step's component has its value from now on, and what detections had gathered about it
        is forgotten. Not part of the published methods.

        Args:
            step_id: Which step; whatever its kind, and whether it is expected or not.

        Returns:
            The step, as of the last frame given (-1 before the first).

        Raises:
            NotFoundError: The procedure has no such step.
        """
        step = self.procedure.step(step_id)
        state = list(self._state or self.procedure.initial_state)
        state[step.component_idx] = VALUE_AFTER[step.kind]
        self._state = tuple(state)
        self._forget(step.component_idx)
        return StepCompletion(self._frame_idx, step.id, 1.0, step.component_idx, step.kind)

    @abstractmethod
    def _forget(self, component_idx: int) -> None:
        """Drop what was accumulated about a component."""

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": self.method,
            "procedure": self.procedure.name,
            "frame_idx": self._frame_idx,
            "state": None if self._state is None else list(self._state),
            "sums": self._snapshot_sums(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same method, procedure and parameters.

        Raises:
            DataError: the snapshot is another method's or procedure's, or is malformed. The
                logic is then as it was.
        """
        try:
            self._check_same_origin(snapshot)
            state = self._parse_state(snapshot["state"])
            frame_idx = int(snapshot["frame_idx"])
            self._restore_sums(snapshot["sums"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"expected a snapshot of {self.method} as `snapshot` returns it, got {snapshot!r}"
                f" ({type(error).__name__}: {error}); start the session anew"
            ) from error
        self._state, self._frame_idx = state, frame_idx

    @abstractmethod
    def _advance(self, detections: Sequence[Detection]) -> Sequence[ProcedureStep]:
        """Update for one frame; the steps completed in it."""

    @abstractmethod
    def _snapshot_sums(self) -> dict[str, Any] | None:
        """What the method has accumulated, for JSON; None where it accumulates nothing."""

    @abstractmethod
    def _restore_sums(self, sums: Mapping[str, Any] | None) -> None:
        """Take over what `_snapshot_sums` gave; changes nothing when it raises."""

    def _parse_state(self, raw_state: Sequence[int] | None) -> ComponentState | None:
        if raw_state is None:
            return None
        self.procedure.check_state(raw_state, "state of the snapshot")
        return tuple(int(value) for value in raw_state)

    def _check_same_origin(self, snapshot: Mapping[str, Any]) -> None:
        came = (snapshot["method"], snapshot["procedure"])
        if came != (self.method, self.procedure.name):
            raise DataError(
                f"expected a snapshot of {self.method} for procedure {self.procedure.name!r},"
                f" got one of {came[0]} for {came[1]!r}"
            )


class NaiveLogic(StepLogic):
    """B1: the most confident detection above 0.5 is the state; what differs is completed.

    The first detection of a known state, whatever its confidence, is the initial state.
    """

    method: ClassVar[Method] = "b1"

    @property
    def is_at_rest(self) -> bool:
        """Always: an empty frame says nothing to this method."""
        return True

    def _advance(self, detections: Sequence[Detection]) -> Sequence[ProcedureStep]:
        if not detections:
            return ()
        before = self._state
        if before is None:
            self._state = self.procedure.states[detections[0].class_id]
            return ()
        best = max(detections, key=lambda detection: detection.confidence)
        seen = self.procedure.states[best.class_id]
        if best.confidence <= _NAIVE_CONFIDENCE or seen is None or seen == before:
            return ()
        self._state = seen
        return self.procedure.steps_between(before, seen)

    def _forget(self, component_idx: int) -> None:
        """Nothing: this method accumulates nothing."""

    def _snapshot_sums(self) -> None:
        return None

    def _restore_sums(self, sums: Mapping[str, Any] | None) -> None:
        if sums is not None:
            raise DataError(f"expected no sums in a snapshot of b1, got {sums}")


class AccumulatingLogic(StepLogic):
    """B2: a step is completed once detections have given it more than a threshold.

    Per frame, every step between the present state and that of the frame's first detection gains
    the detection's confidence; the sums of all others decay. The first state seen is the initial
    state.
    """

    method: ClassVar[Method] = "b2"

    def __init__(self, procedure: Procedure, *, threshold: float = 8.0, decay: float = 0.75):
        super().__init__(procedure)
        check_threshold(threshold)
        self.threshold = threshold
        self.sums = ConfidenceSums(decay=decay)

    @property
    def is_at_rest(self) -> bool:
        """Whether there is no sum that an empty frame would let decay."""
        return self.sums.is_empty

    def _advance(self, detections: Sequence[Detection]) -> Sequence[ProcedureStep]:
        completed: list[ProcedureStep] = []
        if detections:
            first = detections[0]
            seen = self.procedure.states[first.class_id]
            if self._state is None:
                self._state = seen
            elif seen is not None:
                completed = self._accumulate(self._state, seen, first.confidence)
        self.sums.decay()
        return completed

    def _accumulate(
        self, before: ComponentState, seen: ComponentState, confidence: float
    ) -> list[ProcedureStep]:
        completed = []
        for step in self.procedure.steps_between(before, seen):
            if self.sums.add(step.id, confidence) > self.threshold:
                self.sums.reset(step.id)
                if self._accepts(step):
                    completed.append(step)
        if completed:
            state = list(before)
            for step in completed:
                state[step.component_idx] = VALUE_AFTER[step.kind]
            self._state = tuple(state)
        return completed

    def _accepts(self, step: ProcedureStep) -> bool:
        return True

    def _forget(self, component_idx: int) -> None:
        for step in self.procedure.steps:
            if step.component_idx == component_idx:
                self.sums.reset(step.id)

    def _snapshot_sums(self) -> dict[str, Any]:
        return {"threshold": self.threshold, **self.sums.snapshot()}

    def _restore_sums(self, sums: Mapping[str, Any] | None) -> None:
        threshold = None if sums is None else sums["threshold"]
        if sums is None or threshold != self.threshold:
            raise DataError(
                f"expected sums accumulated towards threshold {self.threshold}, got {threshold}"
            )
        self.sums.restore(sums)


class ProcedureAwareLogic(AccumulatingLogic):
    """B3: as B2 from the procedure's initial state, and only expected steps are completed."""

    method: ClassVar[Method] = "b3"

    def __init__(self, procedure: Procedure, *, threshold: float = 8.0, decay: float = 0.75):
        super().__init__(procedure, threshold=threshold, decay=decay)
        self._state = procedure.initial_state

    def _accepts(self, step: ProcedureStep) -> bool:
        return step.expected

    def _parse_state(self, raw_state: Sequence[int] | None) -> ComponentState | None:
        if raw_state is None:
            raise DataError("expected a state in a snapshot of b3, which always has one, got none")
        return super()._parse_state(raw_state)


def check_detections(procedure: Procedure, detections: Sequence[Detection]) -> None:
    """Raise DataError unless a frame's detections are ones the procedure's detector can make."""
    class_count = len(procedure.states)
    for detection in detections:
        if not 0 <= detection.class_id < class_count:
            raise DataError(
                f"expected a class from 0 to {class_count - 1} (procedure {procedure.name!r}), got"
                f" {detection.class_id}; does the detector belong to this procedure?"
            )
        if not 0.0 <= detection.confidence <= 1.0:
            raise DataError(
                f"expected a confidence from 0 to 1, got {detection.confidence} for class"
                f" {detection.class_id}"
            )


def check_threshold(threshold: float) -> None:
    """ConfigError unless a sum of confidences can be asked to exceed it."""
    if not (math.isfinite(threshold) and threshold > 0):
        raise ConfigError(f"expected a threshold above 0, got {threshold}")


def make_logic(
    method: str, procedure: Procedure, *, threshold: float = 8.0, decay: float = 0.75
) -> StepLogic:
    """The logic of a method ("b1", "b2" or "b3") at the start of a session.

    Args:
        method: Name of the published method.
        procedure: The task's steps, with `states` for the detector's classes.
        threshold: Sum of confidences a step must exceed; 8 in IndustReal, 6 in STORM-PSR. B1 has
            none.
        decay: Factor, 0 to 1, for the sums of steps that did not gain in a frame. B1 has none.

    Raises:
        ConfigError: an unknown method, or a parameter out of range.
    """
    if method == "b1":
        return NaiveLogic(procedure)
    if method == "b2":
        return AccumulatingLogic(procedure, threshold=threshold, decay=decay)
    if method == "b3":
        return ProcedureAwareLogic(procedure, threshold=threshold, decay=decay)
    raise ConfigError(f"expected the method b1, b2 or b3, got {method!r}")
