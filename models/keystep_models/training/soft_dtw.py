"""Soft-DTW between two videos' features: the optional alignment term (STEPs, section E.2).

Source: Cuturi and Blondel, ICML 2017 (value and gradient), as LAV uses it (Haresh et al., CVPR
2021): squared distances of unit features, smoothing 0.1. LAV keeps frames of one video apart by a
further term, which is left out here: BMC2's negatives do that.

The table is filled along its antidiagonals, each at once, in double precision. N and M frames,
D values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMOOTHING = 0.1
_FAR = 1e18  # stands for infinity where subtracting infinities would give no number


def soft_dtw(first: Tensor, second: Tensor, *, smoothing: float = SMOOTHING) -> Tensor:
    """The smoothed cost of the best alignment of two sequences.

    Args:
        first: Features, float [N, D], N at least 1.
        second: Features, float [M, D].
        smoothing: Of the minimum, above 0 (gamma of the paper).

    Returns:
        A scalar with a gradient, divided by N + M so that it does not grow with the videos; below
        zero where many alignments are as good.

    Raises:
        ValueError: Shapes do not fit together, or the smoothing is not above 0.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected [N, D] and [M, D], got {first.shape} and {second.shape}")
    if not (len(first) and len(second)) or not smoothing > 0:
        raise ValueError("expected frames in both sequences and a smoothing above 0")
    value: Tensor = _SoftDtw.apply(first, second, smoothing)
    return value


def alignment_loss(
    projected: Tensor, valid: Tensor | None, videos: Sequence[int], *, smoothing: float = SMOOTHING
) -> Tensor:
    """The mean cost of aligning neighbours in a batch.

    Args:
        projected: One cue's projected features, float [B, N, D], unit norm.
        valid: bool [B, N], false where a video lacks the cue; such frames are left out.
        videos: Which video each row is, so that none is aligned with itself.
        smoothing: As `soft_dtw`.

    Returns:
        A scalar with a gradient; zero where the batch has no two videos with features.
    """
    pairs = [(i, i + 1) for i in range(len(videos) - 1) if videos[i] != videos[i + 1]]
    costs = []
    for pair in pairs:
        first, second = (
            projected[row] if valid is None else projected[row][valid[row]] for row in pair
        )
        if len(first) and len(second):
            costs.append(soft_dtw(first, second, smoothing=smoothing))
    return torch.stack(costs).mean() if costs else projected.sum() * 0.0


class _SoftDtw(torch.autograd.Function):
    """Value and gradient; the gradient is known when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, smoothing: float) -> Tensor:
        x, y = first.detach().double(), second.detach().double()
        costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
        skewed = _skew(costs)
        table = _fill(skewed, smoothing)
        length = len(x) + len(y)
        if any(ctx.needs_input_grad[:2]):
            share = _unskew(_visits(table, skewed, smoothing), len(y)) / length
            grad_x = 2.0 * (share.sum(1)[:, None] * x - share @ y)
            grad_y = 2.0 * (share.sum(0)[:, None] * y - share.T @ x)
            ctx.save_for_backward(grad_x.to(first.dtype), grad_y.to(second.dtype))
        return (table[-1, -1] / length).to(first.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_y = ctx.saved_tensors
        return outputs[0] * grad_x, outputs[0] * grad_y, None


def _skew(costs: Tensor) -> Tensor:
    """[N, M] as antidiagonals [N + M - 1, N]: entry (k, i) is (i, k - i), `_FAR` outside."""
    rows, columns = costs.shape
    skewed = costs.new_full((rows + columns - 1, rows), _FAR)
    i = torch.arange(rows, device=costs.device)[:, None]
    j = torch.arange(columns, device=costs.device)[None, :]
    skewed[i + j, i.expand(rows, columns)] = costs
    return skewed


def _unskew(skewed: Tensor, columns: int) -> Tensor:
    rows = skewed.shape[1]
    i = torch.arange(rows, device=skewed.device)[:, None]
    j = torch.arange(columns, device=skewed.device)[None, :]
    return skewed[i + j, i.expand(rows, columns)]


def _fill(skewed: Tensor, smoothing: float) -> Tensor:
    """Cost of the best way to each entry, as antidiagonals with one row and column before them."""
    count, rows = skewed.shape
    table = skewed.new_full((count + 2, rows + 1), _FAR)
    table[0, 0] = 0.0  # before the first pair
    for k in range(count):
        ways = torch.stack((table[k, :-1], table[k + 1, :-1], table[k + 1, 1:]))
        least = ways.amin(dim=0)
        total = ((least - ways) / smoothing).exp_().sum(dim=0)
        best = least - smoothing * total.log_()
        table[k + 2, 1:] = (skewed[k] + best).clamp_(max=_FAR)
    return table


def _visits(table: Tensor, skewed: Tensor, smoothing: float) -> Tensor:
    """The derivative of the whole cost by each entry's: how much of all ways goes through it."""
    count, rows = skewed.shape
    visits = skewed.new_zeros((count + 2, rows + 1))
    visits[count - 1, rows - 1] = 1.0
    for k in range(count - 2, -1, -1):
        here = table[k + 2, 1:]
        total = torch.zeros_like(here)
        # The entry's successors: the next row, the next column, and both.
        total[:-1] += visits[k + 1, 1:rows] * _share(table, skewed, k + 1, 1, here[:-1], smoothing)
        total += visits[k + 1, :rows] * _share(table, skewed, k + 1, 0, here, smoothing)
        if k + 2 < count:
            total[:-1] += visits[k + 2, 1:rows] * _share(
                table, skewed, k + 2, 1, here[:-1], smoothing
            )
        visits[k, :rows] = total
    return visits[:count, :rows]


def _share(
    table: Tensor, skewed: Tensor, k: int, start: int, before: Tensor, smoothing: float
) -> Tensor:
    """How much of the ways to an antidiagonal's entries comes from those `before`."""
    best = table[k + 2, 1 + start :] - skewed[k, start:]
    return ((best - before) / smoothing).clamp_(max=0.0).exp_() * (before < _FAR)
