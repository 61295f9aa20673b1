"""Gaze, head and hands as cues: the device is the extractor, we only choose the frame of reference.

Every function returns None where the sensor had nothing or a value is not finite: such a tick lacks
the cue. Poses are world_from_head, 4x4, metres; axes as the device's (x right, y up, z backwards).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

GAZE_TICKS: Final = 4
GAZE_SIZE: Final = 3 * GAZE_TICKS
STACK_SAMPLES: Final = 16
STACK_SIZE: Final = 3 * STACK_SAMPLES
HEAD_SIZE: Final = 15
HAND_SIZE: Final = 26 * 3
VERSION: Final = 1
_JOINT_POSITION = slice(4, 7)
_LEAST_FORWARD = 0.1  # of a unit direction; farther aside the picture plane has no place for it


class GazeCue:
    """Where the wearer looks, relative to the head: the last four ticks' directions, stacked."""

    def __init__(self) -> None:
        self._last: deque[NDArray[np.float32]] = deque(maxlen=GAZE_TICKS)

    def see(self, ray: Array | None, world_from_head: Array | None) -> NDArray[np.float32] | None:
        """Take a tick.

        Args:
            ray: Origin and direction in the world, (2, 3); None where there is none.
            world_from_head: (4, 4); None where there is none.

        Returns:
            float32 (12,), oldest first; None unless all four ticks had gaze and head.
        """
        direction = _gaze_in_head(ray, world_from_head)
        if direction is None:
            self._last.clear()
            return None
        self._last.append(direction)
        return np.concatenate(self._last) if len(self._last) == GAZE_TICKS else None

    def snapshot(self) -> list[list[float]]:
        """What the next tick needs, as values that JSON holds exactly."""
        return [direction.tolist() for direction in self._last]

    def restore(self, snapshot: Sequence[Sequence[float]]) -> None:
        """Go on from a `snapshot`; ValueError or TypeError where it is malformed."""
        rows = [np.array(values, np.float32).reshape(3) for values in snapshot]
        self._last = deque(rows, maxlen=GAZE_TICKS)


def gaze_stack(samples: Array | None, world_from_head: Array | None) -> NDArray[np.float32] | None:
    """The last sixteen gaze samples side by side, each as x, y and confidence (STEPs, A.1).

    Args:
        samples: (16, 2, 3): origin and direction in the world, oldest first; not a number where
            the sensor had nothing. None, or fewer, where there are not so many yet.
        world_from_head: (4, 4).

    Returns:
        float32 (48,): x (right) and y (up) on a plane one metre before the head; confidence 1, or
        0 where a sample is missing, which repeats its neighbour's place. None without a head, or
        where more than half of the samples or the newest one are missing.
    """
    if samples is None or len(samples) < STACK_SAMPLES or not _is_pose(world_from_head):
        return None
    rows = np.zeros((STACK_SAMPLES, 3), np.float32)
    for row, ray in zip(rows, samples[-STACK_SAMPLES:], strict=True):
        direction = _gaze_in_head(ray, world_from_head)
        if direction is not None and direction[2] < -_LEAST_FORWARD:
            row[:] = direction[0] / -direction[2], direction[1] / -direction[2], 1.0
    there = rows[:, 2] > 0
    if not there[-1] or 2 * there.sum() < STACK_SAMPLES:
        return None
    known = np.flatnonzero(there)
    before = np.searchsorted(known, np.arange(STACK_SAMPLES), side="right") - 1
    rows[:, :2] = rows[known[np.maximum(before, 0)], :2]
    return rows.ravel()


