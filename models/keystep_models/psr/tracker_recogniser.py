"""The tracker as a `Recogniser`, and which settings it takes for a procedure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from keystep_capture.errors import ConfigError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.procedure import (
    BUILTIN_PROCEDURES,
    ComponentState,
    Procedure,
    StepKind,
    builtin_procedure,
)
from keystep_models.psr.recogniser import FrameReport, Recogniser, Retraction
from keystep_models.psr.tracker import Tracker, TrackerEvent
from keystep_models.psr.tracker_model import TrackerModel, builtin_tracker_model

TRACKER: Final = "tracker"


class TrackerRecogniser(Recogniser):
    """The tracker behind the interface that all methods share; clips are not looked at."""

    def __init__(self, procedure: Procedure, model: TrackerModel, *, note: str = "") -> None:
        """Start a session; raises what `Tracker` raises."""
        super().__init__(TRACKER, procedure)
        self.tracker = Tracker(procedure, model)
        self.note = note

    @property
    def state(self) -> ComponentState:
        """Value of every component as reported so far, length C."""
        return self.tracker.state

    @property
    def can_see(self) -> bool:
        """Whether the assembly was in view lately."""
        return self.tracker.can_see

    def step(
        self,
        frame_idx: int,
        detections: Sequence[Detection],
        clip: ClipPrediction | None = None,
    ) -> FrameReport:
        """Take the next frame; as `Recogniser.step`."""
        standing = {event.id: event for event in self.tracker.standing_events}
        events = self.tracker.step(frame_idx, detections)
        return FrameReport(
            steps=[_completion(event) for event in events if event.retracts is None],
            retracted=[
                Retraction(_completion(standing[event.retracts]), frame_idx, event.confidence)
                for event in events
                if event.retracts is not None
            ],
        )

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done; what is seen may still take it back."""
        return _completion(self.tracker.declare(step_id))

    def snapshot(self) -> Mapping[str, Any]:
        """Everything needed to go on from here."""
        return self.tracker.snapshot()

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; as `Recogniser.restore`."""
        self.tracker.restore(snapshot)


def _completion(event: TrackerEvent) -> StepCompletion:
    return StepCompletion(
        event.frame_idx, event.step_id, event.confidence, event.component_idx, event.kind
    )


def make_tracker(procedure: Procedure, model: TrackerModel | None = None) -> TrackerRecogniser:
    """The tracker at the start of a session.

    Args:
        procedure: What to follow; it must say what its detector's classes stand for.
        model: Settings to take. By default those fitted on IndustReal where they fit, else the
            same rates without anything counted, which `note` then says.

    Raises:
        ConfigError: the settings count steps or classes that the procedure does not have, or the
            procedure has no detector states.
    """
    chosen, note = choose_model(procedure, model)
    return TrackerRecogniser(procedure, chosen, note=note)


def choose_model(procedure: Procedure, model: TrackerModel | None) -> tuple[TrackerModel, str]:
    """The settings that `make_tracker` takes, and what their user should know of them.

    Raises:
        ConfigError: The settings count steps or classes that the procedure does not have.
    """
    if model is not None:
        _check_fits(procedure, model)
        return model, ""
    fitted = fitted_model(procedure)
    if fitted is not None:
        return fitted, ""
    note = (
        f"no tracker settings were fitted for procedure {procedure.name!r}: it runs with"
        " IndustReal's rates (per frame at 10 Hz), no counted orders or confusions, and an order of"
        " steps only where the procedure says `requires`"
    )
    return TrackerModel(), note


def fitted_model(procedure: Procedure) -> TrackerModel | None:
    """The shipped settings that were fitted on a procedure; None where none were.

    Told by content, not by name: the same detector classes, and no other changes of components
    under other ids. Titles, and which steps are expected, are free.
    """
    changes = _changes(procedure)
    for name in BUILTIN_PROCEDURES:
        known = builtin_procedure(name)
        if known.states == procedure.states and changes <= _changes(known):
            return builtin_tracker_model("industreal")
    return None


def _changes(procedure: Procedure) -> set[tuple[int, int, StepKind]]:
    return {(step.id, step.component_idx, step.kind) for step in procedure.steps}


def _check_fits(procedure: Procedure, model: TrackerModel) -> None:
    known_ids = {step.id for step in procedure.steps}
    counted_ids = {step_id for *pair, _ in model.order_counts for step_id in pair}
    classes = {class_id for *pair, _ in model.confusions for class_id in pair}
    unknown = sorted(counted_ids - known_ids)
    if unknown:
        raise ConfigError(
            f"expected tracker settings that count steps of procedure {procedure.name!r}, got step"
            f" {unknown[0]}, which it does not have; these settings were fitted on another one"
        )
    outside = sorted(class_id for class_id in classes if class_id >= len(procedure.states))
    if outside:
        raise ConfigError(
            f"expected tracker settings that count classes from 0 to {len(procedure.states) - 1}"
            f" (procedure {procedure.name!r}), got class {outside[0]}; these settings were fitted"
            " on another detector"
        )
