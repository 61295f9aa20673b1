"""Key-step localisation of whole data sets: features of several videos, clustered and matched.

STEPs, section 4.1 and its reference sheet: features are L2-normalised frame by frame, clustered by
mini-batch k-means, and the clusters matched with the labels. The published figures cluster the
frames of all videos together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.ksl import Localisation, localize


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (T, D) scaled to length 1; rows of zeros stay."""
    rows = np.asarray(features, np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros_like(rows), where=length > 0))


def kmeans_clusters(
    features: NDArray[np.float32], cluster_count: int, seed: int
) -> NDArray[np.int64]:
    """Mini-batch k-means of normalised features, as KSL is measured; one thread, so it repeats.

    Args:
        features: float32 (T, D), T at least 1.
        cluster_count: K; with fewer frames than that, each is a cluster.
        seed: Of k-means++.

    Returns:
        Clusters, int64 (T,), from 0.
    """
    if cluster_count < 1:
        raise ConfigError(f"cluster_count must be 1 or more, got {cluster_count}")
    model = MiniBatchKMeans(
        min(cluster_count, len(features)), init="k-means++", n_init=10, random_state=seed
    )
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct frames than clusters
        return np.asarray(model.fit_predict(unit_rows(features)), np.int64)


def localize_videos(
    features: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int64]],
    *,
    num_keysteps: int,
    num_clusters: int = 7,
    seed: int = 0,
    per_keystep: bool = True,
    background: bool = True,
    together: bool = True,
) -> Localisation:
    """Cluster the videos' features and measure how well the clusters match the key steps.

    Args:
        features: One array per video, float32 (T, D); T may differ.
        labels: Key step of each frame, int (T,); 0 is background.
        num_keysteps: Key steps there are, background not counted.
        num_clusters: K.
        seed: Of the clustering.
        per_keystep: As `ksl.localize`.
        background: As `ksl.localize`.
        together: Cluster the frames of all videos at once (published), or each video by itself
            and average the measures.

    Raises:
        DataError: Features and labels do not fit together.
    """
    if not features or len(features) != len(labels):
        raise DataError(f"{len(features)} videos' features but labels of {len(labels)}")
    for rows, truth in zip(features, labels, strict=True):
        if rows.ndim != 2 or not len(rows) or len(rows) != len(truth):
            raise DataError(f"features have shape {rows.shape}, but there are {len(truth)} labels")
    if together:
        features, labels = [np.concatenate(features)], [np.concatenate(labels)]
    return mean_localisation(
        [
            localize(
                truth,
                kmeans_clusters(rows, num_clusters, seed),
                num_keysteps,
                num_clusters,
                per_keystep=per_keystep,
                background=background,
            )
            for rows, truth in zip(features, labels, strict=True)
        ]
    )


def mean_localisation(found: Sequence[Localisation]) -> Localisation:
    """Each measure's mean."""
    if not found:
        raise DataError("expected at least one localisation")
    return Localisation(
        recall=float(np.mean([each.recall for each in found])),
        precision=float(np.mean([each.precision for each in found])),
        iou=float(np.mean([each.iou for each in found])),
        f1=float(np.mean([each.f1 for each in found])),
    )
