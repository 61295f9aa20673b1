"""Two articulated hands: 26 joints each, in HoloLens order, and the bones that are drawn.

A hand's own frame: origin at the wrist, y towards the fingertips, z out of the back of the hand.
The right hand is modelled, the left is its mirror image. Letters: T times, B bones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import Array, frames_of, normalised

JOINTS: tuple[str, ...] = (
    "Palm", "Wrist",
    "ThumbMetacarpal", "ThumbProximal", "ThumbDistal", "ThumbTip",
    *(f"{finger}{joint}" for finger in ("Index", "Middle", "Ring", "Little")
      for joint in ("Metacarpal", "Proximal", "Intermediate", "Distal", "Tip")),
)  # fmt: skip
"""HandJointKind of Windows.Perception.People, in its order."""

RADII_M: Array = np.array(
    [
        *(0.0140, 0.0220),  # palm, wrist
        *(0.0170, 0.0125, 0.0105, 0.0085),  # thumb
        *(0.0125, 0.0115, 0.0095, 0.0085, 0.0070),
        *(0.0130, 0.0118, 0.0098, 0.0086, 0.0072),
        *(0.0125, 0.0110, 0.0092, 0.0082, 0.0068),
        *(0.0115, 0.0098, 0.0080, 0.0072, 0.0060),
    ]
)
"""Radius at each joint, metres."""

BONES: tuple[tuple[int, int], ...] = (
    *pairwise(range(2, 6)), *((1, first) for first in (2, 6, 11, 16, 21)),
    *(pair for first in (6, 11, 16, 21) for pair in pairwise(range(first, first + 5))),
    (7, 12), (12, 17), (17, 22),  # across the knuckles, so that the palm has no gaps
)  # fmt: skip

_FINGERS = (  # metacarpal, knuckle (m), lengths of the three phalanges (m)
    ((-0.018, 0.026, 0.000), (-0.025, 0.090, 0.001), (0.042, 0.025, 0.020)),
    ((-0.005, 0.027, 0.001), (-0.004, 0.094, 0.003), (0.046, 0.029, 0.021)),
    ((0.008, 0.027, 0.000), (0.015, 0.088, 0.001), (0.042, 0.027, 0.020)),
    ((0.019, 0.025, -0.003), (0.032, 0.078, -0.004), (0.033, 0.020, 0.018)),
)
_THUMB_OPEN = np.array(
    [
        (-0.020, 0.016, -0.008),
        (-0.045, 0.050, -0.020),
        (-0.060, 0.078, -0.027),
        (-0.069, 0.101, -0.032),
    ]
)
_THUMB_SHUT = np.array(
    [
        (-0.020, 0.016, -0.010),
        (-0.036, 0.048, -0.036),
        (-0.033, 0.076, -0.054),
        (-0.024, 0.100, -0.066),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandTrack:
    """One hand over time.

    Attributes:
        joints: Positions in the world, shape (T, 26, 3), metres, in the order of `JOINTS`.
        rotations: `world_from_joint`, shape (T, 26, 3, 3): columns right, up (out of the back of
            the hand), back (against the bone), as HoloLens gives them.
        wrist: `world_from_hand`, shape (T, 3, 3).
    """

    joints: Array
    rotations: Array
    wrist: Array


def _local_joints(grip: Array) -> Array:
    """Joints of a right hand in its own frame: grip (T,), 0 open to 1 shut, to (T, 26, 3)."""
    joints = np.zeros((len(grip), 26, 3))
    joints[:, 0] = (0.002, 0.056, -0.004)
    thumb = _THUMB_OPEN + grip[:, None, None] * (_THUMB_SHUT - _THUMB_OPEN)
    lengths = np.linalg.norm(np.diff(_THUMB_OPEN, axis=0), axis=1)
    joints[:, 2] = thumb[:, 0]
    for k in range(3):  # straight between the two ends would shorten the bones
        step = normalised(thumb[:, k + 1] - thumb[:, k])
        joints[:, 3 + k] = joints[:, 2 + k] + step * lengths[k]
    for finger, (base, knuckle, phalanges) in enumerate(_FINGERS):
        first = 6 + 5 * finger
        joints[:, first], joints[:, first + 1] = base, knuckle
        fan = (-0.07, -0.01, 0.05, 0.12)[finger] * (1 - 0.6 * grip)
        more = 1.0 + 0.12 * finger  # the outer fingers close further
        bends = (0.20 + 0.85 * grip * more, 0.30 + 0.80 * grip, 0.15 + 0.45 * grip)
        angle = np.zeros(len(grip))
        for k, (length, bend) in enumerate(zip(phalanges, bends, strict=True)):
            angle = angle + bend
            along = np.cos(angle)
            step = np.stack([np.sin(fan) * along, np.cos(fan) * along, -np.sin(angle)], axis=-1)
            joints[:, first + 2 + k] = joints[:, first + 1 + k] + length * step
    return joints


def pinch_offset(grip: Array) -> Array:
    """Where thumb and index finger meet, in a right hand's frame: (T,) to (T, 3)."""
    joints = _local_joints(grip)
    return np.asarray((joints[:, 5] + joints[:, 10]) / 2)


def pose_hand(
    pinch_m: Array, rotation: Array, grip: Array, *, left: bool, scale: float
) -> HandTrack:
    """Pose a hand so that thumb and index finger meet at a point.

    Args:
        pinch_m: Where, shape (T, 3), world.
        rotation: `world_from_hand`, shape (T, 3, 3).
        grip: 0 open to 1 shut, shape (T,).
        left: Which hand.
        scale: Size; 1 is usual.
    """
    mirror = np.array([-1.0 if left else 1.0, 1.0, 1.0])
    local = _local_joints(grip) * mirror * scale
    pinch = pinch_offset(grip) * mirror * scale
    wrist = pinch_m - (rotation @ pinch[..., None])[..., 0]
    joints = np.einsum("tij,tkj->tki", rotation, local) + wrist[:, None]
    return HandTrack(joints=joints, rotations=_joint_rotations(joints, rotation), wrist=rotation)


def _joint_rotations(joints: Array, rotation: Array) -> Array:
    """Each joint looks along the bone that leaves it; a tip along the one that ends there."""
    forward = np.empty_like(joints)
    forward[:, :2] = rotation[:, None, :, 1]
    for first, last in ((2, 5), (6, 10), (11, 15), (16, 20), (21, 25)):
        bones = np.diff(joints[:, first : last + 1], axis=1)
        forward[:, first:last] = bones
        forward[:, last] = bones[:, -1]
    up = np.broadcast_to(rotation[:, None, :, 2], forward.shape)
    return frames_of(forward, up)


def bone_poses(joints: Array) -> NDArray[np.float32]:
    """Poses of the drawn bones of one instant: joints (26, 3) to (B, 4, 4), y along the bone."""
    ends = np.asarray(BONES)
    start, end = joints[ends[:, 0]], joints[ends[:, 1]]
    y = normalised(end - start)
    x = normalised(np.cross(y, np.array([0.31, 0.87, 0.38])))
    result = np.zeros((len(BONES), 4, 4), np.float32)
    result[:, :3, 0], result[:, :3, 1], result[:, :3, 2] = x, y, np.cross(x, y)
    result[:, :3, 3], result[:, 3, 3] = start, 1.0
    return result


def bone_lengths(scale: float) -> Array:
    """Lengths of the drawn bones, shape (B,), metres, at half a grip."""
    joints = _local_joints(np.array([0.5]))[0] * scale
    ends = np.asarray(BONES)
    return np.asarray(np.linalg.norm(joints[ends[:, 1]] - joints[ends[:, 0]], axis=1))
