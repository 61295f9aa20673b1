"""Payload bytes as arrays: numbers without a copy, 16-bit images decoded.

What is compressed is looked at before it is decoded, so that no payload makes its reader allocate
more than its header announces.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import numpy.typing as npt

from keystep_capture.errors import WireError
from keystep_capture.streams import (
    EYE_VALUES,
    HAND_JOINT_VALUES,
    HAND_JOINTS,
    IMU_SAMPLE_VALUES,
    MAX_IMAGE_PIXELS,
    STREAMS,
    VLC_HEIGHT,
    VLC_WIDTH,
)
from keystep_capture.wire import PacketHeader

Payload = bytes | bytearray | memoryview
Image = npt.NDArray[np.uint16] | npt.NDArray[np.uint8]

_SHAPES: dict[str, tuple[int, ...]] = {
    "ray_f32": (2, 3),
    "pose_f32": (4, 4),
    "joints_f32": (2, HAND_JOINTS, HAND_JOINT_VALUES),
    "detections_f64": (-1, 6),
    "samples_f32": (-1, IMU_SAMPLE_VALUES),
    "eyes_f32": (EYE_VALUES,),
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_SIZE = struct.Struct(">IIBBB")  # width, height, bits, colour type, compression
_FAST = (int(cv2.IMWRITE_PNG_COMPRESSION), 1)


def read_array(header: PacketHeader, payload: Payload) -> npt.NDArray[np.floating]:
    """See a numeric payload as an array.

    Args:
        header: A header that `wire.check_payload` has passed.
        payload: Its payload; the array shares its memory and is read-only.

    Returns:
        `ray_f32`: (2, 3) origin and direction, m; `pose_f32`: (4, 4) world_from_head;
        `joints_f32`: (2, 26, 9) left and right hand; `detections_f64`: (N, 6);
        `samples_f32`: (N, 5) seconds, x, y, z, temperature; `eyes_f32`: (21,);
        `rays_f32`: (height, width, 2) unit-plane x and y of each pixel.

    Raises:
        WireError: The encoding is not numeric, a value is not finite, or a table of rays has not
            the size that its header gives.
    """
    encoding = STREAMS[header.stream].encodings[header.encoding]
    if encoding.numeric is None:
        raise WireError(f"{header.encoding} payloads are not arrays", "unknown_encoding")
    array: npt.NDArray[np.floating] = np.frombuffer(payload, dtype=encoding.numeric)
    if not np.isfinite(array).all():
        raise WireError(f"{header.stream} payload has values that are not finite", "not_finite")
    if header.encoding == "rays_f32":
        width, height = _size(header)
        if array.size != width * height * 2:
            raise _other_size(header, f"{array.size // 2} rays")
        return array.reshape(height, width, 2)
    return array.reshape(_SHAPES[header.encoding])


def check_image(header: PacketHeader, payload: Payload) -> None:
    """Check that an image payload is of the size its header gives, without decoding it.

    Args:
        header: A header of encoding `png16`, `u16` or `grey8` that `wire.check_payload` has passed.
        payload: Its payload.

    Raises:
        WireError: It is not, or the header gives no size.
    """
    if header.encoding == "png16":
        _check_png(header, payload)
    elif header.encoding == "u16":
        width, height = _size(header)
        if len(payload) != width * height * 2:
            raise _other_size(header, f"{len(payload)} bytes")
    elif header.encoding != "grey8":  # its size is the table's
        raise WireError(f"{header.encoding} payloads are not images", "unknown_encoding")


def read_image(header: PacketHeader, payload: Payload) -> Image:
    """Read an image payload.

    Returns:
        Shape (height, width): uint16 for `png16` and `u16` (depth in units of the header's
        `depth_unit_m` along the pixel's ray, 0 invalid; or active brightness), uint8 for `grey8`.

    Raises:
        WireError: The payload is no such image, or of another size than its header gives.
    """
    check_image(header, payload)
    if header.encoding == "grey8":
        return np.frombuffer(payload, np.uint8).reshape(VLC_HEIGHT, VLC_WIDTH)
    width, height = _size(header)
    if header.encoding == "u16":
        return np.frombuffer(payload, "<u2").reshape(height, width)
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise WireError(f"{header.stream} PNG cannot be decoded: {error}", "undecodable") from error
    if image is None or image.shape != (height, width) or image.dtype != np.uint16:
        raise WireError(f"{header.stream} PNG is cut off or corrupt", "undecodable")
    return image.astype(np.uint16, copy=False)


def encode_png16(image: npt.NDArray[np.uint16]) -> bytes:
    """Compress an image of shape (height, width), uint16, without loss; fast rather than small."""
    done, encoded = cv2.imencode(".png", image, _FAST)
    assert done
    return encoded.tobytes()


def _check_png(header: PacketHeader, payload: Payload) -> None:
    head = bytes(memoryview(payload)[: len(_PNG_SIGNATURE) + _PNG_SIZE.size])
    if len(head) < len(_PNG_SIGNATURE) + _PNG_SIZE.size or not head.startswith(_PNG_SIGNATURE):
        raise WireError(f"{header.stream} payload is no PNG", "undecodable")
    width, height, bits, colour, _ = _PNG_SIZE.unpack(head[len(_PNG_SIGNATURE) :])
    if (bits, colour) != (16, 0):
        raise WireError(f"{header.stream} PNG is not 16-bit grey", "undecodable")
    if (width, height) != _size(header):
        raise _other_size(header, f"{width}x{height}")


def _size(header: PacketHeader) -> tuple[int, int]:
    if header.width is None or header.height is None:
        raise WireError(f"{header.stream} packet lacks width and height", "size_mismatch")
    if header.width * header.height > MAX_IMAGE_PIXELS:
        raise WireError(
            f"{header.stream} image has {header.width}x{header.height} pixels, "
            f"at most {MAX_IMAGE_PIXELS} are allowed",
            "size_mismatch",
        )
    return header.width, header.height


def _other_size(header: PacketHeader, came: str) -> WireError:
    return WireError(
        f"{header.stream} packet says {header.width}x{header.height}, its payload has {came}",
        "size_mismatch",
    )
