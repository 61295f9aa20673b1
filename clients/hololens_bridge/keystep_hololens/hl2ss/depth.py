"""The payloads of the depth cameras: long throw (LT) and AHAT, each depth and active brightness.

Depth is millimetres along the pixel's ray (radial, not z); 0 is invalid.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes
from keystep_hololens.hl2ss.research_mode import (
    AHAT_HEIGHT,
    AHAT_WIDTH,
    LONG_THROW_HEIGHT,
    LONG_THROW_WIDTH,
)

TICKS_SIZE = 8
LONG_THROW_MAX_PAYLOAD_SIZE = 2**20
AHAT_MAX_PAYLOAD_SIZE = 4 * 2**20
LONG_THROW_SHAPE = (LONG_THROW_HEIGHT, LONG_THROW_WIDTH)
AHAT_SHAPE = (AHAT_HEIGHT, AHAT_WIDTH)
AHAT_ALIAS_MM = 1055
"""AHAT is usable up to here; beyond, its phase wraps around."""
_AHAT_STEP_MM = 4
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(
    ">IIBB", LONG_THROW_WIDTH, LONG_THROW_HEIGHT, 8, 6
)
_AHAT_SIZES = struct.Struct("<II")

Plane = NDArray[np.uint16]


class DepthFrame(NamedTuple):
    """Depth in millimetres along the ray and active brightness (AB), both (H, W) uint16."""

    depth_mm: Plane
    active_brightness: Plane


# --- long throw ----------------------------------------------------------------------------------


def encode_long_throw(frame: DepthFrame, sensor_ticks_ns: int) -> bytes:
    """Return a payload: both planes stacked, seen as bytes B, G, R, A in a PNG, and the ticks."""
    stacked = np.concatenate([frame.depth_mm, frame.active_brightness]).astype("<u2")
    as_bgra = stacked.view(np.uint8).reshape(*LONG_THROW_SHAPE, 4)
    done, encoded = cv2.imencode(".png", as_bgra)
    assert done
    return bytes(encoded) + struct.pack("<Q", sensor_ticks_ns)


def decode_long_throw(payload: Bytes) -> tuple[DepthFrame, int]:
    """Unpack a payload: the frame, planes of shape (288, 320), and the sensor's ticks in ns.

    Raises:
        DeviceError: It is not a PNG of 320x288 with 4 channels of 8 bits, or a broken one.
    """
    png = memoryview(payload)[:-TICKS_SIZE]
    if bytes(png[: len(_PNG_HEAD)]) != _PNG_HEAD:  # before anything of its size is allocated
        raise DeviceError(
            "a long-throw payload is a PNG of 320x288 with 4 channels of 8 bits; this one begins"
            f" {bytes(png[: len(_PNG_HEAD)]).hex(' ')}"
        )
    try:
        as_bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DeviceError(f"a long-throw PNG cannot be decoded: {error}") from error
    if as_bgra is None or as_bgra.shape != (*LONG_THROW_SHAPE, 4):
        raise DeviceError("a long-throw PNG cannot be decoded: it is cut off or corrupt")
    planes = as_bgra.reshape(-1).view("<u2").reshape(2, *LONG_THROW_SHAPE)
    return DepthFrame(planes[0], planes[1]), _ticks(payload)


def _ticks(payload: Bytes) -> int:
    return int.from_bytes(bytes(memoryview(payload)[-TICKS_SIZE:]), "little")


# --- AHAT ----------------------------------------------------------------------------------------


class AhatPayload(NamedTuple):
    """An AHAT payload taken apart; `zdepth` is empty where depth travels in the picture."""

    zdepth: memoryview
    encoded: memoryview
    sensor_ticks_ns: int


def encode_ahat_payload(encoded: Bytes, sensor_ticks_ns: int, zdepth: Bytes = b"") -> bytes:
    """Return a payload: both sizes, both parts, the ticks."""
    sizes = _AHAT_SIZES.pack(len(zdepth), len(encoded))
    return b"".join((sizes, zdepth, encoded, struct.pack("<Q", sensor_ticks_ns)))


def split_ahat_payload(payload: Bytes) -> AhatPayload:
    """Take a payload apart.

    Raises:
        DeviceError: Its sizes do not add up.
    """
    view = memoryview(payload)
    if len(view) < _AHAT_SIZES.size + TICKS_SIZE:
        raise DeviceError(f"an AHAT payload has at least 16 bytes, got {len(view)}")
    depth_size, picture_size = _AHAT_SIZES.unpack(view[: _AHAT_SIZES.size])
    expected = _AHAT_SIZES.size + depth_size + picture_size + TICKS_SIZE
    if len(view) != expected:
        raise DeviceError(
            f"an AHAT payload with parts of {depth_size} and {picture_size} bytes has {expected},"
            f" got {len(view)}"
        )
    cut = _AHAT_SIZES.size + depth_size
    zdepth, encoded = view[_AHAT_SIZES.size : cut], view[cut:-TICKS_SIZE]
    return AhatPayload(zdepth, encoded, _ticks(payload))


def check_no_zdepth(payload: AhatPayload) -> None:
    """Refuse depth in a Zdepth blob.

    Raises:
        DeviceError: There is such a blob.
    """
    if len(payload.zdepth):
        raise DeviceError(
            "AHAT depth came as a Zdepth blob, which needs the C++ library Zdepth (pyzdepth);"
            " it is not part of Keystep: ask for depth profile 0 (same)"
        )


def encode_raw_ahat(frame: DepthFrame) -> bytes:
    """Return depth and AB one after the other, uint16."""
    return np.concatenate([frame.depth_mm, frame.active_brightness]).astype("<u2").tobytes()


def decode_raw_ahat(data: Bytes) -> DepthFrame:
    """View a raw frame (profile 255, depth profile same), planes of shape (512, 512).

    Raises:
        DeviceError: It does not have 1048576 bytes.
    """
    expected = 2 * 2 * AHAT_WIDTH * AHAT_HEIGHT
    if len(data) != expected:
        raise DeviceError(f"a raw AHAT frame has {expected} bytes, got {len(data)}")
    planes = np.frombuffer(data, "<u2").reshape(2, *AHAT_SHAPE)
    return DepthFrame(planes[0], planes[1])


def pack_ahat_picture(frame: DepthFrame) -> NDArray[np.uint8]:
    """Put depth and AB into one yuv420p picture, shape (768, 512), uint8.

    Y is depth / 4; chroma byte k, before U and V are parted, is the root of AB pixel 2k. Depth
    beyond 1023 mm does not fit and is sent as the largest value (a choice of this simulator).
    """
    luma = np.minimum(frame.depth_mm // _AHAT_STEP_MM, 255).astype(np.uint8)
    roots = np.sqrt(frame.active_brightness.reshape(-1, 4)[:, ::2]).astype(np.uint8)
    chroma = roots.T.reshape(2, -1)  # U from column 0 of each four, V from column 2
    return np.concatenate([luma.reshape(-1), chroma.reshape(-1)]).reshape(-1, AHAT_WIDTH)


def unpack_ahat_picture(yuv420p: NDArray[np.uint8]) -> DepthFrame:
    """Take depth and AB out of a decoded yuv420p picture of shape (768, 512).

    Depth comes in steps of 4 mm; AB has half the horizontal detail.

    Raises:
        DeviceError: The picture has another shape.
    """
    if yuv420p.shape != (AHAT_HEIGHT * 3 // 2, AHAT_WIDTH):
        raise DeviceError(f"an AHAT picture decodes to (768, 512), got {yuv420p.shape}")
    depth = yuv420p[:AHAT_HEIGHT].astype(np.uint16) * _AHAT_STEP_MM
    roots = yuv420p[AHAT_HEIGHT:].reshape(2, -1).astype(np.uint16)
    brightness = np.repeat(roots.T**2, 2, axis=1).reshape(AHAT_SHAPE)
    return DepthFrame(depth, brightness)
