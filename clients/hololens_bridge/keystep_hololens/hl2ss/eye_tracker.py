"""The payload of the extended eye tracker (EET): rays in tracker space, 92 bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes
from keystep_hololens.hl2ss.spatial_input import EyeRay

EYE_TRACKER_SIZE = 92
_LAYOUT = np.dtype(
    [("reserved", "<u4"), ("rays", "<f4", (3, 2, 3)), ("scalars", "<f4", 3), ("valid", "<u4")]
)
assert _LAYOUT.itemsize == EYE_TRACKER_SIZE


class EyeValid(enum.IntFlag):
    """Which parts of a sample hold."""

    CALIBRATION = 1
    COMBINED = 2
    LEFT = 4
    RIGHT = 8
    LEFT_OPENNESS = 16
    RIGHT_OPENNESS = 32
    VERGENCE = 64


_RAYS = (("combined", EyeValid.COMBINED), ("left", EyeValid.LEFT), ("right", EyeValid.RIGHT))
_SCALARS = (
    ("left_openness", EyeValid.LEFT_OPENNESS),
    ("right_openness", EyeValid.RIGHT_OPENNESS),
    ("vergence_distance_m", EyeValid.VERGENCE),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EyeSample:
    """One sample; rays are in tracker space (metres), a part is None where it does not hold.

    HoloLens 2 offers neither openness nor vergence.
    """

    calibrated: bool = False
    combined: EyeRay | None = None
    left: EyeRay | None = None
    right: EyeRay | None = None
    left_openness: float | None = None
    right_openness: float | None = None
    vergence_distance_m: float | None = None


def encode_eye_sample(sample: EyeSample) -> bytes:
    """Return a payload; parts that are None are zeros."""
    record = np.zeros((), _LAYOUT)
    valid = EyeValid.CALIBRATION if sample.calibrated else EyeValid(0)
    for place, (name, flag) in enumerate(_RAYS):
        if (ray := getattr(sample, name)) is not None:
            valid |= flag
            record["rays"][place] = np.stack([ray.origin, ray.direction])
    for place, (name, flag) in enumerate(_SCALARS):
        if (value := getattr(sample, name)) is not None:
            valid |= flag
            record["scalars"][place] = value
    record["valid"] = int(valid)
    return record.tobytes()


def decode_eye_sample(data: Bytes) -> EyeSample:
    """Read a payload; what is not valid is left out.

    Raises:
        DeviceError: It does not have 92 bytes.
    """
    if len(data) != EYE_TRACKER_SIZE:
        raise DeviceError(f"an eye tracker sample has 92 bytes, got {len(data)}")
    record = np.frombuffer(data, _LAYOUT)[0]
    valid = int(record["valid"])
    parts: dict[str, Any] = {
        name: EyeRay(origin=ray[0], direction=ray[1])
        for (name, flag), ray in zip(_RAYS, record["rays"], strict=True)
        if valid & flag
    }
    for (name, flag), value in zip(_SCALARS, record["scalars"], strict=True):
        if valid & flag:
            parts[name] = float(value)
    return EyeSample(calibrated=bool(valid & EyeValid.CALIBRATION), **parts)
