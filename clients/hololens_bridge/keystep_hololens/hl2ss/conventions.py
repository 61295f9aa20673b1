"""From hl2ss's conventions to ours, in one place.

hl2ss: row vectors (`p' = [x y z 1] . M`, translation in the last row), float32, 100 ns ticks;
world right-handed, metres, y up; PV camera x right, y up, looking along -z.
Ours: column vectors (`p' = M @ [x y z 1]`, translation in the last column), float64, nanoseconds;
the same world; cameras as in OpenCV, x right, y down, z ahead. Research Mode cameras have those
axes on the wire too, in the sensor's own frame, which for VLC lies on its side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.hl2ss.spatial_input import EyeRay, HeadPose

Matrix = NDArray[np.float64]

_PV_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_FILETIME_OF_UNIX_EPOCH_HNS = 116_444_736_000_000_000
_CLOCKWISE_TURNS = {
    Port.RM_VLC_LEFTFRONT: 1,
    Port.RM_VLC_RIGHTRIGHT: 1,
    Port.RM_VLC_LEFTLEFT: -1,
    Port.RM_VLC_RIGHTFRONT: -1,
}


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


# --- Research Mode -------------------------------------------------------------------------------


def camera_from_rig(extrinsics: NDArray[np.float32]) -> Matrix:
    """Turn a calibration's extrinsics (rig node -> camera or IMU) into our transform."""
    return column_matrix(extrinsics)


def world_from_rm_camera(rig_pose: NDArray[np.float32], extrinsics: NDArray[np.float32]) -> Matrix:
    """Combine an RM packet's pose (rig node -> world) with a calibration's extrinsics.

    Returns:
        `world_from_camera`, shape (4, 4), of the sensor as it is mounted: VLC on its side.
    """
    return column_matrix(rig_pose) @ np.linalg.inv(camera_from_rig(extrinsics))


def pv_camera_from_rig(extrinsics: NDArray[np.float32]) -> Matrix:
    """Turn a PV calibration's extrinsics into `camera_from_rig` with OpenCV's camera axes."""
    return _PV_FROM_OPENCV @ column_matrix(extrinsics)


def upright_vlc(picture: NDArray[np.uint8], kind: Port) -> NDArray[np.uint8]:
    """Turn a VLC picture of shape (480, 640) upright: (640, 480); chroma is to be cut off first."""
    return np.ascontiguousarray(np.rot90(picture, -_CLOCKWISE_TURNS[kind]))


def upright_turns(kind: Port) -> int:
    """Quarter turns clockwise that make a camera's picture upright, 0 to 3."""
    return _CLOCKWISE_TURNS.get(kind, 0) % 4


def sensor_from_upright(kind: Port) -> Matrix:
    """Transform a point from the upright VLC camera's axes to the sensor's, shape (4, 4)."""
    turn = float(_CLOCKWISE_TURNS[kind])
    transform = np.diag([0.0, 0.0, 1.0, 1.0])
    transform[0, 1], transform[1, 0] = turn, -turn
    return transform


def upright_camera_matrix(sensor_matrix: Matrix, kind: Port) -> Matrix:
    """Turn a VLC sensor's K, shape (3, 3), into that of the picture `upright_vlc` makes."""
    (fx, _, cx), (_, fy, cy) = sensor_matrix[:2].tolist()
    centre = (480 - 1 - cy, cx) if _CLOCKWISE_TURNS[kind] > 0 else (cy, 640 - 1 - cx)
    return camera_matrix((fy, fx), centre)


def depth_points_m(
    depth_mm: NDArray[np.uint16], uv2xy: NDArray[np.float32], scale: float = 1000.0
) -> NDArray[np.float32]:
    """Turn depth along the pixels' rays into points.

    Args:
        depth_mm: Shape (H, W), 0 where invalid.
        uv2xy: Unit-plane coordinates of the pixels, shape (H, W, 2).
        scale: Depth units per metre, from the calibration.

    Returns:
        Points in the depth camera's axes, shape (H, W, 3), float32, metres; NaN where invalid.
    """
    distance_m = np.where(depth_mm == 0, np.float32(np.nan), depth_mm / np.float32(scale))
    return unit_rays(uv2xy) * distance_m[..., None].astype(np.float32)


def unit_rays(uv2xy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the unit direction (x, y, 1) / |(x, y, 1)| of each pixel, shape (H, W, 3)."""
    ahead = np.ones((*uv2xy.shape[:2], 1), np.float32)
    rays = np.concatenate([uv2xy, ahead], axis=2)
    unit: NDArray[np.float32] = rays / np.linalg.norm(rays, axis=2, keepdims=True)
    return unit


def transform_points(transform: Matrix, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Apply one of our transforms to points of shape (..., 3)."""
    moved: NDArray[np.float64] = points @ transform[:3, :3].T + transform[:3, 3]
    return moved


def world_ray(
    ray: EyeRay, tracker_pose: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take an eye tracker's ray from tracker space to the world.

    Args:
        ray: In tracker space.
        tracker_pose: The packet's pose, tracker node -> world, row vectors, as sent.

    Returns:
        Origin (3,) in metres and unit direction (3,).
    """
    world_from_tracker = column_matrix(tracker_pose)
    direction = world_from_tracker[:3, :3] @ np.asarray(ray.direction, np.float64)
    origin = transform_points(world_from_tracker, np.asarray(ray.origin, np.float64))
    return origin, direction / np.linalg.norm(direction)


def unity_position(position_m: NDArray[np.floating]) -> tuple[float, float, float]:
    """Take a world position to Unity's left-handed axes: z turns around."""
    x, y, z = (float(value) for value in position_m)
    return x, y, -z


def unity_rotation(quaternion: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Take a world rotation (x, y, z, w) to Unity's left-handed axes."""
    x, y, z, w = (float(value) for value in quaternion)
    return -x, -y, z, w
