"""The windows of the BMC2 loss: which frames are an anchor frame's positives (STEPs, section 3.3).

Distances between raw features are a matrix product in single precision; the few pairs that lie too
near their threshold for it are worked out again in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_PRODUCT_ERROR = 2e-6
"""Bound of the error of a squared distance, of the features' own square (single precision).

Measured at most 2.0e-6 over features of 48 to 2048 values, normal, heavy-tailed and alike."""
_SUM_ERROR = 5e-7
"""Relative bound of the error of a threshold beside that of its distances."""
_ROWS = 128
_PAIRS = 1024


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


def bootstrapped_window(features: Tensor, near: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pairs of frames that look as alike as frames of one moment do (W' of the paper).

    A frame's threshold is the mean distance to the other frames of its temporal window; each frame
    is standardised over its features first. A frame whose features are all equal has no window.

    Args:
        features: Raw features, float [N, D].
        near: The temporal window, bool [N, N].
        valid: False where a frame's features are missing, bool [N]; such a frame has no window
            and is in none.

    Returns:
        bool [N, N], the diagonal false; not symmetric, row i is the anchor's.
    """
    if valid is not None and not valid.all():
        there = valid.nonzero()[:, 0]
        pairs = there[:, None], there[None, :]
        sampled = torch.zeros_like(near)
        if len(there):
            sampled[pairs] = bootstrapped_window(features[there], near[pairs])
        return sampled
    standard = features - features.mean(-1, keepdim=True)
    # The sample deviation; torch.std takes twenty times as long
    length = torch.linalg.vector_norm(standard, dim=-1, keepdim=True)
    standard.div_(length / math.sqrt(standard.shape[-1] - 1))
    distance = _distances(standard)
    near = near.clone().fill_diagonal_(False)
    sampled = torch.empty_like(near)
    square_error = standard.shape[-1] * _PRODUCT_ERROR
    doubtful = [
        _compare(distance, near, sampled, start, square_error)
        for start in range(0, len(distance), _ROWS)
    ]
    pairs_in_doubt = torch.cat(doubtful)
    if len(pairs_in_doubt):
        _decide_exactly(sampled, pairs_in_doubt, standard, near)
    return sampled.fill_diagonal_(False)


def _distances(standard: Tensor) -> Tensor:
    """Euclidean distances [N, N]; symmetric, so blocks below the diagonal are copied."""
    square = torch.linalg.vector_norm(standard, dim=-1).square_()
    count = len(standard)
    distance = standard.new_empty(count, count)
    for top in range(0, count, _ROWS):
        rows = slice(top, top + _ROWS)
        block = torch.addmm(square[None, top:], standard[rows], standard[top:].T, alpha=-2.0)
        distance[rows, top:] = block.add_(square[rows, None]).clamp_min_(0.0).sqrt_()
        distance[top + _ROWS :, rows] = distance[rows, top + _ROWS :].T
    return distance


def _compare(
    distance: Tensor, near: Tensor, sampled: Tensor, start: int, square_error: float
) -> Tensor:
    """Compare a block of rows with their thresholds into `sampled`; the pairs in doubt, [M, 2].

    A squared distance is wrong by `square_error` at most, so a distance d by the smaller of
    its root and square_error / 2 d, and a threshold by the mean of that over its frames.
    """
    rows = slice(start, start + _ROWS)
    own, root = distance[rows], math.sqrt(square_error)
    beside = near[rows].to(own.dtype)
    neighbours = beside.sum(-1) + 1e-8
    threshold = (own * beside).sum(-1) / neighbours
    wrong_by = (beside / own.clamp_min(root / 2)).sum(-1) * (square_error / 2 / neighbours)
    gap = own - threshold[:, None]
    torch.le(gap, 0.0, out=sampled[rows])
    # A pair near its threshold has a distance of about the threshold
    of_pairs = torch.where(threshold > 4 * root, 0.6 * square_error / threshold, 8 * root)
    error = wrong_by + of_pairs + _SUM_ERROR * threshold
    doubtful = gap.abs_() < error[:, None]
    doubtful.diagonal(start).fill_(False)
    pairs = doubtful.nonzero()
    pairs[:, 0] += start
    return pairs


def _decide_exactly(sampled: Tensor, doubtful: Tensor, standard: Tensor, near: Tensor) -> None:
    """Settle pairs [M, 2], in order of their rows, in double precision."""
    square = torch.cat([block.double().square_().sum(-1) for block in standard.split(_ROWS)])
    rows, places = doubtful[:, 0].unique_consecutive(return_inverse=True)
    beside = near[rows].double()
    counts = beside.sum(-1)
    times = torch.arange(near.shape[1], device=near.device)
    first = torch.where(near[rows], times, near.shape[1]).amin(-1).tolist()
    last = torch.where(near[rows], times, -1).amax(-1).tolist()
    totals = []
    for place, row in enumerate(rows.tolist()):
        span = slice(first[place], last[place] + 1)  # neighbours in time mostly lie side by side
        product = standard[span].double() @ standard[row].double()
        distance = product.mul_(-2.0).add_(square[span]).add_(square[row])
        totals.append(distance.clamp_min_(0.0).sqrt_().dot(beside[place, span]))
    threshold = torch.stack(totals) / (counts + 1e-8)
    for chunk in range(0, len(doubtful), _PAIRS):
        pairs = slice(chunk, chunk + _PAIRS)
        i, j = doubtful[pairs].unbind(-1)
        distance = (standard[i].double() - standard[j].double()).norm(dim=-1)
        sampled[i, j] = distance <= threshold[places[pairs]]
