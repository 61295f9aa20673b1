"""The appearance cue: a frame's pixels as the committed EfficientNet-Lite0 wants them.

One swscale call converts and scales a frame to a short side of 256 pixels, then the middle
224 x 224 are copied out (centre crop 0.875, the network's ImageNet evaluation crop). The scaler
writes planes (`gbrp`): the same pixels as its slower packed RGB output at half the CPU time,
0.8 ms for a 1280 x 720 frame. Normalisation is inside the ONNX graph.
"""

from pathlib import Path
from typing import Any, Final, cast

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError

RESIZE_SHORT_SIDE: Final = 256
CROP: Final = 224
EMBEDDING_SIZE: Final = 1280
# A frame longer than this many times its height is no camera's; scaling one up fills the memory.
MAX_ASPECT_RATIO: Final = 8

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Scaling in other threads costs more CPU than it saves time at this size. PyAV before 16 has no
# such parameter and uses one thread.
_ONE_THREAD: Final[dict[str, Any]] = (
    {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
)


def appearance_manifest_path() -> Path:
    """Return the committed manifest; the ONNX file it names lies beside it."""
    return Path(__file__).parent / "appearance" / "manifest.json"


class AppearancePreprocessing:
    """Turns frames of any size into the network's (224, 224, 3) uint8 RGB input.

    It keeps the scaler's tables between calls, so give each stream (and each thread) its own.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_video_frame(self, frame: av.VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write a decoded frame's centre into `out`.

        Args:
            frame: Any pixel format that swscale reads (yuv420p from a decoder), any size. Its
                colour space and range are honoured.
            out: Where the pixels go, shape (224, 224, 3), uint8, C-contiguous, RGB; one row of
                a batch, say.

        Raises:
            ShapeError: `out` is not as described, or the frame has no pixels or is more than
                eight times as long in one direction as in the other.
        """
        _check_out(out)
        width, height = _scaled_size(frame.width, frame.height)
        scaled = self._reformatter.reformat(
            frame, width, height, format="gbrp", interpolation=_SCALING, **_ONE_THREAD
        )
        green, blue, red = (_centre(plane) for plane in scaled.planes)
        cv2.merge((red, green, blue), out)

    def from_rgb(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Write an RGB image's centre into `out`, through the same scaler as a video frame.

        Args:
            image: Shape (H, W, 3), uint8, RGB.
            out: As for `from_video_frame`.

        Raises:
            ShapeError: `image` or `out` is not as described.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(
                f"expected an RGB image of shape (H, W, 3), uint8; got {image.shape}, {image.dtype}"
            )
        _scaled_size(image.shape[1], image.shape[0])
        pixels = np.ascontiguousarray(image)
        self.from_video_frame(av.VideoFrame.from_numpy_buffer(pixels, "rgb24"), out)

    @staticmethod
    def manifest_entry(*, mean: float, scale: float) -> dict[str, Any]:
        """Return the manifest's `preprocessing` table, the record of what this class does."""
        return {
            "colour": "rgb",
            "resize_short_side": RESIZE_SHORT_SIDE,
            "crop": CROP,
            "interpolation": "bicubic",
            "mean": mean,
            "scale": scale,
            "normalised_in_graph": True,
        }


def _check_out(out: NDArray[np.uint8]) -> None:
    if out.shape != (CROP, CROP, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        layout = "contiguous" if out.flags.c_contiguous else "strided"
        raise ShapeError(
            f"expected a contiguous uint8 buffer of shape {(CROP, CROP, 3)}; "
            f"got {layout} {out.dtype} {out.shape}"
        )
    if not out.flags.writeable:
        raise ShapeError("expected a writeable buffer; got a read-only one")


def _scaled_size(width: int, height: int) -> tuple[int, int]:
    """Return (width, height) with the short side 256 and the aspect ratio kept."""
    short, long = sorted((width, height))
    if short < 1 or long > MAX_ASPECT_RATIO * short:
        raise ShapeError(
            f"expected a frame with sides of at most {MAX_ASPECT_RATIO}:1; got {width} x {height}"
        )
    return round(width * RESIZE_SHORT_SIDE / short), round(height * RESIZE_SHORT_SIDE / short)


def _centre(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    """View the middle (224, 224) of a plane, skipping the padding at its rows' ends."""
    # A plane is a buffer; PyAV's type stubs do not say so.
    pixels: NDArray[np.uint8] = np.frombuffer(cast(Any, plane), np.uint8)
    rows = pixels.reshape(plane.height, plane.line_size)
    top, left = (plane.height - CROP) // 2, (plane.width - CROP) // 2
    return rows[top : top + CROP, left : left + CROP]
