"""One picture of a session's key steps: captioned exemplars above a timeline.

Every key step has a colour, which its tile's frame and its bar on the timeline share. Images are
OpenCV's: shape (H, W, 3), uint8, BGR.
"""

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ShapeError

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

MARGIN: Final = 28
GAP: Final = 20
TILE_WIDTH: Final = 300
PICTURE_HEIGHT: Final = 168  # 16:9 inside the frame
CAPTION_HEIGHT: Final = 62
TILE_HEIGHT: Final = PICTURE_HEIGHT + CAPTION_HEIGHT
HEADER_HEIGHT: Final = 52
LANE_HEIGHT: Final = 24
AXIS_HEIGHT: Final = 44
FRAME: Final = 4  # width of a tile's coloured frame
MIN_COLUMNS: Final = 3  # a narrower sheet has no room for a timeline
MAX_COLUMNS: Final = 6

PAPER: Final[Colour] = (255, 255, 255)
CARD: Final[Colour] = (246, 245, 244)
INK: Final[Colour] = (45, 38, 34)
FAINT_INK: Final[Colour] = (125, 115, 108)
RULE: Final[Colour] = (222, 218, 214)
PICTURE_GROUND: Final[Colour] = (32, 28, 26)
# Dark enough for white figures, and apart for most kinds of colour blindness when neighbours.
PALETTE: Final[tuple[Colour, ...]] = (
    (180, 119, 31),
    (14, 105, 214),
    (62, 142, 44),
    (48, 40, 200),
    (176, 92, 138),
    (72, 84, 138),
    (166, 70, 206),
    (140, 132, 24),
    (20, 138, 158),
    (110, 90, 80),
)
_TICK_STEPS_S: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600)
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
# OpenCV 5 draws UTF-8 with an outline font; 4 has strokes for ASCII only.
_UNICODE_FONT: Final = int(cv2.__version__.split(".", maxsplit=1)[0]) >= 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ContactTile:
    """One key step on the sheet: its exemplar (H, W, 3) uint8 BGR, words and times in seconds."""

    image: Image
    title: str
    start_s: float
    end_s: float
    exemplar_s: float
    confidence: float


