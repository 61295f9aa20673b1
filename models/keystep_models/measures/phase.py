"""Phase classification: how well a classifier with few labels reads phases off the features.

STEPs, sections 4.2 and I.4: a support vector machine (radial basis functions, C = 1) on the frames
of the training videos, with a fraction of their labels; the measure is the accuracy per frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from keystep_capture.errors import ConfigError, DataError

FRACTIONS = (0.1, 0.5, 1.0)
"""The published fractions of labels."""


def phase_accuracy(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    *,
    fraction: float = 1.0,
    seed: int = 0,
) -> float:
    """Train on a fraction of the labelled frames and measure on other frames.

    Args:
        train_features: float32 (T, D).
        train_labels: Phase of each frame, int (T,).
        test_features: float32 (S, D), of other videos.
        test_labels: int (S,).
        fraction: Of the training frames, above 0 and at most 1; drawn phase by phase, at least
            one frame of each.
        seed: Of that draw.

    Returns:
        Fraction of the test frames whose phase is found, 0 to 1.

    Raises:
        ConfigError: `fraction` is out of range.
        DataError: Features and labels do not fit together, or there are none.
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction}")
    for rows, labels in ((train_features, train_labels), (test_features, test_labels)):
        if rows.ndim != 2 or not len(rows) or labels.shape != (len(rows),):
            raise DataError(
                f"expected features (T, D) with T labels, got {rows.shape} and {labels.shape}"
            )
        if not np.isfinite(rows).all():
            raise DataError("expected finite features: leave missing frames out")
    chosen = _draw(train_labels, fraction, np.random.default_rng(seed))
    phases = np.unique(train_labels[chosen])
    if len(phases) == 1:
        return float(np.mean(test_labels == phases[0]))
    with threadpool_limits(limits=1):
        model = SVC(C=1.0, kernel="rbf").fit(train_features[chosen], train_labels[chosen])
        return float(model.score(test_features, test_labels))


def _draw(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    parts = []
    for phase in np.unique(labels):
        frames = np.flatnonzero(labels == phase)
        count = max(1, round(fraction * len(frames)))
        parts.append(rng.choice(frames, count, replace=False))
    return np.sort(np.concatenate(parts))
