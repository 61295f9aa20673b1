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


def test_the_input_layer_is_scaled_raw_plus_position() -> None:
    encoder = CueEncoder(16)
    raw, frames = torch.randn(2, 5, 16), torch.randint(0, 9000, (2, 5))
    plain = encoder.inward(raw * math.sqrt(128) + position_encoding(frames, 16))
    torch.testing.assert_close(encoder(raw, frames), encoder.temporal(plain), atol=1e-4, rtol=1e-4)


def test_projections_are_unit_vectors() -> None:
    lengths = Projection()(torch.randn(3, 9, 128)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 9))


@pytest.mark.parametrize(
    "options",
    [{"kind": "gru"}, {"position": "clock"}, {"context": 8}, {"causal": True, "context": 0}],
)
def test_unknown_options_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"no encoder|context"):
        CueEncoder(16, **options)
