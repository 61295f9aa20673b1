"""STORM-PSR's networks: spatial encoders, the temporal transformer, and its baselines.

B batch, N frames of a clip, D values of an embedding, C components, W width of a token.

Sources: Schoonbeek et al., STORM-PSR, arXiv:2510.12385; Dosovitskiy et al., ViT, ICLR 2021 (its
modules are named as in common weight files, so that those can be loaded).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from keystep_capture.errors import ModelError
from keystep_models.cues.appearance_cue import CROP, EMBEDDING_SIZE
from keystep_models.storm.settings import StormSettings

PROJECTION: Final = 128
"""Size of what the contrastive loss sees."""

_VIT_WIDTH, _VIT_DEPTH, _VIT_HEADS, _PATCH = 384, 12, 6, 16
_HIDDEN_FROM = -1e9  # added to the attention to frames that are missing


class Attention(nn.Module):
    """Self-attention; `heads` x `head_width` need not be the token's width."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        """Make the two projections."""
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.proj = nn.Linear(heads * head_width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens float [B, M, W] to the same; `mask` float [B, 1, 1, M] is added to the logits."""
        batch, count = tokens.shape[0], tokens.shape[1]
        split = self.qkv(tokens).reshape(batch, count, 3, self.heads, self.head_width)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.proj(found.transpose(1, 2).reshape(batch, count, self.heads * self.head_width))


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Float [..., W] to the same."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, width: int, heads: int, head_width: int, feed_forward: int, dropout: float = 0.0
    ) -> None:
        """Make the block."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, head_width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, feed_forward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens float [B, M, W] to the same."""
        tokens = tokens + self.dropout(self.attn(self.norm1(tokens), mask))
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))


class EmbeddingLayers(nn.Module):
    """Features to an embedding: linear, batch norm, ReLU, scaled to length one."""

    def __init__(self, size: int, embedding: int) -> None:
        """Make the layers."""
        super().__init__()
        self.linear = nn.Linear(size, embedding)
        self.norm = nn.BatchNorm1d(embedding)

    def forward(self, features: Tensor) -> Tensor:
        """Float [B, size] to [B, D]."""
        return F.normalize(F.relu(self.norm(self.linear(features))), dim=1, eps=1e-6)


class AppearanceHead(nn.Module):
    """`small`: a head on the frozen appearance feature, which is standardised first."""

    def __init__(self, settings: StormSettings, size: int = EMBEDDING_SIZE) -> None:
        """Make the head; `fit_scale` sets mean and scale."""
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.dropout = nn.Dropout(settings.input_dropout)
        self.hidden: nn.Module = nn.Identity()
        if settings.hidden:
            self.hidden = nn.Sequential(
                nn.Linear(size, settings.hidden), nn.BatchNorm1d(settings.hidden), nn.ReLU()
            )
        self.out = EmbeddingLayers(settings.hidden or size, settings.embedding)

    def fit_scale(self, mean: Tensor, deviation: Tensor) -> None:
        """Set what inputs are standardised by, float [size] each."""
        self.mean.copy_(mean)
        self.scale.copy_(1.0 / deviation.clamp(min=1e-3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features float [B, 1280] to embeddings [B, D]."""
        return self.out(self.hidden(self.dropout((inputs - self.mean) * self.scale)))


class PatchEmbed(nn.Module):
    """16 x 16 patches of a picture as tokens."""

    def __init__(self) -> None:
        """Make the projection."""
        super().__init__()
        self.proj = nn.Conv2d(3, _VIT_WIDTH, _PATCH, stride=_PATCH)

    def forward(self, pictures: Tensor) -> Tensor:
        """Float [B, 3, 224, 224] to [B, 196, 384]."""
        return self.proj(pictures).flatten(2).transpose(1, 2)


class VitSmall(nn.Module):
    """ViT-S/16 up to its class token, and the embedding layers."""

    def __init__(self, settings: StormSettings) -> None:
        """Make the network with random weights; `load_vit` puts pretrained ones in."""
        super().__init__()
        count = (CROP // _PATCH) ** 2
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, _VIT_WIDTH))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + count, _VIT_WIDTH))
        width = _VIT_WIDTH // _VIT_HEADS
        self.blocks = nn.ModuleList(
            Block(_VIT_WIDTH, _VIT_HEADS, width, 4 * _VIT_WIDTH) for _ in range(_VIT_DEPTH)
        )
        self.norm = nn.LayerNorm(_VIT_WIDTH, eps=1e-6)
        self.out = EmbeddingLayers(_VIT_WIDTH, settings.embedding)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pictures uint8 (or float from 0 to 255) [B, 224, 224, 3] to embeddings [B, D]."""
        pictures = (inputs.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
        patches = self.patch_embed(pictures)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens)[:, 0])


class Projection(nn.Module):
    """g(.): three layers from an embedding to what the contrastive loss sees, length one."""

    def __init__(self, embedding: int) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding, embedding), nn.ReLU(),
            nn.Linear(embedding, embedding), nn.ReLU(),
            nn.Linear(embedding, PROJECTION),
        )  # fmt: skip

    def forward(self, embeddings: Tensor) -> Tensor:
        """Float [B, D] to [B, 128]."""
        return F.normalize(self.layers(embeddings), dim=1, eps=1e-6)


