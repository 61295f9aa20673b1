"""hl2ss's own recordings: one `.bin` file a port, packets as they came over the wire.

The file's magic did not change when payloads did, so what a payload ends with is told by its
content (`Generation`). There is no index and no end mark: a last packet may be cut off.
"""

from __future__ import annotations

import enum
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from keystep_capture.errors import DataError, KeystepError
from keystep_hololens.hl2ss import depth, eye_tracker, inertial, microphone, spatial_input, vlc
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.protocol import (
    DEFAULT_BASE_PORT,
    PACKET_HEADER_SIZE,
    POSE_SIZE,
    Packet,
    Port,
    decode_packet_header,
    decode_pose,
)

MAGIC: Final = b"HL2SSV23"
_EARLIER_MAGICS: Final = {b"X38HL2SS": "March 2023", b"V02HL2SS": "July 2023"}
_HEAD = struct.Struct("<8sHI")
_MAX_USER_BYTES = 1024 * 1024
_MAX_CONFIGURATION_BYTES = 8192
_PROBED_PACKETS = 8
_PNG_END = b"\x49\x45\x4e\x44\xae\x42\x60\x82"

_TRACKING = (
    Port.RM_VLC_LEFTFRONT,
    Port.RM_VLC_LEFTLEFT,
    Port.RM_VLC_RIGHTFRONT,
    Port.RM_VLC_RIGHTRIGHT,
)
_INERTIAL = (Port.RM_IMU_ACCELEROMETER, Port.RM_IMU_GYROSCOPE, Port.RM_IMU_MAGNETOMETER)
_LARGEST: Final = {
    **dict.fromkeys(_TRACKING, vlc.VLC_MAX_PAYLOAD_SIZE),
    **dict.fromkeys(_INERTIAL, inertial.IMU_MAX_PAYLOAD_SIZE),
    Port.RM_DEPTH_AHAT: depth.AHAT_MAX_PAYLOAD_SIZE,
    Port.RM_DEPTH_LONGTHROW: depth.LONG_THROW_MAX_PAYLOAD_SIZE,
    Port.PERSONAL_VIDEO: pv.PV_MAX_PAYLOAD_SIZE,
    Port.MICROPHONE: microphone.MICROPHONE_MAX_PAYLOAD_SIZE,
    Port.SPATIAL_INPUT: spatial_input.SPATIAL_INPUT_SIZE,
    Port.EXTENDED_EYE_TRACKER: eye_tracker.EYE_TRACKER_SIZE,
}


class Generation(enum.Enum):
    """What a payload ends with; the value says since when, and what, in words."""

    PLAIN = "without metadata"
    PV_16 = "16 bytes: focal length and principal point (up to v1.0.32)"
    PV_80 = "80 bytes without the resolution (v1.0.33)"
    PV_80_RESOLUTION = "80 bytes with the resolution (from v1.0.34)"
    VLC_24 = "24 bytes: ticks, exposure and gain (from v1.0.33)"
    TICKS_8 = "8 bytes: the sensor's ticks (from v1.0.33)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BinFile:
    """A recorded port.

    Attributes:
        path: The file.
        kind: Its port.
        user: What the recording program wrote beside it.
        request: The configuration as a client would send it; None for spatial input, the rate in
            frames a second for the eye tracker.
        with_pose: Whether each packet has a pose.
        first_offset: Where the first packet begins.
        generation: What its payloads end with.
    """

    path: Path
    kind: Port
    user: bytes
    request: Any
    with_pose: bool
    first_offset: int
    generation: Generation


