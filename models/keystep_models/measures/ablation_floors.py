"""What an ablation's rows stand between: clusters that look at nothing, and trained classifiers.

- random, uniform, raw features: as the paper's baselines.
- elapsed time, with labels: what most other people do at this share of the session.
- linear probe, with labels: a linear classifier of averaged raw features, trained on other people.

The two with labels tell the K - 1 key steps that are most frequent among the people they were
trained on from everything else, so that they have as many clusters as the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.measures.baselines import random_clusters, uniform_clusters
from keystep_models.measures.ksl import localize
from keystep_models.measures.ksl_protocol import localize_videos
from keystep_models.measures.step_baselines import LinearProbe, averaged, elapsed_labels

FOLDS = 4
_AVERAGED_S = 2.5
_TRAINED_HZ = 2.0  # frames of a probe's training; neighbours tell it nothing new

Labels = NDArray[np.int64]
Features = NDArray[np.float32]


def floors(
    features: Sequence[Features],
    labels: Sequence[Labels],
    *,
    keysteps: int,
    clusters: int,
    rate_hz: float,
    draws: int = 3,
) -> dict[str, list[dict[str, float]]]:
    """Measure every baseline.

    Args:
        features: Raw features of each recording, float32 (T, D).
        labels: Key step of each frame, int (T,); 0 is background.
        keysteps: Key steps there are.
        clusters: K.
        rate_hz: Frames a second.
        draws: Random clusters and clusterings of raw features.

    Returns:
        Baseline to measures, one for each draw; one alone where nothing is drawn. The two with
        labels are left out for fewer than three recordings.

    Raises:
        DataError: Features and labels do not fit together.
    """

    def of_clusters(found: Sequence[Labels]) -> dict[str, float]:
        together = np.concatenate(labels), np.concatenate(found)
        return asdict(localize(*together, keysteps, clusters))

    rows = {
        "random": [
            of_clusters(
                [
                    random_clusters(len(each), clusters, 1000 * k + i)
                    for i, each in enumerate(labels)
                ]
            )
            for k in range(draws)
        ],
        "uniform": [of_clusters([uniform_clusters(len(each), clusters) for each in labels])],
        "raw features": [
            asdict(
                localize_videos(
                    features, labels, num_keysteps=keysteps, num_clusters=clusters, seed=k
                )
            )
            for k in range(draws)
        ],
    }
    if len(labels) > 2:
        rows["elapsed time, with labels"] = [of_clusters(_timed(labels, clusters))]
        rows["linear probe, with labels"] = [
            of_clusters(_probed(features, labels, clusters, rate_hz))
        ]
    return rows


def frequent_keysteps(labels: Sequence[Labels], count: int) -> list[int]:
    """The key steps with the most frames, the most frequent first; background is none."""
    frames = Counter[int]()
    for each in labels:
        frames.update(each[each > 0].tolist())
    return [step for step, _ in sorted(frames.items(), key=lambda item: (-item[1], item[0]))][
        :count
    ]


def _timed(labels: Sequence[Labels], clusters: int) -> list[Labels]:
    def guess(train: list[int], test: list[int], known: list[Labels]) -> list[Labels]:
        return [elapsed_labels([known[i] for i in train], len(labels[i])) for i in test]

    return _others_labels(labels, clusters, guess)


def _probed(
    features: Sequence[Features], labels: Sequence[Labels], clusters: int, rate_hz: float
) -> list[Labels]:
    smooth = [averaged(each, max(1, round(_AVERAGED_S * rate_hz / 2))) for each in features]
    step = max(1, round(rate_hz / _TRAINED_HZ))

    def guess(train: list[int], test: list[int], known: list[Labels]) -> list[Labels]:
        seen = np.concatenate([known[i][::step] for i in train])
        if len(np.unique(seen)) < 2:
            raise DataError("a linear probe needs frames of two key steps or of background")
        probe = LinearProbe().fit(np.concatenate([smooth[i][::step] for i in train]), seen)
        return [probe.predict(smooth[i]) for i in test]

    return _others_labels(labels, clusters, guess)


def _others_labels(
    labels: Sequence[Labels],
    clusters: int,
    guess: Callable[[list[int], list[int], list[Labels]], list[Labels]],
) -> list[Labels]:
    """Each recording's clusters as told by what was trained on others."""
    found: dict[int, Labels] = {}
    parts = min(FOLDS, len(labels))
    for first in range(parts):
        test = list(range(first, len(labels), parts))
        train = [place for place in range(len(labels)) if place not in test]
        kept = frequent_keysteps([labels[place] for place in train], clusters - 1)
        names = np.zeros(1 + max(int(each.max(initial=0)) for each in labels), np.int64)
        names[kept] = np.arange(1, len(kept) + 1)
        known = [names[each] for each in labels]
        found |= dict(zip(test, guess(train, test, known), strict=True))
    return [found[place] for place in range(len(labels))]
