"""The contact sheet: what is on it, seen through its pixels."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, ShapeError
from keystep_models.steps.contact_sheet import (
    LANE_HEIGHT,
    PALETTE,
    ContactTile,
    Image,
    draw_contact_sheet,
)


def tile(**changes: Any) -> ContactTile:
    values: dict[str, Any] = {
        "image": np.full((90, 160, 3), (10, 200, 250), np.uint8),
        "title": "Fit the wheel",
        "start_s": 2.0,
        "end_s": 4.0,
        "exemplar_s": 3.0,
        "confidence": 0.5,
    }
    return ContactTile(**(values | changes))


def pixels_of(sheet: Image, colour: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray((sheet == np.array(colour, np.uint8)).all(axis=2))


def timeline_of(sheet: Image, lane_count: int = 1) -> Image:
    return sheet[-(62 + lane_count * LANE_HEIGHT) :]


def test_every_key_step_has_its_colour_on_a_tile_and_on_the_timeline() -> None:
    tiles = [tile(start_s=3.0 * n, exemplar_s=3.0 * n, end_s=3.0 * n + 2) for n in range(5)]
    sheet = draw_contact_sheet(tiles, 16.0, "Bike")
    for colour in PALETTE[:5]:
        assert pixels_of(sheet[:-100], colour).sum() > 1000
        assert pixels_of(timeline_of(sheet), colour).sum() > 100


def test_a_bar_spans_its_times_on_the_axis() -> None:
    sheet = draw_contact_sheet([tile(start_s=2.5, end_s=5.0)], 10.0, "Bike")
    columns = np.flatnonzero(pixels_of(timeline_of(sheet), PALETTE[0]).any(axis=0))
    axis = np.array([28, sheet.shape[1] - 28])  # the sheet's margins
    expected = np.interp([2.5, 5.0], [0, 10], axis)
    np.testing.assert_allclose([columns[0], columns[-1] + 1], expected, atol=1)


def test_key_steps_that_overlap_in_time_lie_in_lanes_below_each_other() -> None:
    apart = draw_contact_sheet([tile(), tile(start_s=6, exemplar_s=7, end_s=8)], 10.0, "Bike")
    overlapping = draw_contact_sheet([tile(), tile()], 10.0, "Bike")
    assert overlapping.shape[0] == apart.shape[0] + LANE_HEIGHT
    first, second = (
        np.flatnonzero(pixels_of(timeline_of(overlapping, 2), colour).any(axis=1))
        for colour in PALETTE[:2]
    )
    assert first[-1] < second[0]


def test_the_whole_exemplar_is_shown_whatever_its_shape() -> None:
    image = np.full((400, 100, 3), (0, 255, 255), np.uint8)
    image[:40], image[-40:] = (255, 255, 0), (255, 0, 255)  # ends that a crop would lose
    sheet = draw_contact_sheet([tile(image=image)], 10.0, "Bike")
    assert pixels_of(sheet, (255, 255, 0)).any()
    assert pixels_of(sheet, (255, 0, 255)).any()


def test_titles_change_the_picture_and_long_ones_stay_on_their_tile() -> None:
    tiles = [tile(title=""), tile()]
    plain = draw_contact_sheet(tiles, 10.0, "Bike")
    long = draw_contact_sheet([tile(title="W" * 500), tile()], 10.0, "Bike")
    changed = np.flatnonzero((plain != long).any(axis=(0, 2)))
    assert len(changed) > 100
    assert changed[-1] < 28 + 300 - 4  # inside the first tile's frame


def test_without_key_steps_the_sheet_still_has_its_axis_and_says_so() -> None:
    empty = draw_contact_sheet([], 10.0, "Bike")
    assert (empty < 100).all(axis=2).sum() > 200  # words in ink
    assert not any(pixels_of(empty, colour).any() for colour in PALETTE)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), duration_s=st.floats(0.05, 1e5), title=st.text(max_size=40))
def test_any_tiles_give_a_sheet(data: st.DataObject, duration_s: float, title: str) -> None:
    times = st.lists(st.floats(0, 2 * duration_s), min_size=3, max_size=3).map(sorted)
    drawn = data.draw(
        st.lists(st.tuples(times, st.floats(0, 1), st.text(max_size=60)), max_size=14)
    )
    tiles = [
        tile(start_s=start, exemplar_s=middle, end_s=end, confidence=confidence, title=words)
        for (start, middle, end), confidence, words in drawn
    ]
    sheet = draw_contact_sheet(tiles, duration_s, title)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert pixels_of(sheet, PALETTE[0]).any() == bool(tiles)


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)],
)
def test_an_exemplar_that_is_no_colour_image_is_refused(image: Any) -> None:
    with pytest.raises(ShapeError, match="tile 1"):
        draw_contact_sheet([tile(image=image)], 10.0, "Bike")


@pytest.mark.parametrize(
    "changes",
    [
        {"start_s": 3.5},
        {"end_s": 2.5},
        {"start_s": -1.0},
        {"end_s": float("nan")},
        {"confidence": 1.1},
    ],
)
def test_times_and_confidences_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="tile 1"):
        draw_contact_sheet([tile(**changes)], 10.0, "Bike")


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_session_without_a_length_is_refused(duration_s: float) -> None:
    with pytest.raises(ConfigError, match="duration_s"):
        draw_contact_sheet([], duration_s, "Bike")
