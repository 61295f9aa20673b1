"""Measures of a set of key steps as a summary (STEPs, section F.2, after Kaushal et al.).

The paper gives figures without their scale: compare only what was measured here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from keystep_capture.errors import DataError


def representation(features: NDArray[np.float32], chosen: NDArray[np.int64]) -> float:
    """How well every frame is stood for: mean cosine to the most alike key step's frame.

    Args:
        features: All frames, float32 (T, D).
        chosen: Indices of the key steps' frames, int (N,), N at least 1.

    Returns:
        -1 to 1; 1 where every frame looks like a chosen one.

    Raises:
        DataError: There is no frame, an index is out of range, or a feature is not finite.
    """
    rows = _units(features, chosen)
    return float((rows @ rows[chosen].T).max(axis=1).mean())


def min_disparity(features: NDArray[np.float32], chosen: NDArray[np.int64]) -> float:
    """How different the key steps are: distance of the two most alike, in feature units.

    Arguments and errors as for `representation`; infinite for a single key step.
    """
    _units(features, chosen)
    if len(chosen) < 2:
        return float("inf")
    return float(pdist(np.asarray(features[chosen], np.float64)).min())


def _units(features: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    if features.ndim != 2 or not len(features) or not len(chosen):
        raise DataError(f"expected frames and key steps, got {features.shape}, {len(chosen)}")
    if min(chosen) < 0 or max(chosen) >= len(features):
        raise DataError(f"a key step lies outside of the {len(features)} frames")
    if not np.isfinite(features).all():
        raise DataError("expected finite features: leave missing frames out")
    rows = np.asarray(features, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros_like(rows), where=length > 0))
