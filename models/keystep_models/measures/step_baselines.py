"""Floor and ceiling of recognising steps frame by frame: what any claim is to be compared with.

- Uniform: the usual steps in the usual order, each as long as the others. Looks at nothing.
- Elapsed time: at each share of the session what most people do there. Sees the clock only.
- Linear probe: a linear classifier trained with every frame's label. Sees features *and* labels of
  other people, so it is a ceiling for what learns from the same features without labels.

Labels are step ids, `BACKGROUND` between steps. Letters: T frames, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keystep_capture.errors import ShapeError

Labels = NDArray[np.int64]
Features = NDArray[np.float32]

BACKGROUND = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScores:
    """How well frames were recognised.

    Attributes:
        accuracy: Share of all frames, background included, with the right label.
        step_accuracy: The same of frames within steps.
        f1: Mean over the steps that occur of their frames' F1.
    """

    accuracy: float
    step_accuracy: float
    f1: float


def uniform_labels(frame_count: int, steps: Sequence[int]) -> Labels:
    """Give every step the same share of a session, in order; shape (T,)."""
    if not steps:
        raise ShapeError("expected at least one step, got none")
    places = np.arange(frame_count) * len(steps) // max(frame_count, 1)
    return np.asarray(steps, np.int64)[places]


def elapsed_labels(sessions: Sequence[Labels], frame_count: int, bins: int = 100) -> Labels:
    """Give each frame the label that is most common at its share of other sessions.

    Args:
        sessions: Labels of other people's sessions, shape (T_i,) each.
        frame_count: Frames of the session that is to be labelled.
        bins: Shares that are told apart.

    Returns:
        Labels, shape (T,).
    """
    if not sessions or any(len(labels) == 0 for labels in sessions):
        raise ShapeError("expected at least one session, and frames in each")
    names = np.unique(np.concatenate(sessions))
    votes = np.zeros((bins, len(names)))
    for labels in sessions:
        share = np.arange(len(labels)) * bins // len(labels)
        np.add.at(votes, (share, np.searchsorted(names, labels)), 1.0 / len(labels))
    best = names[votes.argmax(axis=1)]
    return np.asarray(best[np.arange(frame_count) * bins // max(frame_count, 1)], np.int64)


class LinearProbe:
    """A multinomial logistic regression on standardised features, every label weighing the same."""

    def __init__(self, strength: float = 0.01, max_iterations: int = 300) -> None:
        """`strength` is the inverse of the regularisation's."""
        self._model = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, max_iter=max_iterations, class_weight="balanced"),
        )

    def fit(self, features: Features, labels: Labels) -> LinearProbe:
        """Train on frames of all training sessions.

        Args:
            features: Shape (T, D).
            labels: Shape (T,), any whole numbers, at least two different ones.

        Raises:
            ShapeError: The two do not belong together.
        """
        if features.ndim != 2 or len(features) != len(labels):
            raise ShapeError(f"expected (T, D) and (T,), got {features.shape} and {labels.shape}")
        self._model.fit(features, labels)
        return self

    def predict(self, features: Features) -> Labels:
        """Label frames (T, D)."""
        return np.asarray(self._model.predict(features), np.int64)


def averaged(features: Features, reach: int) -> Features:
    """Average each frame (T, D) with `reach` frames before and after it; ends are repeated."""
    padded = np.pad(features, ((reach, reach), (0, 0)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    width = 2 * reach + 1
    return np.asarray((sums[width:] - sums[:-width]) / width, np.float32)


def frame_scores(truth: Labels, predicted: Labels) -> FrameScores:
    """Compare labels of the same frames, shape (T,) each.

    Raises:
        ShapeError: They are not of the same frames, or no frame is within a step.
    """
    within = truth != BACKGROUND
    if truth.shape != predicted.shape or not within.any():
        raise ShapeError(
            f"expected labels of the same frames, some within steps; got {truth.shape} and"
            f" {predicted.shape}"
        )
    right = truth == predicted
    steps = np.unique(truth[within])
    scores = f1_score(truth, predicted, labels=steps, average="macro", zero_division=0.0)
    return FrameScores(
        accuracy=float(right.mean()),
        step_accuracy=float(right[within].mean()),
        f1=float(scores),
    )


def distance_ratio(features: Features, labels: Labels) -> float:
    """Mean distance between frames of different steps over that within a step.

    1 means that steps cannot be told apart by distance. Features are scaled to length one; frames
    of the background are left out. At most 1,500 frames are compared, evenly spaced.
    """
    kept = np.flatnonzero(labels != BACKGROUND)
    kept = kept[:: max(1, len(kept) // 1500)]
    unit = features[kept] / np.linalg.norm(features[kept], axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(2.0 - 2.0 * unit @ unit.T, 0.0))
    same = labels[kept][:, None] == labels[kept]
    pairs = ~np.eye(len(kept), dtype=bool)
    return float(distance[~same].mean() / distance[same & pairs].mean())
