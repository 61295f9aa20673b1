from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from keystep_hololens.hl2ss import conventions
from keystep_hololens.hl2ss.spatial_input import EyeRay, HeadPose

angles = st.floats(-3, 3)
FOCAL, CENTRE = (500.0, 510.0), (320.0, 180.0)


def rigid(rotation: list[float], translation: list[float]) -> NDArray[np.float64]:
    transform = np.eye(4)
    transform[:3, :3] = cv2.Rodrigues(np.array(rotation))[0]
    transform[:3, 3] = translation
    return transform


def project_as_hl2ss(
    point: NDArray[np.float64], pose: NDArray[np.float32]
) -> tuple[NDArray[np.float64], float]:
    """Row vectors: inverse(pose), then the client's projection, then divide by z."""
    in_camera = np.append(point, 1.0) @ np.linalg.inv(pose.astype(np.float64))
    projected = in_camera @ conventions.pv_projection(FOCAL, CENTRE)
    return projected[:2] / projected[2], in_camera[2]


@given(
    rotation=st.lists(angles, min_size=3, max_size=3),
    translation=st.lists(angles, min_size=3, max_size=3),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    ahead=st.floats(0.5, 5),
)
def test_a_point_falls_on_the_same_pixel_in_both_conventions(
    rotation: list[float], translation: list[float], x: float, y: float, ahead: float
) -> None:
    world_from_camera = rigid(rotation, translation)
    point = (world_from_camera @ [x, y, ahead, 1.0])[:3]
    pose = conventions.pv_pose(world_from_camera)
    theirs, their_z = project_as_hl2ss(point, pose)
    in_camera = np.linalg.inv(conventions.world_from_camera(pose)) @ np.append(point, 1.0)
    ours = (conventions.camera_matrix(FOCAL, CENTRE) @ in_camera[:3]) / in_camera[2]
    assert their_z < 0 < in_camera[2]
    np.testing.assert_allclose(ours[:2], theirs, atol=0.02)
    np.testing.assert_allclose(ours[:2], [FOCAL[0] * x / ahead + 320, FOCAL[1] * y / ahead + 180],
                               atol=0.02)  # fmt: skip


def test_a_camera_above_the_origin_keeps_its_position_in_the_last_column() -> None:
    pose = np.eye(4, dtype=np.float32)
    pose[3, :3] = [1, 2, 3]
    world_from_camera = conventions.world_from_camera(pose)
    np.testing.assert_array_equal(world_from_camera[:3, 3], [1, 2, 3])
    np.testing.assert_array_equal(world_from_camera[:3, 2], [0, 0, -1])  # looks along -z
    np.testing.assert_array_equal(world_from_camera[:3, 1], [0, -1, 0])  # y down


def test_the_head_looking_ahead_has_the_worlds_axes() -> None:
    head = HeadPose(
        position=np.array([1, 2, 3], np.float32),
        forward=np.array([0, 0, -1], np.float32),
        up=np.array([0, 1, 0], np.float32),
    )
    expected = np.eye(4)
    expected[:3, 3] = [1, 2, 3]
    np.testing.assert_array_equal(conventions.world_from_head(head), expected)


@given(rotation=st.lists(angles, min_size=3, max_size=3))
def test_head_poses_survive_the_way_to_hl2ss_and_back(rotation: list[float]) -> None:
    world_from_head = rigid(rotation, [0.1, 0.2, 0.3])
    head = conventions.head_pose(world_from_head)
    np.testing.assert_allclose(conventions.world_from_head(head), world_from_head, atol=1e-6)


def test_times_are_converted_once() -> None:
    assert conventions.device_time_ns(12_345) == 1_234_500
    epoch_filetime = 116_444_736_000_000_000
    assert conventions.unix_time_ns(10_000_000, epoch_filetime) == 1_000_000_000


def test_the_eye_ray_has_unit_direction() -> None:
    ray = EyeRay(origin=np.ones(3, np.float32), direction=np.array([0, 3, 4], np.float32))
    origin, direction = conventions.world_eye_ray(ray)
    np.testing.assert_allclose(direction, [0, 0.6, 0.8])
    np.testing.assert_array_equal(origin, [1, 1, 1])
