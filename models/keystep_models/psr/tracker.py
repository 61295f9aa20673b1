"""Follows an assembly by probability: which steps happened, how surely, and what cannot be seen.

An exact Bayesian filter over the assembly (`state_graph`) and what the detector shows of it
(`view_model`), one frame at a time, the same live and offline. docs/tracker.md has the equations
and the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from keystep_capture.errors import DataError, ShapeError, StateError
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import (
    VALUE_AFTER,
    ComponentState,
    Procedure,
    ProcedureStep,
    StepKind,
)
from keystep_models.psr.state_graph import Floats, build_graph
from keystep_models.psr.tracker_model import TrackerModel, model_values
from keystep_models.psr.view_model import FAITHFUL, UNSEEN, ViewModel

_METHOD: Final = "tracker"
_VALUES: Final = (-1, 0, 1)
_WITNESS_NATS: Final = 12.0  # a person is wrong once in 160,000 times; a choice, not measured
_KIND_OF_VALUE: Final[Mapping[int, StepKind]] = {-1: "incorrect", 0: "removed", 1: "completed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerEvent:
    """A step the tracker reports, or, with `retracts`, takes back.

    `confidence` is the probability that what the event says is true. `retracts` is the `id` of
    the earlier event that no longer holds; step, component and kind are then that event's.
    """

    id: int
    frame_idx: int
    step_id: int
    component_idx: int
    kind: StepKind
    confidence: float
    retracts: int | None = None


class Tracker:
    """Recognises steps from every detection of every frame, empty frames included."""

    def __init__(self, procedure: Procedure, model: TrackerModel) -> None:
        """Start a session in the procedure's initial state.

        Raises:
            ConfigError: the procedure says of no detector class what state it stands for.
        """
        self.procedure = procedure
        self.model = model
        self._graph = build_graph(procedure, model)
        self._count = len(self._graph.states)
        self._view = ViewModel(procedure, self._graph, model)
        self._belief = self._view.start(self._graph.initial_idx)
        # Rows: value -1, 0, 1; then hypotheses, components.
        self._has_value = np.stack([self._graph.states == v for v in _VALUES]).astype(np.float64)
        self._frame_idx = -1
        self._reported = np.array(procedure.initial_state, dtype=np.int64)
        self._held = np.zeros((len(_VALUES), procedure.component_count), dtype=np.int64)
        self._blind_frames = 0
        self._has_evidence = False
        self._event_count = 0
        self._last_events: dict[int, TrackerEvent] = {}

    @property
    def state(self) -> ComponentState:
        """Value of every component as reported so far, length C."""
        return tuple(int(value) for value in self._reported)

    @property
    def can_see(self) -> bool:
        """Whether the assembly was in view within the last `blind_frames` frames."""
        return self._blind_frames <= self.model.blind_frames

    @property
    def standing_events(self) -> tuple[TrackerEvent, ...]:
        """The last report of each component that has one that stands: all that can be retracted."""
        return tuple(self._last_events.values())

    @property
    def mistake_probability(self) -> float:
        """Probability that the assembly is in no state known to be right."""
        return float(self._belief[self._count :].sum())

    def component_probabilities(self) -> Floats:
        """Of each component being incorrect, absent, correct; shape (3, C), float64.

        The columns sum to the probability that the assembly is in a known state.
        """
        chances: Floats = self._has_value.transpose(0, 2, 1) @ self._belief[: self._count].sum(1)
        return chances

    def next_steps(self) -> dict[int, float]:
        """Probability per step id to be in the next change, of steps that can be; descending."""
        right = self._belief[: self._count].sum(axis=1)
        chances = (right / max(float(right.sum()), 1e-300)) @ self._graph.next_step
        pairs = zip(self.procedure.steps, chances.tolist(), strict=True)
        ordered = sorted(pairs, key=lambda pair: (-pair[1], pair[0].id))
        return {step.id: chance for step, chance in ordered if chance > 0}

    def step(self, frame_idx: int, detections: Sequence[Detection]) -> list[TrackerEvent]:
        """Take the next frame and return what it makes sure of, retractions first.

        Args:
            frame_idx: Index of the frame; must grow from call to call. A frame that was seen, with
                or without detections, is one call.
            detections: All of the frame's detections; their order does not matter.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: a class the procedure's detector does not have, or a confidence outside
                [0, 1]. The frame then counts as not given.
        """
        if frame_idx <= self._frame_idx:
            raise StateError(
                f"expected a frame after {self._frame_idx}, got frame {frame_idx}; frames must come"
                " in order, a new recording needs a new tracker"
            )
        self._check(detections)
        self._frame_idx = frame_idx
        belief = self._view.advance(self._graph.transition @ self._belief)
        belief = self._view.weigh(belief, detections)
        self._belief = belief / belief.sum()
        is_in_view = self._belief[:, UNSEEN].sum() < 0.5
        self._blind_frames = 0 if is_in_view else self._blind_frames + 1
        if not detections and not self._has_evidence:
            return []  # time alone makes a step likely, never sure
        events = self._decide()
        self._has_evidence = False
        return events

    def add_evidence(self, log_likelihoods: ArrayLike, *, reports: bool = True) -> None:
        """Weigh in what another branch sees of single components, before the next `step`.

        Args:
            log_likelihoods: Natural logarithm of the likelihood of what was seen if a component
                were incorrect, absent, correct; shape (3, C). Zeros say nothing. Neighbouring
                frames' evidence must already be scaled to count as independent.
            reports: Whether the next frame may report by it although nothing is detected there.

        Raises:
            ShapeError: another shape.
            DataError: a value that is not finite.
        """
        values = np.asarray(log_likelihoods, dtype=np.float64)
        if values.shape != self._held.shape:
            raise ShapeError(f"expected shape {self._held.shape}, got {values.shape}")
        if not np.isfinite(values).all():
            raise DataError(f"expected finite log-likelihoods, got {values.tolist()}")
        per_state = np.einsum("vhc,vc->h", self._has_value, values)
        # Nobody knows which component a mistake is in: the average over all assemblies.
        unknown = np.logaddexp.reduce(per_state) - np.log(self._count)
        logs = np.concatenate([per_state, np.full(self._count, unknown)])
        belief = self._belief * np.exp(np.maximum(logs - logs.max(), -60.0))[:, None]
        self._belief = belief / belief.sum()
        self._has_evidence = self._has_evidence or reports

    def declare(self, step_id: int) -> TrackerEvent:
        """Take a step as done because a person says so; go on from there.

        The belief is weighed by it as by a witness who is hardly ever wrong, so that clear and
        lasting evidence against it can still take the report back.

        Raises:
            NotFoundError: the procedure has no such step.
        """
        step = self.procedure.step(step_id)
        row = _VALUES.index(VALUE_AFTER[step.kind])
        heard = np.zeros_like(self._held, dtype=np.float64)
        heard[:, step.component_idx] = -_WITNESS_NATS
        heard[row, step.component_idx] = 0.0
        self.add_evidence(heard, reports=False)
        self._reported[step.component_idx] = _VALUES[row]
        self._held[:, step.component_idx] = 0
        event = self._last_events[step.component_idx] = self._event(step, 1.0)
        return event

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": _METHOD,
            "procedure": self.procedure.name,
            "model": model_values(self.model),
            "frame_idx": self._frame_idx,
            "belief": self._belief.tolist(),
            "view": self._view.snapshot(),
            "reported": self._reported.tolist(),
            "held": self._held.tolist(),
            "blind_frames": self._blind_frames,
            "has_evidence": self._has_evidence,
            "event_count": self._event_count,
            "last_events": [asdict(event) for event in self._last_events.values()],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same procedure and model.

        Raises:
            DataError: the snapshot is another method's, procedure's or model's, or is malformed.
                The tracker is then as it was.
        """
        try:
            self._check_same_origin(snapshot)
            belief = np.array(snapshot["belief"], dtype=np.float64)
            reported = np.array(snapshot["reported"], dtype=np.int64)
            held = np.array(snapshot["held"], dtype=np.int64)
            if belief.shape != self._belief.shape or held.shape != self._held.shape:
                raise ValueError(f"belief {belief.shape}, held {held.shape}")
            if not (np.isfinite(belief).all() and (belief >= 0).all() and belief.sum() > 0):
                raise ValueError("a belief that is no probability")
            self.procedure.check_state(reported.tolist(), "state of the snapshot")
            counters = [int(snapshot[key]) for key in ("frame_idx", "blind_frames", "event_count")]
            events = [TrackerEvent(**event) for event in snapshot["last_events"]]
            has_evidence = bool(snapshot["has_evidence"])
            self._view.restore(snapshot["view"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                "expected a snapshot of the tracker as `snapshot` returns it"
                f" ({type(error).__name__}: {error}); start the session anew"
            ) from error
        self._belief, self._reported, self._held = belief, reported, held
        self._frame_idx, self._blind_frames, self._event_count = counters
        self._has_evidence = has_evidence
        self._last_events = {event.component_idx: event for event in events}

    # --- decisions --------------------------------------------------------------------------------

    def _decide(self) -> list[TrackerEvent]:
        """Report what has been likely for long enough, in component order."""
        chances = self._seen_probabilities()
        is_news = np.array(_VALUES)[:, None] != self._reported
        threshold = np.full(len(_VALUES), self.model.report_threshold)
        threshold[0] = self.model.incorrect_threshold
        above = is_news & (chances > threshold[:, None])
        self._held = np.where(above, self._held + 1, np.maximum(self._held - 1, 0))
        ready = above & (self._held > self.model.hold_frames)
        if not ready.any():
            return []
        events: list[TrackerEvent] = []
        for component_idx in np.flatnonzero(ready.any(axis=0)).tolist():
            row = int(np.argmax(np.where(ready[:, component_idx], chances[:, component_idx], -1)))
            self._held[:, component_idx] = 0
            chance = min(1.0, float(chances[row, component_idx]))
            events += self._change(component_idx, _VALUES[row], chance)
        return sorted(events, key=lambda event: (event.retracts is None, event.component_idx))

    def _seen_probabilities(self) -> Floats:
        """Of each component's value being the one in view now, shape (3, C).

        A mistake is a component's where the assembly in view is wrong and looks changed in this
        component; where several changed it is shared among them, as nothing tells which it is.
        """
        column = slice(None) if self._has_evidence else slice(FAITHFUL, FAITHFUL + 1)
        right = self._belief[: self._count, column].sum(axis=1)
        wrong = self._belief[self._count :, FAITHFUL]
        chances: Floats = self._has_value.transpose(0, 2, 1) @ right
        changed = (self._graph.states != self._reported).astype(np.float64)
        changed_count = np.maximum(changed.sum(axis=1), 1.0)
        chances[0] += (wrong / changed_count) @ changed
        return chances

    def _change(self, component_idx: int, value: int, chance: float) -> list[TrackerEvent]:
        """Set a component's reported value; the event that says so, if there is one."""
        old = int(self._reported[component_idx])
        self._reported[component_idx] = value
        step = self.procedure.step_for(component_idx, _KIND_OF_VALUE[value])
        last = self._last_events.get(component_idx)
        if last is not None and self._was_wrong(last, step):
            del self._last_events[component_idx]
            retraction = self._event(self.procedure.step(last.step_id), chance, retracts=last.id)
            if value == self._value_before(last):
                return [retraction]
            return [retraction, *self._report(component_idx, step, chance)]
        if old == -1 and value == 0:
            return []  # taking out a wrong part is no step of any procedure
        return self._report(component_idx, step, chance)

    def _report(
        self, component_idx: int, step: ProcedureStep | None, chance: float
    ) -> list[TrackerEvent]:
        if step is None:
            return []
        event = self._event(step, chance)
        self._last_events[component_idx] = event
        return [event]

    def _was_wrong(self, last: TrackerEvent, step: ProcedureStep | None) -> bool:
        """Whether it is likelier that the last report was wrong than that this step came after."""
        if last.kind == "incorrect":
            return False  # a wrong part that turns right was put right
        if step is not None and (step.expected or step.kind == "incorrect"):
            return False
        # A mistake that looked right, against a person who takes out what was right, or puts in
        # what nobody asked for; the latter is a mistake of its own.
        model = self.model
        happened = step is not None and step.kind == "completed"
        rate = model.mistake_rate if happened else model.unexpected_rate
        return model.mistake_rate * (1 - model.visible_share) > rate

    def _value_before(self, event: TrackerEvent) -> int:
        return 1 if event.kind == "removed" else 0

    def _event(
        self, step: ProcedureStep, chance: float, retracts: int | None = None
    ) -> TrackerEvent:
        self._event_count += 1
        return TrackerEvent(
            id=self._event_count - 1,
            frame_idx=self._frame_idx,
            step_id=step.id,
            component_idx=step.component_idx,
            kind=step.kind,
            confidence=chance,
            retracts=retracts,
        )

    # --- input ------------------------------------------------------------------------------------

    def _check(self, detections: Sequence[Detection]) -> None:
        class_count = len(self.procedure.states)
        for detection in detections:
            if not 0 <= detection.class_id < class_count:
                raise DataError(
                    f"expected a class from 0 to {class_count - 1} (procedure"
                    f" {self.procedure.name!r}), got {detection.class_id}; does the detector belong"
                    " to this procedure?"
                )
            if not 0.0 <= detection.confidence <= 1.0:
                raise DataError(
                    f"expected a confidence from 0 to 1, got {detection.confidence} for class"
                    f" {detection.class_id}"
                )

    def _check_same_origin(self, snapshot: Mapping[str, Any]) -> None:
        came = (snapshot["method"], snapshot["procedure"])
        if came != (_METHOD, self.procedure.name):
            raise DataError(
                f"expected a snapshot of {_METHOD} for procedure {self.procedure.name!r}, got one"
                f" of {came[0]} for {came[1]!r}"
            )
        if snapshot["model"] != model_values(self.model):
            raise DataError("expected a snapshot of the same tracker model, got another's numbers")
