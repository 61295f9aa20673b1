"""Reads detections in the layout IndustReal publishes: one CSV row per detection.

Columns: clip, framenr, bb_class, bb_conf, bb_x, bb_y, bb_w, bb_h, with a header row. A row may end
after the class: the frame was looked at and nothing was detected. Frames without rows are empty.
Published detections (`_pred`) give a box by its centre, the ground truth (`_gt`) by its top left
corner, in pixels of 1280x720; boxes are passed on as they stand.

JSON (.json, .json.gz) is read as well: per frame a list of [class, confidence] pairs, in the
detector's order, without boxes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keystep_capture.errors import DataError
from keystep_models.psr.logic import Detection
from keystep_models.psr.text_files import finite_number, open_text, read_json, shown, whole_number

COLUMNS: Final = (
    "clip",
    "framenr",
    "bb_class",
    "bb_conf",
    "bb_x",
    "bb_y",
    "bb_w",
    "bb_h",
)
"""Of IndustReal's layout, in order."""

_BOX_TOLERANCE_PX: Final = 1.0  # published boxes touch the border within a pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionLimits:
    """What a detector can say: the number of its classes, and its image (width, height) in px.

    None leaves a limit unchecked. `corner_boxes` says that boxes start at their top left corner,
    as in `_gt` files, not at their centre.
    """

    class_count: int | None = None
    image_size: tuple[int, int] | None = None
    corner_boxes: bool = False


def read_detections(
    path: str | Path,
    frame_count: int | None = None,
    limits: DetectionLimits = DetectionLimits(),
) -> list[list[Detection]]:
    """Read a recording's detections, frame by frame, in the file's order.

    Args:
        path: A .csv or .csv.gz file with the columns above, frames in order; or JSON.
        frame_count: Frames in the recording; up to the last row's frame when not given.
        limits: Classes and boxes the detector can give.

    Returns:
        One list per frame, empty where nothing was detected.

    Raises:
        DataError: the file cannot be read, a row is not as documented, comes out of order or
            twice, breaks a limit, or lies past `frame_count`; the message names file, line, value.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return _read_json_frames(path, frame_count, limits)
    with open_text(path, "detections") as lines:
        rows = list(_parse_rows(csv.reader(lines), path, limits))
    if frame_count is None:
        frame_count = 1 + max((frame_idx for _, frame_idx, _ in rows), default=-1)
    frames: list[list[Detection]] = [[] for _ in range(frame_count)]
    for number, frame_idx, detection in rows:
        if frame_idx >= frame_count:
            raise DataError(
                f"{path}, line {number}: expected frames below {frame_count}, got frame {frame_idx}"
            )
        if detection is not None:
            frames[frame_idx].append(detection)
    return frames


def _read_json_frames(
    path: Path, frame_count: int | None, limits: DetectionLimits
) -> list[list[Detection]]:
    content = read_json(path, "detections")
    if not isinstance(content, list) or not all(isinstance(frame, list) for frame in content):
        raise DataError(f"{path}: expected a list per frame, each of [class, confidence] pairs")
    if frame_count is not None and len(content) > frame_count:
        raise DataError(f"{path}: expected {frame_count} frames, got {len(content)}")
    frames = [
        [_parse_pair(pair, f"{path}, frame {frame_idx}", limits) for pair in frame]
        for frame_idx, frame in enumerate(content)
    ]
    return frames + [[] for _ in range((frame_count or len(frames)) - len(frames))]


def _parse_pair(pair: object, where: str, limits: DetectionLimits) -> Detection:
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(type(v) in (int, float, str) for v in pair)
    ):
        raise DataError(f"{where}: expected [class, confidence], got {shown(pair)}")
    class_id = _class_id(str(pair[0]), f"{where}, class", limits)
    return Detection(class_id, finite_number(str(pair[1]), f"{where}, confidence", low=0, high=1))


_Row = tuple[int, int, Detection | None]  # line, frame, what was detected


def _parse_rows(reader: Iterator[list[str]], path: Path, limits: DetectionLimits) -> Iterator[_Row]:
    header = next(reader, [])
    if tuple(header) != COLUMNS:
        raise DataError(
            f"{path}, line 1: expected the columns {','.join(COLUMNS)}, got {shown(header)}"
        )
    clip: str | None = None
    last_idx, in_frame = -1, list[Detection | None]()
    for number, row in enumerate(reader, start=2):
        if not row:
            continue
        where = f"{path}, line {number}"
        clip = row[0] if clip is None else clip
        if row[0] != clip:
            raise DataError(f"{where}: expected clip {shown(clip)} as before, got {shown(row[0])}")
        frame_idx, detection = _parse_row(row, where, limits)
        if frame_idx < last_idx:
            raise DataError(
                f"{where}: expected frame {last_idx} or a later one, got frame {frame_idx}; rows"
                " must be in the order of frames"
            )
        if frame_idx > last_idx:
            last_idx, in_frame = frame_idx, []
        if in_frame and (detection is None or None in in_frame or detection in in_frame):
            raise DataError(
                f"{where}: expected frame {frame_idx} once, got it repeated: {shown(row)}"
            )
        in_frame.append(detection)
        yield number, frame_idx, detection


def _parse_row(
    row: Sequence[str], where: str, limits: DetectionLimits
) -> tuple[int, Detection | None]:
    values = list(row)
    while values and not values[-1].strip():
        values.pop()
    if len(values) not in (2, 3, len(COLUMNS)):
        raise DataError(
            f"{where}: expected {len(COLUMNS)} values, or 2 or 3 where nothing was detected, got"
            f" {len(values)}: {shown(row)}"
        )
    frame_idx = whole_number(values[1], f"{where}, framenr")
    if len(values) < len(COLUMNS):
        return frame_idx, None
    class_id = _class_id(values[2], f"{where}, bb_class", limits)
    confidence = finite_number(values[3], f"{where}, bb_conf", low=0.0, high=1.0)
    x, y, width, height = (
        finite_number(value, f"{where}, {column}")
        for value, column in zip(values[4:], COLUMNS[4:], strict=True)
    )
    _check_box((x, y, width, height), where, limits)
    return frame_idx, Detection(class_id, confidence, (x, y, width, height))


def _class_id(text: str, where: str, limits: DetectionLimits) -> int:
    class_id = whole_number(text, where)
    if limits.class_count is not None and class_id >= limits.class_count:
        raise DataError(
            f"{where}: expected a class from 0 to {limits.class_count - 1}, got {shown(text)}; does"
            " the detector belong to this procedure?"
        )
    return class_id


def _check_box(box: tuple[float, float, float, float], where: str, limits: DetectionLimits) -> None:
    x, y, width, height = box
    if limits.image_size is None:
        return
    left, top = (x, y) if limits.corner_boxes else (x - width / 2, y - height / 2)
    reach = (left, top, left + width, top + height)
    image_width, image_height = limits.image_size
    inside = (
        min(width, height) >= 0
        and min(left, top) >= -_BOX_TOLERANCE_PX
        and reach[2] <= image_width + _BOX_TOLERANCE_PX
        and reach[3] <= image_height + _BOX_TOLERANCE_PX
    )
    if not inside:
        raise DataError(
            f"{where}: expected a box inside the image of {image_width}x{image_height}, got one"
            f" from ({reach[0]:g}, {reach[1]:g}) to ({reach[2]:g}, {reach[3]:g})"
        )
