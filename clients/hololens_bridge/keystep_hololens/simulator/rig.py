"""Where the simulated headset's sensors sit, and how its Research Mode cameras see.

All nominal, for no particular headset: lenses without distortion, round angles and distances. The
rig node is the left front tracking camera, which is mounted on its side: its x points down and its
y to the wearer's left. Constants of a real headset can be read from a file instead.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_hololens.hl2ss.calibration import (
    CALIBRATED_IMU_PORTS,
    CAMERA_SHAPES,
    CameraCalibration,
)
from keystep_hololens.hl2ss.conventions import Matrix, column_matrix, pv_camera_from_rig, row_matrix
from keystep_hololens.hl2ss.depth import AHAT_ALIAS_MM
from keystep_hololens.hl2ss.protocol import Port

PV_FROM_HEAD = np.diag([1.0, -1.0, -1.0, 1.0])
"""The head's axes (right, up, back) seen from an OpenCV camera: PV is taken to sit at the head."""
FOCAL_LENGTHS_PX = {
    **dict.fromkeys((p for p in CAMERA_SHAPES if p <= Port.RM_VLC_RIGHTRIGHT), 360.0),
    Port.RM_DEPTH_LONGTHROW: 175.0,
    Port.RM_DEPTH_AHAT: 270.0,
}
_SCALE = 1000.0


def _rotation(axis: str, degrees: float) -> Matrix:
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turn = np.eye(4)
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return turn


def _axes(*rows: tuple[int, int, int]) -> Matrix:
    turn = np.eye(4)
    turn[:3, :3] = rows
    return turn


def _mounted(turn: Matrix, position_m: tuple[float, float, float]) -> Matrix:
    """Make `sensor_from_rig` of a sensor at a position of the rig."""
    rig_from_sensor = np.linalg.inv(turn)
    rig_from_sensor[:3, 3] = position_m
    return np.linalg.inv(rig_from_sensor)


