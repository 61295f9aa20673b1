"""What the headset says, as packets of the wire: hl2ss's conventions are turned into ours here.

Row vectors become column vectors, rays come into the world, degrees become radians, parts that the
headset does not vouch for are left out and marked so. No sockets here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture import wire
from keystep_capture.errors import DeviceError
from keystep_capture.payloads import encode_png16
from keystep_capture.sender import Payload
from keystep_capture.streams import (
    EYE_VALUES,
    HAND_JOINT_VALUES,
    HAND_JOINTS,
    IMU_SAMPLE_VALUES,
    VLC_HEIGHT,
    VLC_WIDTH,
)
from keystep_capture.video import is_keyframe
from keystep_hololens.hl2ss import conventions
from keystep_hololens.hl2ss.calibration import CameraCalibration
from keystep_hololens.hl2ss.client import PvPacket
from keystep_hololens.hl2ss.eye_tracker import EyeSample
from keystep_hololens.hl2ss.inertial import ImuSamples
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.hl2ss.sensor_client import VlcPacket
from keystep_hololens.hl2ss.spatial_input import EyeRay, HandPose, SpatialInput

Array = NDArray[np.float32]
_any_number = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""A corrupt packet may hold any number; the server refuses and counts what is not finite."""
CALIBRATED_BIT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A packet of the wire without its place in the session; fields as in docs/wire.md."""

    stream: str
    payload: Payload
    encoding: str
    keyframe: bool = False
    width: int | None = None
    height: int | None = None
    intrinsics: wire.Intrinsics | None = None
    pose: list[float] | None = None
    valid: int = -1
    depth_unit_m: float | None = None
    upright_turns: int = 0
    calibrates: str | None = None
    rig_from_sensor: list[float] | None = None


class Mounting:
    """Where a sensor sits on the rig."""

    def __init__(self, extrinsics: Array) -> None:
        """Take a sensor's extrinsics: rig node -> sensor, shape (4, 4), float32, row vectors.

        Raises:
            DeviceError: They are no transform.
        """
        sensor_from_rig = conventions.camera_from_rig(extrinsics)
        if not np.isfinite(sensor_from_rig).all() or abs(np.linalg.det(sensor_from_rig)) < 0.5:
            raise DeviceError(f"a sensor's extrinsics are no transform: {extrinsics.tolist()}")
        self._rig_from_sensor = np.linalg.inv(sensor_from_rig)

    @property
    def rig_from_sensor(self) -> list[float]:
        """Where the sensor is on the rig, row by row."""
        return _flat(self._rig_from_sensor)

    @_any_number
    def pose(self, rig_pose: Array | None) -> list[float] | None:
        """`world_from_sensor` row by row, from a packet's pose; None where that is not known."""
        if rig_pose is None:
            return None
        return _flat(conventions.column_matrix(rig_pose) @ self._rig_from_sensor)


@_any_number
def personal_video(packet: PvPacket, encoding: str) -> Outgoing:
    """A frame of the PV camera: `world_from_camera` with OpenCV's axes, this frame's intrinsics.

    A focal length of 0, as a headset sends that plays a recording without intrinsics, is none.
    """
    metadata = packet.metadata
    intrinsics = (*metadata.focal_length_px, *metadata.principal_point_px)
    pose = None
    if packet.pose is not None:
        pose = _flat(conventions.world_from_camera(packet.pose))
    return Outgoing(
        stream="rgb",
        payload=packet.encoded,
        encoding=encoding,
        keyframe=is_keyframe(packet.encoded, encoding),
        width=metadata.width,
        height=metadata.height,
        intrinsics=intrinsics if all(metadata.focal_length_px) else None,
        pose=pose,
    )


@_any_number
def spatial_input(sample: SpatialInput) -> list[Outgoing]:
    """Head, gaze and hands of one sample; a part that is not valid has no payload."""
    head = gaze = hands = b""
    if sample.head is not None:
        head = conventions.world_from_head(sample.head).astype("<f4").tobytes()
    if sample.eye is not None:
        gaze = np.asarray(conventions.world_eye_ray(sample.eye), "<f4").tobytes()
    hand_bits = (sample.left_hand is not None) | (sample.right_hand is not None) << 1
    if hand_bits:
        joints = np.zeros((2, HAND_JOINTS, HAND_JOINT_VALUES), "<f4")
        for side, hand in enumerate((sample.left_hand, sample.right_hand)):
            if hand is not None:
                joints[side] = _joints(hand)
        hands = joints.tobytes()
    return [
        Outgoing(
            stream="head", encoding="pose_f32", payload=head, valid=int(sample.head is not None)
        ),
        Outgoing(
            stream="gaze", encoding="ray_f32", payload=gaze, valid=int(sample.eye is not None)
        ),
        Outgoing(stream="hands", encoding="joints_f32", payload=hands, valid=int(hand_bits)),
    ]


