"""What the detector shows of an assembly: views that begin, end, and may show a wrong class.

Neighbouring frames' errors are not independent. A view therefore has one displayed class that
stays for many frames, and what its confidences tell is bounded: a view of a thousand frames says
little more than one of thirty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.state_graph import Floats, StateGraph
from keystep_models.psr.tracker_model import TrackerModel

UNSEEN: Final = 0  # column of a belief: nothing in view
FAITHFUL: Final = 1  # column: in view, showing the hypothesis's own class
FIRST_CLASS: Final = 2  # column: in view, showing detector class 0; class c is column 2 + c

_BACKGROUND: Final = 0  # by the data sets' convention, where the class has no state
_STRAY_SHARE: Final = 0.1  # of strays, those that any one frame's detections would be
_ANYWHERE_SHARE: Final = 0.2  # of glitches, those that show any class, near or not

_PRIOR_VIEWS: Final = 20.0  # what is expected of glitches weighs like so many counted ones


class ViewModel:
    """Likelihood of a frame's detections for H hypotheses, right and wrong, in D displays.

    A belief has the shape (2H, D): rows are hypotheses, right ones first; columns are UNSEEN,
    FAITHFUL and one per detector class from FIRST_CLASS on.
    """

    def __init__(self, procedure: Procedure, graph: StateGraph, model: TrackerModel) -> None:
        self._model = model
        self._class_count = len(procedure.states)
        hypothesis_count = len(graph.states)
        self._indicator = np.zeros((hypothesis_count, self._class_count))
        for hypothesis_idx, class_ids in enumerate(graph.class_of):
            self._indicator[hypothesis_idx, list(class_ids)] = 1.0
        self._is_known: NDArray[np.bool_] = self._indicator.sum(axis=0) > 0
        self._is_error = np.array(
            [state is None and c != _BACKGROUND for c, state in enumerate(procedure.states)]
        )
        self._on_appearing = self._displays(graph)
        self._exposure = np.zeros(self._class_count)
        self._doubt = np.zeros(self._class_count)

    @property
    def display_count(self) -> int:
        """Columns D of a belief."""
        return FIRST_CLASS + self._class_count

    def start(self, hypothesis_idx: int) -> Floats:
        """Belief of a known assembly before the first frame, shape (2H, D)."""
        belief = np.zeros((len(self._on_appearing), self.display_count))
        belief[hypothesis_idx] = 0.5 * self._on_appearing[hypothesis_idx]
        belief[hypothesis_idx, UNSEEN] = 0.5
        return belief

    def advance(self, belief: Floats) -> Floats:
        """Let views begin, change and end for one frame; shape (2H, D)."""
        model = self._model
        unseen = belief[:, UNSEEN]
        seen = belief[:, FAITHFUL:].sum(axis=1)
        drawn = model.appear_rate * unseen + (1 - model.vanish_rate) * model.change_rate * seen
        after = belief * ((1 - model.vanish_rate) * (1 - model.change_rate))
        after[:, UNSEEN] = (1 - model.appear_rate) * unseen + model.vanish_rate * seen
        after += drawn[:, None] * self._on_appearing
        return after

    def weigh(self, belief: Floats, detections: Sequence[Detection]) -> Floats:
        """Multiply a belief by the likelihood of a frame's detections; shape (2H, D).

        The order of detections does not matter; of a class's several the surest counts.
        """
        model = self._model
        self._exposure *= 1 - 1 / model.forget_frames
        self._doubt *= 1 - 1 / model.forget_frames
        confidences = self._surest(detections)
        if not confidences:
            belief[:, UNSEEN] *= 1 - model.stray_rate
            belief[:, FAITHFUL:] *= model.miss_rate
            return belief
        shown, wrong = self._likelihoods(confidences)
        count = len(self._indicator)
        floor = model.floor_rate
        belief[:, UNSEEN] *= model.stray_rate * _STRAY_SHARE
        belief[:count, FAITHFUL] *= self._indicator @ shown + floor
        belief[count:, FAITHFUL] *= self._indicator @ wrong + floor
        belief[:, FIRST_CLASS:] *= wrong + floor
        return belief

    def snapshot(self) -> dict[str, list[float]]:
        """How long each class was in view and what its confidences said, for JSON."""
        return {"exposure": self._exposure.tolist(), "doubt": self._doubt.tolist()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over a `snapshot`; DataError, and no change, when it is malformed."""
        exposure, doubt = (np.array(snapshot[key], dtype=float) for key in ("exposure", "doubt"))
        for values in (exposure, doubt):
            if values.shape != (self._class_count,) or not np.isfinite(values).all():
                raise DataError(
                    f"expected {self._class_count} finite values per view, got {values.tolist()}"
                )
        self._exposure, self._doubt = exposure, doubt

    def _surest(self, detections: Sequence[Detection]) -> list[tuple[int, float]]:
        """Highest confidence per class with a meaning, in class order."""
        found: dict[int, float] = {}
        for detection in detections:
            class_id = detection.class_id
            if self._is_known[class_id] or self._is_error[class_id]:
                found[class_id] = max(found.get(class_id, 0.0), detection.confidence)
        return sorted(found.items())

    def _likelihoods(self, confidences: Sequence[tuple[int, float]]) -> tuple[Floats, Floats]:
        """Of each class being displayed by the right assembly, and by any other; shape (C,) each.

        A class's share of the frame's confidence is the chance that it is the one displayed.
        """
        model = self._model
        shown, wrong = np.zeros(self._class_count), np.zeros(self._class_count)
        total = sum(confidence for _, confidence in confidences)
        for class_id, confidence in confidences:
            share = confidence / total if total > 0 else 1 / len(confidences)
            shown[class_id] = (1 - model.miss_rate) * share
            wrong[class_id] = shown[class_id] * self._doubt_factor(class_id, confidence)
        return shown, wrong

    def _doubt_factor(self, class_id: int, confidence: float) -> float:
        """How much more likely this confidence is where the class is wrong.

        A view's frames tell less and less (exposure), and `visible_share` of the wrong ones look
        worse than right ones at all: the rest bounds what high confidences can rule out.
        """
        if self._is_error[class_id]:
            return 1.0
        model = self._model
        news = math.exp(-self._exposure[class_id] / model.view_frames)
        before = self._doubt[class_id]
        after = before + news * model.confidence_slope * (model.confidence_neutral - confidence)
        self._doubt[class_id] = after
        self._exposure[class_id] += 1.0
        return self._odds(after) / self._odds(before)

    def _odds(self, doubt: float) -> float:
        """Odds by its looks that a view shows a wrong assembly.

        Some wrong ones look like right ones (1 - visible_share), a few right ones look wrong.
        """
        visible, poor = self._model.visible_share, self._model.poor_view_rate
        ratio = math.exp(min(doubt, 500.0))
        return (visible * ratio + 1 - visible) / (poor * ratio + 1 - poor)

    def _displays(self, graph: StateGraph) -> Floats:
        """What a beginning view shows, shape (2H, D): the own class, or a near one by mistake."""
        model = self._model
        states = graph.states
        count = len(states)
        distance = (states[:, None] != states[None]).sum(axis=2)
        near = np.exp(-model.nearness * distance) * (self._indicator.sum(axis=1) > 0)
        np.fill_diagonal(near, 0.0)
        near /= np.maximum(near.sum(axis=1, keepdims=True), 1e-300)
        known_count = max(1, int(self._is_known.sum()))
        others = (1 - _ANYWHERE_SHARE) * near @ self._indicator
        others += _ANYWHERE_SHARE * self._is_known / known_count
        others = self._with_counts(others, graph)
        displays = np.zeros((2 * count, self.display_count))
        for first, glitch, error in (
            (0, model.glitch_rate, model.error_share),
            (count, model.glitch_rate_wrong, model.error_share_wrong),
        ):
            rows = slice(first, first + count)
            errors = self._is_error / max(1, int(self._is_error.sum()))
            error = error if self._is_error.any() else 0.0
            displays[rows, FAITHFUL] = 1 - glitch
            displays[rows, FIRST_CLASS:] = glitch * ((1 - error) * others + error * errors)
        return displays

    def _with_counts(self, expected: Floats, graph: StateGraph) -> Floats:
        """Which wrong class is shown, (H, C): as expected, corrected by what was counted."""
        hypothesis_of = {c: idx for idx, ids in enumerate(graph.class_of) for c in ids}
        counts = np.zeros_like(expected)
        for class_id, shown_id, count in self._model.confusions:
            if class_id in hypothesis_of and shown_id < self._class_count:
                counts[hypothesis_of[class_id], shown_id] += count
        mixed: Floats = _PRIOR_VIEWS * expected + counts
        mixed /= _PRIOR_VIEWS + counts.sum(axis=1, keepdims=True)
        return mixed
