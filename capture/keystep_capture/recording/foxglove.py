"""Foxglove's published messages, built from packets.

A *carrier* holds a packet's payload exactly as it came; a *view* (a pose, a calibration) shows
something of the packet to programs that know Foxglove's schemas and nothing of Keystep.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedAudio_pb2 import CompressedAudio
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.RawAudio_pb2 import RawAudio
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from keystep_capture.errors import DataError
from keystep_capture.streams import HAND_JOINT_VALUES, HAND_JOINTS, VLC_HEIGHT, VLC_WIDTH
from keystep_capture.wire import PacketHeader

_NS = 1_000_000_000
_JOINT_FIELDS = ("qx", "qy", "qz", "qw", "x", "y", "z", "radius", "accuracy")
_POSE = struct.Struct("<16f")
_PALM = struct.Struct("<7f")  # the first values of a joint: orientation and place
_HAND_BYTES = HAND_JOINTS * HAND_JOINT_VALUES * 4
_LENGTH_DELIMITED = 2
_SAMPLE_RATE_HZ, _CHANNELS = 48_000, 2  # of the microphone, docs/wire.md

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


_CARRIERS = {
    "h264": Carrier(message=CompressedVideo, topic="video", format="h264"),
    "hevc": Carrier(message=CompressedVideo, topic="video", format="h265"),
    "jpeg": Carrier(message=CompressedImage, topic="image", format="jpeg"),
    "png16": Carrier(message=CompressedImage, topic="image", format="png"),
    "grey8": Carrier(message=RawImage, topic="image", format="mono8", bytes_per_pixel=1),
    "u16": Carrier(message=RawImage, topic="image", format="16UC1", bytes_per_pixel=2),
    "joints_f32": Carrier(message=PointCloud, topic="joints"),
    "aac_adts": Carrier(message=CompressedAudio, topic="audio", format="mp4a.40.2"),
    "pcm_s16": Carrier(message=RawAudio, topic="audio", format="pcm-s16"),
}


def carrier_by_encoding(encoding: str) -> Carrier | None:
    """What may carry payloads of an encoding; None: nothing does."""
    return _CARRIERS.get(encoding)


def carrier_of(header: PacketHeader) -> Carrier | None:
    """What carries a packet's payload; None where it stands in the packet's own record."""
    carrier = _CARRIERS.get(header.encoding)
    if carrier is not None and carrier.bytes_per_pixel and _size(header) is None:
        return None
    return carrier


def frame_id(epoch: int, name: str) -> str:
    """A coordinate frame's name; a restart moves the world, so each epoch has its own."""
    return f"epoch_{epoch}/{name}"


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