def depth_plane(
    stream: str,
    plane: NDArray[np.uint16],
    *,
    pose: list[float] | None,
    depth_unit_m: float | None = None,
) -> Outgoing:
    """A depth or brightness plane as a 16-bit image; only depth has a unit."""
    height, width = plane.shape
    return Outgoing(
        stream=stream,
        payload=encode_png16(plane),
        encoding="png16",
        width=width,
        height=height,
        pose=pose,
        depth_unit_m=depth_unit_m,
    )


def tracking_picture(
    stream: str, kind: Port, packet: VlcPacket, encoding: str, pose: list[float] | None
) -> Outgoing:
    """A grey tracking camera's picture as it lies in the sensor, and how to turn it upright."""
    return Outgoing(
        stream=stream,
        payload=packet.encoded,
        encoding=encoding,
        keyframe=is_keyframe(packet.encoded, encoding),
        width=VLC_WIDTH,
        height=VLC_HEIGHT,
        pose=pose,
        upright_turns=conventions.upright_turns(kind),
    )


@_any_number
def inertial(
    stream: str, timestamp_hns: int, samples: ImuSamples, pose: list[float] | None
) -> Outgoing:
    """A batch of samples: seconds after the packet's time, x, y, z, temperature.

    Acceleration stays m/s^2, turning becomes rad/s; the magnetometer has no temperature (0).
    """
    if not len(samples.values):
        return Outgoing(stream=stream, payload=b"", encoding="samples_f32", valid=0, pose=pose)
    rows = np.zeros((len(samples.values), IMU_SAMPLE_VALUES), "<f4")
    rows[:, 0] = (samples.device_time_hns.astype(np.int64) - timestamp_hns) / 1e7
    rows[:, 1:4] = samples.values
    if stream == "gyroscope":
        rows[:, 1:4] = np.radians(samples.values)
    if stream != "magnetometer":
        rows[:, 4] = samples.temperatures
    return Outgoing(stream=stream, payload=rows.tobytes(), encoding="samples_f32", pose=pose)


@_any_number
def eye_tracking(sample: EyeSample, tracker_pose: Array | None) -> Outgoing:
    """Both eyes' rays in the world; a ray is not valid where the tracker's pose is not known."""
    values, valid = np.zeros(EYE_VALUES, "<f4"), 0
    rays = (sample.combined, sample.left, sample.right)
    for place, ray in enumerate(rays):
        if ray is not None and tracker_pose is not None and np.any(ray.direction):
            values[6 * place : 6 * place + 6] = _world_ray(ray, tracker_pose)
            valid |= 1 << place
    scalars = (sample.left_openness, sample.right_openness, sample.vergence_distance_m)
    for place, value in enumerate(scalars):
        if value is not None:
            values[18 + place] = value
            valid |= 8 << place
    if valid and sample.calibrated:
        valid |= CALIBRATED_BIT
    payload = values.tobytes() if valid else b""
    return Outgoing(stream="eye_tracking", payload=payload, encoding="eyes_f32", valid=valid)


def camera_calibration(stream: str, calibration: CameraCalibration) -> Outgoing:
    """A camera's constants: the unit-plane point of each pixel, and where it sits on the rig."""
    height, width = calibration.uv2xy.shape[:2]
    return Outgoing(
        stream="calibration",
        payload=np.ascontiguousarray(calibration.uv2xy, "<f4").tobytes(),
        encoding="rays_f32",
        calibrates=stream,
        width=width,
        height=height,
        depth_unit_m=None if not calibration.scale else 1 / calibration.scale,
        rig_from_sensor=Mounting(calibration.extrinsics).rig_from_sensor,
    )


def imu_calibration(stream: str, mounting: Mounting) -> Outgoing:
    """Where an inertial sensor sits on the rig."""
    return Outgoing(
        stream="calibration",
        payload=b"",
        encoding="none",
        calibrates=stream,
        rig_from_sensor=mounting.rig_from_sensor,
    )


def _world_ray(ray: EyeRay, tracker_pose: Array) -> Array:
    return np.concatenate(conventions.world_ray(ray, tracker_pose)).astype(np.float32)


def _joints(hand: HandPose) -> Array:
    """A hand's joints as the wire has them, (26, 9): qx qy qz qw x y z radius accuracy."""
    return np.column_stack((hand.orientations, hand.positions, hand.radii, hand.accuracies))


def _flat(matrix: NDArray[np.floating]) -> list[float]:
    values: list[float] = matrix.ravel().tolist()
    return values
