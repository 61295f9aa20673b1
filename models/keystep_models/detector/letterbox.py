"""Fits a picture into a detector's input and brings its boxes back, right at the pixel.

Coordinates are continuous: pixel i covers [i, i + 1), and a picture of width W reaches from 0 to W.

The convention is that of the ultralytics exporters: the picture is scaled by the smaller of the two
ratios, its sides are rounded to whole pixels, and what is left over is split in two; where it is
odd, the smaller half lies above and to the left. Boxes come back with the scale that was really
applied on each axis (rounded side / side); ultralytics divides by the unrounded ratio, which is up
to half a pixel of the input off at the far edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError

Fit: TypeAlias = Literal["letterbox", "corner", "stretch"]
"""Split padding, all padding below and to the right, or none: both axes scaled on their own."""

Scaling: TypeAlias = Literal["bilinear", "area", "bicubic"]

MAX_PICTURE_SIDE: Final = 16_384

_FLAGS: Final[dict[Scaling, Interpolation]] = {
    "bilinear": Interpolation.BILINEAR,
    "area": Interpolation.AREA,
    "bicubic": Interpolation.BICUBIC,
}
_EXACT: Final = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# PyAV before 16 has no such parameter and uses one thread.
_ONE_THREAD: Final[dict[str, Any]] = (
    {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a picture lies in the input.

    Attributes:
        picture_size: Width and height of the picture, pixels.
        left: First column of the input that holds the picture.
        top: First row.
        width: Columns that hold it.
        height: Rows that hold it.
    """

    picture_size: tuple[int, int]
    left: int
    top: int
    width: int
    height: int

    def to_picture(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes in the input as boxes in the picture, unclipped.

        Args:
            boxes: x1, y1, x2, y2 of each, pixels of the input, shape (N, 4).
        """
        scale_x, scale_y = self.picture_size[0] / self.width, self.picture_size[1] / self.height
        offset = np.array([self.left, self.top] * 2, np.float64)
        found: NDArray[np.float64] = (boxes - offset) * np.array([scale_x, scale_y] * 2)
        return found

    def to_input(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The reverse of `to_picture`."""
        scale_x, scale_y = self.width / self.picture_size[0], self.height / self.picture_size[1]
        offset = np.array([self.left, self.top] * 2, np.float64)
        found: NDArray[np.float64] = boxes * np.array([scale_x, scale_y] * 2) + offset
        return found


def place(width: int, height: int, input_width: int, input_height: int, fit: Fit) -> Placement:
    """Say where a picture of width x height goes in an input.

    Raises:
        ShapeError: The picture has no pixels or sides that no camera has.
    """
    if min(width, height) < 1 or max(width, height) > MAX_PICTURE_SIDE:
        raise ShapeError(
            f"expected a picture with sides of 1 to {MAX_PICTURE_SIDE} pixels, "
            f"got {width} x {height}"
        )
    if fit == "stretch":
        inner_width, inner_height = input_width, input_height
    else:
        ratio = min(input_width / width, input_height / height)
        inner_width = min(max(round(width * ratio), 1), input_width)
        inner_height = min(max(round(height * ratio), 1), input_height)
    split = fit == "letterbox"
    return Placement(
        picture_size=(width, height),
        left=(input_width - inner_width) // 2 if split else 0,
        top=(input_height - inner_height) // 2 if split else 0,
        width=inner_width,
        height=inner_height,
    )


class Scaler:
    """Scales frames to the part of the input that they fill, as planes of red, green and blue.

    It keeps the scaler's tables between calls, so give each stream (and each thread) its own.
    """

    def __init__(self, scaling: Scaling = "bilinear") -> None:
        self._flags = _FLAGS[scaling] | _EXACT
        self._reformatter = VideoReformatter()

    def planes(self, frame: av.VideoFrame, placement: Placement) -> tuple[NDArray[np.uint8], ...]:
        """The picture's red, green and blue planes, (height, width) of the placement each.

        They are views of the scaler's output; one call of swscale converts and scales, honouring
        the frame's colour space and range.

        Raises:
            ShapeError: swscale cannot scale such a picture.
        """
        try:
            scaled = self._reformatter.reformat(
                frame,
                placement.width,
                placement.height,
                format="gbrp",
                interpolation=self._flags,
                **_ONE_THREAD,
            )
        except (ValueError, OSError) as error:
            raise ShapeError(
                f"cannot scale a {frame.format.name} picture of {frame.width} x {frame.height} to "
                f"{placement.width} x {placement.height}: {error}"
            ) from error
        green, blue, red = (_pixels(plane) for plane in scaled.planes)
        return red, green, blue


def _pixels(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    """View a plane without the padding at its rows' ends."""
    # A plane is a buffer; PyAV's type stubs do not say so.
    pixels: NDArray[np.uint8] = np.frombuffer(cast(Any, plane), np.uint8)
    return pixels.reshape(plane.height, plane.line_size)[:, : plane.width]
