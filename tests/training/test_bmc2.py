"""The BMC2 loss against published values and against itself in double precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_models.training.bmc2 import bmc2_loss  # noqa: E402
from keystep_models.training.bmc2_window import bootstrapped_window, sigma_window  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "steps"
CASES = json.loads((GOLDEN / "bmc2.json").read_text())
WINDOWS = {"sigma": "sigma", "bootstrapped": "union"}


def published(case: dict[str, Any], kind: str) -> dict[str, Any]:
    with np.load(GOLDEN / "bmc2.npz") as arrays:
        name = case["case"]
        cues = case["modalities"]
        return {
            "projected": {c: torch.tensor(arrays[f"{name}/projected/{c}"]) for c in cues},
            "raw": {c: torch.tensor(arrays[f"{name}/raw/{c}"]) for c in cues},
            "timestamps": torch.tensor(arrays[f"{name}/timestamps"]),
            "num_frames": torch.tensor(arrays[f"{name}/num_frames"]),
            "window": torch.tensor(arrays[f"{name}/{kind}/window"]).bool(),
            "gradients": {c: torch.tensor(arrays[f"{name}/{kind}/grad/{c}"]) for c in cues},
        }


def loss_of(case: dict[str, Any], data: dict[str, Any], **changes: Any) -> Any:
    options = {
        "anchor": case["anchor"],
        "bootstrap": case["bootstrap_modalities"],
        "sigma_seconds": case["sigma_seconds"],
        "margin": case["margin"],
    }
    return bmc2_loss(
        data["projected"], data["raw"], data["timestamps"], data["num_frames"], case["fps"],
        **{**options, **changes},
    )  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_terms_window_and_gradients_are_the_published_ones(case: dict[str, Any], kind: str) -> None:
    data = published(case, kind)
    for features in data["projected"].values():
        features.requires_grad_()
    loss = loss_of(case, data, window=WINDOWS[kind])
    loss.total.backward()
    expected = case["expected"][kind]
    assert loss.total.item() == pytest.approx(expected["total"], rel=1e-5)
    assert {n: t.item() for n, t in loss.terms.items()} == pytest.approx(
        expected["terms"], rel=1e-5
    )
    assert torch.equal(loss.window, data["window"])
    for cue, gradient in data["gradients"].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(
            data["projected"][cue].grad, gradient, rtol=1e-4, atol=1e-4 * scale
        )


@pytest.mark.parametrize("window", ["sigma", "sampled", "union_negatives", "union"])
@pytest.mark.parametrize("margin", [2.0, 1.2])
def test_the_gradient_is_the_derivative(window: str, margin: float) -> None:
    torch.manual_seed(3)
    cues = {c: torch.nn.functional.normalize(torch.randn(2, 7, 5).double(), dim=-1) for c in "abc"}
    raw = {c: torch.randn(2, 7, 6).double() for c in cues}
    times = torch.arange(7).repeat(2, 1) * 9
    frames = torch.tensor([70, 90])

    def total(*projected: torch.Tensor) -> torch.Tensor:
        named = dict(zip(cues, projected, strict=True))
        return bmc2_loss(
            named, raw, times, frames, 3.0, anchor="a", bootstrap="b", sigma_seconds=7.0,
            margin=margin, window=window,
            pair_weights={("a", "a"): 0.5, ("a", "b"): 2.0, ("b", "a"): 0.25, ("c", "b"): 1.0},
        ).total  # fmt: skip

    # The loss's sums are single numbers in double precision
    assert torch.autograd.gradcheck(
        total, [q.requires_grad_() for q in cues.values()], eps=1e-6, atol=1e-6
    )


def test_doubtful_pairs_are_decided_as_in_double_precision() -> None:
    torch.manual_seed(0)
    features = torch.randn(300, 64)
    near = sigma_window(torch.arange(300.0), 10.0)
    single = bootstrapped_window(features, near)
    standard = features.double()
    standard = (features - features.mean(-1, keepdim=True)) / features.std(-1, keepdim=True)
    distance = torch.cdist(standard.double(), standard.double())
    others = near & ~torch.eye(300, dtype=torch.bool)
    threshold = (distance * others).sum(-1, keepdim=True) / others.sum(-1, keepdim=True)
    exact = (distance <= threshold) & ~torch.eye(300, dtype=torch.bool)
    clear = (distance - threshold).abs() > 1e-6
    assert torch.equal(single[clear], exact[clear])


def test_constant_features_add_nothing_to_the_window() -> None:
    near = sigma_window(torch.arange(20.0), 3.0)
    assert not bootstrapped_window(torch.ones(20, 8), near).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": "thermal"}, "anchor cue 'thermal'"),
        ({"bootstrap": ["thermal"]}, "bootstrap cue 'thermal'"),
        ({"bootstrap": []}, "needs a bootstrap cue"),
        ({"window": "wide"}, "window is 'wide'"),
        ({"pair_weights": {("rgb", "thermal"): 1.0}}, "'thermal', which has no features"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], message: str) -> None:
    case = CASES[0]
    with pytest.raises(ValueError, match=message):
        loss_of(case, published(case, "sigma"), **change)


def plain_with_gaps(projected: Any, raw: Any, times: Any, frames: Any, valid: Any) -> Any:
    """The loss pair by pair of frames, over those that both have their cue."""
    total = 0.0
    for u, v in (("a", "a"), ("b", "b"), ("a", "b"), ("b", "a")):
        costs = []
        for video in range(len(times)):
            near = sigma_window(times[video].double(), 9.0)
            window = near | bootstrapped_window(raw["b"][video], near, valid["b"][video])
            for i in valid[u][video].nonzero()[:, 0]:
                for j in valid[v][video].nonzero()[:, 0]:
                    gap = (times[video, i] - times[video, j]) / frames[video]
                    distance = (projected[u][video, i] - projected[v][video, j]).norm()
                    gamma = gap.double() ** 2 + 1
                    pushed = gamma * (1.5 - distance).clamp_min(0.0)
                    costs.append(distance / gamma if window[i, j] else pushed)
        total = total + torch.stack(costs).mean()
    return total


def test_frames_that_lack_a_cue_are_in_no_pair_with_it() -> None:
    torch.manual_seed(1)
    cues = {c: torch.nn.functional.normalize(torch.randn(2, 9, 4).double(), dim=-1) for c in "ab"}
    raw = {c: torch.randn(2, 9, 6).double() for c in "ab"}
    times, frames = torch.arange(9).repeat(2, 1) * 4, torch.tensor([40, 60])
    valid = {c: torch.rand(2, 9) < 0.6 for c in "ab"}
    raw["b"][~valid["b"]] = float("nan")
    for features in cues.values():
        features.requires_grad_()
    loss = bmc2_loss(
        cues, raw, times, frames, 1.0, anchor="a", bootstrap="b", sigma_seconds=9.0, margin=1.5,
        valid=valid,
    )  # fmt: skip
    expected = plain_with_gaps(cues, raw, times, frames, valid)
    assert loss.total.item() == pytest.approx(expected.item())
    ours = torch.autograd.grad(loss.total, list(cues.values()))
    plain = torch.autograd.grad(expected, list(cues.values()), allow_unused=True)
    for cue, got, wanted in zip(cues, ours, plain, strict=True):
        torch.testing.assert_close(got, wanted)
        assert not got[~valid[cue]].any()


def test_a_cue_that_is_nowhere_leaves_a_finite_loss() -> None:
    q = {c: torch.nn.functional.normalize(torch.randn(1, 5, 4), dim=-1) for c in "ab"}
    q["b"].requires_grad_()
    nowhere = {"b": torch.zeros(1, 5, dtype=torch.bool)}
    loss = bmc2_loss(
        q,
        q,
        torch.arange(5)[None],
        torch.tensor([5]),
        1.0,
        anchor="a",
        bootstrap="b",
        valid=nowhere,
    )
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert loss.terms["b-b"] == 0
    assert not q["b"].grad.any()
