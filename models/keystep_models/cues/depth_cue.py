"""Depth as a picture, so that an appearance model can look at it (STEPs, section A.1).

Near is bright, on a logarithmic scale: a hand's width is told apart at arm's length, walls are not.
"""

from __future__ import annotations

from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

NEAR_M: Final = 0.2
FAR_M: Final = 4.0
MIN_COVERAGE: Final = 0.25
"""An image with less of its pixels measured is missing."""
VERSION: Final = 1


def depth_picture(depth_m: NDArray[np.floating] | None) -> av.VideoFrame | None:
    """Render a depth image.

    Args:
        depth_m: Shape (H, W), m; 0 or not finite where nothing was measured.

    Returns:
        Grey in three channels, rgb24. Holes take the value of the nearest measured pixel: they
        are neither far nor near, and make no edges of their own. None without an image, or one of
        which less than a quarter was measured.
    """
    if depth_m is None or depth_m.ndim != 2 or not depth_m.size:
        return None
    depth = np.asarray(depth_m, np.float32)
    measured = np.isfinite(depth) & (depth > 0)
    if measured.mean() < MIN_COVERAGE:
        return None
    span = np.log(FAR_M / NEAR_M)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log(depth / NEAR_M) / span
    grey = np.where(measured, 255.0 * (1.0 - np.clip(place, 0.0, 1.0)), 0.0)
    pixels = np.rint(grey).astype(np.uint8)
    if not measured.all():
        pixels = _filled(pixels, measured)
    return av.VideoFrame.from_ndarray(np.repeat(pixels[..., None], 3, axis=2), format="rgb24")


def _filled(pixels: NDArray[np.uint8], measured: NDArray[np.bool_]) -> NDArray[np.uint8]:
    holes = np.logical_not(measured).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        holes, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(int(nearest.max()) + 1, np.uint8)
    values[nearest[measured]] = pixels[measured]
    return np.asarray(values[nearest], np.uint8)
