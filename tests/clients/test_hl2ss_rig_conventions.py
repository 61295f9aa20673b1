"""Rig, tracking cameras, depth and eye tracker: hl2ss's conventions to ours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from keystep_hololens.hl2ss import conventions
from keystep_hololens.hl2ss.calibration import VLC_PORTS
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.hl2ss.spatial_input import EyeRay

numbers = st.floats(-2, 2)
vectors = st.tuples(numbers, numbers, numbers)


def row_transform(
    rotation: tuple[float, ...], translation: tuple[float, ...]
) -> NDArray[np.float32]:
    transform = np.eye(4)
    transform[:3, :3] = cv2.Rodrigues(np.array(rotation, np.float64))[0].T
    transform[3, :3] = translation
    return transform.astype(np.float32)


@given(turn=vectors, at=vectors, rig_turn=vectors, rig_at=vectors, point=vectors)
def test_a_camera_point_reaches_the_world_as_in_row_vectors(
    turn: tuple[float, ...],
    at: tuple[float, ...],
    rig_turn: tuple[float, ...],
    rig_at: tuple[float, ...],
    point: tuple[float, ...],
) -> None:
    extrinsics, pose = row_transform(turn, at), row_transform(rig_turn, rig_at)
    theirs = (*point, 1) @ np.linalg.inv(extrinsics.astype(np.float64)) @ pose
    ours = conventions.world_from_rm_camera(pose, extrinsics) @ (*point, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_extrinsics_take_the_rigs_points_to_the_camera() -> None:
    extrinsics = row_transform((0, 0, 0), (0.1, 0.2, 0.3))
    in_camera = conventions.camera_from_rig(extrinsics) @ [0, 0, 1, 1]
    np.testing.assert_allclose(in_camera, [0.1, 0.2, 1.3, 1], atol=1e-6)


def test_the_pv_extrinsics_end_in_opencv_axes() -> None:
    in_pv = conventions.pv_camera_from_rig(np.eye(4, dtype=np.float32)) @ [1, 2, -3, 1]
    np.testing.assert_array_equal(in_pv, [1, -2, 3, 1])  # it looks along -z with y up


@pytest.mark.parametrize(
    ("kind", "corner"),
    [
        (Port.RM_VLC_LEFTFRONT, (0, -1)),  # clockwise: the top left goes to the top right
        (Port.RM_VLC_RIGHTRIGHT, (0, -1)),
        (Port.RM_VLC_LEFTLEFT, (-1, 0)),  # counter-clockwise: to the bottom left
        (Port.RM_VLC_RIGHTFRONT, (-1, 0)),
    ],
)
def test_tracking_pictures_stand_upright(kind: Port, corner: tuple[int, int]) -> None:
    picture = np.zeros((480, 640), np.uint8)
    picture[0, 0] = 255
    upright = conventions.upright_vlc(picture, kind)
    assert upright.shape == (640, 480)
    assert upright[corner] == 255


@pytest.mark.parametrize("kind", VLC_PORTS)
def test_the_upright_camera_sees_a_point_where_the_turned_picture_shows_it(kind: Port) -> None:
    sensor_matrix = conventions.camera_matrix((360.0, 350.0), (310.0, 250.0))
    in_upright = np.array([0.15, -0.2, 1.0, 1.0])
    in_sensor = conventions.sensor_from_upright(kind) @ in_upright
    u, v = np.rint((sensor_matrix @ in_sensor[:3])[:2]).astype(int)
    picture = np.zeros((480, 640), np.uint8)
    picture[v, u] = 255
    row, column = np.argwhere(conventions.upright_vlc(picture, kind) == 255)[0]
    pixel = conventions.upright_camera_matrix(sensor_matrix, kind) @ in_upright[:3]
    np.testing.assert_allclose(pixel[:2], [column, row], atol=0.51)


def test_depth_is_along_the_ray_not_along_z() -> None:
    uv2xy = np.array([[[0, 0], [0.75, 0]], [[0, 1], [0, 0]]], np.float32)
    depth_mm = np.array([[2000, 1250], [1000, 0]], np.uint16)
    points = conventions.depth_points_m(depth_mm, uv2xy)
    np.testing.assert_allclose(points[0], [[0, 0, 2], [0.75, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(points[1, 0], [0, 0.5**0.5, 0.5**0.5], atol=1e-6)
    assert np.isnan(points[1, 1]).all()


def test_another_depth_scale_is_honoured() -> None:
    depth_mm, uv2xy = np.full((1, 1), 500, np.uint16), np.zeros((1, 1, 2), np.float32)
    assert conventions.depth_points_m(depth_mm, uv2xy, scale=250.0)[0, 0, 2] == 2.0


def test_an_eye_tracker_ray_goes_from_tracker_space_to_the_world() -> None:
    pose = row_transform((0, np.pi / 2, 0), (1, 2, 3))  # heading turned left: -z becomes -x
    ray = EyeRay(
        origin=np.array([0, 0, -1], np.float32), direction=np.array([0, 0, -2], np.float32)
    )
    origin, direction = conventions.world_ray(ray, pose)
    np.testing.assert_allclose(origin, [0, 2, 3], atol=1e-6)
    np.testing.assert_allclose(direction, [-1, 0, 0], atol=1e-6)


def test_unity_is_left_handed() -> None:
    assert conventions.unity_position(np.array([1.0, 2.0, 3.0])) == (1, 2, -3)
    turned = conventions.unity_rotation(np.array([0.1, 0.2, 0.3, 0.9]))
    assert turned == (-0.1, -0.2, 0.3, 0.9)