_UPRIGHT = _rotation("z", 90)  # x down, y left becomes x right, y down
SENSORS_FROM_RIG: dict[Port, Matrix] = {
    Port.RM_VLC_LEFTFRONT: np.eye(4),
    Port.RM_VLC_RIGHTFRONT: _mounted(_rotation("z", 180), (0.0, -0.10, 0.0)),
    Port.RM_VLC_LEFTLEFT: _mounted(_rotation("z", 180) @ _rotation("x", 60), (0.0, 0.01, -0.01)),
    Port.RM_VLC_RIGHTRIGHT: _mounted(_rotation("x", -60), (0.0, -0.11, -0.01)),
    Port.RM_DEPTH_LONGTHROW: _mounted(_rotation("x", 15) @ _UPRIGHT, (-0.01, -0.06, 0.02)),
    Port.RM_DEPTH_AHAT: _mounted(_rotation("x", 15) @ _UPRIGHT, (-0.01, -0.06, 0.02)),
    Port.RM_IMU_ACCELEROMETER: _mounted(_axes((-1, 0, 0), (0, 0, 1), (0, 1, 0)), (0.0, 0.0, -0.1)),
    Port.RM_IMU_GYROSCOPE: _axes((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    Port.RM_IMU_MAGNETOMETER: _axes((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    Port.PERSONAL_VIDEO: _mounted(_UPRIGHT, (0.0, -0.05, 0.0)),  # OpenCV axes
}


def nominal_camera(kind: Port) -> CameraCalibration:
    """Make a Research Mode camera's nominal constants: a pinhole without distortion; simulated."""
    height, width = CAMERA_SHAPES[kind]
    focal, centre = FOCAL_LENGTHS_PX[kind], ((width - 1) / 2, (height - 1) / 2)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows], axis=2).astype(np.float32)
    depth = kind in (Port.RM_DEPTH_AHAT, Port.RM_DEPTH_LONGTHROW)
    return CameraCalibration(
        uv2xy=((pixels - np.array(centre)) / focal).astype(np.float32),
        extrinsics=row_matrix(SENSORS_FROM_RIG[kind]),
        undistort_map=pixels,
        undistorted_intrinsics=np.array((focal, focal, *centre), np.float32),
        scale=_SCALE if depth else None,
        alias=float(AHAT_ALIAS_MM) if kind == Port.RM_DEPTH_AHAT else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rig:
    """The constants of one headset's sensors.

    Attributes:
        cameras: Research Mode cameras.
        imu_extrinsics: Rig node -> sensor of accelerometer, gyroscope and magnetometer, row vectors
            (only the first two are handed out).
        pv_extrinsics: Rig node -> PV camera (x right, y up, looking along -z), row vectors.
    """

    cameras: Mapping[Port, CameraCalibration] = field(
        default_factory=lambda: {kind: nominal_camera(kind) for kind in CAMERA_SHAPES}
    )
    imu_extrinsics: Mapping[Port, NDArray[np.float32]] = field(
        default_factory=lambda: {
            kind: row_matrix(SENSORS_FROM_RIG[kind])
            for kind in (*CALIBRATED_IMU_PORTS, Port.RM_IMU_MAGNETOMETER)
        }
    )
    pv_extrinsics: NDArray[np.float32] = field(
        default_factory=lambda: row_matrix(PV_FROM_HEAD @ SENSORS_FROM_RIG[Port.PERSONAL_VIDEO])
    )

    @property
    def head_from_rig(self) -> Matrix:
        """Rig node to head (right, up, back); the PV camera is taken to sit at the head."""
        return np.linalg.inv(PV_FROM_HEAD) @ pv_camera_from_rig(self.pv_extrinsics)

    @classmethod
    def of_file(cls, path: Path) -> Rig:
        """Read constants of a real headset; what the file lacks stays nominal.

        Args:
            path: An `.npz` with `<port>/extrinsics` (4x4, row vectors) and, for cameras,
                `<port>/uv2xy`, `<port>/undistort_map`, `<port>/intrinsics` (4x4, row vectors).

        Raises:
            DataError: The file cannot be read, or an array has another shape.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a file of calibrations: {error}") from error
        nominal = cls()
        extrinsics = {
            kind: _array(arrays, f"{kind.name.lower()}/extrinsics", fallback, path)
            for kind, fallback in nominal.imu_extrinsics.items()
        }
        return cls(
            cameras={k: _camera(arrays, k, c, path) for k, c in nominal.cameras.items()},
            imu_extrinsics=extrinsics,
            pv_extrinsics=_array(arrays, "pv/extrinsics", nominal.pv_extrinsics, path),
        )


def _camera(
    arrays: dict[str, NDArray[np.float32]], kind: Port, nominal: CameraCalibration, path: Path
) -> CameraCalibration:
    name = kind.name.lower()
    taken: dict[str, Any] = {
        part: _array(arrays, f"{name}/{part}", getattr(nominal, part), path)
        for part in ("uv2xy", "extrinsics", "undistort_map")
    }
    fx, fy, cx, cy = nominal.undistorted_intrinsics.tolist()
    pinhole = np.array([[fx, 0, 0, 0], [0, fy, 0, 0], [cx, cy, 1, 0], [0, 0, 0, 1]], np.float32)
    matrix = _array(arrays, f"{name}/intrinsics", pinhole, path)
    intrinsics = np.array((matrix[0, 0], matrix[1, 1], matrix[2, 0], matrix[2, 1]), np.float32)
    return dataclasses.replace(nominal, undistorted_intrinsics=intrinsics, **taken)


def _array(
    arrays: dict[str, NDArray[np.float32]], name: str, nominal: NDArray[np.float32], path: Path
) -> NDArray[np.float32]:
    found = arrays.get(name, nominal)
    if found.shape != nominal.shape:
        raise DataError(f"{name} of {path.name} has shape {found.shape}, expected {nominal.shape}")
    return found.astype(np.float32)


def map_points(
    calibration: CameraCalibration, points: NDArray[np.float32], *, to_unit_plane: bool
) -> NDArray[np.float32]:
    """Map points of shape (N, 2) between pixels and unit plane, through the pixels' table.

    To the unit plane the table is interpolated; to the image its best-fitting affine inverse is
    used, which is exact for nominal cameras and rough for real lenses. Outside the image a pixel
    is taken as the nearest one inside.
    """
    table = calibration.uv2xy
    height, width = table.shape[:2]
    if not to_unit_plane:
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        plane = np.column_stack([table.reshape(-1, 2), np.ones(width * height)])
        pixels = np.column_stack([columns.ravel(), rows.ravel()])
        fit = np.linalg.lstsq(plane[::97], pixels[::97], rcond=None)[0]
        mapped = np.column_stack([points, np.ones(len(points))]) @ fit
        return np.asarray(mapped, np.float32)
    x = np.clip(points[:, 0], 0, width - 1)
    y = np.clip(points[:, 1], 0, height - 1)
    left = np.minimum(x.astype(int), width - 2)
    top = np.minimum(y.astype(int), height - 2)
    across, down = (x - left)[:, None], (y - top)[:, None]
    upper = table[top, left] * (1 - across) + table[top, left + 1] * across
    lower = table[top + 1, left] * (1 - across) + table[top + 1, left + 1] * across
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def rig_pose(world_from_head: Matrix | None, rig: Rig) -> NDArray[np.float32]:
    """Turn the head's transform into an RM packet's pose; 16 zeros where it is not known."""
    if world_from_head is None:
        return np.zeros((4, 4), np.float32)
    return row_matrix(world_from_head @ rig.head_from_rig)


def sensor_in_world(world_from_head: Matrix, rig: Rig, extrinsics: NDArray[np.float32]) -> Matrix:
    """Return `world_from_sensor` of a sensor with these extrinsics."""
    return world_from_head @ rig.head_from_rig @ np.linalg.inv(column_matrix(extrinsics))
