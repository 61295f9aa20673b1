"""Recorded packets of the wire as hl2ss's payloads: the inverse of `wire_packets`.

What a payload has room for and a recording lacks is zero: that is how hl2ss says "not known" of
poses, and `recorded_remarks` says it of the rest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import VideoError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.recording import RecordedPacket
from keystep_capture.video import PacketDecoder
from keystep_capture.wire import PacketHeader
from keystep_hololens.device_streams import SENSORS
from keystep_hololens.hl2ss.conventions import Matrix, head_pose, pv_pose, row_matrix
from keystep_hololens.hl2ss.depth import AHAT_SHAPE, LONG_THROW_SHAPE, DepthFrame, Plane
from keystep_hololens.hl2ss.eye_tracker import EyeSample, encode_eye_sample
from keystep_hololens.hl2ss.inertial import ImuSamples, encode_imu
from keystep_hololens.hl2ss.personal_video import PvMetadata
from keystep_hololens.hl2ss.spatial_input import EyeRay, HandPose, SpatialInput
from keystep_hololens.hl2ss.vlc import VlcMetadata

Pose = NDArray[np.float32]

VIDEO_ENCODINGS = ("h264", "hevc")
SPATIAL_PARTS = SENSORS["spatial_input"]
DELIMITER = b"\0\0\0\1\x09"
_ANY_SLICES = b"\xf0"
_TICK_NS = 100
_SPANNED_MAX_HNS = 100_000_000

UNKNOWN_POSE: Pose = np.zeros((4, 4), np.float32)
SAME_PLACE: Pose = np.eye(4, dtype=np.float32)


def device_time_hns(device_time_ns: int) -> int:
    """The tick of the headset's clock nearest to a recorded time."""
    return (device_time_ns + _TICK_NS // 2) // _TICK_NS


def delimited(access_unit: bytes, encoding: str) -> bytes:
    """An access unit that begins with a delimiter, if it is H.264: hl2ss's client drops 6 bytes."""
    if encoding != "h264" or access_unit.startswith(DELIMITER):
        return access_unit
    return DELIMITER + _ANY_SLICES + access_unit


# --- cameras -------------------------------------------------------------------------------------


class PersonalVideo:
    """Frames of the PV camera; a size that no header says is read off the first picture."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None

    def payload(self, packet: RecordedPacket) -> bytes:
        """Make a payload of a frame; camera settings are not recorded: zeros.

        Raises:
            VideoError: Its size is not said, and it cannot be decoded.
        """
        header = packet.header
        fx, fy, cx, cy = header.intrinsics or (0.0, 0.0, 0.0, 0.0)
        width, height = self._size_of(packet)
        metadata = PvMetadata(
            focal_length_px=(fx, fy), principal_point_px=(cx, cy), width=width, height=height
        )
        return delimited(packet.payload, header.encoding) + metadata.encode()

    def _size_of(self, packet: RecordedPacket) -> tuple[int, int]:
        header = packet.header
        if header.width is not None and header.height is not None:
            return header.width, header.height
        if self._size is None or header.keyframe:
            picture = PacketDecoder(header.encoding).decode(packet.payload)
            self._size = (picture.width, picture.height)
        return self._size


def pv_camera_pose(header: PacketHeader) -> Pose:
    """The pose of a PV packet."""
    return UNKNOWN_POSE if header.pose is None else pv_pose(_matrix(header.pose))


def rig_pose(header: PacketHeader, sensor_from_rig: Matrix | None) -> Pose:
    """The rig's pose, from where the sensor was; not known without the sensor's place on it."""
    if header.pose is None or sensor_from_rig is None:
        return UNKNOWN_POSE
    return row_matrix(_matrix(header.pose) @ sensor_from_rig)


def tracking_picture(packet: RecordedPacket) -> bytes:
    """A grey camera's payload; the sensor's clock, exposure and gain are not recorded."""
    metadata = VlcMetadata(sensor_ticks_ns=0, exposure_ns=0, gain=0)
    return delimited(packet.payload, packet.header.encoding) + metadata.encode()


def depth_frame(depth: RecordedPacket | None, brightness: RecordedPacket | None) -> DepthFrame:
    """Both planes of one frame; one that is not recorded is zeros.

    Raises:
        WireError: A plane cannot be decoded.
        VideoError: The planes are of no depth camera's size.
    """
    one = depth or brightness
    assert one is not None
    shape = LONG_THROW_SHAPE if one.header.stream in SENSORS["depth_long_throw"] else AHAT_SHAPE
    return DepthFrame(_plane(depth, shape), _plane(brightness, shape))


def _plane(packet: RecordedPacket | None, shape: tuple[int, int]) -> Plane:
    if packet is None:
        return np.zeros(shape, np.uint16)
    plane = read_image(packet.header, packet.payload)
    if plane.shape != shape:
        raise VideoError(f"hl2ss sends pictures of shape {shape}, got {plane.shape}")
    return plane.astype(np.uint16, copy=False)


# --- sensors -------------------------------------------------------------------------------------


def spatial_input(
    head: RecordedPacket | None, gaze: RecordedPacket | None, hands: RecordedPacket | None
) -> SpatialInput:
    """What the headset says of the wearer at one moment; a part that is None does not hold."""
    return SpatialInput(
        head=None
        if head is None or not _bits(head, 1)
        else head_pose(_array(head).astype(np.float64)),
        eye=None if gaze is None or not _bits(gaze, 1) else _ray(_array(gaze)),
        left_hand=_hand(hands, 0),
        right_hand=_hand(hands, 1),
    )


def _hand(hands: RecordedPacket | None, side: int) -> HandPose | None:
    if hands is None or not _bits(hands, 3) >> side & 1:
        return None
    joints = _array(hands)[side]
    return HandPose(
        orientations=joints[:, :4],
        positions=joints[:, 4:7],
        radii=joints[:, 7],
        accuracies=joints[:, 8].astype(np.int32),
    )


def inertial(packet: RecordedPacket) -> bytes:
    """A batch of samples; the sensor's own clock is not recorded, turning becomes degrees."""
    header = packet.header
    rows = _array(packet) if packet.payload else np.zeros((0, 5), np.float32)
    offsets_hns = np.rint(rows[:, 0].astype(np.float64) * 1e7)
    offsets_hns = np.clip(offsets_hns, -_SPANNED_MAX_HNS, _SPANNED_MAX_HNS).astype(np.int64)
    times_hns = np.maximum(device_time_hns(header.device_time_ns) + offsets_hns, 0)
    values = np.degrees(rows[:, 1:4]) if header.stream == "gyroscope" else rows[:, 1:4]
    return encode_imu(
        ImuSamples(
            sensor_ticks_ns=np.zeros(len(rows), np.uint64),
            device_time_hns=times_hns.astype(np.uint64),
            values=values.astype(np.float32),
            temperatures=rows[:, 4].astype(np.float32),
        )
    )


def spanned_hns(packet: RecordedPacket) -> int:
    """How long after its time stamp the last sample of a batch was taken."""
    if not packet.payload:
        return 0
    last_s = float(_array(packet)[:, 0].max())
    return min(max(0, math.ceil(last_s * 1e7)), _SPANNED_MAX_HNS)


def eye_tracking(packet: RecordedPacket) -> bytes:
    """Both eyes in the world, which is tracker space where the tracker's pose is the identity."""
    bits = _bits(packet, 127)
    if not bits:
        return encode_eye_sample(EyeSample())
    values = _array(packet)
    rays = [_ray(values[at : at + 6]) if bits >> at // 6 & 1 else None for at in (0, 6, 12)]
    scalars = [float(values[18 + at]) if bits >> 3 + at & 1 else None for at in range(3)]
    return encode_eye_sample(
        EyeSample(
            calibrated=bool(bits >> 6 & 1),
            combined=rays[0],
            left=rays[1],
            right=rays[2],
            left_openness=scalars[0],
            right_openness=scalars[1],
            vergence_distance_m=scalars[2],
        )
    )


def _ray(values: NDArray[np.floating]) -> EyeRay:
    origin, direction = values.astype(np.float32).reshape(2, 3)
    return EyeRay(origin=origin, direction=direction)


def _bits(packet: RecordedPacket, every: int) -> int:
    """Which parts are valid; -1 in the header says all."""
    return every if packet.header.valid < 0 else packet.header.valid


def _array(packet: RecordedPacket) -> NDArray[np.floating]:
    return read_array(packet.header, packet.payload)


def _matrix(values: list[float]) -> Matrix:
    return np.array(values, np.float64).reshape(4, 4)
