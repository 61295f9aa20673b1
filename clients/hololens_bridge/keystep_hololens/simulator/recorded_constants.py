"""What a recording says of its sensors: their ports, where they sit, their answers in mode 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_capture import wire
from keystep_capture.errors import DataError, WireError
from keystep_capture.payloads import read_array
from keystep_capture.recording import RecordedPacket, Recording
from keystep_hololens.device_streams import (
    INERTIAL_SENSORS,
    RESEARCH_MODE_SENSORS,
    SENSORS,
    TRACKING_CAMERAS,
)
from keystep_hololens.hl2ss.calibration import CAMERA_SHAPES, CameraCalibration
from keystep_hololens.hl2ss.conventions import Matrix, row_matrix
from keystep_hololens.hl2ss.depth import AHAT_ALIAS_MM
from keystep_hololens.hl2ss.protocol import Port

PORT_OF_SENSOR: Mapping[str, Port] = {
    "personal_video": Port.PERSONAL_VIDEO,
    "spatial_input": Port.SPATIAL_INPUT,
    "depth_long_throw": Port.RM_DEPTH_LONGTHROW,
    "depth_ahat": Port.RM_DEPTH_AHAT,
    **TRACKING_CAMERAS,
    **INERTIAL_SENSORS,
    "eye_tracker": Port.EXTENDED_EYE_TRACKER,
    "microphone": Port.MICROPHONE,
}


_FARTHEST_M = 1e6
"""No sensor sits farther from its rig; such numbers are no transform."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SensorConstants:
    """What a Research Mode sensor answers in mode 2, and where it sits.

    Attributes:
        camera: All of a camera's constants; None of an inertial sensor.
        extrinsics: Rig node -> sensor, shape (4, 4), float32, row vectors.
        sensor_from_rig: The same for our column vectors, float64.
    """

    camera: CameraCalibration | None
    extrinsics: NDArray[np.float32]
    sensor_from_rig: Matrix


def check(path: Path, packet: RecordedPacket) -> None:
    """Check a packet against the table of streams.

    Raises:
        DataError: It is none that a headset's bridge could have sent.
    """
    header = packet.header
    try:
        wire.check_payload(header, len(packet.payload))
    except WireError as error:
        raise DataError(f"{path}: packet {header.sequence} of {header.stream}: {error}") from None


def check_packet(path: Path, packet: RecordedPacket) -> None:
    """Check a packet against the table of streams.

    Raises:
        DataError: It is none that a headset's bridge could have sent.
    """
    header = packet.header
    try:
        wire.check_payload(header, len(packet.payload))
    except WireError as error:
        raise DataError(f"{path}: packet {header.sequence} of {header.stream}: {error}") from None


def read_constants(
    recording: Recording, epoch: int, first: Mapping[str, RecordedPacket], *, told: bool
) -> dict[Port, SensorConstants]:
    """Read constants as they were recorded, else of the pinhole that a depth image's header names.

    Args:
        recording: Open for reading.
        epoch: Of which.
        first: The first packet of each stream that is played.
        told: Whether the epoch has the stream `calibration`.

    Raises:
        DataError: Recorded constants are none.
    """
    wanted = {
        streams[0]: PORT_OF_SENSOR[sensor]
        for sensor, streams in SENSORS.items()
        if sensor in RESEARCH_MODE_SENSORS and not first.keys().isdisjoint(streams)
    }
    found: dict[Port, SensorConstants] = {}
    for packet in recording.packets(("calibration",), epoch=epoch) if told else ():
        kind = wanted.get(packet.header.calibrates or "")
        if kind is not None and kind not in found:
            check_packet(recording.path, packet)
            found[kind] = _recorded_constants(recording.path, packet, kind)
        if len(found) == len(wanted):
            break
    for stream, kind in wanted.items():
        if kind in found or stream not in first:
            continue
        if kind in CAMERA_SHAPES and all((first[stream].header.intrinsics or (0.0,))[:2]):
            found[kind] = _pinhole_constants(first[stream].header, kind)
    return found


def _recorded_constants(path: Path, packet: RecordedPacket, kind: Port) -> SensorConstants:
    header = packet.header
    rig_from_sensor = np.eye(4)
    if header.rig_from_sensor is not None:
        rig_from_sensor = np.array(header.rig_from_sensor).reshape(4, 4)
    if np.abs(rig_from_sensor).max() > _FARTHEST_M or abs(np.linalg.det(rig_from_sensor)) < 0.5:
        raise DataError(f"{path}: {header.calibrates} sits where no sensor can: no transform")
    sensor_from_rig = np.asarray(np.linalg.inv(rig_from_sensor), np.float64)
    camera = None
    if kind in CAMERA_SHAPES:
        try:
            rays = read_array(header, packet.payload)
        except WireError as error:
            raise DataError(f"{path}: constants of {header.calibrates}: {error}") from None
        if rays.shape != (*CAMERA_SHAPES[kind], 2):
            raise DataError(
                f"{path}: constants of {header.calibrates} have {rays.shape[1]}x{rays.shape[0]} "
                f"rays, its pictures {CAMERA_SHAPES[kind][1]}x{CAMERA_SHAPES[kind][0]} pixels"
            )
        camera = _camera(kind, rays.astype(np.float32), sensor_from_rig, header.depth_unit_m)
    return SensorConstants(
        camera=camera, extrinsics=row_matrix(sensor_from_rig), sensor_from_rig=sensor_from_rig
    )


def _pinhole_constants(header: wire.PacketHeader, kind: Port) -> SensorConstants:
    assert header.intrinsics is not None
    fx, fy, cx, cy = header.intrinsics
    height, width = CAMERA_SHAPES[kind]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    with np.errstate(over="ignore"):
        rays = np.stack([(columns - cx) / fx, (rows - cy) / fy], axis=2).astype(np.float32)
    camera = _camera(kind, rays, np.eye(4), header.depth_unit_m)
    return SensorConstants(
        camera=camera, extrinsics=np.eye(4, dtype=np.float32), sensor_from_rig=np.eye(4)
    )


def _camera(
    kind: Port, rays: NDArray[np.float32], sensor_from_rig: Matrix, depth_unit_m: float | None
) -> CameraCalibration:
    """Constants for mode 2; the table that undistorts is not recorded: zeros."""
    return CameraCalibration(
        uv2xy=rays,
        extrinsics=row_matrix(sensor_from_rig),
        undistort_map=np.zeros_like(rays),
        undistorted_intrinsics=np.zeros(4, np.float32),
        scale=1 / (depth_unit_m or 0.001),
        alias=float(AHAT_ALIAS_MM) if kind == Port.RM_DEPTH_AHAT else None,
    )
