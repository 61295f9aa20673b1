"""Algorithm 1 of STEPs: clusters, background, gaps, exemplars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ShapeError
from keystep_models.steps.extraction import (
    KeyStepSegment,
    cluster_frames,
    extract_key_steps,
    segment_clusters,
)

Features = NDArray[np.float32]


def scenes(
    *lengths: int, noise: float = 0.01, seed: int = 0
) -> tuple[Features, NDArray[np.float64]]:
    """Frames at 10 Hz: one far-apart point with noise for each scene."""
    random = np.random.default_rng(seed)
    centres = np.eye(len(lengths), 16, dtype=np.float32) * 10
    rows = [
        centres[idx] + random.normal(0, noise, (length, 16)) for idx, length in enumerate(lengths)
    ]
    features = np.concatenate(rows).astype(np.float32)
    return features, np.arange(len(features)) / 10


def spans(segments: list[KeyStepSegment]) -> list[tuple[int, int]]:
    return [(segment.start_idx, segment.end_idx) for segment in segments]


def test_each_scene_becomes_one_key_step_in_order_of_time() -> None:
    features, times_s = scenes(30, 50, 40)
    found = extract_key_steps(features, times_s, cluster_count=3, alpha=0.0)
    assert spans(found) == [(0, 29), (30, 79), (80, 119)]
    assert all(segment.confidence > 0.9 for segment in found)


def test_a_scene_that_comes_again_is_two_key_steps_of_one_cluster() -> None:
    features, _times_s = scenes(30, 40)
    again = np.concatenate([features, features[:30]])
    found = extract_key_steps(again, np.arange(100) / 10, cluster_count=2, alpha=0.0)
    assert spans(found) == [(0, 29), (30, 69), (70, 99)]
    assert found[0].cluster == found[2].cluster != found[1].cluster


def test_the_farthest_tenth_of_a_cluster_is_background() -> None:
    features, times_s = scenes(40)
    features[[3, 17, 30, 39]] += 5.0
    clusters = cluster_frames(features, cluster_count=1)
    (segment,) = segment_clusters(clusters, times_s, alpha=0.1)
    assert segment.frame_count == 36
    assert segment.end_idx == 38


def test_a_gap_longer_than_gamma_splits_and_a_shorter_one_does_not() -> None:
    features, _ = scenes(20)
    times_s = np.concatenate([np.arange(10) / 10, np.arange(10) / 10 + 0.9 + 2.0])
    assert len(extract_key_steps(features, times_s, cluster_count=1, alpha=0.0)) == 1
    times_s[10:] += 0.01
    assert len(extract_key_steps(features, times_s, cluster_count=1, alpha=0.0)) == 2


def test_the_exemplar_is_the_frame_nearest_the_centre() -> None:
    features, times_s = scenes(21, noise=0.5)
    (segment,) = extract_key_steps(features, times_s, cluster_count=1, alpha=0.0)
    distances = np.linalg.norm(features - features.mean(axis=0), axis=1)
    assert segment.exemplar_idx == int(distances.argmin())
    assert segment.distance == pytest.approx(float(distances.min()), rel=1e-4)


def test_frames_without_features_are_in_no_segment_and_never_read() -> None:
    features, times_s = scenes(30, 30)
    valid = np.ones(60, np.bool_)
    valid[10:20] = False
    features[10:20] = np.nan
    found = extract_key_steps(features, times_s, valid=valid, cluster_count=2, alpha=0.0)
    assert sum(segment.frame_count for segment in found) == 50


def test_a_session_without_features_has_no_key_steps() -> None:
    assert extract_key_steps(np.zeros((0, 4), np.float32), np.zeros(0)) == []
    nothing = np.zeros(5, np.bool_)
    assert extract_key_steps(np.zeros((5, 4), np.float32), np.arange(5.0), valid=nothing) == []


def test_short_segments_can_be_left_out_and_the_nearest_n_kept() -> None:
    features, times_s = scenes(30, 3, 40)
    kept = extract_key_steps(features, times_s, cluster_count=3, alpha=0.0, min_duration_s=0.5)
    assert spans(kept) == [(0, 29), (33, 72)]
    assert len(extract_key_steps(features, times_s, cluster_count=3, alpha=0.0, top_n=1)) == 1


@settings(max_examples=40, deadline=None)
@given(
    frame_count=st.integers(1, 60),
    cluster_count=st.integers(1, 8),
    alpha=st.floats(0, 0.9),
    gamma_s=st.floats(0.05, 3),
    seed=st.integers(0, 1000),
)
def test_every_kept_frame_is_in_one_segment_and_the_same_seed_repeats(
    frame_count: int, cluster_count: int, alpha: float, gamma_s: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(frame_count, 5)).astype(np.float32)
    times_s = np.cumsum(random.exponential(0.2, frame_count))
    clusters = cluster_frames(features, cluster_count=cluster_count, seed=seed)
    found = segment_clusters(clusters, times_s, alpha=alpha, gamma_s=gamma_s)
    sizes = np.bincount(clusters.labels)
    assert sum(segment.frame_count for segment in found) == sum(
        size - int(np.floor(alpha * size)) for size in sizes
    )
    assert [s.exemplar_idx for s in found] == sorted(s.exemplar_idx for s in found)
    for segment in found:
        assert segment.start_idx <= segment.exemplar_idx <= segment.end_idx
        assert clusters.labels[segment.exemplar_idx] == segment.cluster
        assert 0.0 <= segment.confidence <= 1.0
    again = cluster_frames(features, cluster_count=cluster_count, seed=seed)
    np.testing.assert_array_equal(clusters.labels, again.labels)


@pytest.mark.parametrize(
    ("features", "times_s"),
    [
        (np.zeros((4, 3), np.float32), np.arange(5.0)),
        (np.zeros((4, 3), np.float32), np.array([0.0, 2.0, 1.0, 3.0])),
        (np.zeros((4, 3), np.float64), np.arange(4.0)),
        (np.zeros(4, np.float32), np.arange(4.0)),
        (np.full((4, 3), np.nan, np.float32), np.arange(4.0)),
        (np.zeros((4, 3), np.float32), np.array([0.0, 1.0, np.inf, np.inf])),
    ],
)
def test_arrays_that_are_not_as_described_are_refused(
    features: Features, times_s: NDArray[np.float64]
) -> None:
    with pytest.raises(ShapeError, match="expected"):
        extract_key_steps(features, times_s)


@pytest.mark.parametrize(
    "choice", [{"cluster_count": 0}, {"alpha": 1.0}, {"gamma_s": 0.0}, {"top_n": 0}]
)
def test_choices_out_of_range_are_refused(choice: dict[str, float]) -> None:
    features, times_s = scenes(5)
    with pytest.raises(ConfigError, match="must be"):
        extract_key_steps(features, times_s, **choice)  # type: ignore[arg-type]
