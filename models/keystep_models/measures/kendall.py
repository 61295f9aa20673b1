"""Kendall's tau: whether features run through two videos of a task in the same order.

STEPs, section I.4, equation 3. For videos in which the steps have one order only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

_BLOCK = 1024


def alignment_tau(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Tau of the nearest neighbours in the second video of the first one's frames.

    Pairs of frames whose neighbours are the same frame count as neither concordant nor discordant.

    Args:
        first: Features, float32 (T, D), T at least 2.
        second: Features, float32 (S, D).

    Returns:
        (concordant - discordant) / (T choose 2), -1 to 1.

    Raises:
        DataError: Sizes do not fit, or a feature is not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(f"features have shapes {first.shape} and {second.shape}")
    if len(first) < 2 or not len(second):
        raise DataError(f"expected at least 2 frames and 1, got {len(first)} and {len(second)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("expected finite features: leave missing frames out")
    nearest = _nearest(first, second)
    balance = 0
    for frame in range(len(nearest) - 1):
        balance += int(np.sign(nearest[frame + 1 :] - nearest[frame]).sum())
    return balance / (len(nearest) * (len(nearest) - 1) / 2)


def kendalls_tau(features: Sequence[NDArray[np.float32]]) -> float:
    """Mean of `alignment_tau` over all ordered pairs of videos.

    Raises:
        DataError: Fewer than two videos, or as `alignment_tau`.
    """
    if len(features) < 2:
        raise DataError(f"Kendall's tau compares videos: expected 2 or more, got {len(features)}")
    return float(np.mean([alignment_tau(a, b) for a, b in itertools.permutations(features, 2)]))


def _nearest(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index in `second` of each row's nearest one, the first of equally near ones."""
    target = second.astype(np.float64)
    square = np.einsum("td,td->t", target, target)
    found = [
        np.argmin(square - 2.0 * (first[start : start + _BLOCK].astype(np.float64) @ target.T), 1)
        for start in range(0, len(first), _BLOCK)
    ]
    return np.concatenate(found)
