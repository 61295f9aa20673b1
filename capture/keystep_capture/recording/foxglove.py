"""Foxglove's published messages, built from packets.

A *carrier* holds a packet's payload exactly as it came; a *view* shows something of the packet
(a pose, a calibration) to programs that know Foxglove's schemas and nothing of Keystep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from keystep_capture.errors import DataError
from keystep_capture.streams import HAND_JOINT_VALUES, HAND_JOINTS
from keystep_capture.wire import PacketHeader

_NS = 1_000_000_000
_JOINT_FIELDS = ("qx", "qy", "qz", "qw", "x", "y", "z", "radius", "accuracy")
_HANDS = ("left_hand", "right_hand")
_LENGTH_DELIMITED = 2

Payload: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """How the payload of an encoding is stored.

    Attributes:
        message: The Foxglove message class; its `data` is the payload.
        topic: Last part of the channel's topic.
        format: The message's `format` or `encoding`, where it has one.
        bytes_per_pixel: For raw images, which need a size in the packet's header.
    """

    message: Any
    topic: str
    format: str = ""
    bytes_per_pixel: int = 0


_VIDEO_FORMATS = {"h264": "h264", "hevc": "h265"}
_IMAGE_FORMATS = {"jpeg": "jpeg", "png16": "png"}
_RAW_FORMATS = {"grey8": ("mono8", 1), "u16": ("16UC1", 2)}


def carrier_of(header: PacketHeader) -> Carrier | None:
    """What carries a packet's payload; None where it stands in the packet's own record."""
    encoding = header.encoding
    if encoding in _VIDEO_FORMATS:
        return Carrier(message=CompressedVideo, topic="video", format=_VIDEO_FORMATS[encoding])
    if encoding in _IMAGE_FORMATS:
        return Carrier(message=CompressedImage, topic="image", format=_IMAGE_FORMATS[encoding])
    if encoding in _RAW_FORMATS and header.width and header.height:
        name, size = _RAW_FORMATS[encoding]
        return Carrier(message=RawImage, topic="image", format=name, bytes_per_pixel=size)
    if encoding == "joints_f32":
        return Carrier(message=PointCloud, topic="joints")
    return None


def frame_id(epoch: int, name: str) -> str:
    """A coordinate frame's name; a restart moves the world, so each epoch has its own."""
    return f"epoch_{epoch}/{name}"


def carrier_parts(
    carrier: Carrier, header: PacketHeader, payload: Payload
) -> tuple[bytes, Payload]:
    """The carrying message's bytes in two parts, so that the payload is not copied."""
    message = carrier.message(frame_id=frame_id(header.epoch, header.stream))
    if carrier.message is PointCloud:
        message.frame_id = frame_id(header.epoch, "world")
        message.pose.orientation.w = 1.0
        message.point_stride = HAND_JOINT_VALUES * 4
        for idx, name in enumerate(_JOINT_FIELDS):
            message.fields.add(name=name, offset=4 * idx, type=PackedElementField.FLOAT32)
    elif carrier.message is RawImage:
        message.encoding = carrier.format
        message.width, message.height = header.width, header.height
        message.step = (header.width or 0) * carrier.bytes_per_pixel
    else:
        message.format = carrier.format
    _set_time(message, header.device_time_ns)
    tag = carrier.message.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
    return message.SerializeToString() + bytes((tag,)) + _varint(len(payload)), payload


def carried_payload(schema_name: str, data: bytes | memoryview) -> bytes:
    """The payload in a carrying message.

    Raises:
        DataError: These are no bytes of such a message.
    """
    message_class = CARRIERS.get(schema_name)
    if message_class is None:
        raise DataError(f"expected a message that carries a payload, got {schema_name!r}")
    try:
        return bytes(message_class.FromString(bytes(data)).data)
    except DecodeError:
        raise DataError(f"expected a {schema_name} message, got {len(data)} other bytes") from None


# -- views -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A message beside a packet; `topic` is the last part of its channel's topic."""

    topic: str
    message: Any


def calibration_view(header: PacketHeader) -> View:
    """The camera's intrinsics as they hold from this packet on."""
    assert header.intrinsics is not None
    fx, fy, cx, cy = header.intrinsics
    message = CameraCalibration(
        frame_id=frame_id(header.epoch, header.stream),
        width=header.width or 0,
        height=header.height or 0,
        K=(fx, 0, cx, 0, fy, cy, 0, 0, 1),
        R=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        P=(fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0),
    )
    _set_time(message, header.device_time_ns)
    return View(topic="calibration", message=message)