class LaneMessages:
    """Builds the messages of one stream, epoch and encoding.

    Each message is kept and only what changes from packet to packet is set, in a fifth of the time
    that a new one takes.
    """

    def __init__(self, header: PacketHeader) -> None:
        """Prepare for packets like this one."""
        self._carrier: Any = None
        self._calibration = CameraCalibration(
            frame_id=frame_id(header.epoch, header.stream),
            K=(0, 0, 0, 0, 0, 0, 0, 0, 1),
            R=(1, 0, 0, 0, 1, 0, 0, 0, 1),
            P=(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0),
        )
        self._pose = _Transform(FrameTransform(), header.epoch, header.stream)
        self._both_palms = FrameTransforms()
        self._palms = tuple(
            _Transform(self._both_palms.transforms.add(), header.epoch, hand)
            for hand in ("left_hand", "right_hand")
        )

    def carrier_parts(
        self, carrier: Carrier, header: PacketHeader, payload: Payload
    ) -> tuple[bytes, Payload]:
        """The carrying message's bytes in two parts, so that the payload is not copied."""
        message = self._carrier
        if message is None:
            message = self._carrier = _new_carrier(carrier, header)
        if carrier.bytes_per_pixel and (size := _size(header)) is not None:
            message.width, message.height = size
            message.step = size[0] * carrier.bytes_per_pixel
        _set_time(message, header.device_time_ns)
        tag = carrier.message.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
        return message.SerializeToString() + bytes((tag,)) + _varint(len(payload)), payload

    def calibration(self, header: PacketHeader) -> bytes:
        """A `CameraCalibration`: the intrinsics as they hold from this packet on."""
        assert header.intrinsics is not None
        message = self._calibration
        message.width, message.height = header.width or 0, header.height or 0
        k, p = message.K, message.P
        k[0], k[4], k[2], k[5] = p[0], p[5], p[2], p[6] = header.intrinsics
        _set_time(message, header.device_time_ns)
        return bytes(message.SerializeToString())

    def pose(self, header: PacketHeader, pose: Sequence[float]) -> bytes | None:
        """A `FrameTransform` from the world to the stream's sensor; None where it is no pose.

        Args:
            header: The packet's header.
            pose: world_from_sensor, 4x4 row by row.
        """
        quaternion = _quaternion(pose)
        if quaternion is None:
            return None
        place = (pose[3], pose[7], pose[11])
        return bytes(self._pose.fill(header.device_time_ns, place, quaternion).SerializeToString())

    def head_pose(self, header: PacketHeader, payload: Payload) -> bytes | None:
        """As `pose`, of a `pose_f32` payload."""
        return self.pose(header, _POSE.unpack(payload))

    def palms(self, header: PacketHeader, payload: Payload) -> bytes | None:
        """`FrameTransforms` of the palms of a `joints_f32` payload; None where no hand is seen."""
        filled = []
        for idx, transform in enumerate(self._palms):
            palm = _PALM.unpack_from(payload, idx * _HAND_BYTES)  # the first joint of each hand
            if header.valid >> idx & 1 and math.isfinite(sum(palm)):
                filled.append(transform.fill(header.device_time_ns, palm[4:], palm[:4]))
        if len(filled) == len(self._palms):
            return bytes(self._both_palms.SerializeToString())
        return bytes(FrameTransforms(transforms=filled).SerializeToString()) if filled else None


class _Transform:
    """One `FrameTransform` from the world, filled again and again."""

    def __init__(self, message: Any, epoch: int, child: str) -> None:
        self._message = message
        message.parent_frame_id = frame_id(epoch, "world")
        message.child_frame_id = frame_id(epoch, child)
        self._translation = self._message.translation
        self._rotation = self._message.rotation
        self._stamp = self._message.timestamp

    def fill(self, time_ns: int, translation: Sequence[float], quaternion: Sequence[float]) -> Any:
        to, turn, stamp = self._translation, self._rotation, self._stamp
        stamp.seconds, stamp.nanos = divmod(time_ns, _NS)
        to.x, to.y, to.z = translation
        turn.x, turn.y, turn.z, turn.w = quaternion
        return self._message


def _new_carrier(carrier: Carrier, header: PacketHeader) -> Any:
    message = carrier.message()
    if carrier.message is PointCloud:
        message.frame_id = frame_id(header.epoch, "world")
        message.pose.orientation.w = 1.0
        message.point_stride = HAND_JOINT_VALUES * 4
        for idx, name in enumerate(_JOINT_FIELDS):
            message.fields.add(name=name, offset=4 * idx, type=PackedElementField.FLOAT32)
        return message
    if carrier.message is RawImage:
        message.encoding = carrier.format
    else:
        message.format = carrier.format
    if carrier.message is RawAudio:
        message.sample_rate, message.number_of_channels = _SAMPLE_RATE_HZ, _CHANNELS
    elif carrier.message is not CompressedAudio:
        message.frame_id = frame_id(header.epoch, header.stream)
    return message


def _size(header: PacketHeader) -> tuple[int, int] | None:
    """Width and height of a raw image; None where nothing tells."""
    if header.width and header.height:
        return header.width, header.height
    return (VLC_WIDTH, VLC_HEIGHT) if header.encoding == "grey8" else None


def _quaternion(m: Sequence[float]) -> tuple[float, float, float, float] | None:
    """x, y, z, w of a pose's rotation (4x4, row by row); None where it has none.

    Source: Shepperd 1978, the largest of the four is taken from the diagonal.
    """
    if not math.isfinite(sum(m)):
        return None
    xx, yy, zz = m[0], m[5], m[10]
    squares = (1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz)
    largest = squares.index(max(squares))
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
    CompressedAudio,
    RawAudio,
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
