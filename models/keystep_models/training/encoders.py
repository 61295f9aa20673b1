"""Temporal encoders: raw cue features to adapted features (STEPs, section 3.2; table 8).

Each cue has its own encoder. Position encoding is indexed by the frame's own index and added to the
raw feature before any learnable layer, so that the content cannot be ignored (table 11).
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from keystep_models.steps.settings import EncoderKind, PositionKind

WIDTH = 128
"""Size of adapted and projected features (D)."""
_LAYERS = 2
HEADS = 2
AGE_SLOPES = tuple(2.0 ** (-8.0 * (head + 1) / HEADS) for head in range(HEADS))
"""Position "age": by how much a tick's distance lowers a score, per head (ALiBi, Press et al. 2022,
arXiv:2108.12409): 1/16 and 1/256."""
_BLOCK = 2048
"""Frames that attend at once where a mask is needed."""
_TCN_DILATIONS = (1, 2, 4, 8, 16, 32)


def position_encoding(frames: Tensor, size: int) -> Tensor:
    """Sinusoidal encoding of frame indices.

    Args:
        frames: Frame indices, [...].
        size: Values of an encoding.

    Returns:
        float32 [..., size]: sines at even, cosines at odd places.
    """
    angle = frames[..., None].float() * position_rates(size).to(frames.device)
    encoding = angle.new_empty(*angle.shape, 2)
    # Made in one piece and copied: half the time of torch.sin(out=) with gaps between
    encoding[..., 0] = angle.sin()
    encoding[..., 1] = angle.cos_()
    return encoding.flatten(-2)[..., :size]


def position_rates(size: int) -> Tensor:
    """Angles a frame adds in an encoding of `size` values, float32 [(size + 1) // 2]."""
    steps = torch.arange((size + 1) // 2, dtype=torch.float32)
    return torch.exp(steps * (-2.0 * math.log(10_000.0) / size))


class CueEncoder(nn.Module):
    """One cue's temporal encoder: raw features and frame indices to adapted features."""

    def __init__(
        self,
        feature_size: int,
        *,
        kind: EncoderKind = "transformer",
        position: PositionKind = "frame",
        causal: bool = False,
        context: int | None = None,
    ) -> None:
        """Make an encoder with fresh weights from torch's global random state.

        Args:
            feature_size: Values of a raw feature (D_i).
            kind: Of the temporal layers.
            position: "frame" adds the encoding of the frame index to the raw feature, "none"
                adds nothing, "after_mlp" adds it behind a layer that learns (table 11), "age"
                (transformers) lowers attention scores by the distance in frames instead.
            causal: Whether a frame sees only itself and earlier ones.
            context: For a causal transformer: frame i sees those of i - context + 1 to i by
                their frame indices, so that what it sees does not depend on which are missing.

        Raises:
            ValueError: An option is unknown or does not fit the others.
        """
        super().__init__()
        if kind not in get_args(EncoderKind) or position not in get_args(PositionKind):
            raise ValueError(f"no encoder {kind!r} with position encoding {position!r}")
        if context is not None and not (causal and kind == "transformer" and context > 0):
            raise ValueError("context is for causal transformers and at least 1")
        if position == "age" and kind != "transformer":
            raise ValueError("position 'age' is for transformers")
        self.feature_size = feature_size
        self.position = position
        self.before: nn.Module | None = None
        if position == "after_mlp":
            self.before = nn.Sequential(nn.Linear(feature_size, WIDTH), nn.ReLU())
        self.inward = nn.Linear(WIDTH if self.before else feature_size, WIDTH)
        self.temporal: nn.Module
        if kind == "transformer":
            slopes = AGE_SLOPES if position == "age" else None
            self.temporal = _Transformer(causal=causal, context=context, slopes=slopes)
        elif kind == "lstm":
            self.temporal = _Lstm(causal=causal)
        else:
            self.temporal = _Tcn(causal=causal)

    def forward(self, raw: Tensor, frames: Tensor) -> Tensor:
        """Adapt features.

        Args:
            raw: Raw features, float [B, N, feature_size].
            frames: Frame indices, [B, N], never decreasing.

        Returns:
            Adapted features, float [B, N, 128].
        """
        if self.before is not None:
            raw = self.before(raw)
        if self.position in ("none", "age"):
            inner = self.inward(raw * math.sqrt(WIDTH))
        else:
            encoding = position_encoding(frames, raw.shape[-1]).to(raw.dtype)
            inner = self.inward(encoding.add_(raw, alpha=math.sqrt(WIDTH)))
        adapted: Tensor = self.temporal(inner, frames)
        return adapted


class Projection(nn.Sequential):
    """Adapted features to the unit sphere on which the loss lives."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, adapted: Tensor) -> Tensor:
        """Project features [..., 128] to unit vectors of the same shape."""
        return functional.normalize(super().forward(adapted), dim=-1)


class _View(NamedTuple):
    """Frames that attend, those they may see, and the mask between them (None: no other limit)."""

    own: slice
    seen: slice
    mask: Tensor | None
    causal: bool


class _Transformer(nn.Module):
    """Post-norm transformer layers."""

    def __init__(
        self, *, causal: bool, context: int | None, slopes: tuple[float, ...] | None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TransformerLayer() for _ in range(_LAYERS))
        self._causal = causal
        self._context = context
        self._slopes = slopes

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        views = self._views(frames)
        for layer in self.layers:
            x = layer(x, views)
        return x

    def _views(self, frames: Tensor) -> list[_View]:
        """What the frames see, block by block, so that long sessions need no square of memory."""
        count = frames.shape[1]
        if self._context is None and self._slopes is None:
            return [_View(slice(0, count), slice(0, count), None, self._causal)]
        views = []
        for start in range(0, count, _BLOCK):
            own = slice(start, min(start + _BLOCK, count))
            first, last = 0, own.stop if self._causal else count
            if self._context is not None and start:
                reach = frames[:, start, None] - self._context
                first = int((frames <= reach).sum(1).min())
            seen = slice(first, last)
            views.append(_View(own, seen, self._mask(frames, own, seen), False))
        return views

    def _mask(self, frames: Tensor, own: slice, seen: slice) -> Tensor:
        """Bool [B, 1, N, M], or what is added to scores, [B, heads, N, M]."""
        age = (frames[:, own, None] - frames[:, None, seen])[:, None]
        mask = torch.ones_like(age, dtype=torch.bool)
        if self._causal:
            mask = mask.tril(own.start - seen.start)
        if self._context is not None:
            mask &= age < self._context
        if self._slopes is None:
            return mask
        slopes = torch.tensor(self._slopes, device=frames.device)[:, None, None]
        return (-slopes * age.abs()).masked_fill(~mask, -math.inf)


class _TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(WIDTH, WIDTH)
        self.narrow = nn.Linear(WIDTH, WIDTH)
        self.norm_feed = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, views: list[_View]) -> Tensor:
        batch, count, _ = x.shape
        heads = self.queries_keys_values(x).view(batch, count, 3, HEADS, WIDTH // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        parts = [
            functional.scaled_dot_product_attention(
                queries[:, :, view.own],
                keys[:, :, view.seen],
                values[:, :, view.seen],
                attn_mask=view.mask,
                is_causal=view.causal,
            )
            for view in views
        ]
        seen = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        x = self.norm_attention(x + self.out(seen.transpose(1, 2).reshape(batch, count, WIDTH)))
        fed: Tensor = self.norm_feed(x + self.narrow(functional.relu(self.wide(x))))
        return fed


class _Lstm(nn.Module):
    """Two LSTM layers, of both directions unless causal."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        width = WIDTH if causal else WIDTH // 2
        self.lstm = nn.LSTM(
            WIDTH, width, num_layers=_LAYERS, batch_first=True, bidirectional=not causal
        )

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        adapted: Tensor = self.lstm(x)[0]
        return adapted


class _Tcn(nn.Module):
    """Dilated convolutions of width 3, each added to its input."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation) for dilation in _TCN_DILATIONS
        )
        self.mixers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 1) for _ in _TCN_DILATIONS)
        self._causal = causal

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        lanes = x.transpose(1, 2)
        layers = zip(_TCN_DILATIONS, self.convolutions, self.mixers, strict=True)
        for dilation, convolution, mixer in layers:
            before, after = (2 * dilation, 0) if self._causal else (dilation, dilation)
            padded = functional.pad(lanes, (before, after))
            lanes = lanes + mixer(functional.relu(convolution(padded)))
        return lanes.transpose(1, 2)
