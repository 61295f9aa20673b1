"""The windows of the BMC2 loss: which frames are an anchor frame's positives (STEPs, section 3.3).

Distances between raw features are a matrix product in single precision; the few pairs that lie too
near their threshold for it are worked out again in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PRODUCT_ERROR = 1e-6
"""Bound of the error of a squared distance, of the features' own square (single precision)."""
_THRESHOLD_ERROR = 5e-7
"""Relative bound of the error of a threshold."""
_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One video's windows, bool [N, N]; row i holds the frames inside anchor i's.

    Attributes:
        positives: Pairs that are pulled together.
        negatives: Pairs that are not pushed apart.
    """

    positives: Tensor
    negatives: Tensor


def sigma_window(seconds: Tensor, sigma_seconds: float) -> Tensor:
    """Pairs of frames at most `sigma_seconds` apart.

    Args:
        seconds: Times, float64 [N].
        sigma_seconds: Half-width of the window, s.

    Returns:
        bool [N, N], symmetric, the diagonal true.
    """
    return (seconds[:, None] - seconds[None, :]).abs_() <= sigma_seconds


def bootstrapped_window(features: Tensor, near: Tensor) -> Tensor:
    """Pairs of frames that look as alike as frames of one moment do (W' of the paper).

    A frame's threshold is the mean distance to the other frames of its temporal window; each frame
    is standardised over its features first. A frame whose features are all equal has no window.

    Args:
        features: Raw features, float [N, D].
        near: The temporal window, bool [N, N].

    Returns:
        bool [N, N], the diagonal false; not symmetric, row i is the anchor's.
    """
    deviation, mean = torch.std_mean(features, dim=-1, keepdim=True)
    standard = (features - mean) / deviation
    distance = _distances(standard)
    near = near.clone()
    near.fill_diagonal_(False)
    threshold = _thresholds(distance, near)
    gap = distance - threshold[:, None]
    sampled = gap <= 0
    error = standard.shape[-1] * _PRODUCT_ERROR / distance + _THRESHOLD_ERROR * distance
    doubtful = (gap.abs_() < error).fill_diagonal_(False).nonzero()
    if len(doubtful):
        _decide_exactly(sampled, doubtful, standard, near)
    return sampled.fill_diagonal_(False)


def _distances(standard: Tensor) -> Tensor:
    """Euclidean distances [N, N]; symmetric, so blocks below the diagonal are copied."""
    square = standard.square().sum(-1)
    count = len(standard)
    distance = standard.new_empty(count, count)
    for top in range(0, count, _BLOCK):
        rows = slice(top, top + _BLOCK)
        block = torch.addmm(square[None, top:], standard[rows], standard[top:].T, alpha=-2.0)
        distance[rows, top:] = block.add_(square[rows, None]).clamp_min_(0.0).sqrt_()
        distance[top + _BLOCK :, rows] = distance[rows, top + _BLOCK :].T
    return distance


def _thresholds(distance: Tensor, near: Tensor) -> Tensor:
    """Mean distance to the other frames of the temporal window, [N]; 0 where there is none."""
    total = torch.where(near, distance, 0.0).sum(-1, dtype=torch.float64)
    return (total / (near.sum(-1) + 1e-8)).to(distance.dtype)


def _decide_exactly(sampled: Tensor, doubtful: Tensor, standard: Tensor, near: Tensor) -> None:
    """Settle pairs [M, 2] in double precision, row by row."""
    for row in doubtful[:, 0].unique():
        anchor = standard[row].double()
        neighbours = near[row].nonzero()[:, 0]
        columns = doubtful[doubtful[:, 0] == row, 1]
        to_neighbours = (standard[neighbours].double() - anchor).norm(dim=-1)
        threshold = to_neighbours.sum() / (len(neighbours) + 1e-8)
        to_columns = (standard[columns].double() - anchor).norm(dim=-1)
        sampled[row, columns] = to_columns <= threshold
