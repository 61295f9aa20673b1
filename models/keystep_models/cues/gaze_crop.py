"""What is around the gaze point, cut out of the colour picture for the appearance model.

The gaze ray is followed to arm's length (`REACH_M`), where hands work; the mean of the points of
the last 0.4 s is projected into the picture. Cut out is a square that spans `SIDE_M` there, 24
degrees, turned so that the world's up is up: a part looks alike from both sides of the bench and
however the head is held. Depth is not asked for: ticks do not wait for it, and not every session
has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError
from keystep_models.cues.appearance_cue import CROP, MAX_ASPECT_RATIO

CUE: Final = "gaze_appearance"
REACH_M: Final = 0.6
SIDE_M: Final = 0.25
WINDOW_S: Final = 0.4
MAX_SIDE_PX: Final = 640
"""Longer pictures are made so long first: it bounds what waits with a tick, and smooths."""
BORDER: Final = (114, 114, 114)
VERSION: Final = 1
_NEAREST_M: Final = 0.1  # before the camera
_LAST_ROW: Final = np.array([0.0, 0.0, 0.0, 1.0])
_UP_M: Final = np.array([0.0, 0.05, 0.0])

Point = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureView:
    """A colour picture and where it was seen from.

    Attributes:
        pixels: uint8 (H, W, 3), RGB; no side is longer than `MAX_SIDE_PX`.
        intrinsics: fx, fy, cx, cy of these pixels.
        world_from_camera: float64 (4, 4), m; x right, y down, z forward.
    """

    pixels: NDArray[np.uint8]
    intrinsics: tuple[float, float, float, float]
    world_from_camera: NDArray[np.float64]


class ViewMaker:
    """Makes views of frames of any size; keeps the scaler's tables: one per stream and thread."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def view(
        self,
        frame: av.VideoFrame,
        intrinsics: Sequence[float] | None,
        pose: Sequence[float] | None,
    ) -> PictureView | None:
        """Convert a frame.

        Args:
            frame: Any pixel format and size.
            intrinsics: fx, fy, cx, cy of the frame's pixels, as its packet has them.
            pose: world_from_camera row by row, 16 numbers, as its packet has it.

        Returns:
            None where the packet told no intrinsics or no pose, or they cannot be ones.

        Raises:
            ShapeError: The frame has no pixels, or sides that no camera has.
        """
        if intrinsics is None or pose is None:
            return None
        world_from_camera = np.asarray(pose, np.float64).reshape(4, 4)
        if not _is_camera(intrinsics, world_from_camera):
            return None
        width, height = frame.width, frame.height
        if min(width, height) < 1 or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ShapeError(f"expected a camera's picture, got {width} x {height} pixels")
        scale = min(1.0, MAX_SIDE_PX / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        how = Interpolation.BILINEAR if scale == 1.0 else Interpolation.AREA
        scaled = self._reformatter.reformat(frame, *size, format="rgb24", interpolation=how)
        fx, fy, cx, cy = intrinsics
        across, down = size[0] / width, size[1] / height
        return PictureView(
            pixels=np.asarray(scaled.to_ndarray(), np.uint8),
            intrinsics=(
                fx * across, fy * down, (cx + 0.5) * across - 0.5, (cy + 0.5) * down - 0.5
            ),
            world_from_camera=world_from_camera,
        )  # fmt: skip


class GazePoint:
    """Where the wearer looks, tick after tick: the mean of the last 0.4 s."""

    def __init__(self, rate_hz: float) -> None:
        """Start before the first tick, of `rate_hz` ticks a second."""
        self._last: deque[Point | None] = deque(maxlen=1 + round(WINDOW_S * rate_hz))

    def see(self, ray: NDArray[np.floating] | None) -> Point | None:
        """Take a tick.

        Args:
            ray: Origin and direction in the world, (2, 3); None where there is none.

        Returns:
            float64 (3,), m in the world; None where this tick has no gaze. Ticks of the last 0.4 s
            without any are left out of the mean.
        """
        point = _at_reach(ray)
        self._last.append(point)
        if point is None:
            return None
        known = [each for each in self._last if each is not None]
        return np.asarray(np.mean(known, axis=0), np.float64)

    def forget(self) -> None:
        """The next tick does not follow the last one (a gap)."""
        self._last.clear()

    def snapshot(self) -> list[list[float] | None]:
        """What the next tick needs, as values that JSON holds exactly."""
        return [None if point is None else point.tolist() for point in self._last]

    def restore(self, snapshot: Sequence[Sequence[float] | None]) -> None:
        """Go on from a `snapshot`; ValueError or TypeError where it is malformed."""
        points = [None if p is None else np.array(p, np.float64).reshape(3) for p in snapshot]
        self._last = deque(points, maxlen=self._last.maxlen)


def cut_around(view: PictureView, point: Point) -> NDArray[np.uint8] | None:
    """Cut out what is around a point.

    Args:
        view: The picture.
        point: In the world, float64 (3,), m.

    Returns:
        uint8 (224, 224, 3), RGB; what lies beyond the picture is grey. None where the point
        itself does: then there is mostly grey.
    """
    camera_from_world = np.asarray(np.linalg.inv(view.world_from_camera), np.float64)
    place, distance_m = _project(view, camera_from_world, point)
    if place is None:
        return None
    height, width = view.pixels.shape[:2]
    if not (-0.5 <= place[0] < width - 0.5 and -0.5 <= place[1] < height - 0.5):
        return None
    above, _ = _project(view, camera_from_world, point + _UP_M)
    turn = 0.0 if above is None else np.arctan2(above[0] - place[0], place[1] - above[1])
    step = view.intrinsics[0] * SIDE_M / distance_m / CROP  # pixels of the picture per one of ours
    cosine, sine = step * np.cos(turn), step * np.sin(turn)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    corner = place - linear @ np.full(2, (CROP - 1) / 2)
    return np.asarray(
        cv2.warpAffine(
            view.pixels,
            np.column_stack([linear, corner]),
            (CROP, CROP),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=BORDER,
        ),
        np.uint8,
    )


def _project(
    view: PictureView, camera_from_world: NDArray[np.float64], point: Point
) -> tuple[Point | None, float]:
    """Place in the picture, (2,), None where there is none, and distance along the axis, m."""
    x, y, z = camera_from_world[:3, :3] @ point + camera_from_world[:3, 3]
    if not z > _NEAREST_M:
        return None, float(z)
    fx, fy, cx, cy = view.intrinsics
    return np.array([fx * x / z + cx, fy * y / z + cy]), float(z)


def _at_reach(ray: NDArray[np.floating] | None) -> Point | None:
    if ray is None:
        return None
    origin, direction = np.asarray(ray, np.float64)
    length = float(np.linalg.norm(direction))
    if not (np.isfinite(origin).all() and np.isfinite(length) and length > 1e-6):
        return None
    return np.asarray(origin + REACH_M * direction / length, np.float64)


def _is_camera(intrinsics: Sequence[float], world_from_camera: NDArray[np.float64]) -> bool:
    if len(intrinsics) != 4 or not np.isfinite([*intrinsics, *world_from_camera.flat]).all():
        return False
    if min(intrinsics[:2]) <= 0 or not np.array_equal(world_from_camera[3], _LAST_ROW):
        return False
    turn = world_from_camera[:3, :3]
    if np.abs(turn).max() > 1.1:  # before it is multiplied: numbers may be as large as they come
        return False
    is_rigid = np.allclose(turn @ turn.T, np.eye(3), rtol=0, atol=0.05)
    return is_rigid and float(np.linalg.det(turn)) > 0
