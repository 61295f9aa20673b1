"""A recording as a picture: truth above, reports below, delays between, detections as a strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.measures.psr import GroundTruthStep, TimedStep, pair_plain
from keystep_models.psr.logic import Detection

Image: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]  # blue, green, red, as OpenCV has them
Point: TypeAlias = tuple[int, int]

_WIDTH: Final = 1800
_LEFT, _RIGHT = 120, 40  # margins of the time axis
_TITLE_HEIGHT: Final = 46
_ROW: Final = 22  # height of one level of labels, and of one legend line
_LINES_HEIGHT: Final = 90  # between the two rows of marks
_STRIP_HEIGHT: Final = 64
_AXIS_HEIGHT: Final = 40
_LEGEND_COLUMNS: Final = 4
_PAPER: Final[Colour] = (255, 255, 255)
_INK: Final[Colour] = (40, 40, 40)
_GREY: Final[Colour] = (150, 150, 150)
_FAINT: Final[Colour] = (232, 232, 232)
_GOOD: Final[Colour] = (70, 140, 40)
_BAD: Final[Colour] = (40, 40, 215)
_DIM: Final[Colour] = (110, 110, 110)
_EARLY: Final[Colour] = (200, 232, 196)
_KEY: Final = "green: reported (+delay in frames)   red: missed, or reported wrongly"
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a picture shows; `detections` holds a list per frame, None where there are none.

    `titles` names the steps by id, `class_names` the detector's classes.
    """

    title: str
    truth: Sequence[GroundTruthStep]
    reported: Sequence[TimedStep]
    frame_count: int
    titles: Mapping[int, str]
    detections: Sequence[Sequence[Detection]] | None = None
    class_names: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    """A step on the time axis: at x, labelled on a level of its own where others are near."""

    x: int
    level: int
    label: str
    colour: Colour


def write_picture(path: Path, timeline: Timeline) -> None:
    """Draw a timeline into a PNG file; DataError where it cannot be written."""
    if not cv2.imwrite(str(path), draw_timeline(timeline)):
        raise DataError(f"cannot write the picture {path}; expected a path that ends in .png")


