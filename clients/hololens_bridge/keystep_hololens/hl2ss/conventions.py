"""From hl2ss's conventions to ours, in one place.

hl2ss: row vectors (`p' = [x y z 1] . M`, translation in the last row), float32, 100 ns ticks;
world right-handed, metres, y up; PV camera x right, y up, looking along -z.
Ours: column vectors (`p' = M @ [x y z 1]`, translation in the last column), float64, nanoseconds;
the same world; cameras as in OpenCV, x right, y down, z ahead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss.spatial_input import EyeRay, HeadPose

Matrix = NDArray[np.float64]

_PV_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_FILETIME_OF_UNIX_EPOCH_HNS = 116_444_736_000_000_000


def device_time_ns(timestamp_hns: int) -> int:
    """Convert 100 ns ticks since boot to nanoseconds since boot."""
    return timestamp_hns * 100


def unix_time_ns(timestamp_hns: int, utc_offset_hns: int) -> int:
    """Convert ticks since boot to Unix time, given the headset's offset to FILETIME."""
    return (timestamp_hns + utc_offset_hns - _FILETIME_OF_UNIX_EPOCH_HNS) * 100


def column_matrix(row_matrix: NDArray[np.float32]) -> Matrix:
    """Turn a row-vector transform of shape (4, 4) into ours."""
    return np.array(row_matrix, np.float64).T


def row_matrix(column_matrix: Matrix) -> NDArray[np.float32]:
    """Turn one of our transforms of shape (4, 4) into hl2ss's."""
    return np.ascontiguousarray(column_matrix.T, np.float32)


def world_from_camera(pv_pose: NDArray[np.float32]) -> Matrix:
    """Turn a PV packet's pose into `world_from_camera` with OpenCV's camera axes."""
    return column_matrix(pv_pose) @ _PV_FROM_OPENCV


def pv_pose(world_from_camera: Matrix) -> NDArray[np.float32]:
    """Turn `world_from_camera` (OpenCV axes) into the pose of a PV packet."""
    return row_matrix(world_from_camera @ _PV_FROM_OPENCV)


def camera_matrix(focal_length_px: tuple[float, float], centre_px: tuple[float, float]) -> Matrix:
    """Build OpenCV's K, shape (3, 3); hl2ss sends the same focal lengths, positive."""
    (fx, fy), (cx, cy) = focal_length_px, centre_px
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pv_projection(
    focal_length_px: tuple[float, float], centre_px: tuple[float, float]
) -> NDArray[np.float32]:
    """Build hl2ss's row-vector projection; divide its result by z to get pixels."""
    (fx, fy), (cx, cy) = focal_length_px, centre_px
    rows = [[-fx, 0, 0, 0], [0, fy, 0, 0], [cx, cy, 1, 0], [0, 0, 0, 1]]
    return np.array(rows, np.float32)


def world_from_head(head: HeadPose) -> Matrix:
    """Build the head's transform, shape (4, 4): columns right, up, back, position.

    right = cross(up, -forward). Axes are taken as sent: float32, so orthonormal to about 1e-6.
    """
    back = -np.asarray(head.forward, np.float64)
    up = np.asarray(head.up, np.float64)
    transform = np.eye(4)
    transform[:3, 0] = np.cross(up, back)
    transform[:3, 1] = up
    transform[:3, 2] = back
    transform[:3, 3] = head.position
    return transform


def head_pose(world_from_head: Matrix) -> HeadPose:
    """Turn `world_from_head` (columns right, up, back, position) into what hl2ss sends."""
    columns = world_from_head[:3].astype(np.float32)
    return HeadPose(position=columns[:, 3], forward=-columns[:, 2], up=columns[:, 1])


def world_eye_ray(eye: EyeRay) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the gaze ray in the world: origin (3,) in metres and unit direction (3,)."""
    direction = np.asarray(eye.direction, np.float64)
    return np.asarray(eye.origin, np.float64), direction / np.linalg.norm(direction)
