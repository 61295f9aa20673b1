"""Payloads as arrays and images: what was encoded is read, and nothing else is."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keystep_capture import wire
from keystep_capture.errors import WireError
from keystep_capture.payloads import check_image, encode_png16, read_array, read_image


def header_of(stream: str, encoding: str, **fields: Any) -> wire.PacketHeader:
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session="s",
        epoch=1,
        stream=stream,
        sequence=0,
        device_time_ns=0,
        send_time_ns=0,
        encoding=encoding,
        **fields,
    )


images = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.uint16, shape)
)


@given(image=images)
def test_a_16_bit_image_is_read_as_it_was_written(image: np.ndarray) -> None:
    height, width = image.shape
    for encoding, payload in (("png16", encode_png16(image)), ("u16", image.tobytes())):
        header = header_of("depth", encoding, width=width, height=height)
        wire.check_payload(header, len(payload))
        np.testing.assert_array_equal(read_image(header, payload), image)


@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
def test_any_bytes_give_an_image_or_a_wire_error(data: bytes, cut: int) -> None:
    image = np.arange(12 * 9, dtype=np.uint16).reshape(9, 12)
    png = encode_png16(image)
    for payload in (data, png[:cut] + data, png[:33] + data):
        header = header_of("depth", "png16", width=12, height=9)
        try:
            read = read_image(header, payload)
        except WireError:
            continue
        assert (read.shape, read.dtype) == ((9, 12), np.uint16)


def png_of(image: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", image)
    assert done
    return encoded.tobytes()


@pytest.mark.parametrize(
    ("encoding", "size", "payload", "reason"),
    [
        ("png16", (4, 3), png_of(np.zeros((3, 4), np.uint8)), "undecodable"),
        ("png16", (4, 3), png_of(np.zeros((3, 4, 3), np.uint16)), "undecodable"),
        ("png16", (4, 3), png_of(np.zeros((4, 3), np.uint16)), "size_mismatch"),
        ("png16", (None, 3), png_of(np.zeros((3, 4), np.uint16)), "size_mismatch"),
        ("png16", (1024, 1024), png_of(np.zeros((1024, 1024), np.uint16)), "size_mismatch"),
        ("png16", (4, 3), b"\xff\xd8\xff", "undecodable"),
        ("u16", (4, 3), bytes(22), "size_mismatch"),
    ],
)
def test_an_image_that_is_not_what_its_header_says_is_refused_before_it_is_decoded(
    encoding: str, size: tuple[int | None, int | None], payload: bytes, reason: str
) -> None:
    header = header_of("depth", encoding, width=size[0], height=size[1])
    with pytest.raises(WireError) as caught:
        check_image(header, payload)
    assert caught.value.reason == reason


def test_grey_bytes_are_rows_of_a_640x480_picture() -> None:
    payload = bytes(640) + bytes([7]) * 640 + bytes(640 * 478)
    image = read_image(header_of("vlc_left_front", "grey8"), payload)
    assert image.shape == (480, 640)
    assert image[1].tolist() == [7] * 640
    with pytest.raises(WireError, match="h264 payloads are not images"):
        read_image(header_of("vlc_left_front", "h264"), payload)


def test_rays_are_read_by_the_size_in_their_header() -> None:
    rays = np.arange(2 * 3 * 2, dtype="<f4").reshape(2, 3, 2)
    header = header_of("calibration", "rays_f32", width=3, height=2)
    np.testing.assert_array_equal(read_array(header, rays.tobytes()), rays)
    for wrong in ({"width": 2, "height": 2}, {"width": 3}, {}):
        with pytest.raises(WireError) as caught:
            read_array(header_of("calibration", "rays_f32", **wrong), rays.tobytes())
        assert caught.value.reason == "size_mismatch"


@pytest.mark.parametrize(
    ("stream", "encoding", "count", "shape"),
    [
        ("gyroscope", "samples_f32", 15, (3, 5)),
        ("eye_tracking", "eyes_f32", 21, (21,)),
        ("hands", "joints_f32", 468, (2, 26, 9)),
    ],
)
def test_numbers_are_read_in_their_shape_and_must_be_finite(
    stream: str, encoding: str, count: int, shape: tuple[int, ...]
) -> None:
    values = np.linspace(-1, 1, count).astype("<f4")
    assert read_array(header_of(stream, encoding), values.tobytes()).shape == shape
    values[-1] = np.nan
    with pytest.raises(WireError) as caught:
        read_array(header_of(stream, encoding), values.tobytes())
    assert caught.value.reason == "not_finite"
