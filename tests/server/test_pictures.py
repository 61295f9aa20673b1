"""Pictures of steps: real files, made fit for the wire."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_capture.wire import MAX_PICTURE_BYTES
from keystep_models.psr.procedure import builtin_procedure
from keystep_server.pictures import MAX_SIDE_PX, read_picture, step_pictures

PROCEDURE = builtin_procedure("industreal-assy")


def noise(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
def test_a_picture_that_fits_is_sent_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"3{suffix}"
    cv2.imwrite(str(path), noise(60, 80))
    picture = read_picture(path)
    assert picture.image == path.read_bytes()
    assert picture.encoding == ("png" if suffix == ".png" else "jpeg")


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("3.jpg", 3000, 4000), ("3.png", 640, 640), ("3.png", 4000, 20)],
)
def test_a_picture_that_is_too_large_is_made_smaller(
    tmp_path: Path, name: str, height: int, width: int
) -> None:
    path = tmp_path / name
    cv2.imwrite(str(path), noise(height, width))
    picture = read_picture(path)
    assert picture.encoding == "jpeg"
    assert len(picture.image) <= MAX_PICTURE_BYTES
    shape = cv2.imdecode(np.frombuffer(picture.image, np.uint8), cv2.IMREAD_COLOR).shape
    assert max(shape[:2]) == MAX_SIDE_PX
    assert shape[0] / shape[1] == pytest.approx(height / width, rel=0.35)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff no more"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "3.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no picture"):
        read_picture(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG of nothing but a header."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + head + end


def jpeg_saying(width: int, height: int, *, fill: int = 0) -> bytes:
    """A small JPEG whose header says another size, with fill bytes before that."""
    _, encoded = cv2.imencode(".jpg", noise(16, 16))
    head, tail = encoded.tobytes().split(b"\xff\xc0", 1)
    return (
        head
        + b"\xff" * fill
        + b"\xff\xc0"
        + tail[:3]
        + struct.pack(">HH", height, width)
        + tail[7:]
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("3.png", png_header(40_000, 40_000)),
        ("3.png", png_header(2**31 - 1, 2**31 - 1)),
        ("3.jpg", jpeg_saying(60_000, 60_000)),
        ("3.jpg", jpeg_saying(60_000, 60_000, fill=3)),
        ("3.png", jpeg_saying(4097, 4096)),
    ],
)
def test_a_header_of_too_many_pixels_is_refused_before_decoding(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"at most 16777216 pixels"):
        read_picture(path)


def test_a_header_without_pixels_behind_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "3.png"
    path.write_bytes(png_header(0, 0))
    with pytest.raises(DataError, match=r"cannot be decoded|is no picture"):
        read_picture(path)


@given(content=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff"]))
def test_any_bytes_are_a_picture_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes
) -> None:
    path = tmp_path_factory.mktemp("pictures") / "3.jpg"
    path.write_bytes(start + content)
    with contextlib.suppress(DataError):
        assert read_picture(path).image


def test_pictures_are_found_by_step_and_the_others_left_out(tmp_path: Path) -> None:
    assert step_pictures(tmp_path, PROCEDURE) == {}
    folder = tmp_path / PROCEDURE.name
    folder.mkdir()
    cv2.imwrite(str(folder / "3.jpg"), noise(60, 80))
    cv2.imwrite(str(folder / "9.png"), noise(60, 80))
    cv2.imwrite(str(folder / "99.jpg"), noise(60, 80))  # no step of the procedure
    (folder / "6.jpg").write_text("no picture")
    found = step_pictures(tmp_path, PROCEDURE)
    assert set(found) == {3, 9}
    assert found[3].id != found[9].id