class HeadCue:
    """Where the head is and how it moves, in the frame it began in (level, facing forward)."""

    def __init__(self) -> None:
        self._start_from_world: NDArray[np.float64] | None = None
        self._before: tuple[NDArray[np.float64], float] | None = None

    def see(self, world_from_head: Array | None, time_s: float) -> NDArray[np.float32] | None:
        """Take a tick.

        Args:
            world_from_head: (4, 4); None where there is none.
            time_s: The tick's time.

        Returns:
            float32 (15,): position, m; the axes z and y (6); velocity, m/s; angular velocity,
            rad/s. None without a pose, and at the first pose after one was missing.
        """
        if not _is_pose(world_from_head):
            self._before = None
            return None
        assert world_from_head is not None
        pose = np.asarray(world_from_head, np.float64)
        start = self._start_from_world
        if start is None:
            start = np.asarray(np.linalg.inv(_levelled(pose)), np.float64)
            self._start_from_world = start
        pose = start @ pose
        before, self._before = self._before, (pose, time_s)
        if before is None or time_s <= before[1]:
            return None
        elapsed = time_s - before[1]
        velocity = (pose[:3, 3] - before[0][:3, 3]) / elapsed
        turn = _rotation_vector(pose[:3, :3] @ before[0][:3, :3].T) / elapsed
        parts = (pose[:3, 3], pose[:3, 2], pose[:3, 1], velocity, turn)
        return np.concatenate(parts).astype(np.float32)

    def restart(self) -> None:
        """A new world origin (another epoch)."""
        self._start_from_world = self._before = None

    def snapshot(self) -> dict[str, Any]:
        """What the next tick needs, as values that JSON holds exactly."""
        start, before = self._start_from_world, self._before
        return {
            "start_from_world": None if start is None else start.tolist(),
            "before": None if before is None else [before[0].tolist(), before[1]],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`; an error that says no more where it is malformed.

        Raises:
            ValueError: A pose is none.
            TypeError: Something else is there.
            KeyError: Something is not there.
        """
        start, before = snapshot["start_from_world"], snapshot["before"]
        poses = [None if p is None else np.array(p, np.float64).reshape(4, 4)
                 for p in (start, None if before is None else before[0])]  # fmt: skip
        time_s = 0.0 if before is None else float(before[1])
        self._start_from_world = poses[0]
        self._before = None if poses[1] is None else (poses[1], time_s)


def hand_in_head(
    joints: Array | None, world_from_head: Array | None, side: int
) -> NDArray[np.float32] | None:
    """One hand's joints relative to the head, m, float32 (78,).

    Args:
        joints: (2, 26, 9): left and right hand, (qx qy qz qw x y z radius accuracy), world.
        world_from_head: (4, 4).
        side: 0 left, 1 right.

    Returns:
        None where the head or this hand is not seen (an unseen hand's quaternions are zeros).
    """
    if joints is None or not _is_pose(world_from_head):
        return None
    hand = np.asarray(joints[side], np.float64)
    if not np.isfinite(hand).all() or not np.any(hand[:, :4]):
        return None
    head_from_world = np.linalg.inv(np.asarray(world_from_head, np.float64))
    positions = hand[:, _JOINT_POSITION] @ head_from_world[:3, :3].T + head_from_world[:3, 3]
    return positions.astype(np.float32).ravel()


def _gaze_in_head(ray: Array | None, world_from_head: Array | None) -> NDArray[np.float32] | None:
    if ray is None or not _is_pose(world_from_head):
        return None
    assert world_from_head is not None
    direction = np.asarray(world_from_head, np.float64)[:3, :3].T @ np.asarray(ray[1], np.float64)
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length < 1e-6:
        return None
    return (direction / length).astype(np.float32)


def _is_pose(pose: Array | None) -> bool:
    if pose is None or not np.isfinite(pose).all():
        return False
    matrix = np.asarray(pose, np.float64)
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):  # it may have no inverse
        return False
    return bool(abs(np.linalg.det(matrix[:3, :3])) > 1e-3)


def _levelled(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The pose turned about the vertical only."""
    forward = -pose[:3, 2]
    yaw = np.arctan2(-forward[0], -forward[2])
    level = np.eye(4)
    level[0, [0, 2]] = np.cos(yaw), np.sin(yaw)
    level[2, [0, 2]] = -np.sin(yaw), np.cos(yaw)
    level[:3, 3] = pose[:3, 3]
    return level


def _rotation_vector(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    parts: Sequence[float] = (
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    )
    axis = np.array(parts)
    sine = np.linalg.norm(axis) / 2
    angle = np.arctan2(sine, (np.trace(rotation) - 1) / 2)
    return axis * (angle / (2 * sine)) if sine > 1e-9 else axis / 2
