"""The spatial input (SI) payload: head pose, eye ray and hand joints, 1936 bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes

SPATIAL_INPUT_SIZE = 1936
HAND_JOINT_COUNT = 26

_JOINT = np.dtype(
    [("orientation", "<f4", 4), ("position", "<f4", 3), ("radius", "<f4"), ("accuracy", "<i4")]
)
_LAYOUT = np.dtype(
    [
        ("valid", "<u4"),
        ("head", "<f4", (3, 3)),
        ("eye", "<f4", (2, 3)),
        ("left_hand", _JOINT, HAND_JOINT_COUNT),
        ("right_hand", _JOINT, HAND_JOINT_COUNT),
    ]
)
assert _LAYOUT.itemsize == SPATIAL_INPUT_SIZE


class Valid(enum.IntFlag):
    """Which parts of a spatial input sample hold; the rest keep stale values."""

    HEAD = 1
    EYE = 2
    LEFT_HAND = 4
    RIGHT_HAND = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadPose:
    """Head in the world (right-handed, y up, metres): position, unit axes; each (3,) float32."""

    position: NDArray[np.float32]
    forward: NDArray[np.float32]
    up: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EyeRay:
    """Combined gaze in world space: origin (metres) and unit direction, each (3,) float32."""

    origin: NDArray[np.float32]
    direction: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HandPose:
    """One hand's 26 joints in world space, in the order of Windows' `HandJointKind`.

    Attributes:
        orientations: Quaternions x, y, z, w, shape (26, 4), float32.
        positions: Shape (26, 3), float32, metres.
        radii: Shape (26,), float32, metres.
        accuracies: Shape (26,), int32; 0 high, 1 approximate.
    """

    orientations: NDArray[np.float32]
    positions: NDArray[np.float32]
    radii: NDArray[np.float32]
    accuracies: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpatialInput:
    """One sample; a part is None where the headset does not vouch for it."""

    head: HeadPose | None = None
    eye: EyeRay | None = None
    left_hand: HandPose | None = None
    right_hand: HandPose | None = None


def decode_spatial_input(data: Bytes) -> SpatialInput:
    """Read a payload; stale parts are left out.

    Raises:
        DeviceError: It does not have 1936 bytes.
    """
    if len(data) != SPATIAL_INPUT_SIZE:
        raise DeviceError(f"spatial input has {SPATIAL_INPUT_SIZE} bytes, got {len(data)}")
    record = np.frombuffer(data, _LAYOUT)[0]
    valid = int(record["valid"])
    head, eye = record["head"], record["eye"]
    return SpatialInput(
        head=HeadPose(position=head[0], forward=head[1], up=head[2])
        if valid & Valid.HEAD
        else None,
        eye=EyeRay(origin=eye[0], direction=eye[1]) if valid & Valid.EYE else None,
        left_hand=_hand(record["left_hand"]) if valid & Valid.LEFT_HAND else None,
        right_hand=_hand(record["right_hand"]) if valid & Valid.RIGHT_HAND else None,
    )


def encode_spatial_input(sample: SpatialInput, previous: Bytes | None = None) -> bytes:
    """Return a payload; parts that are None keep the bytes of `previous`, as a headset's do."""
    record = np.zeros((), _LAYOUT)
    if previous is not None:
        record[...] = np.frombuffer(previous, _LAYOUT)[0]
    valid = Valid(0)
    if (head := sample.head) is not None:
        valid |= Valid.HEAD
        record["head"] = np.stack([head.position, head.forward, head.up])
    if (eye := sample.eye) is not None:
        valid |= Valid.EYE
        record["eye"] = np.stack([eye.origin, eye.direction])
    for name, hand, flag in (
        ("left_hand", sample.left_hand, Valid.LEFT_HAND),
        ("right_hand", sample.right_hand, Valid.RIGHT_HAND),
    ):
        if hand is not None:
            valid |= flag
            _put_hand(record[name], hand)
    record["valid"] = int(valid)
    return record.tobytes()


def _hand(joints: NDArray[Any]) -> HandPose:
    return HandPose(
        orientations=joints["orientation"],
        positions=joints["position"],
        radii=joints["radius"],
        accuracies=joints["accuracy"],
    )


def _put_hand(joints: NDArray[Any], hand: HandPose) -> None:
    joints["orientation"] = hand.orientations
    joints["position"] = hand.positions
    joints["radius"] = hand.radii
    joints["accuracy"] = hand.accuracies