def open_bin(path: Path) -> BinFile:
    """Read a file's head and tell its payloads' generation.

    Raises:
        DataError: It is no recording of hl2ss that can be read; one line with file and byte.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:8] != MAGIC:
            raise DataError(f"{path}: at byte 0: {_foreign(head)}")
        _, number, user_size = _HEAD.unpack(head)
        if user_size > _MAX_USER_BYTES:
            raise DataError(f"{path}: at byte 10: user data of {user_size} bytes")
        kind = _kind(path, number)
        user = file.read(user_size)
        offset = _HEAD.size + user_size
        configuration = file.read(_MAX_CONFIGURATION_BYTES)
    request, size, with_pose = _read_request(path, kind, configuration, offset)
    found = BinFile(
        path=path,
        kind=kind,
        user=user,
        request=request,
        with_pose=with_pose,
        first_offset=offset + size,
        generation=Generation.PLAIN,
    )
    probed = [packet.payload for packet in islice(read_packets(found), _PROBED_PACKETS)]
    generation = _generation(found, probed)
    return BinFile(
        path=path,
        kind=kind,
        user=user,
        request=request,
        with_pose=with_pose,
        first_offset=found.first_offset,
        generation=generation,
    )


def read_packets(recorded: BinFile) -> Iterator[Packet]:
    """Give the packets of a file, up to its end or a last one that is cut off.

    Raises:
        DataError: A length cannot be; one line with file and byte.
    """
    largest = _LARGEST[recorded.kind]
    with recorded.path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        offset = file.seek(recorded.first_offset)
        while size - offset >= PACKET_HEADER_SIZE:
            header = decode_packet_header(file.read(PACKET_HEADER_SIZE))
            if header.payload_size > largest:
                raise DataError(
                    f"{recorded.path}: at byte {offset}: a packet of {header.payload_size} bytes, "
                    f"at most {largest} fit"
                )
            end = offset + PACKET_HEADER_SIZE + header.payload_size
            end += POSE_SIZE * recorded.with_pose
            if end > size:
                return
            payload = memoryview(file.read(header.payload_size))
            pose = decode_pose(file.read(POSE_SIZE)) if recorded.with_pose else None
            yield Packet(header.timestamp_hns, payload, pose)
            offset = end


def cut_off_bytes(recorded: BinFile) -> int:
    """How many bytes at the file's end belong to a packet that is not whole."""
    end = recorded.first_offset
    for packet in read_packets(recorded):
        end += PACKET_HEADER_SIZE + len(packet.payload) + POSE_SIZE * recorded.with_pose
    return recorded.path.stat().st_size - end


def _foreign(head: bytes) -> str:
    when = _EARLIER_MAGICS.get(head[:8])
    if when is not None:
        return f"recorded by hl2ss of {when}, whose layout is not known; expected {MAGIC!r}"
    return f"expected a recording of hl2ss, which begins with {MAGIC!r}, got {head[:8]!r}"


def _kind(path: Path, number: int) -> Port:
    offset = number - DEFAULT_BASE_PORT
    if offset not in Port.__members__.values() or Port(offset) not in _LARGEST:
        raise DataError(f"{path}: at byte 8: port {number} is none that can be imported")
    return Port(offset)


def _read_request(path: Path, kind: Port, data: bytes, offset: int) -> tuple[Any, int, bool]:
    """The configuration, its size and whether packets have a pose."""
    if kind is Port.SPATIAL_INPUT:
        return None, 0, False
    request: Any = None
    try:
        if kind is Port.PERSONAL_VIDEO:
            parsed = pv.parse_pv_request(data)
            request = parsed.stream if parsed else None
            size = len(pv.encode_pv_request(parsed)) if parsed else 0
        elif kind is Port.EXTENDED_EYE_TRACKER:
            request, size = rm.parse_eye_tracker_request(data), 1
        elif kind is Port.MICROPHONE:
            request, size = rm.parse_microphone_request(data), 2
        else:
            request = _PARSERS[kind](data)
            size = len(rm.encode_request(request)) if request else 0
    except (KeystepError, struct.error) as error:
        raise DataError(
            f"{path}: at byte {offset}: no configuration of {kind.name}: {error}"
        ) from None
    if request is None or isinstance(request, pv.PvCalibrationRequest | rm.CalibrationRequest):
        raise DataError(f"{path}: at byte {offset}: expected the configuration of {kind.name}")
    if kind is Port.EXTENDED_EYE_TRACKER:
        return request, size, True
    return request, size, getattr(request, "mode", 0) == 1


