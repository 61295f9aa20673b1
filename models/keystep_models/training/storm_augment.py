"""Augmentation of pictures for contrastive learning: blur, brightness, saturation, contrast.

Source of the ranges: Schoonbeek et al., STORM-PSR, arXiv:2510.12385.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_KERNEL = 5
_SIGMA = (0.01, 2.0)
_BRIGHTNESS, _SATURATION, _CONTRAST = 0.1, 0.7, 0.1
_GREY = (0.299, 0.587, 0.114)


def augment_pictures(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures as if seen otherwise, each by draws of its own.

    Args:
        pictures: uint8 [B, H, W, 3].
        rng: Where draws come from.

    Returns:
        Float [B, H, W, 3] from 0 to 255.
    """
    count = len(pictures)
    x = pictures.to(torch.float32).permute(0, 3, 1, 2)
    grey = torch.tensor(_GREY)[None, :, None, None]

    def factor(spread: float) -> Tensor:
        drawn = rng.uniform(1 - spread, 1 + spread, (count, 1, 1, 1))
        return torch.from_numpy(drawn.astype(np.float32))

    x = x * factor(_BRIGHTNESS)
    level = (x * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = level + (x - level) * factor(_CONTRAST)
    x = _blend_grey(x, grey, factor(_SATURATION))
    x = _blurred(x, torch.from_numpy(rng.uniform(*_SIGMA, count).astype(np.float32)))
    return x.clamp(0.0, 255.0).permute(0, 2, 3, 1)


def _blend_grey(x: Tensor, grey: Tensor, factor: Tensor) -> Tensor:
    plain = (x * grey).sum(1, keepdim=True)
    return plain + (x - plain) * factor


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of 5 x 5 values per picture, float [B, 3, H, W]."""
    count, channels = x.shape[:2]
    places = torch.arange(_KERNEL, dtype=x.dtype) - _KERNEL // 2
    line = torch.exp(-0.5 * (places[None] / sigma[:, None]) ** 2)
    line = (line / line.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = x.reshape(1, count * channels, *x.shape[2:])
    groups, edge = count * channels, _KERNEL // 2
    padded = F.pad(flat, (edge, edge, edge, edge), mode="reflect")
    rows = F.conv2d(padded, line[:, None, None, :], groups=groups)
    return F.conv2d(rows, line[:, None, :, None], groups=groups).reshape(x.shape)