class TemporalTransformer(nn.Module):
    """A class token looks over the clip's embeddings."""

    def __init__(self, settings: StormSettings, component_count: int) -> None:
        """Make the network."""
        super().__init__()
        width = settings.width
        same = settings.embedding == width
        self.inward: nn.Module = nn.Identity() if same else nn.Linear(settings.embedding, width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + settings.clip_frames, width))
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(
                width, settings.heads, settings.head_width, settings.feed_forward, settings.dropout
            )
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, component_count)

    def forward(self, clips: Tensor, valid: Tensor) -> Tensor:
        """Clips float [B, N, D], valid bool [B, N], to logits [B, C]."""
        tokens = self.inward(_held(clips, valid))
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.dropout(tokens + self.positions)
        missing = F.pad((~valid).to(tokens.dtype), (1, 0)) * _HIDDEN_FROM
        for block in self.blocks:
            tokens = block(tokens, missing[:, None, None, :])
        return self.out(self.norm(tokens[:, 0]))


class TemporalGru(nn.Module):
    """Baseline: a GRU over embeddings, each with a flag that it is there.

    Embeddings of length one are scaled so that their values vary by about one: smaller ones leave
    its gates where they begin.
    """

    def __init__(self, settings: StormSettings, component_count: int) -> None:
        """Make the network."""
        super().__init__()
        self.gru = nn.GRU(settings.embedding + 1, settings.width, settings.depth, batch_first=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = nn.Linear(settings.width, component_count)

    def forward(self, clips: Tensor, valid: Tensor) -> Tensor:
        """As `TemporalTransformer.forward`."""
        states, _ = self.gru(_side_by_side(clips, valid))
        return self.out(self.dropout(states[:, -1]))


class TemporalMlp(nn.Module):
    """Baseline: all embeddings side by side, each with a flag that it is there."""

    def __init__(self, settings: StormSettings, component_count: int) -> None:
        """Make the network."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(settings.clip_frames * (settings.embedding + 1), settings.feed_forward),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.feed_forward, settings.feed_forward),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.feed_forward, component_count),
        )

    def forward(self, clips: Tensor, valid: Tensor) -> Tensor:
        """As `TemporalTransformer.forward`."""
        return self.layers(_side_by_side(clips, valid).flatten(1))


def make_spatial(settings: StormSettings) -> nn.Module:
    """The spatial encoder that the settings ask for, with random weights."""
    return AppearanceHead(settings) if settings.input == "appearance" else VitSmall(settings)


def make_temporal(settings: StormSettings, component_count: int) -> nn.Module:
    """The temporal model that the settings ask for, with random weights."""
    kinds = {"transformer": TemporalTransformer, "gru": TemporalGru, "mlp": TemporalMlp}
    return kinds[settings.temporal](settings, component_count)


def load_vit(network: VitSmall, path: Path) -> None:
    """Put pretrained ViT-S/16 weights into the encoder; the embedding layers stay as they are.

    Args:
        network: Where to.
        path: A state dict with the names that timm and others use (`blocks.0.attn.qkv.weight`);
            a classifier in it is left out.

    Raises:
        ModelError: The file is none, or not of a ViT-S/16 for 224 pixels.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler does
        first = str(error).partition("\n")[0]
        raise ModelError(f"{path}: no file that torch can read: {first[:200]}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a state dict, names to tensors")
    own = {name for name in network.state_dict() if not name.startswith("out.")}
    wanted = {name: document.get(name) for name in own}
    for name, value in wanted.items():
        shape = tuple(network.state_dict()[name].shape)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            came = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
            raise ModelError(f"{path}: expected {name} of shape {shape}, got {came}")
    network.load_state_dict(wanted, strict=False)


def _side_by_side(clips: Tensor, valid: Tensor) -> Tensor:
    """Embeddings of length one, scaled so that their values vary by about one, with their flag."""
    scaled = _held(clips, valid) * clips.shape[2] ** 0.5
    return torch.cat([scaled, valid[..., None].to(clips.dtype)], 2)


def _held(clips: Tensor, valid: Tensor) -> Tensor:
    """Clips with zeros where a frame is missing, whatever stood there."""
    return torch.where(valid[..., None], clips, torch.zeros_like(clips))
