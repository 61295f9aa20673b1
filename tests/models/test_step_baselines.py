import numpy as np
import pytest

from keystep_capture.errors import ShapeError
from keystep_models.measures.step_baselines import (
    BACKGROUND,
    LinearProbe,
    averaged,
    distance_ratio,
    elapsed_labels,
    frame_scores,
    uniform_labels,
)


def test_uniform_gives_every_step_the_same_share_in_order() -> None:
    np.testing.assert_array_equal(uniform_labels(6, [4, 2, 9]), [4, 4, 2, 2, 9, 9])
    assert len(uniform_labels(0, [1])) == 0
    with pytest.raises(ShapeError):
        uniform_labels(3, [])


def test_elapsed_time_says_what_most_people_do_then() -> None:
    sessions = [np.array([0, 0, 5, 5]), np.repeat([0, 5], 50), np.repeat([0, 3], 7)]
    np.testing.assert_array_equal(elapsed_labels(sessions, 8), [0, 0, 0, 0, 5, 5, 5, 5])


def test_a_linear_probe_finds_what_is_linear() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    features = rng.normal(size=(400, 16)).astype(np.float32)
    features[np.arange(400), labels] += 6
    probe = LinearProbe().fit(features[:200], labels[:200])
    assert frame_scores(labels[200:], probe.predict(features[200:])).accuracy > 0.95
    assert distance_ratio(features, labels) > 1.1
    assert distance_ratio(features, rng.permutation(labels)) == pytest.approx(1.0, abs=0.02)


def test_scores_leave_the_background_out_where_they_say_so() -> None:
    truth = np.array([BACKGROUND, BACKGROUND, 0, 0, 3, 3])
    found = np.array([BACKGROUND, 0, 0, 0, 3, 0])
    scores = frame_scores(truth, found)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.step_accuracy == pytest.approx(3 / 4)
    assert scores.f1 == pytest.approx((2 * 2 / (4 + 2) + 2 * 1 / (1 + 2)) / 2)
    with pytest.raises(ShapeError):
        frame_scores(truth, found[:3])


def test_averaging_looks_as_far_back_as_ahead() -> None:
    features = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    found = averaged(features, 1)
    np.testing.assert_allclose(found[2], features[1:4].mean(axis=0))
    np.testing.assert_allclose(found[0], (2 * features[0] + features[1]) / 3)
    np.testing.assert_array_equal(averaged(features, 0), features)
