"""Algorithm 1 of STEPs: what every extraction must satisfy, and small cases worked by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ShapeError
from keystep_models.steps.extraction import (
    FrameClusters,
    KeyStepSegment,
    cluster_frames,
    extract_key_steps,
    segment_clusters,
    select_segments,
)


def three_scenes() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Simulated 10 Hz features: scene A, B, C of 10 s each, then A again for 10 s."""
    noise = np.random.default_rng(7).normal(0, 0.02, (400, 3))
    scene = np.repeat([0, 1, 2, 0], 100)
    return (np.eye(3)[scene] + noise).astype(np.float32), np.arange(400) / 10


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[FrameClusters, NDArray[np.float64]]:
    count = draw(st.integers(0, 60))
    labels = draw(arrays(np.int64, count, elements=st.integers(-1, 4)))
    distances = draw(arrays(np.float64, count, elements=st.integers(0, 9)))
    steps = draw(arrays(np.float64, count, elements=st.sampled_from([0.0, 0.1, 0.5, 2.0, 3.0])))
    margins = np.full(count, 0.5)
    return FrameClusters(labels=labels, distances=distances, margins=margins), np.cumsum(steps)


def frames_of(segment: KeyStepSegment, clusters: FrameClusters) -> list[int]:
    span = range(segment.start_idx, segment.end_idx + 1)
    return [frame for frame in span if clusters.labels[frame] == segment.cluster]


alphas = st.floats(0, 0.95)


@given(case=clusterings(), alpha=alphas)
def test_segments_are_ordered_and_disjoint_and_hold_their_exemplars(
    case: tuple[FrameClusters, NDArray[np.float64]], alpha: float
) -> None:
    clusters, times_s = case
    segments = segment_clusters(clusters, times_s, alpha=alpha)
    exemplars = [segment.exemplar_idx for segment in segments]
    assert exemplars == sorted(set(exemplars))
    for segment in segments:
        assert segment.start_idx <= segment.exemplar_idx <= segment.end_idx
        assert segment.start_s <= segment.exemplar_s <= segment.end_s
    claimed = [frame for segment in segments for frame in frames_of(segment, clusters)]
    assert len(claimed) == len(set(claimed))


@given(case=clusterings(), alpha=alphas)
def test_every_kept_frame_is_in_one_segment_and_the_fraction_alpha_in_none(
    case: tuple[FrameClusters, NDArray[np.float64]], alpha: float
) -> None:
    clusters, times_s = case
    segments = segment_clusters(clusters, times_s, alpha=alpha)
    for cluster in set(clusters.labels.tolist()) - {-1}:
        size = int((clusters.labels == cluster).sum())
        kept = sum(each.frame_count for each in segments if each.cluster == cluster)
        assert size - kept <= alpha * size + 1e-6 < size - kept + 1 + 1e-5
        assert kept >= 1


@given(case=clusterings(), gamma_s=st.sampled_from([0.2, 1.0, 2.0, 5.0]))
def test_without_rejection_gaps_are_at_most_gamma_inside_and_longer_between_segments(
    case: tuple[FrameClusters, NDArray[np.float64]], gamma_s: float
) -> None:
    clusters, times_s = case
    segments = segment_clusters(clusters, times_s, alpha=0.0, gamma_s=gamma_s)
    starts = {segment.start_idx for segment in segments}
    for cluster in set(clusters.labels.tolist()) - {-1}:
        members = np.flatnonzero(clusters.labels == cluster)
        jumps = np.diff(times_s[members]) > gamma_s
        assert starts.intersection(members) == {members[0], *members[1:][jumps]}


@given(case=clusterings(), alpha=alphas)
def test_the_exemplar_is_the_nearest_kept_frame_to_the_centre(
    case: tuple[FrameClusters, NDArray[np.float64]], alpha: float
) -> None:
    clusters, times_s = case
    for segment in segment_clusters(clusters, times_s, alpha=alpha):
        assert segment.distance == clusters.distances[segment.exemplar_idx]
        assert segment.distance == clusters.distances[frames_of(segment, clusters)].min()