def draw_contact_sheet(exemplars: Sequence[ContactTile], duration_s: float, title: str) -> Image:
    """Draw key steps as numbered tiles with a timeline below.

    Args:
        exemplars: The tiles, in the order to number them. Without any the sheet says so.
        duration_s: Length of the session, the timeline's right end.
        title: Heading of the sheet. Text that does not fit is cut with "...".

    Returns:
        The sheet, shape (H, W, 3), uint8, BGR; W grows with the columns (3 to 6), H with the
        rows and with key steps that overlap in time.

    Raises:
        ShapeError: A tile's image is not (H, W, 3) uint8.
        ConfigError: `duration_s` is not above 0, or a tile's times or confidence make no sense.
    """
    _check(exemplars, duration_s)
    columns = _column_count(len(exemplars))
    rows = max(1, math.ceil(len(exemplars) / columns))
    width = 2 * MARGIN + columns * TILE_WIDTH + (columns - 1) * GAP
    scale = _TimeScale(left=MARGIN, right=width - MARGIN, duration_s=duration_s)
    bars = _place_bars(exemplars, scale)
    lane_count = 1 + max((bar.lane for bar in bars), default=0)

    tiles_top = MARGIN + HEADER_HEIGHT
    timeline_top = tiles_top + rows * (TILE_HEIGHT + GAP) + 8
    height = timeline_top + lane_count * LANE_HEIGHT + AXIS_HEIGHT + MARGIN - 10
    sheet = np.full((height, width, 3), PAPER, np.uint8)
    _draw_header(sheet, title, len(exemplars), duration_s)
    if not exemplars:
        _draw_nothing_found(sheet, tiles_top)
    for index, tile in enumerate(exemplars):
        left = MARGIN + (index % columns) * (TILE_WIDTH + GAP)
        top = tiles_top + (index // columns) * (TILE_HEIGHT + GAP)
        _draw_tile(sheet, left, top, tile, index)
    _draw_timeline(sheet, timeline_top, lane_count, scale, bars)
    return sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class _TimeScale:
    left: int
    right: int
    duration_s: float

    def x(self, time_s: float) -> int:
        """Return the pixel column of a time; times past the end stay on the sheet."""
        fraction = min(max(time_s / self.duration_s, 0.0), 1.0)
        return self.left + round(fraction * (self.right - self.left))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bar:
    """A key step on the timeline, in pixels; its number stands in the bar or beside it."""

    index: int
    lane: int
    left: int
    right: int
    exemplar: int
    label_left: int
    label_inside: bool


def _place_bars(tiles: Sequence[ContactTile], scale: _TimeScale) -> list[_Bar]:
    """Give every key step the first lane where neither its bar nor its number meets another."""
    lane_ends: list[int] = []
    bars = []
    for index in sorted(range(len(tiles)), key=lambda each: tiles[each].start_s):
        tile = tiles[index]
        left = min(scale.x(tile.start_s), scale.right - 4)
        right = max(scale.x(tile.end_s), left + 4)
        label_width = _text_width(str(index + 1), 0.45) + 8
        inside = right - left >= label_width + 8
        if inside:
            hides_exemplar = scale.x(tile.exemplar_s) < left + label_width
            label_left = right - label_width + 3 if hides_exemplar else left + 5
            begin, end = left, right
        elif right + label_width <= scale.right:
            label_left, begin, end = right + 4, left, right + label_width
        else:
            label_left, begin, end = left - label_width + 4, left - label_width, right
        lane = next((lane for lane, last in enumerate(lane_ends) if last + 3 <= begin), None)
        if lane is None:
            lane = len(lane_ends)
            lane_ends.append(end)
        lane_ends[lane] = end
        bars.append(
            _Bar(
                index=index,
                lane=lane,
                left=left,
                right=right,
                exemplar=scale.x(tile.exemplar_s),
                label_left=label_left,
                label_inside=inside,
            )
        )
    return bars


def _draw_header(sheet: Image, title: str, count: int, duration_s: float) -> None:
    steps = "1 key step" if count == 1 else f"{count} key steps"
    summary = f"{steps} in {_seconds(duration_s)} s"
    right = sheet.shape[1] - MARGIN
    summary_left = right - _text_width(summary, 0.55)
    baseline = MARGIN + 22
    _write(sheet, summary, (summary_left, baseline), 0.55, FAINT_INK)
    _write(sheet, _fit(title, 0.85, summary_left - MARGIN - 24), (MARGIN, baseline), 0.85, INK)
    cv2.line(sheet, (MARGIN, MARGIN + 36), (right - 1, MARGIN + 36), RULE, 1)


def _draw_nothing_found(sheet: Image, top: int) -> None:
    words = "No key steps were found."
    left = (sheet.shape[1] - _text_width(words, 0.7)) // 2
    _write(sheet, words, (left, top + TILE_HEIGHT // 2), 0.7, FAINT_INK)


def _draw_tile(sheet: Image, left: int, top: int, tile: ContactTile, index: int) -> None:
    colour = PALETTE[index % len(PALETTE)]
    right, bottom = left + TILE_WIDTH - 1, top + TILE_HEIGHT - 1
    cv2.rectangle(sheet, (left, top), (right, bottom), colour, cv2.FILLED)
    inner = sheet[top + FRAME : bottom + 1 - FRAME, left + FRAME : right + 1 - FRAME]
    inner[:] = CARD
    picture = inner[: PICTURE_HEIGHT - FRAME]
    _draw_picture(picture, tile.image)
    _draw_badge(inner, str(index + 1), colour)
    text_top, room = PICTURE_HEIGHT - FRAME, inner.shape[1] - 20
    _write(inner, _fit(tile.title, 0.55, room), (10, text_top + 22), 0.55, INK)
    percent = f"conf. {round(100 * tile.confidence)} %"
    percent_left = inner.shape[1] - 10 - _text_width(percent, 0.45)
    times = f"{tile.start_s:.1f} - {tile.end_s:.1f} s"
    _write(inner, times, (10, text_top + 45), 0.45, FAINT_INK)
    _write(inner, percent, (percent_left, text_top + 45), 0.45, FAINT_INK)
    _draw_meter(inner, percent_left - 8, text_top + 37, tile.confidence, colour)


def _draw_picture(area: Image, image: Image) -> None:
    """Scale the image into the area, whole, centred on a dark ground."""
    area[:] = PICTURE_GROUND
    factor = min(area.shape[1] / image.shape[1], area.shape[0] / image.shape[0])
    width, height = (max(1, round(side * factor)) for side in (image.shape[1], image.shape[0]))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    top, left = (area.shape[0] - height) // 2, (area.shape[1] - width) // 2
    scaled = cv2.resize(image, (width, height), interpolation=method)
    area[top : top + height, left : left + width] = scaled


def _draw_badge(area: Image, number: str, colour: Colour) -> None:
    width = max(26, _text_width(number, 0.55) + 14)
    area[:26, :width] = colour
    _write(area, number, ((width - _text_width(number, 0.55)) // 2, 19), 0.55, PAPER)


def _draw_meter(area: Image, right: int, top: int, fraction: float, colour: Colour) -> None:
    left = right - 40
    area[top : top + 8, left:right] = RULE
    area[top : top + 8, left : left + round(fraction * (right - left))] = colour


def _draw_timeline(
    sheet: Image, top: int, lane_count: int, scale: _TimeScale, bars: Sequence[_Bar]
) -> None:
    bottom = top + lane_count * LANE_HEIGHT
    cv2.rectangle(sheet, (scale.left, top), (scale.right - 1, bottom), CARD, cv2.FILLED)
    _draw_axis(sheet, top, bottom, scale)
    for bar in bars:
        colour = PALETTE[bar.index % len(PALETTE)]
        bar_top = top + bar.lane * LANE_HEIGHT + 3
        bar_bottom = bar_top + LANE_HEIGHT - 6
        sheet[bar_top:bar_bottom, bar.left : bar.right] = colour
        ink = PAPER if bar.label_inside else colour
        _write(sheet, str(bar.index + 1), (bar.label_left, bar_bottom - 4), 0.45, ink)
        _draw_exemplar_mark(sheet[bar_top + 3 : bar_bottom - 3], bar)


def _draw_exemplar_mark(rows: Image, bar: _Bar) -> None:
    """Draw a white mark at the exemplar's time, unless the bar has no room beside its number."""
    width = _text_width(str(bar.index + 1), 0.45)
    on_label = bar.label_left - 3 <= bar.exemplar <= bar.label_left + width + 3
    if not on_label and bar.right - bar.left >= 10:
        mark = min(max(bar.exemplar, bar.left + 2), bar.right - 2)
        rows[:, mark - 1 : mark + 1] = PAPER


def _draw_axis(sheet: Image, top: int, bottom: int, scale: _TimeScale) -> None:
    cv2.line(sheet, (scale.left, bottom), (scale.right - 1, bottom), FAINT_INK, 1)
    step = _tick_step(scale)
    last_right = -1
    for tick in itertools.count():
        time_s = tick * step
        if time_s > scale.duration_s * (1 + 1e-9):
            break
        x = min(scale.x(time_s), scale.right - 1)
        cv2.line(sheet, (x, top), (x, bottom), RULE, 1)
        cv2.line(sheet, (x, bottom), (x, bottom + 5), FAINT_INK, 1)
        label = f"{_seconds(time_s)} s"
        width = _text_width(label, 0.45)
        left = min(max(x - width // 2, scale.left), scale.right - width)
        if left > last_right + 8:
            _write(sheet, label, (left, bottom + 23), 0.45, FAINT_INK)
            last_right = left + width


def _tick_step(scale: _TimeScale) -> float:
    """Return the smallest round step that leaves every label about 80 pixels."""
    least = scale.duration_s * 80 / (scale.right - scale.left)
    for step in _TICK_STEPS_S:
        if step >= least:
            return step
    return 3600.0 * math.ceil(least / 3600)


def _column_count(tile_count: int) -> int:
    """Return the columns that leave few places empty on a sheet a little wider than high."""
    balanced = math.sqrt(1.5 * tile_count)
    return min(
        range(MIN_COLUMNS, MAX_COLUMNS + 1),
        key=lambda columns: abs(columns - balanced) + 0.5 * (-tile_count % columns),
    )


def _seconds(time_s: float) -> str:
    """Format to a tenth of a second, without a trailing zero."""
    return f"{time_s:.1f}".removesuffix(".0")


def _drawable(text: str) -> str:
    """Return one line that the font can draw; OpenCV 4 shows "?" for what is not Latin."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    if _UNICODE_FONT:
        return line
    return unicodedata.normalize("NFKD", line).encode("ascii", "replace").decode()


def _text_width(text: str, size: float) -> int:
    return int(cv2.getTextSize(_drawable(text), _FONT, size, 1)[0][0])


def _fit(text: str, size: float, room: int) -> str:
    """Cut the text, with "..." at its end, so that it is at most `room` pixels wide."""
    line = _drawable(text)
    if _text_width(line, size) <= room:
        return line
    # The widest prefix that fits, by bisection: a title may be very long.
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _text_width(line[:middle].rstrip() + "...", size) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return line[:low].rstrip() + "..."


def _write(image: Image, text: str, origin: tuple[int, int], size: float, colour: Colour) -> None:
    """Draw text with its baseline's left end at `origin`, into an image or a view of one."""
    canvas = np.ascontiguousarray(image)
    cv2.putText(canvas, _drawable(text), origin, _FONT, size, colour, 1, cv2.LINE_AA)
    if canvas is not image:
        image[:] = canvas


def _check(tiles: Sequence[ContactTile], duration_s: float) -> None:
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ConfigError(f"duration_s must be above 0, got {duration_s}")
    for number, tile in enumerate(tiles, start=1):
        image = tile.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(
                f"expected tile {number}'s image of shape (H, W, 3), uint8; "
                f"got {image.shape}, {image.dtype}"
            )
        times = (0.0, tile.start_s, tile.exemplar_s, tile.end_s, math.inf)
        if any(not earlier <= later for earlier, later in itertools.pairwise(times)):
            raise ConfigError(
                f"expected 0 <= start_s <= exemplar_s <= end_s in tile {number}; got "
                f"{tile.start_s}, {tile.exemplar_s}, {tile.end_s}"
            )
        if not 0.0 <= tile.confidence <= 1.0:
            raise ConfigError(f"tile {number}'s confidence must be in 0..1, got {tile.confidence}")
