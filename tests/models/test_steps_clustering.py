"""FINCH, the automatic number of clusters, and summaries under a budget."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, ShapeError
from keystep_models.steps.clustering import cluster, finch
from keystep_models.steps.extraction import segment_clusters
from keystep_models.steps.summary_search import choose_shots


def blobs(count: int = 5, per_blob: int = 30, spread: float = 0.1, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), per_blob)
    centres = 3.0 * np.eye(count, 16)
    return (centres[labels] + spread * rng.normal(size=(len(labels), 16))).astype("f4"), labels


def test_finch_without_a_number_splits_blobs_but_never_joins_them() -> None:
    features, labels = blobs()
    found = cluster(features, method="finch", cluster_count=0).labels
    assert len({*zip(found.tolist(), labels.tolist(), strict=True)}) == found.max() + 1 <= 10


@pytest.mark.parametrize(("method", "count"), [("kmeans", 0), ("kmeans", 5), ("finch", 5)])
def test_blobs_are_found_with_and_without_their_number(method: Any, count: int) -> None:
    features, labels = blobs()
    found = cluster(features, method=method, cluster_count=count)
    assert np.array_equal(found.labels, labels)
    assert found.margins.min() > 0.5


def test_finch_partitions_as_its_authors_do() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of packages for large data on import
        reference = pytest.importorskip("finch", reason="compares with finch-clust where it is")
        features, _ = blobs(6, 50, 0.6, seed=2)
        expected, counts, _ = reference.FINCH(features, distance="cosine", verbose=False)
    ours = finch(features)
    assert [int(each.max()) + 1 for each in ours] == [n for n in counts if n > 1]
    for level, partition in enumerate(ours):
        pairs = set(zip(partition.tolist(), expected[:, level].tolist(), strict=True))
        assert len(pairs) == partition.max() + 1


def test_finch_merges_to_the_number_asked_for() -> None:
    features, _ = blobs(8, 20)
    for count in (1, 2, 3, 7, 8, 30):
        found = cluster(features, method="finch", cluster_count=count)
        assert found.labels.max() + 1 == count


@pytest.mark.parametrize("method", ["kmeans", "finch"])
def test_missing_and_constant_frames_and_more_clusters_than_frames(method: Any) -> None:
    features, _ = blobs(2, 3)
    valid = np.array([True, True, False, True, True, True])
    features[2] = np.nan
    found = cluster(features, valid=valid, method=method, cluster_count=20)
    assert found.labels[2] == -1
    assert found.labels.max() + 1 == 5
    still = cluster(np.ones((9, 4), "f4"), method=method, cluster_count=0)
    assert set(still.labels) <= set(range(9))
    none = cluster(features, valid=np.zeros(6, bool), method=method)
    assert segment_clusters(none, np.arange(6.0)) == []


def test_a_summary_covers_every_kind_of_shot_within_the_budget() -> None:
    features = np.repeat(np.eye(3) * 5, 4, axis=0) + 0.01 * np.arange(12)[:, None]
    durations = np.full(12, 2.0)
    chosen = choose_shots(features, durations, 6.0)
    assert sorted(chosen // 4) == [0, 1, 2]


def test_summaries_keep_the_budget_and_are_near_the_best_on_average() -> None:
    ratios = []
    for seed in range(100):  # a local search promises nothing for a single one
        rng = np.random.default_rng(seed)
        features, durations = rng.normal(size=(7, 2)), rng.uniform(1, 3, 7)
        chosen = choose_shots(features, durations, 5.0, seed=seed)
        distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
        costs = {
            subset: distance[:, subset].min(axis=1).sum()
            for size in (1, 2, 3, 4, 5)
            for subset in itertools.combinations(range(7), size)
            if durations[list(subset)].sum() <= 5.0
        }
        ratios.append(costs[tuple(chosen)] / min(costs.values()))
    assert np.mean(ratios) < 1.02


def test_where_no_shot_fits_the_shortest_is_taken() -> None:
    assert choose_shots(np.eye(3), np.array([5.0, 3.0, 4.0]), 1.0).tolist() == [1]
    assert not len(choose_shots(np.zeros((0, 2)), np.zeros(0), 1.0))


def test_bad_choices_are_refused() -> None:
    features, _ = blobs(2, 3)
    with pytest.raises(ConfigError, match="kmeans or finch"):
        cluster(features, method="dbscan")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cluster_count"):
        cluster(features, cluster_count=-1)
    with pytest.raises(ConfigError, match="budget_s"):
        choose_shots(np.eye(2), np.ones(2), 0.0)
    with pytest.raises(ShapeError, match="fit together"):
        choose_shots(np.eye(2), np.ones(3), 1.0)
