"""Constants of the Research Mode sensors (mode 2): bare float32, without header or framing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes, Port
from keystep_hololens.hl2ss.research_mode import (
    AHAT_HEIGHT,
    AHAT_WIDTH,
    LONG_THROW_HEIGHT,
    LONG_THROW_WIDTH,
    VLC_HEIGHT,
    VLC_WIDTH,
)

IMU_CALIBRATION_SIZE = 64
VLC_PORTS = (
    Port.RM_VLC_LEFTFRONT,
    Port.RM_VLC_LEFTLEFT,
    Port.RM_VLC_RIGHTFRONT,
    Port.RM_VLC_RIGHTRIGHT,
)
CAMERA_SHAPES: dict[Port, tuple[int, int]] = {
    **dict.fromkeys(VLC_PORTS, (VLC_HEIGHT, VLC_WIDTH)),
    Port.RM_DEPTH_LONGTHROW: (LONG_THROW_HEIGHT, LONG_THROW_WIDTH),
    Port.RM_DEPTH_AHAT: (AHAT_HEIGHT, AHAT_WIDTH),
}
"""Rows and columns of each Research Mode camera's picture."""
CALIBRATED_IMU_PORTS = (Port.RM_IMU_ACCELEROMETER, Port.RM_IMU_GYROSCOPE)
"""The magnetometer has no constants: asked for them it closes."""
_SCALARS: dict[Port, tuple[str, ...]] = {
    Port.RM_DEPTH_LONGTHROW: ("scale",),
    Port.RM_DEPTH_AHAT: ("scale", "alias"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CameraCalibration:
    """One Research Mode camera's constants.

    Attributes:
        uv2xy: Unit-plane coordinates x, y of each pixel, shape (H, W, 2), float32.
        extrinsics: Rig node -> camera, shape (4, 4), float32, row-vector convention, as sent.
        undistort_map: Where to look in the sensor's picture for each pixel of an undistorted
            one, shape (H, W, 2), float32, pixels x, y.
        undistorted_intrinsics: fx, fy, cx, cy of that undistorted picture only, shape (4,).
        scale: Depth units per metre (depth cameras).
        alias: Range in depth units after which AHAT's phase wraps around.
    """

    uv2xy: NDArray[np.float32]
    extrinsics: NDArray[np.float32]
    undistort_map: NDArray[np.float32]
    undistorted_intrinsics: NDArray[np.float32]
    scale: float | None = None
    alias: float | None = None


def camera_calibration_size(kind: Port) -> int:
    """Bytes of a camera's reply: 4915280 (VLC), 1474644 (long throw), 4194392 (AHAT)."""
    height, width = CAMERA_SHAPES[kind]
    return 4 * (4 * height * width + 16 + len(_SCALARS.get(kind, ())) + 4)


def encode_camera_calibration(kind: Port, calibration: CameraCalibration) -> bytes:
    """Return a camera's reply to mode 2."""
    scalars = [getattr(calibration, name) for name in _SCALARS.get(kind, ())]
    parts = (
        np.moveaxis(calibration.uv2xy, 2, 0),
        calibration.extrinsics,
        np.array(scalars),
        np.moveaxis(calibration.undistort_map, 2, 0),
        calibration.undistorted_intrinsics,
    )
    data = np.concatenate([part.ravel() for part in parts]).astype("<f4").tobytes()
    assert len(data) == camera_calibration_size(kind)
    return data


def decode_camera_calibration(kind: Port, data: Bytes) -> CameraCalibration:
    """Read a camera's reply to mode 2.

    Raises:
        DeviceError: It does not have the bytes of this camera's reply.
    """
    if len(data) != camera_calibration_size(kind):
        raise DeviceError(
            f"the calibration of {kind.name.lower()} has {camera_calibration_size(kind)} bytes,"
            f" got {len(data)}"
        )
    height, width = CAMERA_SHAPES[kind]
    floats = _Floats(np.frombuffer(data, "<f4"))
    uv2xy = floats.take(2, height, width)
    extrinsics = floats.take(4, 4)
    scalars = {name: float(floats.take(1)[0]) for name in _SCALARS.get(kind, ())}
    undistort_map = floats.take(2, height, width)
    return CameraCalibration(
        uv2xy=np.ascontiguousarray(np.moveaxis(uv2xy, 0, 2)),
        extrinsics=extrinsics,
        undistort_map=np.ascontiguousarray(np.moveaxis(undistort_map, 0, 2)),
        undistorted_intrinsics=floats.take(4),
        scale=scalars.get("scale"),
        alias=scalars.get("alias"),
    )


def decode_imu_calibration(data: Bytes) -> NDArray[np.float32]:
    """Read accelerometer's or gyroscope's extrinsics: rig node -> sensor, (4, 4), row vectors.

    Raises:
        DeviceError: It does not have 64 bytes.
    """
    if len(data) != IMU_CALIBRATION_SIZE:
        raise DeviceError(f"an IMU calibration has 64 bytes, got {len(data)}")
    return np.frombuffer(data, "<f4").reshape(4, 4)


class _Floats:
    """Takes arrays off the front of a run of floats."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def take(self, *shape: int) -> NDArray[np.float32]:
        count = int(np.prod(shape))
        taken, self._values = self._values[:count], self._values[count:]
        return taken.reshape(shape)
