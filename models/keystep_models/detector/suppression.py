"""Non-maximum suppression: of boxes that overlap, only the surest stays."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES: Final = 3000
"""Boxes of a picture that are compared with each other; the surest ones."""


def surest_first(scores: NDArray[np.float64], limit: int = MAX_CANDIDATES) -> NDArray[np.int64]:
    """Indices by falling score, equal ones in their order; at most `limit`."""
    if len(scores) > limit:
        lowest = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        among = np.flatnonzero(scores >= lowest)  # ties at the end are settled by the order
    else:
        among = np.arange(len(scores))
    order = among[np.argsort(-scores[among], kind="stable")]
    return order[:limit].astype(np.int64)


def suppress(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    class_ids: NDArray[np.int64],
    *,
    iou: float,
    max_count: int,
    across_classes: bool = False,
) -> NDArray[np.int64]:
    """Which boxes stay, surest first; the same ones for the same values, always.

    Args:
        boxes: Corners, shape (N, 4), each with an area.
        scores: Shape (N,).
        class_ids: Shape (N,); boxes of different classes leave each other alone.
        iou: A box goes whose intersection with a surer one that stays, over their union, is more.
        max_count: Most that stay.
        across_classes: Compare boxes of different classes, too.

    Returns:
        Indices, shape (at most max_count,).
    """
    waiting = surest_first(scores)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(waiting) and len(kept) < max_count:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        high = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        shared = np.maximum(high - low, 0.0).prod(axis=1)
        union = areas[waiting] + areas[best] - shared
        goes = shared > iou * union
        if not across_classes:
            goes &= class_ids[waiting] == class_ids[best]
        waiting = waiting[~goes]
    return np.array(kept, np.int64)
