"""How right a detector of assembly states is, frame by frame, by how much hands hide.

A frame with an assembly is right where the surest detection is of its state's class; that is the
error state where the state is none of the classes'. A frame without a detection is not right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.detector.frame_labels import FrameLabels
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import ComponentState

HIDDEN_EDGES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 1.01)
CONFIDENCE_EDGES: Final = tuple(np.linspace(0.0, 1.0, 11).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFrames:
    """One entry per frame (F frames, C classes).

    Attributes:
        hidden: Share of the assembly that hands hide; NaN: there is none.
        truth: Class of the frame's state; C - 1, the error state, where it is no class's.
        found: Class of the surest detection, -1 without one.
        confidence: Of it, 0 without one.
        overlap: Of its box with the true one over their union; NaN where one of them is missing.
        components: Share of components with the right value; NaN where the class says none.
    """

    hidden: NDArray[np.float64]
    truth: NDArray[np.int64]
    found: NDArray[np.int64]
    confidence: NDArray[np.float64]
    overlap: NDArray[np.float64]
    components: NDArray[np.float64]


def score_frames(
    detections: Sequence[Sequence[Detection]],
    labels: FrameLabels,
    states: Sequence[ComponentState | None],
) -> ScoredFrames:
    """Compare a recording's detections with its labels.

    Args:
        detections: By frame, surest first; frames past the last are without.
        labels: The recording's.
        states: What each class stands for; the last one without a state is the error state.

    Raises:
        DataError: More frames than labels, or another number of components.
    """
    count = len(labels.states)
    if len(detections) > count:
        raise DataError(f"expected detections of at most {count} frames, got {len(detections)}")
    known = {state: class_id for class_id, state in enumerate(states) if state is not None}
    if {len(state) for state in known} != {labels.states.shape[1]}:
        raise DataError(
            f"the labels have {labels.states.shape[1]} components, the detector's states others"
        )
    error_id = len(states) - 1
    truth = [known.get(tuple(state), error_id) for state in labels.states.tolist()]
    found = np.full(count, -1, np.int64)
    confidence, overlap, components = (
        np.zeros(count),
        np.full(count, np.nan),
        np.full(count, np.nan),
    )
    for frame, seen in enumerate(detections):
        if not seen:
            continue
        best = max(seen, key=lambda each: each.confidence)
        found[frame], confidence[frame] = best.class_id, best.confidence
        if best.box is not None:
            overlap[frame] = _overlap(best.box, labels.boxes[frame])
        state = states[best.class_id]
        if state is not None:
            components[frame] = float((labels.states[frame] == np.array(state)).mean())
    return ScoredFrames(
        hidden=labels.hidden,
        truth=np.array(truth, np.int64),
        found=found,
        confidence=confidence,
        overlap=overlap,
        components=components,
    )


def join(parts: Sequence[ScoredFrames]) -> ScoredFrames:
    """Several recordings' frames as one."""
    names = ScoredFrames.__slots__
    return ScoredFrames(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def summarise(frames: ScoredFrames) -> dict[str, Any]:
    """Figures over frames; shares from 0 to 1, None where there is no frame.

    `frames`, `detected`, `right`, `components`, `overlap` of frames with an assembly, for all of
    them and for each share hidden; `false` the share of frames without one in which something
    was detected; `calibration_error` the mean distance of confidence from share right over ten
    bins of confidence, `reliability` those bins.
    """
    there = np.isfinite(frames.hidden)
    by_hidden = []
    for low, high in itertools.pairwise(HIDDEN_EDGES):
        inside = there & (frames.hidden >= low) & (frames.hidden < high)
        by_hidden.append({"hidden": [low, min(high, 1.0)], **_shares(frames, inside)})
    reliability = _reliability(frames, there & (frames.found >= 0))
    shown = sum(part["frames"] for part in reliability)
    error = sum(abs(part["confidence"] - part["right"]) * part["frames"] for part in reliability)
    return {
        **_shares(frames, there),
        "false": _mean((frames.found >= 0)[~there]),
        "by_hidden": by_hidden,
        "calibration_error": error / shown if shown else None,
        "reliability": reliability,
    }


def confusion(frames: ScoredFrames, class_count: int) -> NDArray[np.int64]:
    """Frames with an assembly by true class and found one; the last column: nothing, (C, C + 1)."""
    there = np.isfinite(frames.hidden)
    table = np.zeros((class_count, class_count + 1), np.int64)
    columns = np.where(frames.found < 0, class_count, frames.found)
    np.add.at(table, (frames.truth[there], columns[there]), 1)
    return table


def _shares(frames: ScoredFrames, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "frames": int(chosen.sum()),
        "detected": _mean((frames.found >= 0)[chosen]),
        "right": _mean((frames.found == frames.truth)[chosen]),
        "components": _mean(frames.components[chosen]),
        "overlap": _mean(frames.overlap[chosen]),
    }


def _reliability(frames: ScoredFrames, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
    found = []
    for low, high in itertools.pairwise(CONFIDENCE_EDGES):
        last = high == CONFIDENCE_EDGES[-1]
        inside = chosen & (frames.confidence >= low)
        inside &= (frames.confidence <= high) if last else (frames.confidence < high)
        if inside.any():
            found.append(
                {
                    "frames": int(inside.sum()),
                    "confidence": float(frames.confidence[inside].mean()),
                    "right": float((frames.found == frames.truth)[inside].mean()),
                }
            )
    return found


def _mean(values: NDArray[Any]) -> float | None:
    numbers = values[np.isfinite(values)]
    return float(numbers.mean()) if len(numbers) else None


def _overlap(box: tuple[float, float, float, float], true: NDArray[np.float64]) -> float:
    """Intersection over union of a detection's box and true corners; NaN where there are none."""
    cx, cy, w, h = box
    own = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    low, high = np.maximum(own[:2], true[:2]), np.minimum(own[2:], true[2:])
    shared = float(np.maximum(high - low, 0.0).prod())
    return shared / (w * h + float((true[2:] - true[:2]).prod()) - shared)
