"""A simulated room and a wearer in it: what depth, grey cameras, IMU and eye tracker see.

Nothing here is measured. A level table with a checkerboard, a wall behind it, and a hand (a ball)
that circles above the table; the head sways before it. Equal seeds give equal rooms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss.conventions import Matrix
from keystep_hololens.simulator.rig import Rig

TABLE_BELOW_ORIGIN_M = 0.45
WALL_AHEAD_M = 2.5
HAND_RADIUS_M = 0.06
GRAVITY_MPS2 = 9.80665
MAGNETIC_FIELD = (0.0, -0.4, -0.2)
"""Gauss-like, in the world; the wire's unit is not documented."""
_DEPTH_NOISE_M = 0.001
_CHECKER_M = 0.1
_TABLE_SHADE, _CHECKER_CONTRAST, _WALL_SHADE, _HAND_SHADE = map(np.float32, (0.4, 0.4, 0.5, 0.9))
_LOOKS_DOWN_DEG = 30.0

HeadAt = Callable[[float], Matrix | None]
"""Seconds of playback to `world_from_head` (right, up, back, position); None where not known."""


def swaying_head(time_s: float) -> Matrix:
    """Move a head about the world's origin: it looks down at the table, and turns a little."""
    pitch = np.radians(-_LOOKS_DOWN_DEG + 3 * np.sin(2 * np.pi * time_s / 7))
    yaw = np.radians(8 * np.sin(2 * np.pi * time_s / 11))
    world_from_head = np.eye(4)
    world_from_head[:3, :3] = (
        cv2.Rodrigues(np.array([0.0, yaw, 0.0]))[0] @ cv2.Rodrigues(np.array([pitch, 0.0, 0.0]))[0]
    )
    world_from_head[:3, 3] = [
        0.03 * np.sin(2 * np.pi * time_s / 5),
        0.01 * np.sin(2 * np.pi * time_s / 3),
        0.02 * np.sin(2 * np.pi * time_s / 13),
    ]
    return world_from_head


class View(NamedTuple):
    """What each pixel's ray meets: distance along it, (H, W) float32, metres; and its shade."""

    distance_m: NDArray[np.float32]
    shade: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The room, and how the wearer's head moves through it.

    Attributes:
        head_at: The head over playback time; heights and distances are from the world's origin.
        rig: Where the sensors sit.
    """

    seed: int = 0
    head_at: HeadAt = swaying_head
    rig: Rig = field(default_factory=Rig)

    def hand_position_m(self, time_s: float) -> NDArray[np.float64]:
        """Return the centre of the hand in the world, shape (3,)."""
        angle = 2 * np.pi * (time_s / 4 + (self.seed % 17) / 17)
        return np.array([0.12 * np.cos(angle), -0.30, -0.45 + 0.08 * np.sin(angle)])

    def look(self, world_from_camera: Matrix, rays: NDArray[np.float32], time_s: float) -> View:
        """Cast rays of shape (H, W, 3), unit, in the camera's axes.

        Table, wall and hand hide each other as they should; where a ray meets none of them the
        distance is 0.
        """
        directions = rays @ world_from_camera[:3, :3].T.astype(np.float32)
        origin = world_from_camera[:3, 3].astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            table = _ahead((np.float32(-TABLE_BELOW_ORIGIN_M) - origin[1]) / directions[..., 1])
            wall = _ahead((np.float32(-WALL_AHEAD_M) - origin[2]) / directions[..., 2])
            hand = _ahead(_meet_ball(origin, directions, self.hand_position_m(time_s)))
        distance = np.minimum(np.minimum(table, wall), hand)
        seen = np.isfinite(distance)
        distance[~seen] = 0
        squares = [
            np.floor((origin[axis] + directions[..., axis] * distance) / np.float32(_CHECKER_M))
            for axis in (0, 2)
        ]
        shade = _TABLE_SHADE + _CHECKER_CONTRAST * np.mod(squares[0] + squares[1], 2)
        shade[wall == distance] = _WALL_SHADE
        shade[hand == distance] = _HAND_SHADE
        shade[~seen] = 0
        return View(distance, shade)

    def noise(self, frame_idx: int) -> np.random.Generator:
        """Return the random numbers of one frame; the same for the same room."""
        return np.random.default_rng((self.seed, frame_idx))

    def noisy_depth_mm(self, view: View, frame_idx: int, *, reach_m: float) -> NDArray[np.uint16]:
        """Turn distances into what a depth camera says; 0 beyond its reach."""
        noise = self.noise(frame_idx).standard_normal(view.distance_m.shape, np.float32)
        depth_mm = np.rint((view.distance_m + noise * np.float32(_DEPTH_NOISE_M)) * 1000)
        invalid = (view.distance_m <= 0) | (view.distance_m > reach_m)
        depth_mm = np.clip(depth_mm, 1, 65535)
        depth_mm[invalid] = 0
        planes: NDArray[np.uint16] = depth_mm.astype(np.uint16)
        return planes

    def active_brightness(self, view: View) -> NDArray[np.uint16]:
        """Return how much of its own light a depth camera sees: falls with distance squared."""
        lit = 1000 * view.shade / np.maximum(view.distance_m, 0.1) ** 2
        brightness: NDArray[np.uint16] = np.minimum(lit, 65535).astype(np.uint16)
        return brightness


def _ahead(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace distances behind the camera, and those of rays that miss, by infinity."""
    distance[~(distance > 0)] = np.inf
    return distance


def _meet_ball(
    origin: NDArray[np.float32], directions: NDArray[np.float32], centre: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Distance along unit rays to the hand, NaN where they miss it."""
    to_centre = centre.astype(np.float32) - origin
    along = directions @ to_centre
    beside_squared = to_centre @ to_centre - along**2
    distance: NDArray[np.float32] = along - np.sqrt(np.float32(HAND_RADIUS_M**2) - beside_squared)
    return distance
