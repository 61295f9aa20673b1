"""Contact sheets hold every picture, whatever their number and size."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError
from keystep_models.steps.contact_sheet import ContactTile, draw_contact_sheet


def tile(
    colour: tuple[int, int, int], start_s: float, size: tuple[int, int] = (90, 160)
) -> ContactTile:
    image = np.full((*size, 3), colour, np.uint8)
    return ContactTile(
        image=image,
        title="Müsli & a title that is far too long for its tile",
        start_s=start_s,
        end_s=start_s + 3,
        exemplar_s=start_s + 1,
        confidence=0.5,
    )


def holds(sheet: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize("count", [1, 4, 5, 23])
def test_every_picture_is_on_the_sheet(count: int) -> None:
    colours = [(3 + 7 * idx, 5, 11) for idx in range(count)]
    tiles = [tile(colour, 2.0 * idx) for idx, colour in enumerate(colours)]
    sheet = draw_contact_sheet(tiles, duration_s=2.0 * count + 3, title="t")
    assert all(holds(sheet, colour) > 50_000 for colour in colours)


def test_the_width_does_not_depend_on_the_number_of_pictures() -> None:
    one = draw_contact_sheet([tile((1, 2, 3), 0)], duration_s=0.0, title="t")
    many = draw_contact_sheet([tile((1, 2, 3), 0)] * 9, duration_s=9.0, title="t")
    assert one.shape[1] == many.shape[1]
    assert many.shape[0] > one.shape[0]


def test_pictures_of_any_shape_fit() -> None:
    sizes = [(1, 1), (1000, 10), (10, 1000), (360, 640)]
    tiles = [tile((9, 9, 200), 1.0 * idx, size) for idx, size in enumerate(sizes)]
    assert draw_contact_sheet(tiles, duration_s=5.0, title="t").dtype == np.uint8


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        draw_contact_sheet([], duration_s=1.0, title="t")
    broken = ContactTile(
        image=np.zeros((4, 4), np.uint8), title="", start_s=0, end_s=1, exemplar_s=0, confidence=1
    )
    with pytest.raises(ShapeError, match="expected an image"):
        draw_contact_sheet([broken], duration_s=1.0, title="t")
