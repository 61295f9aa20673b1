"""Text files of data sets: opening them, and reading values with errors that name the place."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from keystep_capture.errors import DataError

MAX_FRAME_COUNT: Final = 30 * 86_400
"""A day at 30 frames per second; a larger frame index is a damaged file."""

_SHOWN_LENGTH: Final = 60
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def shown(value: object) -> str:
    """A value for an error message: its repr, cut to 60 characters, without control characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        return f"a {type(value).__name__} that is too large to show"
    return _cut(text)


def plain(text: str, max_length: int = _SHOWN_LENGTH) -> str:
    """A text for a terminal: one line, cut, with control characters escaped."""
    line = " ".join(text.split())[: max_length + 1]
    return _cut("".join(c if c.isprintable() else repr(c)[1:-1] for c in line), max_length)


def _cut(text: str, max_length: int = _SHOWN_LENGTH) -> str:
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


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


def read_json(path: Path, what: str, *, max_length: int | None = None) -> Any:
    """Parse a JSON file, .gz unpacked; as `parse_json`.

    Args:
        path: The file.
        what: What it should hold, for the message.
        max_length: Characters that it may have; any number when not given.
    """
    return parse_json(read_text(path, what, max_length=max_length), str(path), what)


def read_text(path: Path, what: str, *, max_length: int | None = None) -> str:
    """A text file whole, .gz unpacked; DataError where it is longer than `max_length`."""
    with open_text(path, what) as lines:
        text = lines.read(-1 if max_length is None else max_length + 1)
    if max_length is not None and len(text) > max_length:
        raise DataError(f"{path}: expected {what} of at most {max_length} characters, got more")
    return text


def parse_json(text: str, source: str, what: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        DataError: naming `source`, and the line where the text is no JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
        if _SURROGATE.search(text):  # half a character can be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{source}, line {error.lineno}: expected JSON, got {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{source}: expected {what}, got JSON nested too deeply") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: expected Unicode, got half of a surrogate pair") from error
    except _DuplicateKeyError as error:
        raise DataError(f"{source}: expected every key once, got {error} repeated") from error
    except ValueError as error:  # Python reads no integer of more than 4300 digits
        raise DataError(f"{source}: expected {what}, got a number of too many digits") from error
    return value


class _DuplicateKeyError(Exception):
    """An object has a key twice; the text shows the key."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(shown(key))
            seen.add(key)
    return content


def whole_number(text: str, where: str, *, below: int = MAX_FRAME_COUNT) -> int:
    """An integer from 0 to `below` - 1; DataError naming `where` and the text for all else."""
    try:
        value = int(text)
    except ValueError:
        raise DataError(f"{where}: expected a whole number, got {shown(text)}") from None
    if not 0 <= value < below:
        raise DataError(
            f"{where}: expected a whole number from 0 to {below - 1}, got {shown(text)}"
        )
    return value


def finite_number(
    text: str, where: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """A finite number from `low` to `high`; DataError naming `where` and the text for all else."""
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: expected a number, got {shown(text)}") from None
    if not (math.isfinite(value) and low <= value <= high):
        limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise DataError(f"{where}: expected a finite number{limits}, got {shown(text)}")
    return value
