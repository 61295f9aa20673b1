"""Soft-DTW: value against a plain loop, gradient against finite differences, and in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError  # noqa: E402
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures  # noqa: E402
from keystep_models.steps.settings import TrainingSettings  # noqa: E402
from keystep_models.training.soft_dtw import alignment_loss, soft_dtw  # noqa: E402
from keystep_models.training.steps_model import gather  # noqa: E402
from keystep_models.training.train_steps import train_steps  # noqa: E402


def plain(x: Any, y: Any, smoothing: float) -> float:
    """The recursion of the paper, entry by entry."""
    n, m = len(x), len(y)
    table = np.full((n + 1, m + 1), np.inf)
    table[0, 0] = 0.0
    for i in range(n):
        for j in range(m):
            ways = np.array([table[i, j], table[i, j + 1], table[i + 1, j]])
            least = ways.min()
            soft = least - smoothing * np.log(np.exp((least - ways) / smoothing).sum())
            table[i + 1, j + 1] = ((x[i] - y[j]) ** 2).sum() + soft
    return float(table[n, m]) / (n + m)


def features(count: int, seed: int, size: int = 3) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (6, 1), (7, 4), (20, 33)])
@pytest.mark.parametrize("smoothing", [0.01, 0.1, 2.0])
def test_the_value_is_the_recursions(n: int, m: int, smoothing: float) -> None:
    x, y = features(n, 0), features(m, 1)
    found = soft_dtw(torch.tensor(x), torch.tensor(y), smoothing=smoothing)
    assert float(found) == pytest.approx(plain(x, y, smoothing), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1), (6, 9)])
@pytest.mark.parametrize("smoothing", [0.05, 0.5])
def test_the_gradient_is_that_of_finite_differences(n: int, m: int, smoothing: float) -> None:
    x = torch.tensor(features(n, 2), requires_grad=True)
    y = torch.tensor(features(m, 3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: soft_dtw(a, b, smoothing=smoothing), (x, y))


def test_little_smoothing_gives_the_cost_of_the_best_alignment() -> None:
    x = np.repeat(np.eye(3), (4, 2, 5), axis=0)
    y = np.repeat(np.eye(3), (1, 6, 2), axis=0)
    aligned = soft_dtw(torch.tensor(x), torch.tensor(y), smoothing=1e-3)
    crossed = soft_dtw(torch.tensor(x), torch.tensor(y[::-1].copy()), smoothing=1e-3)
    assert float(aligned) == pytest.approx(0.0, abs=1e-2)
    assert float(crossed) > 0.5


def test_single_precision_and_long_videos_stay_finite() -> None:
    x = torch.tensor(features(300, 4), dtype=torch.float32, requires_grad=True)
    value = soft_dtw(x, torch.tensor(features(257, 5), dtype=torch.float32))
    value.backward()
    assert torch.isfinite(value)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_video_is_not_aligned_with_itself_and_missing_frames_are_left_out() -> None:
    rows = torch.tensor(np.stack([features(8, seed) for seed in range(3)]), requires_grad=True)
    alone = alignment_loss(rows, None, [5, 5, 5])
    alone.backward()
    assert (alone.item(), rows.grad.abs().max().item()) == (0.0, 0.0)
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[1, 3:6] = False
    found = alignment_loss(rows, valid, [0, 1, 1])
    expected = soft_dtw(rows[0], rows[1][valid[1]])
    assert found.item() == pytest.approx(expected.item())
    valid[1] = False
    assert alignment_loss(rows, valid, [0, 1, 1]).item() == 0.0


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((0, 2), (3, 2)), ((3,), (3,))])
def test_shapes_that_do_not_fit_are_refused(shapes: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        soft_dtw(*(torch.zeros(shape) for shape in shapes))


def videos() -> list[VideoFeatures]:
    """Simulated: three phases in one order, of other lengths in each video."""
    looks = np.random.default_rng(9).normal(size=(3, 8))
    found = []
    for seed, lengths in enumerate([(20, 40, 20), (50, 10, 20), (30, 20, 30)]):
        rng = np.random.default_rng(seed)
        rows = np.repeat(looks, lengths, axis=0) + 0.3 * rng.normal(size=(80, 8))
        cue = CueFeatures(features=rows.astype("f4"), valid=np.arange(80) != 7)
        times = np.arange(80, dtype=np.int64) * 10**9
        found.append(VideoFeatures(name=f"v{seed}", rate_hz=1.0, times_ns=times, cues={"a": cue}))
    return found


def test_training_with_the_term_aligns_the_videos_better(tmp_path: Path) -> None:
    costs = {}
    for weight in (0.0, 5.0):
        settings = TrainingSettings(
            cues=("a",), epochs=12, chunk_count=40, batch_size=3, soft_dtw=weight
        )
        model = train_steps(videos(), settings, tmp_path / str(weight))
        frames = [np.arange(0, 80, 2)] * 3
        batch = gather(videos(), frames, {"a": 8})
        with torch.inference_mode():
            projected = model(batch)["a"]
        costs[weight] = float(alignment_loss(projected, batch.valid.get("a"), [0, 1, 2]))
    assert costs[5.0] < costs[0.0]
    curves = json.loads((tmp_path / "5.0" / "curves.json").read_text())
    assert all(np.isfinite(epoch["terms"]["soft-dtw"]) for epoch in curves)
    assert "soft-dtw" not in (tmp_path / "0.0" / "curves.json").read_text()


def test_it_is_off_by_default_and_below_zero_is_refused() -> None:
    assert TrainingSettings().soft_dtw == 0.0
    with pytest.raises(ConfigError, match="soft_dtw"):
        TrainingSettings(soft_dtw=-1.0)