def pose_views(header: PacketHeader, payload: Payload) -> Iterator[View]:
    """The poses in a packet: a camera's, the head's, the hands' palms."""
    if header.pose is not None:
        yield from _transform_view(header, header.pose)
    if header.encoding == "pose_f32" and len(payload) == 64:
        yield from _transform_view(header, np.frombuffer(payload, "<f4").tolist())
    elif header.encoding == "joints_f32" and len(payload):
        yield from _palms_view(header, payload)


def _transform_view(header: PacketHeader, pose: Sequence[float]) -> Iterator[View]:
    quaternion = _quaternion(pose)
    translation = (pose[3], pose[7], pose[11])
    if quaternion is not None and all(map(math.isfinite, translation)):
        message = _transform(header, header.stream, translation, quaternion)
        yield View(topic="pose", message=message)


def _palms_view(header: PacketHeader, payload: Payload) -> Iterator[View]:
    values = np.frombuffer(payload, "<f4").reshape(len(_HANDS), HAND_JOINTS, HAND_JOINT_VALUES)
    message = FrameTransforms()
    for idx, name in enumerate(_HANDS):
        palm = values[idx, 0].tolist()  # the first joint of each hand
        if header.valid >> idx & 1 and all(map(math.isfinite, palm[:7])):
            message.transforms.append(_transform(header, name, palm[4:7], palm[:4]))
    if message.transforms:
        yield View(topic="palms", message=message)


def _transform(
    header: PacketHeader, child: str, translation: Sequence[float], quaternion: Sequence[float]
) -> Any:
    message = FrameTransform(
        parent_frame_id=frame_id(header.epoch, "world"),
        child_frame_id=frame_id(header.epoch, child),
    )
    _set_time(message, header.device_time_ns)
    to, turn = message.translation, message.rotation
    to.x, to.y, to.z = translation
    turn.x, turn.y, turn.z, turn.w = quaternion
    return message


def _quaternion(m: Sequence[float]) -> tuple[float, float, float, float] | None:
    """x, y, z, w of a pose's rotation (4x4, row by row); None where it has none.

    Source: Shepperd 1978, the largest of the four is taken from the diagonal.
    """
    xx, yy, zz = m[0], m[5], m[10]
    squares = (1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz)
    largest = max(range(4), key=squares.__getitem__)
    if not all(map(math.isfinite, m)) or squares[largest] <= 0:
        return None
    sums = (m[4] + m[1], m[8] + m[2], m[9] + m[6])  # of opposite values: xy, xz, yz
    turns = (m[9] - m[6], m[2] - m[8], m[4] - m[1])  # their differences: x, y, z
    rows = (
        (squares[0], sums[0], sums[1], turns[0]),
        (sums[0], squares[1], sums[2], turns[1]),
        (sums[1], sums[2], squares[2], turns[2]),
        (turns[0], turns[1], turns[2], squares[3]),
    )
    x, y, z, w = rows[largest]
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return (x / norm, y / norm, z / norm, w / norm) if math.isfinite(norm) and norm > 0 else None


# -- schemas ---------------------------------------------------------------------------------------

_MESSAGES = (
    CompressedVideo,
    CompressedImage,
    RawImage,
    PointCloud,
    CameraCalibration,
    FrameTransform,
    FrameTransforms,
)
MESSAGES: dict[str, Any] = {cls.DESCRIPTOR.full_name: cls for cls in _MESSAGES}
"""Every message class that is written, by its schema's name."""

CARRIERS: dict[str, Any] = {
    name: cls for name, cls in MESSAGES.items() if "data" in cls.DESCRIPTOR.fields_by_name
}
"""Those that carry a payload."""


def file_descriptor_set(message_class: Any) -> bytes:
    """A message's schema with all it imports, as MCAP wants protobuf schemas."""
    described = FileDescriptorSet()
    seen: set[str] = set()

    def add(descriptor: FileDescriptor) -> None:
        if descriptor.name in seen:
            return
        seen.add(descriptor.name)
        for dependency in descriptor.dependencies:
            add(dependency)
        descriptor.CopyToProto(described.file.add())

    add(message_class.DESCRIPTOR.file)
    return bytes(described.SerializeToString())


def _set_time(message: Any, time_ns: int) -> None:
    stamp = message.timestamp
    stamp.seconds, stamp.nanos = divmod(time_ns, _NS)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
