"""Text files of data sets: opening them, and reading values with errors that name the place."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from keystep_capture.errors import DataError

MAX_FRAME_COUNT: Final = 10_000_000
"""Days of video; a larger frame index is a damaged file."""


@contextmanager
def open_text(path: Path, what: str) -> Iterator[TextIO]:
    """Open a text file, .gz unpacked; what goes wrong while it is read is a DataError.

    Args:
        path: The file.
        what: What it should hold, for the message ("detections").
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="")
        ) as lines:
            yield lines
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(f"cannot read {what} from {path}: {error}; expected UTF-8 text") from error


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file, .gz unpacked; DataError with line and column where it is none."""
    with open_text(path, what) as lines:
        text = lines.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: expected JSON, got {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{path}: expected {what}, got JSON nested too deeply") from error


def whole_number(text: str, where: str, *, below: int = MAX_FRAME_COUNT) -> int:
    """An integer from 0 to `below` - 1; DataError naming `where` and the text for all else."""
    try:
        value = int(text)
    except ValueError:
        raise DataError(f"{where}: expected a whole number, got {text!r}") from None
    if not 0 <= value < below:
        raise DataError(f"{where}: expected a whole number from 0 to {below - 1}, got {text!r}")
    return value


def finite_number(
    text: str, where: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """A finite number from `low` to `high`; DataError naming `where` and the text for all else."""
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: expected a number, got {text!r}") from None
    if not (math.isfinite(value) and low <= value <= high):
        limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise DataError(f"{where}: expected a finite number{limits}, got {text!r}")
    return value
