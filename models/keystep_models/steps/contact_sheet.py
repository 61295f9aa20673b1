"""A contact sheet: key steps' pictures in a grid above a timeline of the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError

Colour = tuple[int, int, int]

TILE_WIDTH: Final = 320
COLUMNS: Final = 4
_MARGIN: Final = 24
_GAP: Final = 18
_CAPTION: Final = 50
_HEADER: Final = 64
_LANE: Final = 22
_AXIS: Final = 34
_INK: Final[Colour] = (48, 40, 36)
_FAINT: Final[Colour] = (150, 146, 142)
_PAPER: Final = 250
# Colours that stay apart on paper and for most colour-blind readers (Okabe and Ito), as BGR.
_PALETTE: Final[tuple[Colour, ...]] = (
    (178, 114, 0),
    (0, 94, 213),
    (115, 158, 0),
    (167, 121, 204),
    (0, 159, 230),
    (233, 180, 86),
    (66, 200, 220),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContactTile:
    """One key step on the sheet.

    Attributes:
        image: Exemplar frame, (H, W, 3) uint8, BGR.
        title: Its name.
        start_s, end_s, exemplar_s: Seconds since the session's start.
        confidence: 0 to 1.
    """

    image: NDArray[np.uint8]
    title: str
    start_s: float
    end_s: float
    exemplar_s: float
    confidence: float


def draw_contact_sheet(
    tiles: Sequence[ContactTile], *, duration_s: float, title: str
) -> NDArray[np.uint8]:
    """Draw key steps as tiles, and below them when each of them was.

    Args:
        tiles: In order of time, at least one.
        duration_s: Length of the session.
        title: Headline.

    Returns:
        The sheet, (H, W, 3) uint8, BGR; its width does not depend on the number of tiles.

    Raises:
        ShapeError: There is no tile, or an image is not (H, W, 3) uint8.
    """
    if not tiles:
        raise ShapeError("a contact sheet needs at least one key step, got none")
    pictures = [_fit(tile.image) for tile in tiles]
    tile_height = max(picture.shape[0] for picture in pictures)
    row_count = -(-len(tiles) // COLUMNS)
    width = 2 * _MARGIN + COLUMNS * TILE_WIDTH + (COLUMNS - 1) * _GAP
    grid_height = row_count * (tile_height + _CAPTION + _GAP)
    lanes = _lanes(tiles)
    height = _HEADER + grid_height + max(lanes, default=0) * _LANE + _LANE + _AXIS + _MARGIN
    sheet = np.full((height, width, 3), _PAPER, np.uint8)
    _text(sheet, title, (_MARGIN, 40), scale=0.8, thickness=2)
    for position, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        row, column = divmod(position, COLUMNS)
        x = _MARGIN + column * (TILE_WIDTH + _GAP)
        y = _HEADER + row * (tile_height + _CAPTION + _GAP)
        _draw_tile(sheet, tile, picture, (x, y), tile_height, _PALETTE[position % len(_PALETTE)])
    _draw_timeline(sheet, tiles, lanes, duration_s, _HEADER + grid_height)
    return sheet


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ShapeError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height = max(1, round(image.shape[0] * TILE_WIDTH / image.shape[1]))
    size = (TILE_WIDTH, min(height, 2 * TILE_WIDTH))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _draw_tile(
    sheet: NDArray[np.uint8],
    tile: ContactTile,
    picture: NDArray[np.uint8],
    corner: tuple[int, int],
    tile_height: int,
    colour: Colour,
) -> None:
    x, y = corner
    sheet[y : y + picture.shape[0], x : x + TILE_WIDTH] = picture
    cv2.rectangle(sheet, (x - 2, y - 2), (x + TILE_WIDTH + 1, y + picture.shape[0] + 1), colour, 3)
    _text(sheet, _shortened(tile.title), (x, y + tile_height + 22), scale=0.6, thickness=2)
    detail = (
        f"{tile.start_s:.1f} - {tile.end_s:.1f} s   picture {tile.exemplar_s:.1f} s   "
        f"confidence {tile.confidence:.2f}"
    )
    _text(sheet, detail, (x, y + tile_height + 42), scale=0.42, colour=_INK)


def _draw_timeline(
    sheet: NDArray[np.uint8],
    tiles: Sequence[ContactTile],
    lanes: Sequence[int],
    duration_s: float,
    top: int,
) -> None:
    """Draw each key step as a bar in the first lane that is free, its exemplar as a notch."""
    left, right = _MARGIN, sheet.shape[1] - _MARGIN
    end_s = max(duration_s, *(tile.end_s for tile in tiles), 1e-3)

    def x_of(time_s: float) -> int:
        return left + int((right - left) * min(max(time_s / end_s, 0.0), 1.0) + 0.5)

    for position, (tile, lane) in enumerate(zip(tiles, lanes, strict=True)):
        colour = _PALETTE[position % len(_PALETTE)]
        y = top + lane * _LANE
        first, last = x_of(tile.start_s), max(x_of(tile.end_s), x_of(tile.start_s) + 3)
        cv2.rectangle(sheet, (first, y), (last, y + _LANE - 6), colour, cv2.FILLED)
        notch = x_of(tile.exemplar_s)
        cv2.line(sheet, (notch, y), (notch, y + _LANE - 6), (255, 255, 255), 2)
    axis_y = top + (max(lanes) + 1) * _LANE + 4
    cv2.line(sheet, (left, axis_y), (right, axis_y), _FAINT, 1, cv2.LINE_AA)
    step_s = _tick_step_s(end_s)
    for index in range(int(end_s / step_s) + 1):
        x = x_of(index * step_s)
        cv2.line(sheet, (x, axis_y), (x, axis_y + 5), _FAINT, 1, cv2.LINE_AA)
        label = f"{index * step_s:g} s"
        (label_width, _), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
        label_x = min(max(left, x - label_width // 2), right - label_width)
        _text(sheet, label, (label_x, axis_y + 22), scale=0.42, colour=_INK)


def _lanes(tiles: Sequence[ContactTile]) -> list[int]:
    """A lane for each tile so that no two bars of a lane overlap."""
    ends: list[float] = []
    lanes = []
    for tile in tiles:
        free = (lane for lane, end_s in enumerate(ends) if end_s <= tile.start_s)
        lane = next(free, len(ends))
        if lane == len(ends):
            ends.append(0.0)
        ends[lane] = tile.end_s
        lanes.append(lane)
    return lanes


def _tick_step_s(end_s: float) -> float:
    """Spacing of the axis' labels: 6 to 15 of them, at round numbers."""
    for step_s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800):
        if end_s / step_s <= 15:
            return step_s
    return 3600.0


def _shortened(text: str, limit: int = 30) -> str:
    ascii_text = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no others
    return ascii_text if len(ascii_text) <= limit else ascii_text[: limit - 3] + "..."


def _text(
    sheet: NDArray[np.uint8],
    text: str,
    origin: tuple[int, int],
    *,
    scale: float,
    thickness: int = 1,
    colour: Colour = _INK,
) -> None:
    cv2.putText(
        sheet,
        text.encode("ascii", "replace").decode(),
        origin,
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        colour,
        thickness,
        cv2.LINE_AA,
    )
