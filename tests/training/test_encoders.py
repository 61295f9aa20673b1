"""Temporal encoders: sizes, causality, and the input layer's shortcut."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_models.training.encoders import CueEncoder, Projection, position_encoding  # noqa: E402

KINDS = ["transformer", "lstm", "tcn"]


def test_two_cues_have_the_sheets_parameter_count() -> None:
    parts = [CueEncoder(2048), CueEncoder(128), Projection(), Projection()]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 743_168


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_encoder_does_not_see_what_comes(kind: Any) -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, kind=kind, causal=True).eval()
    raw, frames = torch.randn(1, 40, 16), torch.arange(40)[None]
    changed = raw.clone()
    changed[:, 25:] += 1.0
    before, after = encoder(raw, frames), encoder(changed, frames)
    torch.testing.assert_close(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("kind", KINDS)
def test_other_encoders_see_both_ways(kind: Any) -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, kind=kind).eval()
    raw, frames = torch.randn(1, 40, 16), torch.arange(40)[None]
    changed = raw.clone()
    changed[:, 25] += 5.0
    difference = (encoder(raw, frames) - encoder(changed, frames)).abs().amax(-1)[0]
    assert difference[24] > 1e-6
    assert difference[26] > 1e-6


def test_bounded_context_forgets() -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, causal=True, context=4).eval()
    raw, frames = torch.randn(1, 40, 16), torch.arange(40)[None]
    changed = raw.clone()
    changed[:, 10] += 5.0
    difference = (encoder(raw, frames) - encoder(changed, frames)).abs().amax(-1)[0]
    assert difference[16] > 1e-6  # through two layers: 3 + 3 frames
    torch.testing.assert_close(difference[17:], torch.zeros(23))


def test_the_context_is_counted_in_frame_indices() -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, causal=True, context=4, position="none").eval()
    raw = torch.randn(1, 3, 16)
    near = encoder(raw, torch.tensor([[0, 1, 4]]))
    far = encoder(raw, torch.tensor([[0, 1, 5]]))
    alone = encoder(raw[:, 2:], torch.tensor([[0]]))
    assert not torch.allclose(near[:, 2], far[:, 2])  # 4 still sees 1
    torch.testing.assert_close(far[:, 2], alone[:, 0])


@pytest.mark.parametrize("position", ["none", "age"])
def test_relative_positions_do_not_know_when_a_session_began(position: Any) -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, causal=True, context=8, position=position).eval()
    raw, frames = torch.randn(1, 30, 16), torch.arange(30)[None]
    torch.testing.assert_close(encoder(raw, frames), encoder(raw, frames + 5000))


@pytest.mark.parametrize("position", ["frame", "age"])
@pytest.mark.parametrize("context", [None, 300])
def test_attending_in_blocks_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, position: Any, context: int | None
) -> None:
    torch.manual_seed(0)
    encoder = CueEncoder(16, causal=True, context=context, position=position).eval()
    raw, frames = torch.randn(2, 900, 16), torch.arange(900)[None].repeat(2, 1)
    frames[1, 400:] += 250
    whole = encoder(raw, frames)
    monkeypatch.setattr("keystep_models.training.encoders._BLOCK", 128)
    torch.testing.assert_close(encoder(raw, frames), whole)


def test_the_input_layer_is_scaled_raw_plus_position() -> None:
    encoder = CueEncoder(16)
    raw, frames = torch.randn(2, 5, 16), torch.randint(0, 9000, (2, 5))
    plain = encoder.inward(raw * math.sqrt(128) + position_encoding(frames, 16))
    torch.testing.assert_close(
        encoder(raw, frames), encoder.temporal(plain, frames), atol=1e-4, rtol=1e-4
    )


def test_projections_are_unit_vectors() -> None:
    lengths = Projection()(torch.randn(3, 9, 128)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 9))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "gru"},
        {"position": "clock"},
        {"context": 8},
        {"causal": True, "context": 0},
        {"kind": "lstm", "position": "age"},
    ],
)
def test_unknown_options_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"no encoder|context|transformers"):
        CueEncoder(16, **options)