@settings(max_examples=30, deadline=None)
@given(
    features=arrays(
        np.float32,
        st.tuples(st.integers(0, 40), st.integers(1, 4)),
        elements=st.floats(-100, 100, width=32),
    ),
    cluster_count=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_the_same_seed_gives_the_same_key_steps(
    features: NDArray[np.float32], cluster_count: int, seed: int
) -> None:
    times_s = np.arange(len(features)) / 10
    first, second = (
        extract_key_steps(features, times_s, cluster_count=cluster_count, seed=seed)
        for _ in range(2)
    )
    assert first == second
    assert bool(first) == bool(len(features))
    assert all(0.0 <= segment.confidence <= 1.0 for segment in first)


def test_farthest_frames_are_rejected_and_the_rest_split_at_the_gap() -> None:
    distances = np.array([1.0, 9.0, 2.0, 3.0, 0.5, 4.0])
    clusters = FrameClusters(
        labels=np.zeros(6, np.int64), distances=distances, margins=np.full(6, 0.5)
    )
    times_s = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    first, second = segment_clusters(clusters, times_s, alpha=0.34, gamma_s=2.0)
    # Two of six are rejected: frames 1 and 5.
    assert (first.start_idx, first.end_idx, first.exemplar_idx) == (0, 2, 0)
    assert (second.start_idx, second.end_idx, second.exemplar_idx) == (3, 4, 4)
    assert (second.start_s, second.end_s, second.exemplar_s) == (5.0, 6.0, 6.0)


def test_scenes_become_key_steps_and_a_scene_that_returns_becomes_two() -> None:
    features, times_s = three_scenes()
    segments = extract_key_steps(features, times_s, cluster_count=3)
    assert [segment.cluster for segment in segments] == [0, 1, 2, 0]
    starts = np.array([segment.start_s for segment in segments])
    ends = np.array([segment.end_s for segment in segments])
    np.testing.assert_allclose(starts, [0, 10, 20, 30], atol=1.0)
    np.testing.assert_allclose(ends, [10, 20, 30, 40], atol=1.0)
    assert sum(segment.frame_count for segment in segments) == 360


def test_clear_scenes_have_high_confidence_and_noise_has_low() -> None:
    features, times_s = three_scenes()
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    clear = extract_key_steps(features, times_s, cluster_count=3)
    unclear = extract_key_steps(noise, times_s, cluster_count=3)
    assert min(segment.confidence for segment in clear) > 0.9
    assert max(segment.confidence for segment in unclear) < 0.7


def test_a_single_cluster_has_no_confidence() -> None:
    features, times_s = three_scenes()
    (segment,) = extract_key_steps(features, times_s, cluster_count=1, gamma_s=100)
    assert segment.confidence == 0.0


def test_margin_is_one_less_own_distance_over_the_next_clusters() -> None:
    features = np.array([[0.0], [2.0], [10.0], [14.0]], np.float32)
    clusters = cluster_frames(features, cluster_count=2)
    assert clusters.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(clusters.distances, [1, 1, 2, 2], atol=1e-5)
    np.testing.assert_allclose(
        clusters.margins, [1 - 1 / 12, 1 - 1 / 10, 1 - 2 / 9, 1 - 2 / 13], atol=1e-5
    )


def test_missing_frames_are_in_no_segment_and_leave_the_rest_as_if_absent() -> None:
    features, times_s = three_scenes()
    valid = np.ones(400, np.bool_)
    valid[150:180] = False
    features[~valid] = np.nan
    segments = extract_key_steps(features, times_s, valid=valid, cluster_count=3)
    alone = extract_key_steps(features[valid], times_s[valid], cluster_count=3)
    assert [each.exemplar_s for each in segments] == [each.exemplar_s for each in alone]
    assert not any(150 <= each.exemplar_idx < 180 for each in segments)
    assert [each.cluster for each in segments] == [0, 1, 1, 2, 0]


def test_fewer_frames_than_clusters_are_a_cluster_each() -> None:
    features = np.eye(3, dtype=np.float32)
    segments = extract_key_steps(features, np.arange(3.0), cluster_count=7)
    assert [segment.exemplar_idx for segment in segments] == [0, 1, 2]


def test_a_still_camera_gives_one_key_step() -> None:
    features = np.ones((50, 4), np.float32)
    (segment,) = extract_key_steps(features, np.arange(50) / 10, cluster_count=7)
    assert segment.frame_count == 45


@pytest.mark.parametrize("frame_count", [0, 5])
def test_a_session_without_features_has_no_key_steps(frame_count: int) -> None:
    features = np.full((frame_count, 3), np.nan, np.float32)
    valid = np.zeros(frame_count, np.bool_)
    assert extract_key_steps(features, np.arange(float(frame_count)), valid=valid) == []


def test_top_n_keeps_the_nearest_to_their_centres_in_order_of_time() -> None:
    features, times_s = three_scenes()
    every = extract_key_steps(features, times_s, cluster_count=3)
    best = extract_key_steps(features, times_s, cluster_count=3, top_n=2)
    nearest = sorted(every, key=lambda segment: segment.distance)[:2]
    assert best == sorted(nearest, key=lambda segment: segment.exemplar_idx)


def test_short_segments_can_be_left_out_before_the_best_are_chosen() -> None:
    features, times_s = three_scenes()
    long_one, *_ = extract_key_steps(features, times_s, cluster_count=3)
    blink = dataclasses.replace(long_one, end_s=long_one.start_s, distance=0.0)
    assert select_segments([blink, long_one], min_duration_s=0.5, top_n=1) == [long_one]
    assert select_segments([blink, long_one]) == [blink, long_one]


@pytest.mark.parametrize(
    ("features", "times_s", "valid"),
    [
        (np.zeros(4, np.float32), np.arange(4.0), None),
        (np.zeros((4, 0), np.float32), np.arange(4.0), None),
        (np.zeros((4, 2), np.int32), np.arange(4.0), None),
        (np.zeros((4, 2), np.float32), np.arange(3.0), None),
        (np.zeros((4, 2), np.float32), np.array([0.0, 1.0, 0.5, 2.0]), None),
        (np.zeros((4, 2), np.float32), np.array([0.0, 1.0, np.nan, 2.0]), None),
        (np.full((4, 2), np.nan, np.float32), np.arange(4.0), None),
        (np.full((4, 2), np.inf, np.float32), np.arange(4.0), None),
        (np.zeros((4, 2), np.float32), np.arange(4.0), np.ones(3, np.bool_)),
        (np.zeros((4, 2), np.float32), np.arange(4.0), np.ones(4, np.int64)),
    ],
)
def test_arrays_that_are_not_as_documented_are_refused(
    features: Any, times_s: Any, valid: Any
) -> None:
    with pytest.raises(ShapeError):
        extract_key_steps(features, times_s, valid=valid)


@pytest.mark.parametrize(
    "setting",
    [
        {"cluster_count": 0},
        {"alpha": 1.0},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"gamma_s": 0.0},
        {"min_duration_s": -1.0},
        {"top_n": 0},
    ],
)
def test_settings_out_of_range_are_refused_even_without_frames(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=name):
        extract_key_steps(np.zeros((0, 2), np.float32), np.zeros(0), **setting)
