"""STORM's networks and losses: shapes, gradients, gaps, and a plain reading of the formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ModelError  # noqa: E402
from keystep_models.storm.settings import StormSettings, storm_preset  # noqa: E402
from keystep_models.training.contrastive import supervised_contrastive_loss  # noqa: E402
from keystep_models.training.prefetch import Prefetched  # noqa: E402
from keystep_models.training.storm_augment import augment_pictures  # noqa: E402
from keystep_models.training.storm_models import (  # noqa: E402
    Projection,
    VitSmall,
    load_vit,
    make_spatial,
    make_temporal,
)

KINDS = ["transformer", "gru", "mlp"]


def test_the_contrastive_loss_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    classes = [0, 1, 1, 2, 2, 2, 0, 3, 1]  # class 3 has no partner and is no anchor
    found = float(supervised_contrastive_loss(rows, torch.tensor(classes), temperature=0.2))
    losses = []
    for i in range(9):
        positives = [p for p in range(9) if p != i and classes[p] == classes[i]]
        if not positives:
            continue
        dots = [math.exp(float(rows[i] @ rows[a]) / 0.2) for a in range(9)]
        below = sum(dot for a, dot in enumerate(dots) if a != i)
        losses.append(-sum(math.log(dots[p] / below) for p in positives) / len(positives))
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_batch_without_partners_has_no_loss_and_finite_gradients() -> None:
    rows = torch.eye(4, requires_grad=True)
    loss = supervised_contrastive_loss(rows, torch.arange(4))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_missing_frames_changes_nothing(kind: Any) -> None:
    settings = StormSettings(temporal=kind, embedding=8, width=8, heads=2, head_width=4)
    torch.manual_seed(1)
    model = make_temporal(settings, 3).eval()
    clips, valid = torch.randn(2, 65, 8), torch.rand(2, 65) > 0.4
    valid[:, -1] = True
    other = torch.where(valid[..., None], clips, torch.full_like(clips, float("nan")))
    with torch.inference_mode():
        first, second = model(clips, valid), model(other, valid)
        whole = model(clips, torch.ones_like(valid))
    assert torch.equal(first, second)
    assert not torch.allclose(first, whole)


def gradients_reach_all(modules: list[Any], loss: Any) -> bool:
    loss.backward()
    return all(
        value.grad is not None and bool(value.grad.abs().sum() > 0)
        for module in modules
        for value in module.parameters()
    )


@pytest.mark.parametrize("embedding", [128, 384])
def test_the_published_models_have_the_published_shapes_and_learn_throughout(
    embedding: int,
) -> None:
    settings = replace(storm_preset("published"), embedding=embedding, dropout=0.0)
    torch.manual_seed(0)
    spatial, temporal = make_spatial(settings), make_temporal(settings, 11)
    projection = Projection(embedding)
    vit = sum(p.numel() for n, p in spatial.named_parameters() if not n.startswith("out."))
    assert vit == 21_665_664  # ViT-S/16 for 224 pixels without its classifier
    assert len(temporal.blocks) == 6  # type: ignore[arg-type]
    pictures = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    embedded = spatial(pictures)
    assert embedded.shape == (3, embedding)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert projection(embedded).shape == (3, 128)
    places = torch.arange(2 * 65).reshape(2, 65) % 3
    logits = temporal(embedded[places], torch.ones(2, 65, dtype=torch.bool))
    assert logits.shape == (2, 11)
    target = (torch.rand(2, 11) > 0.5).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert gradients_reach_all([spatial, temporal], loss)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a ViT-S/16 on a busy CPU
def test_20_published_steps_lower_both_losses() -> None:
    settings = replace(storm_preset("published"), dropout=0.0)
    torch.manual_seed(0)
    spatial, temporal = make_spatial(settings), make_temporal(settings, 11)
    projection = Projection(settings.embedding)
    rng = np.random.default_rng(0)
    shades = torch.tensor([40, 120, 200]).repeat_interleave(2)
    noise = torch.randint(-20, 21, (6, 224, 224, 3))
    pictures = (shades[:, None, None, None] + noise).to(torch.uint8)
    first = torch.optim.AdamW([*spatial.parameters(), *projection.parameters()], lr=1e-4)
    second = torch.optim.AdamW(temporal.parameters(), lr=1e-4)
    contrast, clips = [], []
    for _ in range(20):
        embedded = spatial(augment_pictures(pictures, rng))
        loss = supervised_contrastive_loss(projection(embedded), shades)
        first.zero_grad()
        loss.backward()
        first.step()
        contrast.append(float(loss.detach()))
        begin, end = rng.integers(3, size=4), rng.integers(3, size=4)
        rows = np.where(np.arange(65)[None] < 32, begin[:, None], end[:, None])
        target = torch.from_numpy((begin != end).astype(np.float32))[:, None].repeat(1, 11)
        logits = temporal(embedded.detach()[2 * rows], torch.ones(4, 65, dtype=torch.bool))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        second.zero_grad()
        loss.backward()
        second.step()
        clips.append(float(loss.detach()))
    assert np.mean(contrast[-5:]) < contrast[0]
    assert np.mean(clips[-5:]) < clips[0]


def test_pretrained_weights_are_taken_over_and_others_refused(tmp_path: Path) -> None:
    settings = storm_preset("published")
    torch.manual_seed(0)
    known, network = VitSmall(settings).state_dict(), VitSmall(settings)
    kept = network.out.linear.weight.clone()
    pretrained = {name: value for name, value in known.items() if not name.startswith("out.")}
    torch.save({**pretrained, "head.weight": torch.zeros(1000, 384)}, tmp_path / "vit.pt")
    load_vit(network, tmp_path / "vit.pt")
    assert torch.equal(network.blocks[3].attn.qkv.weight, known["blocks.3.attn.qkv.weight"])
    assert torch.equal(network.out.linear.weight, kept)
    del pretrained["pos_embed"]
    torch.save(pretrained, tmp_path / "less.pt")
    with pytest.raises(ModelError, match="expected pos_embed of shape"):
        load_vit(network, tmp_path / "less.pt")
    (tmp_path / "none.pt").write_bytes(b"none")
    with pytest.raises(ModelError, match="no file that torch can read"):
        load_vit(network, tmp_path / "none.pt")


def test_augmented_pictures_are_drawn_anew_and_stay_pictures() -> None:
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = augment_pictures(pictures, np.random.default_rng(0))
    assert found.shape == pictures.shape
    assert found.min() >= 0
    assert found.max() <= 255
    again = augment_pictures(pictures, np.random.default_rng(0))
    assert torch.equal(found, again)
    assert not torch.equal(found, augment_pictures(pictures, np.random.default_rng(1)))
    flat = torch.full((4, 32, 32, 3), 100, dtype=torch.uint8)  # nothing to blur or to saturate
    levels = augment_pictures(flat, np.random.default_rng(2))
    assert (levels.amax((1, 2, 3)) - levels.amin((1, 2, 3))).max() < 1e-2
    assert (levels.mean((1, 2, 3)) - 100).abs().max() <= 10.01


def test_batches_made_ahead_come_in_order_and_bring_their_errors() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ModelError("broken")

    with Prefetched(items) as ahead:
        assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ModelError, match="broken"):
            next(ahead)
    with Prefetched(lambda: iter(range(1000))) as ahead:
        assert next(ahead) == 0  # leaving early ends the thread
