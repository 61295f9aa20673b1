"""Readers of the annotations of EgoProceL, CrossTask, ProceL and simulated sessions.

docs/steps.md says what each file looks like, and what of it is not certain.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from keystep_capture.errors import DataError
from keystep_models.psr.text_files import open_text, shown
from keystep_models.steps.datasets.labelled import Annotations, Stretch, checked_stretch

MAX_ROWS: Final = 100_000
MAX_MAT_BYTES: Final = 1 << 25
"""Of a MATLAB file, and of what its compressed parts unpack to."""
_MAT_HEADER_BYTES = 128
_MAT_COMPRESSED = 15  # a part's kind
_MAT_BLOCK_BYTES = 1 << 20
_KEYSTEP = re.compile(r"(\d{1,4})\.?(?:\s+(.*))?", re.DOTALL)


def read_egoprocel(folder: Path) -> Annotations:
    """EgoProceL: a CSV file for each video, rows of start s, end s and "NUMBER name".

    Args:
        folder: One task's; files may lie in subfolders (CMU-MMAC has one for each person).

    Raises:
        DataError: There is no file, or one is not of this form.
    """
    videos: dict[str, list[Stretch]] = {}
    names: dict[int, str] = {}
    for path in sorted(folder.rglob("*.csv")):
        video = path.name.removesuffix(".csv").removesuffix(".egoprocel.ann")
        if video in videos:
            raise DataError(f"{path}: a second annotation of {video}; give one task's folder")
        videos[video] = []
        for where, row in _rows(path, 3):
            found = _KEYSTEP.fullmatch(row[2].strip())
            if found is None:
                raise DataError(f"{where}: expected a key step's number, got {shown(row[2])}")
            number = int(found[1])
            videos[video].append(
                checked_stretch(where, number, _number(where, row[0]), _number(where, row[1]))
            )
            names.setdefault(number, (found[2] or "").strip() or f"key step {number}")
    if not videos:
        raise DataError(f"{folder}: expected annotations, a CSV file for each video")
    return Annotations.of(videos, names)


def read_simulated(folder: Path) -> Annotations:
    """Sessions of `keystep simulate generate`: their segments.csv; videos are named as folders.

    Raises:
        DataError: There is no session, or a file is not of this form.
    """
    columns = ["step_id", "title", "start_s", "end_s"]
    rows: dict[str, list[tuple[str, int, float, float]]] = {}
    titles: dict[int, str] = {}
    for path in sorted(folder.glob("*/segments.csv")):
        rows[path.parent.name] = own = []
        for where, row in _named_rows(path, columns):
            step = int(_number(where, row["step_id"]))
            titles.setdefault(step, row["title"])
            start_s, end_s = _number(where, row["start_s"]), _number(where, row["end_s"])
            own.append((where, step, start_s, end_s))
    if not rows:
        raise DataError(f"{folder}: expected sessions' folders with segments.csv")
    numbers = {step: place for place, step in enumerate(sorted(titles), start=1)}
    videos = {
        name: [checked_stretch(where, numbers[step], a, b) for where, step, a, b in own]
        for name, own in rows.items()
    }
    return Annotations.of(videos, {numbers[step]: title for step, title in titles.items()})


def read_crosstask_tasks(path: Path) -> dict[str, list[str]]:
    """CrossTask's tasks_primary.txt: a task's steps by its number.

    Each task has five lines (number, title, address, how many steps, the steps with commas) and
    an empty one.

    Raises:
        DataError: It is not of this form.
    """
    with open_text(path, "CrossTask's tasks") as file:
        lines = [line.strip() for line, _ in zip(file, range(MAX_ROWS), strict=False)]
    tasks: dict[str, list[str]] = {}
    for start in range(0, len(lines), 6):
        block = lines[start : start + 6]
        if not any(block):
            continue
        where = f"{path}, line {start + 1}"
        if len(block) < 5 or not block[0].isdecimal() or (len(block) == 6 and block[5]):
            raise DataError(f"{where}: expected a task's five lines and an empty one")
        steps = block[4].split(",")
        if block[3] != str(len(steps)):
            raise DataError(f"{where}: expected {shown(block[3])} steps, got {len(steps)}")
        tasks[block[0]] = steps
    if not tasks:
        raise DataError(f"{path}: holds no task")
    return tasks


def read_crosstask(folder: Path, task: str, steps: Sequence[str]) -> Annotations:
    """CrossTask's annotations of a task: files TASK_VIDEO.csv, rows of step, start s, end s.

    Raises:
        DataError: There is none, or one is not of this form.
    """
    videos: dict[str, list[Stretch]] = {}
    for path in sorted(folder.glob(f"{task}_*.csv")):
        videos[path.stem] = own = []
        for where, row in _rows(path, 3):
            step = int(_number(where, row[0]))
            if step > len(steps):
                raise DataError(f"{where}: step {step}, but task {task} has {len(steps)}")
            own.append(checked_stretch(where, step, _number(where, row[1]), _number(where, row[2])))
    if not videos:
        raise DataError(f"{folder}: expected annotations {task}_VIDEO.csv, there are none")
    return Annotations.of(videos, dict(enumerate(steps, start=1)))


def read_procel(folder: Path) -> Annotations:
    """ProceL's annotations of a task: data.mat, and readme.txt with a line for each video.

    Raises:
        DataError: A file is missing or not of this form.
    """
    names = _procel_videos(folder / "readme.txt")
    path = folder / "data.mat"
    document = _read_mat(path)
    lacking = [key for key in ("grammar", "key_steps_time") if key not in document]
    if lacking:
        raise DataError(f"{path}: expected a variable {lacking[0]}")
    steps = [_matlab_text(path, each) for each in np.ravel(document["grammar"])]
    cells = list(np.ravel(document["key_steps_time"]))
    if len(cells) != len(names):
        raise DataError(
            f"{path}: annotates {len(cells)} videos, readme.txt has {len(names)} lines; take out "
            "lines of videos that are not annotated"
        )
    videos: dict[str, list[Stretch]] = {}
    for name, cell in zip(names, cells, strict=True):
        own = list(np.ravel(cell))
        if len(own) != len(steps):
            raise DataError(f"{path}: {name} has {len(own)} key steps, the grammar {len(steps)}")
        where = f"{path}: {name}"
        videos[name] = [
            checked_stretch(where, number, float(start), float(end))
            for number, times in enumerate(own, start=1)
            for start, end in _matlab_times(where, times)
        ]
    return Annotations.of(videos, dict(enumerate(steps, start=1)))


def _procel_videos(path: Path) -> list[str]:
    with open_text(path, "ProceL's list of videos") as file:
        rows = [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    names = [row[1].strip() if len(row) > 1 else "" for row in rows]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"{path}: expected a line for each video, with tabs; the second column its name"
        )
    return names


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: expected this file, there is none") from None
    if size > MAX_MAT_BYTES:
        raise DataError(f"{path}: has {size} bytes, at most {MAX_MAT_BYTES} are read")
    _refuse_swelling(path)
    try:
        document: dict[str, Any] = loadmat(str(path))
    except Exception as error:  # whatever the parser met in a damaged file
        raise DataError(f"{path}: no MATLAB file that can be read: {error}") from error
    return document


def _refuse_swelling(path: Path) -> None:
    """Walk the parts of a version 5 file: a compressed MiB may unpack to a thousand."""
    content, room = memoryview(path.read_bytes()), MAX_MAT_BYTES
    order = ">" if content[126:128].tobytes() == b"MI" else "<"
    place = _MAT_HEADER_BYTES
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        part = content[place + 8 : place + 8 + size]
        place += 8 + size
        if kind != _MAT_COMPRESSED:
            continue
        unpacker = zlib.decompressobj()
        with contextlib.suppress(zlib.error):  # damaged: the reader will say so
            while part and room >= 0:
                room -= len(unpacker.decompress(part, _MAT_BLOCK_BYTES))
                part = memoryview(unpacker.unconsumed_tail)
        if room < 0:
            raise DataError(f"{path}: unpacks to more than {MAX_MAT_BYTES} bytes")


def _matlab_text(path: Path, cell: Any) -> str:
    values = np.ravel(cell)
    if len(values) != 1 or not isinstance(values[0], str):
        raise DataError(f"{path}: expected a text for each key step of the grammar")
    return str(values[0]).strip()


def _matlab_times(where: str, cell: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    times = np.asarray(cell)
    if not times.size:
        return np.zeros((0, 2))
    if times.ndim != 2 or times.shape[1] != 2 or times.dtype.kind not in "fiu":
        raise DataError(f"{where}: expected start and end seconds, (n, 2); got {times.shape}")
    return times.astype(np.float64)


def _rows(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file without a header, with where they stand."""
    with open_text(path, "annotations") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number > MAX_ROWS:
                raise DataError(f"{path}: more than {MAX_ROWS} rows")
            if not row:
                continue
            if len(row) != columns:
                raise DataError(f"{path}, line {number}: expected {columns} values, got {len(row)}")
            yield f"{path}, line {number}", row


def _named_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    with open_text(path, "key steps") as file:
        reader = csv.DictReader(file)
        if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path}: expected a column {lacking[0]}")
        for number, row in enumerate(reader, start=2):
            if number > MAX_ROWS or any(row[name] is None for name in columns):
                raise DataError(f"{path}, line {number}: expected {', '.join(columns)}")
            yield f"{path}, line {number}", row


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected a number, got {shown(text)}")
    return value
