"""Boxes come back to where they were drawn, whatever the picture's size."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ShapeError
from keystep_models.detector.letterbox import place

_SIZES = st.integers(33, 640)
_FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _picture(width, height, box, pixel_format="rgb24"):
    """White rectangle on black; `box` is x1, y1, x2, y2 in whole pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    frame = av.VideoFrame.from_ndarray(image, "rgb24")
    return frame if pixel_format == "rgb24" else frame.reformat(format=pixel_format)


@st.composite
def _drawn(draw):
    width, height = draw(_SIZES), draw(_SIZES)
    # Large enough that the scaled rectangle has a fully bright core, away from the frame's border.
    w, h = draw(st.integers(width // 3, width // 2)), draw(st.integers(height // 3, height // 2))
    x, y = draw(st.integers(2, width - w - 2)), draw(st.integers(2, height - h - 2))
    return width, height, (x, y, x + w, y + h)


def _found(detector, picture):
    [detection] = detector.detect(picture)
    cx, cy, w, h = detection.box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


@_FEW
@given(drawn=_drawn(), fit=st.sampled_from(["letterbox", "corner", "stretch"]))
def test_a_drawn_box_comes_back_within_half_a_pixel(box_finder, drawn, fit):
    width, height, box = drawn
    detector = box_finder((192, 320), fit=fit)
    np.testing.assert_allclose(_found(detector, _picture(width, height, box)), box, atol=0.5)


@pytest.mark.parametrize("scaling", ["bilinear", "area", "bicubic"])
@pytest.mark.parametrize("size", [(41, 33), (320, 180), (641, 361), (1280, 720), (1921, 1081)])
def test_every_scaler_keeps_the_place(box_finder, scaling, size):
    width, height = size
    box = (width // 5 + 1, height // 4, width // 2 + 1, height // 4 + height // 3)
    detector = box_finder((192, 320), scaling=scaling)
    np.testing.assert_allclose(_found(detector, _picture(width, height, box)), box, atol=0.5)


@pytest.mark.parametrize("size", [(320, 180), (642, 362), (1280, 720)])
def test_decoded_video_keeps_the_place(box_finder, size):
    width, height = size
    box = (width // 5 // 2 * 2, height // 4 // 2 * 2, width // 2 // 2 * 2, height // 2 // 2 * 2)
    picture = _picture(width, height, box, "yuv420p")
    np.testing.assert_allclose(_found(box_finder((192, 320)), picture), box, atol=0.5)


def test_bytes_go_in_as_they_are(box_finder):
    picture = _picture(300, 200, (30, 40, 150, 120))
    detector = box_finder((192, 320), dtype="uint8")
    np.testing.assert_allclose(_found(detector, picture), (30, 40, 150, 120), atol=0.5)


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), side=st.sampled_from([320, 640]))
def test_padding_is_split_as_ultralytics_splits_it(width, height, side):
    placed = place(width, height, side, side, "letterbox")
    ratio = min(side / width, side / height)
    inner = max(round(width * ratio), 1), max(round(height * ratio), 1)
    half = (side - inner[0]) / 2, (side - inner[1]) / 2
    assert (placed.width, placed.height) == inner
    assert (placed.left, placed.top) == (round(half[0] - 0.1), round(half[1] - 0.1))


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    fit=st.sampled_from(["letterbox", "corner", "stretch"]),
    corner=st.tuples(st.floats(0, 4000), st.floats(0, 4000)),
)
def test_to_picture_reverses_to_input(size, fit, corner):
    placed = place(*size, 192, 320, fit)
    box = np.array([[*corner, corner[0] + 1.0, corner[1] + 1.0]])
    np.testing.assert_allclose(placed.to_picture(placed.to_input(box)), box, atol=1e-6)
    whole = placed.to_picture(
        np.array(
            [[placed.left, placed.top, placed.left + placed.width, placed.top + placed.height]]
        )
    )
    np.testing.assert_allclose(whole[0], (0, 0, *size), atol=1e-9)


def test_no_picture_is_an_error():
    with pytest.raises(ShapeError, match="0 x 5"):
        place(0, 5, 64, 64, "letterbox")


def test_colours_mean_and_scale_reach_the_model(make_detector):
    detector = make_detector(
        {"output0": np.zeros((1, 5, 3), np.float32)},
        classes=["a"], colour="bgr", mean=[10.0, 20.0, 30.0], scale=[2.0, 4.0, 8.0], pad_value=50,
    )  # fmt: skip
    image = np.empty((64, 48, 3), np.uint8)
    image[...] = (100, 110, 130)  # red, green, blue
    rows, placement = detector.prepare(av.VideoFrame.from_ndarray(image, "rgb24"))
    inside = rows[0, :, 32, 48]
    np.testing.assert_allclose(inside, [(130 - 10) / 2, (110 - 20) / 4, (100 - 30) / 8])
    np.testing.assert_allclose(rows[0, :, 0, 0], [20.0, 7.5, 2.5])
    assert (placement.left, placement.width) == (24, 48)


def test_a_buffer_of_another_kind_is_refused(make_detector):
    detector = make_detector({"output0": np.zeros((1, 5, 3), np.float32)}, classes=["a"])
    frame = _picture(40, 40, (0, 0, 1, 1))
    with pytest.raises(ShapeError, match=r"\(1, 3, 64, 96\)"):
        detector.prepare(frame, np.zeros((1, 3, 64, 64), np.float32))


def test_rows_of_pixels_and_half_precision_are_written_alike(make_detector):
    image = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, "rgb24")
    output = {"output0": np.zeros((1, 5, 3), np.float32)}
    planar, _ = make_detector(output, classes=["a"]).prepare(frame)
    packed, _ = make_detector(output, classes=["a"], planar=False).prepare(frame)
    half, _ = make_detector(output, classes=["a"], dtype="float16").prepare(frame)
    np.testing.assert_array_equal(packed[0].transpose(2, 0, 1), planar[0])
    np.testing.assert_allclose(half, planar, atol=5e-4)
