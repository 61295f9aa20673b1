"""Reads published detector output: one CSV row per detection."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

from keystep_capture.errors import DataError

_HEADER = ["clip", "framenr", "bb_class", "bb_conf", "bb_x", "bb_y", "bb_w", "bb_h"]
_CLASS_ONLY = 3


class DetectionRow(NamedTuple):
    """One detected assembly state: class, confidence and box in pixels, all as published."""

    class_id: int
    confidence: float
    x: float
    y: float
    w: float
    h: float


def load_detection_rows(path: Path, *, frame_count: int | None = None) -> list[list[DetectionRow]]:
    """Read IndustReal's detection CSV (gzip or plain) into one list of detections per frame.

    A row may end after the class: the detector saw nothing. Frames without rows are empty.

    Args:
        path: The file.
        frame_count: Frames of the recording; without it the last frame with a row is the last.

    Raises:
        DataError: The file is missing or not as documented; the message names the line.
    """
    by_frame: dict[int, list[DetectionRow]] = {}
    for line, row in enumerate(_rows(path), start=2):
        try:
            frame, class_id = int(row[1]), int(row[2])
            detections = by_frame.setdefault(frame, [])
            if any(field.strip() for field in row[_CLASS_ONLY:]):
                confidence, x, y, w, h = (float(field) for field in row[_CLASS_ONLY:])
                detections.append(DetectionRow(class_id, confidence, x, y, w, h))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path.name} line {line}: not a detection row: {row}") from error
    count = frame_count if frame_count is not None else max(by_frame, default=-1) + 1
    if by_frame and (min(by_frame) < 0 or max(by_frame) >= count):
        raise DataError(f"{path.name} has frame {max(by_frame)}, expected 0 to {count - 1}")
    return [by_frame.get(frame, []) for frame in range(count)]


def _rows(path: Path) -> list[list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read detections {path.name}: {error}") from error
    if not rows or rows[0] != _HEADER:
        raise DataError(f"{path.name} starts with {rows[:1]}, expected the columns {_HEADER}")
    return rows[1:]
