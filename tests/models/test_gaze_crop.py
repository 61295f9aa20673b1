"""What is cut out around the gaze point: the right place, upright, or nothing."""

from __future__ import annotations

import json

import av
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keystep_models.cues.gaze_crop import (
    CROP,
    REACH_M,
    SIDE_M,
    GazePoint,
    PictureView,
    ViewMaker,
    cut_around,
)

INTRINSICS = (250.0, 250.0, 159.5, 89.5)


def turned(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """world_from_camera at the origin: level and forward (-z) where all angles are 0."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = about_y @ about_x @ about_z @ np.diag([1.0, -1.0, -1.0])
    return pose


def smooth_picture() -> NDArray[np.uint8]:
    """Red tells the column, green the row, so that every place has its own colour."""
    rows, columns = np.mgrid[0:180, 0:320]
    blue = np.full_like(rows, 200)
    return np.stack([columns * 255 / 319, rows * 255 / 179, blue], axis=2).astype(np.uint8)


def view_of(pose: NDArray[np.float64], pixels: NDArray[np.uint8] | None = None) -> PictureView:
    shown = smooth_picture() if pixels is None else pixels
    return PictureView(pixels=shown, intrinsics=INTRINSICS, world_from_camera=pose)


angles = st.floats(-0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(angles, angles, angles, st.floats(-20, 340), st.floats(-20, 200), st.floats(0.3, 1.2))
def test_the_middle_of_the_crop_is_the_gaze_points_place(
    yaw: float, pitch: float, roll: float, u: float, v: float, distance_m: float
) -> None:
    pose = turned(yaw, pitch, roll)
    along = np.array([(u - INTRINSICS[2]) / INTRINSICS[0], (v - INTRINSICS[3]) / INTRINSICS[1], 1])
    crop = cut_around(view_of(pose), pose[:3, :3] @ (along * distance_m))
    if not (-0.4 < u < 319.4 and -0.4 < v < 179.4):
        assert crop is None or -0.6 < u < 319.6
        return
    if not (2 < u < 317 and 2 < v < 177):
        return  # at the very edge the middle is mixed with what is beyond
    assert crop is not None
    middle = crop[111:113, 111:113, :2].reshape(-1, 2).mean(axis=0)
    np.testing.assert_allclose(middle, [u * 255 / 319, v * 255 / 179], atol=3.0)


def test_the_crop_spans_a_quarter_of_a_metre_and_its_up_is_the_worlds() -> None:
    point = np.array([0.0, 0.0, -REACH_M])
    span_px = INTRINSICS[0] * SIDE_M / REACH_M
    level = cut_around(view_of(turned(0, 0, 0)), point)
    assert level is not None
    columns = level[112, :, 0].astype(float) * 319 / 255
    assert abs(columns[-1] - columns[0] - span_px) < 2.5
    for roll in (-0.6, 0.4):
        pose = turned(0, 0, roll)
        rows, columns_of = np.mgrid[0:180, 0:320]
        rays = np.stack(
            [
                (columns_of - INTRINSICS[2]) / INTRINSICS[0],
                (rows - INTRINSICS[3]) / INTRINSICS[1],
                np.ones((180, 320)),
            ],
            axis=2,
        )
        up = (rays @ pose[:3, :3].T)[..., 1]
        grey = np.clip(128 + 400 * up, 0, 255).astype(np.uint8)
        crop = cut_around(view_of(pose, np.repeat(grey[..., None], 3, axis=2)), point)
        assert crop is not None
        tilt = np.abs(crop[112, 30].astype(int) - crop[112, -30].astype(int)).max()
        assert tilt <= 2
        assert crop[40, 112, 0] > crop[180, 112, 0] + 20


def test_a_point_beyond_the_picture_or_behind_the_camera_has_no_crop() -> None:
    view = view_of(turned(0, 0, 0))
    assert cut_around(view, np.array([0.0, 0.0, 0.6])) is None
    assert cut_around(view, np.array([1.0, 0.0, -0.6])) is None
    at_the_edge = cut_around(view, np.array([0.37, 0.0, -0.6]))
    assert at_the_edge is not None
    assert (at_the_edge[112, -1] == 114).all()


def test_pictures_without_a_camera_have_no_view() -> None:
    frame = av.VideoFrame.from_ndarray(smooth_picture(), format="rgb24")
    pose = turned(0.1, 0, 0).ravel().tolist()
    maker = ViewMaker()
    assert maker.view(frame, INTRINSICS, pose) is not None
    assert maker.view(frame, None, pose) is None
    assert maker.view(frame, INTRINSICS, None) is None
    assert maker.view(frame, INTRINSICS, [0.0] * 16) is None
    assert maker.view(frame, (0.0, 250.0, 159.5, 89.5), pose) is None


def test_poses_that_are_no_motion_have_no_view_whatever_their_numbers() -> None:
    frame = av.VideoFrame.from_ndarray(smooth_picture(), format="rgb24")
    maker = ViewMaker()
    for place, value in ((15, 0.0), (14, 1.0), (0, 1e300), (5, -1.0), (0, float("nan"))):
        pose = np.eye(4).ravel().tolist()
        pose[place] = value
        assert maker.view(frame, INTRINSICS, pose) is None
    stretched = np.diag([1e150, 1e-150, 1.0, 1.0]).ravel().tolist()
    assert maker.view(frame, INTRINSICS, stretched) is None


def test_a_large_picture_is_made_smaller_and_shows_the_same() -> None:
    pose = turned(0.05, 0.1, 0.2)
    small = smooth_picture()
    large = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    enlarged = (1000.0, 1000.0, 4 * 160 - 0.5, 4 * 90 - 0.5)
    maker = ViewMaker()
    views = [
        maker.view(av.VideoFrame.from_ndarray(pixels, format="rgb24"), of, pose.ravel().tolist())
        for pixels, of in ((small, INTRINSICS), (large, enlarged))
    ]
    assert views[0] is not None
    assert views[1] is not None
    assert views[1].pixels.shape == (360, 640, 3)
    point = pose[:3, :3] @ np.array([0.05, 0.02, 0.6])
    crops = [cut_around(view, point) for view in views if view is not None]
    assert crops[0] is not None
    assert crops[1] is not None
    assert crops[0].shape == (CROP, CROP, 3)
    assert np.abs(crops[0].astype(int) - crops[1].astype(int)).max() <= 4


def ray(x: float) -> NDArray[np.float32]:
    return np.array([[0, 0, 0], [x, 0, -1]], np.float32)


def test_the_gaze_point_is_the_mean_of_the_last_ticks_that_have_gaze() -> None:
    gaze = GazePoint(10.0)
    assert gaze.see(None) is None
    first = gaze.see(ray(0.0))
    assert first is not None
    np.testing.assert_allclose(first, [0, 0, -REACH_M])
    assert gaze.see(None) is None
    both = gaze.see(2.0 * ray(1.0))  # any length
    assert both is not None
    side = REACH_M / np.sqrt(2)
    np.testing.assert_allclose(both, [side / 2, 0, -(REACH_M + side) / 2], atol=1e-7)
    for _ in range(4):
        last = gaze.see(ray(0.0))
    assert last is not None
    assert last[0] > 0  # the one aside is 0.4 s old
    again = gaze.see(ray(0.0))
    assert again is not None
    assert again[0] == 0
    assert gaze.see(np.full((2, 3), np.nan, np.float32)) is None


@given(st.lists(st.none() | st.floats(-1, 1), max_size=12), st.integers(0, 12))
def test_gaze_goes_on_from_a_snapshot_to_the_bit(xs: list[float | None], cut: int) -> None:
    rays = [None if x is None else ray(x) for x in xs]
    whole, first, second = GazePoint(10.0), GazePoint(10.0), GazePoint(10.0)
    expected = [whole.see(each) for each in rays]
    for each in rays[:cut]:
        first.see(each)
    second.restore(json.loads(json.dumps(first.snapshot())))
    for each, known in zip(rays[cut:], expected[cut:], strict=True):
        np.testing.assert_array_equal(second.see(each), known)
