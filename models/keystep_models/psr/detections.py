"""Reads detections in the layout IndustReal publishes: one CSV row per detection.

Columns: clip, framenr, bb_class, bb_conf, bb_x, bb_y, bb_w, bb_h, with a header row. A row may end
after the class: the frame was looked at and nothing was detected. Frames without rows are empty.
Published detections (`_pred`) give a box by its centre, the ground truth (`_gt`) by its top left
corner, in pixels of 1280x720; boxes are passed on as they stand.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from keystep_capture.errors import DataError
from keystep_models.psr.logic import Detection

_COLUMNS: Final = (
    "clip",
    "framenr",
    "bb_class",
    "bb_conf",
    "bb_x",
    "bb_y",
    "bb_w",
    "bb_h",
)

_MAX_FRAME_COUNT: Final = 10_000_000  # days of video; a larger index is a damaged file


def read_detections(path: str | Path, frame_count: int | None = None) -> list[list[Detection]]:
    """Read a recording's detections, frame by frame, in the file's order.

    Args:
        path: A .csv or .csv.gz file; with the columns above.
        frame_count: Frames in the recording; up to the last row's frame when not given.

    Returns:
        One list per frame, empty where nothing was detected.

    Raises:
        DataError: the file cannot be read, a row is not as documented, or lies past `frame_count`.
    """
    path = Path(path)
    try:
        with _open_text(path) as lines:
            rows = list(_parse_rows(csv.reader(lines), path))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(
            f"cannot read detections from {path}: {error}; expected .csv or .csv.gz text"
        ) from error
    if frame_count is None:
        frame_count = 1 + max((frame_idx for frame_idx, _ in rows), default=-1)
    frames: list[list[Detection]] = [[] for _ in range(frame_count)]
    for frame_idx, detection in rows:
        if frame_idx >= frame_count:
            raise DataError(f"{path}: expected frames below {frame_count}, got frame {frame_idx}")
        if detection is not None:
            frames[frame_idx].append(detection)
    return frames


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _parse_rows(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[int, Detection | None]]:
    header = next(reader, [])
    if tuple(header) != _COLUMNS:
        raise DataError(f"{path}: expected the columns {','.join(_COLUMNS)}, got {header}")
    for number, row in enumerate(reader, start=2):
        if row:
            yield _parse_row(row, f"{path}, line {number}")


def _parse_row(row: Sequence[str], where: str) -> tuple[int, Detection | None]:
    values = list(row)
    while values and not values[-1].strip():
        values.pop()
    if len(values) not in (2, 3, len(_COLUMNS)):
        raise DataError(
            f"{where}: expected {len(_COLUMNS)} values, or 2 or 3 where nothing was detected, got"
            f" {len(values)}: {row}"
        )
    try:
        frame_idx = int(values[1])
        if not 0 <= frame_idx < _MAX_FRAME_COUNT:
            raise ValueError(f"frame {frame_idx} is not from 0 to {_MAX_FRAME_COUNT - 1}")
        if len(values) < len(_COLUMNS):
            return frame_idx, None
        x, y, width, height = (float(value) for value in values[4:])
        box = (x, y, width, height)
        return frame_idx, Detection(int(values[2]), float(values[3]), box)
    except ValueError as error:
        raise DataError(f"{where}: expected numbers, got {row} ({error})") from error