_PARSERS: Final = {
    **dict.fromkeys(_TRACKING, rm.parse_vlc_request),
    **dict.fromkeys(_INERTIAL, rm.parse_imu_request),
    Port.RM_DEPTH_AHAT: rm.parse_ahat_request,
    Port.RM_DEPTH_LONGTHROW: rm.parse_long_throw_request,
}


# --- generations ---------------------------------------------------------------------------------


def _generation(recorded: BinFile, payloads: list[memoryview]) -> Generation:
    kind = recorded.kind
    payloads = [payload for payload in payloads if len(payload)]
    if kind is Port.PERSONAL_VIDEO:
        return _pv_generation(recorded, payloads)
    if kind in _TRACKING:
        return Generation.VLC_24 if all(map(_has_vlc_metadata, payloads)) else Generation.PLAIN
    if kind is Port.RM_DEPTH_LONGTHROW:
        return Generation.PLAIN if all(map(_ends_a_png, payloads)) else Generation.TICKS_8
    if kind is Port.RM_DEPTH_AHAT:
        return (
            Generation.PLAIN if all(map(_is_ahat_without_ticks, payloads)) else Generation.TICKS_8
        )
    return Generation.PLAIN


def _pv_generation(recorded: BinFile, payloads: list[memoryview]) -> Generation:
    size = (recorded.request.width, recorded.request.height)
    if all(_resolution(payload) == size for payload in payloads):
        return Generation.PV_80_RESOLUTION
    if all(_has_intrinsics(payload, 16, size) for payload in payloads):
        return Generation.PV_16
    own = [_resolution(payload) for payload in payloads]  # in shared mode not what was asked for
    if len(set(own)) == 1 and all(_has_intrinsics(p, 80, own[0]) for p in payloads):
        return Generation.PV_80_RESOLUTION
    if all(_has_intrinsics(payload, 80, size) for payload in payloads):
        return Generation.PV_80
    raise DataError(
        f"{recorded.path}: at byte {recorded.first_offset}: expected intrinsics of a {size[0]}x"
        f"{size[1]} camera in the last 16 or 80 bytes of each packet"
    )


def _resolution(payload: memoryview) -> tuple[int, int]:
    if len(payload) < pv.PV_METADATA_SIZE:
        return 0, 0
    width, height = struct.unpack("<HH", payload[-4:])
    return width, height


def _has_intrinsics(payload: memoryview, size: int, resolution: tuple[int, int]) -> bool:
    """Whether plausible intrinsics stand at the beginning of the last `size` bytes."""
    if len(payload) < size:
        return False
    values: tuple[float, ...] = struct.unpack_from("<4f", payload, len(payload) - size)
    (fx, fy, cx, cy), (width, height) = values, resolution
    return (
        0.2 * width < fx < 5 * width
        and 0.8 < fy / fx < 1.25
        and 0.25 * width < cx < 0.75 * width
        and 0.25 * height < cy < 0.75 * height
    )


def _has_vlc_metadata(payload: memoryview) -> bool:
    """Whether 24 bytes follow the picture: they end in a zero word, no access unit does."""
    if len(payload) in (rm.VLC_WIDTH * rm.VLC_HEIGHT, 0):
        return False
    return len(payload) >= vlc.VLC_METADATA_SIZE and bytes(payload[-4:]) == bytes(4)


def _ends_a_png(payload: memoryview) -> bool:
    return bytes(payload[-len(_PNG_END) :]) == _PNG_END


def _is_ahat_without_ticks(payload: memoryview) -> bool:
    if len(payload) < 8:
        return False
    depth_size, picture_size = struct.unpack_from("<II", payload)
    return bool(8 + depth_size + picture_size == len(payload))
