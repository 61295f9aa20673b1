"""Clusterings that can take k-means' place in algorithm 1, and the choice of their number.

Source of FINCH: Sarfraz et al., "Efficient parameter-free clustering using first neighbor
relations", CVPR 2019. N frames, D values of a feature, K clusters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from keystep_capture.errors import ConfigError
from keystep_models.steps.extraction import (
    MISSING,
    FrameClusters,
    checked_valid,
    cluster_frames,
    frame_clusters,
)
from keystep_models.steps.settings import ClusteringKind

MAX_CLUSTERS = 20
"""Most clusters that the automatic choice considers."""
_BLOCK = 1024
_JUDGED_FRAMES = 4000


def cluster(
    features: NDArray[np.float32],
    *,
    valid: NDArray[np.bool_] | None = None,
    method: ClusteringKind = "kmeans",
    cluster_count: int = 7,
    seed: int = 0,
) -> FrameClusters:
    """Cluster frames by the method wanted.

    Args:
        features: float32 (N, D).
        valid: False where a frame's features are missing, bool (N,).
        method: "kmeans" or "finch".
        cluster_count: K; 0 chooses. k-means then takes the number from 2 to 20 whose clusters
            lie apart best (mean simplified silhouette), FINCH the partition of its hierarchy
            with at most 20 for which that holds. With a number, FINCH takes the coarsest
            partition that has as many or more and merges its nearest clusters.
        seed: Of k-means.

    Raises:
        ShapeError: An array is not as described.
        ConfigError: An unknown method or number.
    """
    if method not in ("kmeans", "finch"):
        raise ConfigError(f"clustering is {method!r}, expected kmeans or finch")
    if cluster_count < 0:
        raise ConfigError(f"cluster_count must be 0 or more, got {cluster_count}")
    present = checked_valid(features, valid)
    rows = np.asarray(features, np.float32)[present]
    if method == "kmeans":
        count = cluster_count or _best_count(rows, seed)
        return cluster_frames(features, valid=valid, cluster_count=count, seed=seed)
    labels = np.full(len(features), MISSING, np.int64)
    if len(rows):
        labels[present] = _finch_labels(rows, cluster_count)
    return frame_clusters(features, labels)


def finch(features: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """FINCH's hierarchy: linking every point with its nearest neighbour, then the means, and so on.

    Args:
        features: float32 (N, D), N at least 1; cosine distances, as published.

    Returns:
        Partitions from fine to coarse, each int64 (N,) from 0; the last that is not one cluster,
        or all in one where nothing else is found.
    """
    points = np.asarray(features, np.float64)
    labels = np.arange(len(points))
    partitions: list[NDArray[np.int64]] = []
    while True:
        means = _means(points, labels)
        count, groups = _linked(means)
        if count == 1 or count == len(means):
            break
        labels = groups[labels]
        partitions.append(labels.astype(np.int64))
    return partitions or [np.zeros(len(points), np.int64)]


def separation(features: NDArray[np.float32], clusters: FrameClusters) -> float:
    """Mean simplified silhouette of the frames, 0 to 1 (see `FrameClusters.margins`)."""
    present = clusters.labels != MISSING
    return float(clusters.margins[present].mean()) if present.any() else 0.0


def _best_count(rows: NDArray[np.float32], seed: int) -> int:
    step = max(1, len(rows) // _JUDGED_FRAMES)
    judged = np.ascontiguousarray(rows[::step])
    best, most = 1, -1.0
    for count in range(2, min(MAX_CLUSTERS, len(judged)) + 1):
        found = separation(judged, cluster_frames(judged, cluster_count=count, seed=seed))
        if found > most + 1e-9:
            best, most = count, found
    return best


def _finch_labels(rows: NDArray[np.float32], cluster_count: int) -> NDArray[np.int64]:
    partitions = finch(rows)
    if cluster_count == 0:
        fitting = [each for each in partitions if each.max() < MAX_CLUSTERS] or partitions[-1:]
        return max(fitting, key=lambda each: separation(rows, frame_clusters(rows, each)))
    enough = [each for each in partitions if each.max() + 1 >= cluster_count]
    labels = enough[-1] if enough else np.arange(len(rows))
    return _merged(np.asarray(rows, np.float64), labels, cluster_count)


def _merged(
    points: NDArray[np.float64], labels: NDArray[np.int64], cluster_count: int
) -> NDArray[np.int64]:
    """Merge the two clusters with the nearest means until no more than `cluster_count` are left."""
    labels = labels.copy()
    while labels.max() + 1 > cluster_count:
        units = _units(_means(points, labels))
        likeness = units @ units.T
        np.fill_diagonal(likeness, -np.inf)
        first, second = sorted(np.unravel_index(np.argmax(likeness), likeness.shape))
        labels[labels == second] = first
        labels[labels > second] -= 1
    return labels


def _linked(points: NDArray[np.float64]) -> tuple[int, NDArray[np.int64]]:
    """Components of the graph in which each point is linked with its nearest other one."""
    if len(points) == 1:
        return 1, np.zeros(1, np.int64)
    units = _units(points)
    nearest = np.empty(len(points), np.int64)
    for start in range(0, len(points), _BLOCK):
        likeness = units[start : start + _BLOCK] @ units.T
        likeness[np.arange(len(likeness)), start + np.arange(len(likeness))] = -np.inf
        nearest[start : start + _BLOCK] = likeness.argmax(axis=1)
    links = csr_matrix(
        (np.ones(len(points)), (np.arange(len(points)), nearest)), shape=(len(points),) * 2
    )
    count, groups = connected_components(links, directed=False)
    return int(count), groups.astype(np.int64)


def _means(points: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    count = int(labels.max()) + 1
    members = csr_matrix(
        (np.ones(len(labels)), (labels, np.arange(len(labels)))), (count, len(labels))
    )
    sums = np.asarray(members @ points, np.float64)
    return sums / np.bincount(labels, minlength=count)[:, None]


def _units(points: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(np.divide(points, length, out=np.zeros_like(points), where=length > 0))