def draw_timeline(timeline: Timeline) -> Image:
    """Draw a timeline: (H, W, 3) uint8, BGR.

    Steps are paired in the plain manner. Pairs are green and joined by a line that leans by the
    delay, which the report's label gives in frames; a true step nobody reported and a report
    without a partner are red. A light bar before a true step is the time it may be reported in
    before the labels show it.
    """
    pairs = pair_plain(timeline.truth, timeline.reported)
    delays = {
        report: max(0, timeline.reported[report].frame_idx - timeline.truth[true].frame_idx)
        for true, report in pairs
    }
    above = _marks(timeline, timeline.truth, {truth_idx: 0 for truth_idx, _ in pairs})
    below = _marks(timeline, timeline.reported, delays)
    truth_y = _TITLE_HEIGHT + _ROW * (1 + _levels(above))
    reported_y = truth_y + _LINES_HEIGHT
    strip_y = reported_y + _ROW * (1 + _levels(below))
    strip_height = 0 if timeline.detections is None else _STRIP_HEIGHT
    axis_y = strip_y + strip_height
    legend_y = axis_y + _AXIS_HEIGHT
    legend = _legend(timeline)
    rows = -(-len(legend) // _LEGEND_COLUMNS)
    image: Image = np.full((legend_y + _ROW * (rows + 1), _WIDTH, 3), _PAPER, np.uint8)
    _write(image, timeline.title, (14, 30), scale=0.62)
    _write(image, _KEY, (_WIDTH - _RIGHT - _text_width(_KEY), 30), colour=_DIM)
    _draw_axis(image, timeline, axis_y, top=_TITLE_HEIGHT)
    _draw_early(image, timeline, truth_y)
    _draw_delays(image, timeline, pairs, truth_y, reported_y)
    _draw_marks(image, above, truth_y, upwards=True)
    _draw_marks(image, below, reported_y, upwards=False)
    _write(image, "truth", (14, truth_y + 5))
    _write(image, "reported", (14, reported_y + 5))
    if timeline.detections is not None:
        _draw_strip(image, timeline, strip_y)
        _write(image, "detections", (14, strip_y + _STRIP_HEIGHT // 2))
    _draw_legend(image, legend, legend_y)
    return image


def _x_of(timeline: Timeline, frame_idx: float) -> int:
    share = frame_idx / max(1, timeline.frame_count - 1)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))


def _marks(
    timeline: Timeline, steps: Sequence[TimedStep], delay_of: Mapping[int, int]
) -> list[_Mark]:
    """Marks in time, each label on the first level where it does not touch another.

    `delay_of` holds those that are paired, by index.
    """
    ends: list[int] = []  # per level, where its last label ends
    marks = []
    for idx, step in sorted(enumerate(steps), key=lambda item: item[1].frame_idx):
        x, label = _x_of(timeline, step.frame_idx), str(step.step_id)
        if delay_of.get(idx):
            label += f" +{delay_of[idx]}"
        width = _text_width(label) + 8
        level = next((k for k, end in enumerate(ends) if end < x - width // 2), len(ends))
        ends[level : level + 1] = [x + width // 2]
        marks.append(_Mark(x, level, label, _GOOD if idx in delay_of else _BAD))
    return marks


def _levels(marks: Sequence[_Mark]) -> int:
    return 1 + max((mark.level for mark in marks), default=0)


def _draw_marks(image: Image, marks: Sequence[_Mark], y: int, *, upwards: bool) -> None:
    sign = -1 if upwards else 1
    cv2.line(image, (_LEFT, y), (_WIDTH - _RIGHT, y), _GREY, 1)
    for mark in marks:
        end = y + sign * (8 + mark.level * _ROW)
        cv2.line(image, (mark.x, y), (mark.x, end), mark.colour, 1, cv2.LINE_AA)
        cv2.circle(image, (mark.x, y), 4, mark.colour, cv2.FILLED, cv2.LINE_AA)
    for mark in marks:
        width = _text_width(mark.label)
        base = y + sign * (16 + mark.level * _ROW) + 5
        corner = (mark.x - width // 2 - 3, base - 14)
        cv2.rectangle(image, corner, (mark.x + width // 2 + 3, base + 4), _PAPER, cv2.FILLED)
        _write(image, mark.label, (mark.x - width // 2, base), colour=mark.colour)


def _draw_early(image: Image, timeline: Timeline, y: int) -> None:
    for step in timeline.truth:
        start, end = (_x_of(timeline, f) for f in (step.last_old_frame_idx, step.frame_idx))
        cv2.rectangle(image, (start, y - 3), (end, y + 3), _EARLY, cv2.FILLED)


def _draw_delays(
    image: Image,
    timeline: Timeline,
    pairs: Sequence[tuple[int, int]],
    truth_y: int,
    reported_y: int,
) -> None:
    for truth_idx, report_idx in pairs:
        start = (_x_of(timeline, timeline.truth[truth_idx].frame_idx), truth_y)
        end = (_x_of(timeline, timeline.reported[report_idx].frame_idx), reported_y)
        cv2.line(image, start, end, _GOOD, 1, cv2.LINE_AA)


def _draw_axis(image: Image, timeline: Timeline, y: int, *, top: int) -> None:
    step = _tick_step(timeline.frame_count)
    for frame_idx in range(0, timeline.frame_count, step):
        x = _x_of(timeline, frame_idx)
        cv2.line(image, (x, top), (x, y), _FAINT, 1)
        cv2.line(image, (x, y), (x, y + 5), _INK, 1)
        label = str(frame_idx)
        _write(image, label, (x - _text_width(label) // 2, y + 22))
    cv2.line(image, (_LEFT, y), (_WIDTH - _RIGHT, y), _INK, 1)
    _write(image, "frame", (14, y + 22))


def _tick_step(frame_count: int) -> int:
    """A round number of frames, so that there are about ten ticks."""
    rough = max(1, frame_count / 10)
    power = 10 ** int(np.floor(np.log10(rough)))
    return int(min(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough))


def _draw_strip(image: Image, timeline: Timeline, y: int) -> None:
    """A frame's first detection as a bar in its class's colour, as high as it is confident."""
    base, colours = y + _STRIP_HEIGHT, _class_colours(timeline)
    for frame_idx, detections in enumerate(timeline.detections or ()):
        if detections:
            first = detections[0]
            left, right = _x_of(timeline, frame_idx), _x_of(timeline, frame_idx + 1)
            height = max(4, round(first.confidence * (_STRIP_HEIGHT - 6)))
            corner = (max(left, right - 1), base - 1)
            cv2.rectangle(image, (left, base - height), corner, colours[first.class_id], -1)


def _class_colours(timeline: Timeline) -> dict[int, Colour]:
    """A colour for each class that is seen: hues spread evenly, every other one darker."""
    seen = sorted({found[0].class_id for found in timeline.detections or () if found})
    colours = {}
    for rank, class_id in enumerate(seen):
        value = 220 if rank % 2 else 160
        pixel = np.array([[[rank * 180 // len(seen), 185, value]]], np.uint8)
        blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0]
        colours[class_id] = (int(blue), int(green), int(red))
    return colours


def _legend(timeline: Timeline) -> list[tuple[str, Colour | None]]:
    """Lines of text, those of classes with their colour."""
    used = {step.step_id for step in (*timeline.truth, *timeline.reported)}
    legend: list[tuple[str, Colour | None]] = [
        (f"{step_id}  {timeline.titles.get(step_id, '')}", None) for step_id in sorted(used)
    ]
    names = timeline.class_names or {}
    legend += [
        (names.get(class_id, f"class {class_id}"), colour)
        for class_id, colour in _class_colours(timeline).items()
    ]
    return legend


def _draw_legend(image: Image, legend: Sequence[tuple[str, Colour | None]], y: int) -> None:
    rows = -(-len(legend) // _LEGEND_COLUMNS)
    width = (_WIDTH - 28) // _LEGEND_COLUMNS
    for idx, (text, colour) in enumerate(legend):
        left, base = 14 + idx // rows * width, y + _ROW * (1 + idx % rows)
        if colour is not None:
            cv2.rectangle(image, (left, base - 12), (left + 14, base + 2), colour, cv2.FILLED)
        _write(image, _cut(text, width - 30), (left + (20 if colour else 0), base))


def _cut(text: str, width: int) -> str:
    while text and _text_width(text) > width:
        text = text[:-1]
    return text


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, 0.5, 1)[0][0])


def _write(
    image: Image,
    text: str,
    where: Point,
    *,
    scale: float = 0.5,
    colour: Colour = _INK,
) -> None:
    printable = text.encode("ascii", "replace").decode()  # what OpenCV's fonts hold
    cv2.putText(image, printable, where, _FONT, scale, colour, 1, cv2.LINE_AA)
