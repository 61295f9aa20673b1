"""The headset's cameras: where they sit, and how sharp their pictures are.

The colour camera has about the field of view of a HoloLens 2's (64.7 degrees wide); depth is a
pinhole of about the long-throw camera's focal length, at half or full size. Mounting is invented.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keystep_capture.simulation.geometry import Array, euler, pose


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A pinhole camera in OpenCV's axes; `focal_px` holds for both directions."""

    width: int
    height: int
    focal_px: float
    head_from_camera: Array

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels; a pixel's centre has whole coordinates."""
        return self.focal_px, self.focal_px, (self.width - 1) / 2, (self.height - 1) / 2

    @property
    def fov_y_rad(self) -> float:
        """Vertical field of view."""
        return float(2 * np.arctan(self.height / 2 / self.focal_px))

    def rays(self) -> tuple[Array, Array]:
        """Unit-plane x (W,) and y (H,) of the pixels, y down."""
        _, _, cx, cy = self.intrinsics
        x = (np.arange(self.width, dtype=np.float64) - cx) / self.focal_px
        y = (np.arange(self.height, dtype=np.float64) - cy) / self.focal_px
        return x, y


_OPENCV = np.diag([1.0, -1.0, -1.0])
COLOUR_MOUNT = pose((0.0, 0.03, -0.06), euler(3.0, 0, 0) @ _OPENCV)
DEPTH_MOUNT = pose((0.0, 0.045, -0.06), euler(-2.0, 0, 0) @ _OPENCV)


def colour_camera(width: int, height: int) -> Camera:
    """The colour camera at a size."""
    focal_px = width / 2 / np.tan(np.radians(64.7 / 2))
    return Camera(
        width=width, height=height, focal_px=float(focal_px), head_from_camera=COLOUR_MOUNT
    )


def depth_camera(scale: float) -> Camera:
    """The long-throw depth camera: 320x288 at scale 1."""
    return Camera(
        width=round(320 * scale), height=round(288 * scale), focal_px=178.0 * scale,
        head_from_camera=DEPTH_MOUNT,
    )  # fmt: skip
