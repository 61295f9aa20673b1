"""The motion descriptor on pictures that move in a known way; sensors relative to the head."""

from __future__ import annotations

import av
import numpy as np
import pytest

from keystep_models.cues.motion_cue import (
    BINS,
    CELLS,
    SIZE,
    MotionCue,
    MotionPreprocessing,
    describe_flow,
)
from keystep_models.cues.sensor_cues import GAZE_TICKS, GazeCue, HeadCue, gaze_stack, hand_in_head


def picture(shift: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (30, 60), np.uint8), np.ones((12, 12), np.uint8))
    grey = texture[:, 60 + shift : 60 + shift + 640]
    frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
    return MotionPreprocessing().from_video_frame(frame)


def test_the_first_picture_has_no_motion_and_the_next_has_its_direction() -> None:
    cue = MotionCue()
    assert cue.see(picture(0)) is None
    moved = cue.see(picture(-12))  # the picture's content moves right by 12 of 640 pixels
    assert moved is not None
    assert moved.shape == (SIZE,)
    directions = np.expm1(moved).reshape(CELLS * CELLS, BINS).mean(axis=0)
    assert directions.argmax() == 0
    assert directions[0] == pytest.approx(12 * 160 / 640, rel=0.3)
    still = cue.see(picture(-12))
    assert still is not None
    assert still.max() < 0.1
    cue.forget()
    assert cue.see(picture(0)) is None


def test_flow_is_shared_between_neighbouring_directions_of_its_cell() -> None:
    flow = np.zeros((8, 8, 2), "f4")
    flow[:2, 6:] = (2.0, -2.0)  # up and right in the last cell of the first row
    values = np.expm1(describe_flow(flow)).reshape(CELLS, CELLS, BINS)
    assert values[0, 3, 1] == pytest.approx(np.hypot(2, 2), rel=1e-5)
    assert values.sum() == pytest.approx(np.hypot(2, 2), rel=1e-5)


def pose(yaw: float = 0.0, position: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    found = np.eye(4)
    found[0, [0, 2]] = np.cos(yaw), np.sin(yaw)
    found[2, [0, 2]] = -np.sin(yaw), np.cos(yaw)
    found[:3, 3] = position
    return found


def test_gaze_is_relative_to_the_head_and_needs_all_its_ticks() -> None:
    cue = GazeCue()
    rows = []
    for yaw in (0.0, 0.5, 1.0, 2.0):
        head = pose(yaw, (1, 2, 3))
        ray = np.stack([np.zeros(3), 3.0 * (head[:3, :3] @ (0.0, 0.0, -1.0))])
        rows.append(cue.see(ray, head))
    assert rows[:3] == [None] * 3
    np.testing.assert_allclose(rows[3], np.tile([0, 0, -1], GAZE_TICKS), atol=1e-6)
    assert cue.see(np.full((2, 3), np.nan), pose()) is None
    assert cue.see(np.stack([np.zeros(3), np.array([0, 0, -1.0])]), pose()) is None


def test_the_head_does_not_depend_on_where_the_world_begins() -> None:
    track = [pose(0.1 * k, (0.02 * k, 0, -0.1 * k)) for k in range(5)]
    elsewhere = [pose(0.7, (5, 1, 2)) @ each for each in track]
    rows = []
    for poses in (track, elsewhere):
        cue = HeadCue()
        found = [cue.see(each, 0.1 * k) for k, each in enumerate(poses)]
        assert found[0] is None
        rows.append(np.stack([each for each in found[1:] if each is not None]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    assert rows[0][-1][-2] == pytest.approx(1.0, rel=1e-4)  # rad/s about the vertical


def test_hands_are_relative_to_the_head_and_an_unseen_one_is_missing() -> None:
    joints = np.zeros((2, 26, 9))
    joints[1, :, 3] = 1.0
    joints[1, :, 4:7] = (1.0, 2.0, 2.5)
    found = hand_in_head(joints, pose(0.0, (1.0, 2.0, 3.0)), 1)
    assert found is not None
    np.testing.assert_allclose(found.reshape(26, 3)[4], (0, 0, -0.5), atol=1e-6)
    assert hand_in_head(joints, pose(), 0) is None
    assert hand_in_head(joints, None, 1) is None
    assert hand_in_head(joints, np.zeros((4, 4)), 1) is None


def test_a_stack_says_which_samples_are_missing_and_is_none_without_the_newest() -> None:
    head = pose(0.4, (1, 2, 3))
    rays = np.zeros((16, 2, 3))
    for number, ray in enumerate(rays):
        ray[1] = head[:3, :3] @ (0.1, -0.01 * number, -1.0)
    rays[4:7] = np.nan
    rays[9, 1] = head[:3, :3] @ (0.0, 0.0, 1.0)  # behind the head
    found = gaze_stack(rays, head)
    assert found is not None
    stack = found.reshape(16, 3)
    assert np.flatnonzero(stack[:, 2] == 0).tolist() == [4, 5, 6, 9]
    np.testing.assert_allclose(stack[5], (0.1, -0.03, 0), atol=1e-6)
    np.testing.assert_allclose(stack[15], (0.1, -0.15, 1), atol=1e-6)
    assert gaze_stack(rays[1:], head) is None
    assert gaze_stack(rays, None) is None
    rays[15] = np.nan
    assert gaze_stack(rays, head) is None
