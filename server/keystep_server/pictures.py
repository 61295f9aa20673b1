"""Exemplar pictures of a procedure's steps: files in the data directory, made fit for a headset.

A step's picture is `<procedures_dir>/<procedure>/<step id>.jpg` (or `.jpeg`, `.png`). One that is
too large for the wire is made smaller. Where there is none, none is shown. How many pixels a file
has is read from its header before it is decoded, so that no file costs more than that.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import structlog

from keystep_capture.errors import DataError
from keystep_capture.wire import MAX_PICTURE_BYTES, PictureEncoding
from keystep_models.psr.procedure import Procedure

MAX_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 4096 * 4096
"""A source's hello waits while pictures are decoded."""
MAX_SIDE_PX = 640
"""More than a headset shows of a picture this small in its field of view."""
_QUALITIES = (88, 75, 50, 25)
_SUFFIXES: Final[dict[str, PictureEncoding]] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_SIZE = struct.Struct(">II")  # width, height
_JPEG_START = b"\xff\xd8"
_JPEG_SEGMENT = struct.Struct(">BBH")  # 0xff, marker, size from here on
_JPEG_SIZE = struct.Struct(">HH")  # height, width; after one byte of precision
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPicture:
    """A picture as the wire carries it; the id stands for its bytes."""

    id: str
    encoding: PictureEncoding
    image: bytes


def step_pictures(procedures_dir: Path, procedure: Procedure) -> dict[int, StepPicture]:
    """The pictures of a procedure's steps, by step id; blocks.

    A file that cannot be used is said in the log and left out: guidance goes on without it.
    """
    folder = procedures_dir / procedure.name
    found = {}
    for step in procedure.steps:
        for suffix in _SUFFIXES:
            path = folder / f"{step.id}{suffix}"
            if path.is_file():
                try:
                    found[step.id] = read_picture(path)
                except (DataError, OSError) as error:
                    log.warning("a step's picture is left out", step=step.id, error=str(error))
                break
    return found


def read_picture(path: Path) -> StepPicture:
    """One picture, made smaller where it is too large for the wire.

    Raises:
        DataError: It is no JPEG or PNG, or has more than 32 MiB or 4096 x 4096 pixels.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size} bytes, at most {MAX_FILE_BYTES} are read")
    image, encoding = path.read_bytes(), _SUFFIXES.get(path.suffix)
    found = _size_px(image)
    if encoding is None or found is None:
        raise _no_picture(path)
    if found[0] * found[1] > MAX_PIXELS:
        raise DataError(
            f"{path} is {found[0]}x{found[1]}, at most {MAX_PIXELS} pixels are read: make it "
            f"smaller (headsets are sent at most {MAX_SIDE_PX} pixels a side)"
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if pixels is None:
        raise _no_picture(path)
    if len(image) > MAX_PICTURE_BYTES or max(pixels.shape[:2]) > MAX_SIDE_PX:
        image, encoding = _fitting(np.asarray(pixels, np.uint8)), "jpeg"
    return StepPicture(id=hashlib.sha256(image).hexdigest()[:32], encoding=encoding, image=image)


def _no_picture(path: Path) -> DataError:
    return DataError(f"{path} is no picture; expected a JPEG or PNG file")


def _size_px(image: bytes) -> tuple[int, int] | None:
    """Width and height that a PNG's or JPEG's header says; None: it is neither."""
    if image.startswith(_PNG_START) and len(image) >= len(_PNG_START) + _PNG_SIZE.size:
        width, height = _PNG_SIZE.unpack_from(image, len(_PNG_START))
        return width, height
    return _jpeg_size_px(image) if image.startswith(_JPEG_START) else None


def _jpeg_size_px(image: bytes) -> tuple[int, int] | None:
    """Go from segment to segment up to the one of the frame (ITU-T T.81, B.1.1.4 and B.2.2)."""
    place = len(_JPEG_START)
    while place + _JPEG_SEGMENT.size + 1 + _JPEG_SIZE.size <= len(image):
        start, marker, size = _JPEG_SEGMENT.unpack_from(image, place)
        if start != 0xFF:
            return None
        if marker == 0xFF:  # markers may have any number of these before them
            place += 1
        elif marker in _JPEG_FRAMES:
            height, width = _JPEG_SIZE.unpack_from(image, place + _JPEG_SEGMENT.size + 1)
            return width, height
        else:
            place += 2 + size
    return None


def _fitting(pixels: npt.NDArray[np.uint8]) -> bytes:
    height_px, width_px = pixels.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for quality in _QUALITIES:
        _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(encoded) <= MAX_PICTURE_BYTES:
            return encoded.tobytes()
    raise DataError(f"no JPEG of {size[0]}x{size[1]} fits into {MAX_PICTURE_BYTES} bytes")
