"""Phase classification, Kendall's tau, summaries, baselines and KSL over whole data sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.baselines import random_clusters, uniform_clusters
from keystep_models.measures.kendall import alignment_tau, kendalls_tau
from keystep_models.measures.ksl import localize
from keystep_models.measures.ksl_protocol import localize_videos
from keystep_models.measures.phase import phase_accuracy
from keystep_models.measures.summary import min_disparity, representation


def blobs(seed: int, per_phase: int = 40, spread: float = 0.3) -> tuple[Any, Any]:
    """Three phases, each around its own point, in order."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_phase)
    centres = 4.0 * np.eye(3, 8)
    return (centres[labels] + spread * rng.normal(size=(len(labels), 8))).astype("f4"), labels


def test_phases_that_lie_apart_are_classified_with_a_tenth_of_the_labels() -> None:
    accuracy = phase_accuracy(*blobs(0), *blobs(1), fraction=0.1)
    assert accuracy > 0.95


def test_phase_accuracy_of_noise_is_chance_and_grows_with_labels_otherwise() -> None:
    rng = np.random.default_rng(2)
    noise, labels = rng.normal(size=(900, 8)).astype("f4"), np.tile(np.arange(3), 300)
    assert phase_accuracy(noise[:600], labels[:600], noise[600:], labels[600:]) < 0.45
    train, test = blobs(3, 300, 2.5), blobs(4, 300, 2.5)
    few, many = (phase_accuracy(*train, *test, fraction=f) for f in (0.01, 1.0))
    assert few < many


def test_one_phase_only_is_predicted_everywhere() -> None:
    features = np.zeros((4, 2), "f4")
    labels = np.array([1, 1, 0, 0])
    assert phase_accuracy(features, np.ones(4, int), features, labels) == 0.5


def test_tau_is_kendalls_where_no_neighbours_are_shared() -> None:
    rng = np.random.default_rng(0)
    second = rng.normal(size=(50, 6)).astype("f4")
    order = rng.permutation(50)
    expected = kendalltau(np.arange(50), order).statistic
    assert alignment_tau(second[order], second) == pytest.approx(expected)


def test_tau_of_videos_in_step_is_one_and_reversed_minus_one() -> None:
    ramp = np.linspace(0, 1, 30, dtype="f4")[:, None]
    assert kendalls_tau([ramp, ramp, ramp]) == 1.0
    assert alignment_tau(ramp[::-1], ramp) == -1.0
    assert alignment_tau(np.ones((9, 1), "f4"), ramp) == 0.0


def test_a_summary_of_every_kind_of_frame_represents_more_and_is_diverse() -> None:
    features, _ = blobs(5)
    alike, spread = np.array([0, 1, 2]), np.array([0, 50, 100])
    assert representation(features, spread) > representation(features, alike) + 0.2
    assert min_disparity(features, spread) > min_disparity(features, alike)
    assert representation(features, np.arange(len(features))) == pytest.approx(1.0)
    assert min_disparity(features, np.array([3])) == math.inf


def test_uniform_clusters_are_in_order_and_equally_long() -> None:
    clusters = uniform_clusters(70, 7)
    assert np.array_equal(clusters, np.repeat(np.arange(7), 10))
    assert len(uniform_clusters(3, 7)) == 3


def test_random_clusters_repeat_with_their_seed_and_localise_little() -> None:
    first, again = random_clusters(5000, 7, seed=3), random_clusters(5000, 7, seed=3)
    assert np.array_equal(first, again)
    assert set(first) == set(range(7))
    labels = np.arange(5000) // 700
    assert localize(labels, first, 7, 7).f1 < 0.25


@pytest.mark.parametrize("together", [True, False])
def test_ksl_of_videos_finds_key_steps_that_lie_apart(together: bool) -> None:
    videos = [blobs(seed) for seed in range(3)]
    found = localize_videos(
        [f for f, _ in videos],
        [labels + 1 for _, labels in videos],
        num_keysteps=3,
        num_clusters=3,
        together=together,
    )
    assert found.f1 > 0.99


def test_ksl_does_not_depend_on_the_length_of_features() -> None:
    features, labels = blobs(0)
    scaled = features * np.linspace(0.1, 9, len(features), dtype="f4")[:, None]
    options: Any = {"num_keysteps": 3, "num_clusters": 5}
    assert localize_videos([features], [labels], **options) == localize_videos(
        [scaled], [labels], **options
    )


def test_more_clusters_than_frames_still_measure() -> None:
    found = localize_videos([np.eye(3, dtype="f4")], [np.array([1, 2, 3])], num_keysteps=3)
    assert found.f1 == 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: phase_accuracy(*blobs(0), *blobs(1), fraction=0), ConfigError, "fraction"),
        (lambda: phase_accuracy(blobs(0)[0], blobs(0)[1][1:], *blobs(1)), DataError, "T labels"),
        (lambda: kendalls_tau([blobs(0)[0]]), DataError, "2 or more"),
        (lambda: alignment_tau(np.full((3, 2), np.nan), np.ones((3, 2))), DataError, "finite"),
        (lambda: representation(blobs(0)[0], np.array([500])), DataError, "outside"),
        (lambda: representation(blobs(0)[0], np.array([], int)), DataError, "key steps"),
        (lambda: random_clusters(5, 0, 0), ConfigError, "cluster_count"),
        (lambda: localize_videos([], [], num_keysteps=1), DataError, "0 videos"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
