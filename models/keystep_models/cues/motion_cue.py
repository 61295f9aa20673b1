"""The motion cue: a descriptor of dense optical flow between two pictures, on the CPU.

DIS optical flow (Kroeger et al., ECCV 2016; OpenCV's) between small grey pictures; for each of
4 x 4 cells a histogram of the flow's direction in 8 bins, weighted by its length: 128 values, as
many as RAFT's pooled features have. The camera's own movement is left in: where the wearer turns to
is part of what happens.
"""

from __future__ import annotations

from typing import Final

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

WIDTH: Final = 160
HEIGHT: Final = 96
CELLS: Final = 4
BINS: Final = 8
SIZE: Final = CELLS * CELLS * BINS
VERSION: Final = 1


class MotionPreprocessing:
    """Makes frames of any size the small grey pictures that flow is taken between.

    It keeps the scaler's tables between calls: one object per stream and thread.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_video_frame(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Scale a frame of any pixel format and size: uint8 (96, 160)."""
        small = self._reformatter.reformat(
            frame, WIDTH, HEIGHT, format="gray", interpolation=Interpolation.AREA
        ).to_ndarray()
        return np.asarray(small, np.uint8)


class MotionCue:
    """Describes the motion from each small picture to the next; one object per video."""

    def __init__(self) -> None:
        """Start before the first picture."""
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.before: NDArray[np.uint8] | None = None
        """The last picture, uint8 (96, 160); None where the next one does not follow it."""

    def forget(self) -> None:
        """The next picture does not follow the last one (a gap)."""
        self.before = None

    def see(self, small: NDArray[np.uint8], *, describe: bool = True) -> NDArray[np.float32] | None:
        """Take a picture.

        Args:
            small: Of `MotionPreprocessing`.
            describe: False only remembers the picture.

        Returns:
            The motion since the picture before, float32 (128,), logarithm of 1 + pixels (of 160
            across the picture) per cell and direction; None for the first picture.
        """
        before, self.before = self.before, small
        if before is None or not describe:
            return None
        flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
        return describe_flow(np.asarray(self._flow.calc(before, small, flow), np.float32))


def describe_flow(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Histograms of a flow field, (H, W, 2) in pixels: float32 (128,).

    Cells row by row, in each the directions counter-clockwise from +x (right), y down.
    """
    length = np.hypot(flow[..., 0], flow[..., 1])
    angle = np.arctan2(-flow[..., 1], flow[..., 0])
    place = (angle / (2 * np.pi) * BINS) % BINS
    lower = np.floor(place).astype(np.int64) % BINS
    share = (place - np.floor(place)).astype(np.float64)
    height, width = length.shape
    row = np.arange(height)[:, None] * CELLS // height
    column = np.arange(width)[None, :] * CELLS // width
    cell = row * CELLS + column
    total = np.zeros(SIZE)
    for bins, weight in ((lower, 1.0 - share), ((lower + 1) % BINS, share)):
        total += np.bincount((cell * BINS + bins).ravel(), (length * weight).ravel(), SIZE)
    pixels = np.bincount(cell.ravel(), minlength=CELLS * CELLS).repeat(BINS)
    return np.log1p(total / pixels).astype(np.float32)
