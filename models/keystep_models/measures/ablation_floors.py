"""What an ablation's rows stand between: clusters that look at nothing, and trained classifiers.

- random, uniform, raw features: as the paper's baselines.
- linear probe, with labels: a linear classifier of averaged raw features, trained on other people.
  It tells the K - 1 key steps that are most frequent among those people from everything else, so
  that it has as many clusters as the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.measures.baselines import random_clusters, uniform_clusters
from keystep_models.measures.ksl import localize
from keystep_models.measures.ksl_protocol import localize_videos
from keystep_models.measures.step_baselines import LinearProbe, averaged

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
        Baseline to measures, one for each draw; one alone where nothing is drawn. The probe is
        left out for fewer than three recordings.

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


def _probed(
    features: Sequence[Features], labels: Sequence[Labels], clusters: int, rate_hz: float
) -> list[Labels]:
    """Each recording's clusters as told by a probe that was trained on others."""
    smooth = [averaged(each, max(1, round(_AVERAGED_S * rate_hz / 2))) for each in features]
    step = max(1, round(rate_hz / _TRAINED_HZ))
    found: dict[int, Labels] = {}
    parts = min(FOLDS, len(labels))
    for first in range(parts):
        test = range(first, len(labels), parts)
        train = [place for place in range(len(labels)) if place not in test]
        kept = frequent_keysteps([labels[place] for place in train], clusters - 1)
        names = np.zeros(1 + max(int(each.max(initial=0)) for each in labels), np.int64)
        names[kept] = np.arange(1, len(kept) + 1)
        seen = np.concatenate([names[labels[place][::step]] for place in train])
        if len(np.unique(seen)) < 2:
            raise DataError("a linear probe needs frames of a key step and of something else")
        probe = LinearProbe().fit(np.concatenate([smooth[i][::step] for i in train]), seen)
        found |= {place: probe.predict(smooth[place]) for place in test}
    return [found[place] for place in range(len(labels))]
