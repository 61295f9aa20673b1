"""hl2ss on the wire: ports and packet framing, without sockets.

`parse_*` functions here and beside take the bytes that have arrived so far and return None while
more are needed; what cannot be hl2ss raises DeviceError.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError

DEFAULT_BASE_PORT = 3800
HNS_PER_SECOND = 10_000_000
POSE_SIZE = 64

Bytes = bytes | bytearray | memoryview


class Port(enum.IntEnum):
    """What listens where, as offset from the base port (3800 on a headset)."""

    RM_VLC_LEFTFRONT = 0
    RM_VLC_LEFTLEFT = 1
    RM_VLC_RIGHTFRONT = 2
    RM_VLC_RIGHTRIGHT = 3
    RM_DEPTH_AHAT = 4
    RM_DEPTH_LONGTHROW = 5
    RM_IMU_ACCELEROMETER = 6
    RM_IMU_GYROSCOPE = 7
    RM_IMU_MAGNETOMETER = 8
    REMOTE_CONFIGURATION = 9
    PERSONAL_VIDEO = 10
    MICROPHONE = 11
    SPATIAL_INPUT = 12
    SPATIAL_MAPPING = 13
    SCENE_UNDERSTANDING = 14
    VOICE_INPUT = 15
    UNITY_MESSAGE_QUEUE = 16
    EXTENDED_EYE_TRACKER = 17
    EXTENDED_AUDIO = 18
    EXTENDED_VIDEO = 19
    GUEST_MESSAGE_QUEUE = 20
    EXTENDED_DEPTH = 21


def port(kind: Port, base: int = DEFAULT_BASE_PORT) -> int:
    """Return the TCP port of one service when the first of them is at `base`."""
    return base + kind


class NeedMoreError(Exception):
    """A message has not arrived in full; never leaves this package."""


class Reader:
    """Takes fields off the front of what has arrived."""

    def __init__(self, data: Bytes) -> None:
        self._view = memoryview(data)

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            NeedMoreError: There are not as many yet.
        """
        if len(self._view) < size:
            raise NeedMoreError
        taken, self._view = self._view[:size], self._view[size:]
        return taken


_PACKET_HEADER = struct.Struct("<QI")
PACKET_HEADER_SIZE = _PACKET_HEADER.size


class PacketHeader(NamedTuple):
    """Head of every packet; `payload_size` counts payload and metadata, not the pose."""

    timestamp_hns: int
    payload_size: int


class Packet(NamedTuple):
    """One packet of a stream; `pose` has shape (4, 4), float32, as on the wire, None in mode 0."""

    timestamp_hns: int
    payload: memoryview
    pose: NDArray[np.float32] | None


def encode_packet(
    timestamp_hns: int, payload: Bytes, pose: NDArray[np.float32] | None = None
) -> bytes:
    """Frame one packet; a pose of shape (4, 4) is appended where the stream is in mode 1."""
    tail = b"" if pose is None else np.ascontiguousarray(pose, "<f4").tobytes()
    return b"".join((_PACKET_HEADER.pack(timestamp_hns, len(payload)), payload, tail))


def decode_packet_header(data: Bytes) -> PacketHeader:
    """Decode the 12 bytes before a payload."""
    return PacketHeader(*_PACKET_HEADER.unpack(data))


def decode_pose(data: Bytes) -> NDArray[np.float32]:
    """View 64 bytes as a 4x4 float32 matrix, row-major, row-vector convention, as on the wire."""
    return np.frombuffer(data, "<f4").reshape(4, 4)


def parse_packet(data: Bytes, *, with_pose: bool, max_size: int) -> tuple[Packet, int] | None:
    """Take one packet off the front of `data`; returns it and the bytes used, None if incomplete.

    Raises:
        DeviceError: The length field exceeds `max_size`.
    """
    view = memoryview(data)
    if len(view) < PACKET_HEADER_SIZE:
        return None
    header = decode_packet_header(view[:PACKET_HEADER_SIZE])
    if header.payload_size > max_size:
        raise DeviceError(f"a packet announces {header.payload_size} bytes, at most {max_size} fit")
    payload_end = PACKET_HEADER_SIZE + header.payload_size
    end = payload_end + POSE_SIZE * with_pose
    if len(view) < end:
        return None
    pose = decode_pose(view[payload_end:end]) if with_pose else None
    return Packet(header.timestamp_hns, view[PACKET_HEADER_SIZE:payload_end], pose), end
