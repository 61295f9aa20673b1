"""Imports folders of pictures with tables beside them: IndustReal's and MECCANO's recordings.

Both publish pictures and CSV rows by frame, without a time per frame: frame n is put at n / rate.
"""

from __future__ import annotations

import csv
import heapq
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from keystep_capture.errors import DataError
from keystep_capture.recording.importing import (
    Imported,
    ImportedPacket,
    ImportPlan,
    describe_source,
)
from keystep_capture.recording.notes import LabelNote
from keystep_capture.streams import STREAMS
from keystep_capture.video import MAX_PIXELS

_NS: Final = 1_000_000_000
_MAX_FIELDS: Final = 4096
_MAX_LINE: Final = 1024 * 1024
"""Characters of a CSV file's longest line."""
_FRAME = re.compile(r"(\d{1,9})(?:\.\w+)?\Z")
_JPEG = (".jpg", ".jpeg")
_PICTURE_FOLDERS: Final = ("rgb", "RGB_frames", "frames", "images", ".")

Row = tuple[int, list[str]]  # a frame and its row's further fields


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A CSV file whose rows become packets of a stream.

    Attributes:
        file: Its name.
        stream: The stream.
        columns: Numbers in a row, after the frame's name.
        encode: A row's numbers as a payload; None: there was nothing.
        told: Where the stream comes from, in words.
    """

    file: str
    stream: str
    encoding: str
    columns: int
    encode: Callable[[list[float]], bytes | None]
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _DataSet:
    """What is known of a data set's folders."""

    name: str
    rate_hz: float
    tables: tuple[_Table, ...] = ()
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


class _FrameFolderImporter:
    """A folder of pictures and tables of one data set."""

    title = ""
    _data_set: _DataSet

    def plan(self, path: Path) -> ImportPlan:
        """Look at the folder's names and count pictures and rows."""
        pictures = find_pictures(path)
        tables = [table for table in self._data_set.tables if (path / table.file).is_file()]
        labels = _label_files(path, self._data_set)
        if not pictures and not tables and not labels:
            raise DataError(
                f"{path}: expected a recording of {self._data_set.name}: a folder with pictures "
                f"({', '.join(_PICTURE_FOLDERS[:-1])}) or {', '.join(self._data_set.labels)}"
            )
        rate = f"{self._data_set.rate_hz:g} Hz"
        streams = {table.stream: table.told for table in tables}
        if pictures:
            streams["rgb"] = f"{len(pictures)} JPEG pictures at {rate}"
        for label in labels:
            streams[f"labels of {label.name}"] = "as published, a note a row"
        absent = list(self._data_set.absent)
        absent += [] if pictures else ["rgb: no pictures are in the folder"]
        absent += [
            f"{table.stream}: {table.file} is not in the folder"
            for table in self._data_set.tables
            if table not in tables
        ]
        count = len(pictures) + sum(_row_count(path / table.file) for table in tables)
        return ImportPlan(
            source=describe_source(path, self._data_set.name),
            streams=streams,
            absent=(f"times: frame n is put at n / {rate}", *absent),
            packet_count=count + sum(map(_row_count, labels)),
        )

    def read(self, path: Path) -> Iterator[Imported]:
        """Give pictures, sensors and labels by frame."""
        rate_hz = self._data_set.rate_hz
        sources: list[Iterator[tuple[int, Imported]]] = [
            _read_pictures(find_pictures(path), rate_hz)
        ]
        for table in self._data_set.tables:
            if (path / table.file).is_file():
                sources.append(_read_table(path / table.file, table, rate_hz))
        sources += [_read_labels(file, rate_hz) for file in _label_files(path, self._data_set)]
        for _, item in heapq.merge(*sources, key=lambda one: one[0]):
            yield item


# -- pictures --------------------------------------------------------------------------------------


def find_pictures(path: Path) -> dict[int, Path]:
    """JPEG pictures by frame, in order, from the first folder that has any.

    Raises:
        DataError: `path` is no folder.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder")
    for name in _PICTURE_FOLDERS:
        folder = path / name
        if not folder.is_dir():
            continue
        found = {
            int(match[1]): file
            for file in folder.iterdir()
            if file.suffix.lower() in _JPEG and (match := _FRAME.match(file.name))
        }
        if found:
            return dict(sorted(found.items()))
    return {}


def _read_pictures(pictures: Mapping[int, Path], rate_hz: float) -> Iterator[tuple[int, Imported]]:
    largest = STREAMS["rgb"].encodings["jpeg"].max_bytes
    for frame_idx, path in pictures.items():
        size = path.stat().st_size
        if not 0 < size <= largest:
            raise DataError(f"{path}: a picture of {size} bytes, expected 1 to {largest}")
        payload = path.read_bytes()
        width, height = jpeg_size(path, payload)
        yield (
            frame_idx,
            ImportedPacket(
                stream="rgb",
                device_time_ns=frame_time_ns(frame_idx, rate_hz),
                payload=payload,
                encoding="jpeg",
                fields={
                    "keyframe": True,
                    "width": width,
                    "height": height,
                    "frame_idx": frame_idx,
                },
            ),
        )


def jpeg_size(path: Path, payload: bytes) -> tuple[int, int]:
    """Width and height from a JPEG's frame header, without decoding it.

    Args:
        path: Of the picture, for the error.
        payload: Its content, or the beginning of it.

    Raises:
        DataError: There is no frame header.
    """
    position = 2 if payload[:2] == b"\xff\xd8" else len(payload)
    while position + 9 <= len(payload) and payload[position] == 0xFF:
        marker, length = payload[position + 1], int.from_bytes(payload[position + 2 : position + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(payload[position + 5 : position + 7])
            width = int.from_bytes(payload[position + 7 : position + 9])
            if 0 < width * height <= MAX_PIXELS:
                return width, height
            break
        position += 2 + max(2, length)
    raise DataError(f"{path}: at byte {position}: expected a JPEG picture")


# -- tables ----------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Line, frame and further fields of each row; a heading is passed over."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, fields in enumerate(csv.reader(_lines(path, file)), start=1):
                if not fields:
                    continue
                match = _FRAME.match(fields[0].strip())
                if match is None and line == 1:
                    continue
                if match is None or len(fields) > _MAX_FIELDS:
                    raise DataError(
                        f"{path}: line {line}: expected a frame's name and at most {_MAX_FIELDS} "
                        f"fields, got {fields[0][:32]!r} and {len(fields)}"
                    )
                yield line, (int(match[1]), fields[1:])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines of a text file, none longer than may be held in memory."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise DataError(f"{path}: line {number}: has {_MAX_LINE} characters or more")
        yield line


def _row_count(path: Path) -> int:
    return sum(1 for _ in _rows(path))


def _read_table(path: Path, table: _Table, rate_hz: float) -> Iterator[tuple[int, Imported]]:
    for line, (frame_idx, fields) in _rows(path):
        try:
            values = [float(text) for text in fields if text.strip()]
        except ValueError:
            values = []
        if len(values) != table.columns or not all(map(math.isfinite, values)):
            raise DataError(f"{path}: line {line}: expected {table.columns} numbers, got {fields}")
        payload = table.encode(values)
        yield (
            frame_idx,
            ImportedPacket(
                stream=table.stream,
                device_time_ns=frame_time_ns(frame_idx, rate_hz),
                payload=payload or b"",
                encoding=table.encoding,
                fields={"frame_idx": frame_idx, "valid": -1 if payload else 0},
            ),
        )


def _label_files(path: Path, data_set: _DataSet) -> list[Path]:
    return sorted({file for pattern in data_set.labels for file in path.glob(pattern)})


def _read_labels(path: Path, rate_hz: float) -> Iterator[tuple[int, Imported]]:
    for _, (frame_idx, fields) in _rows(path):
        numbers = [_number(text) for text in fields]
        values = [number for number in numbers if number is not None]
        texts = [text for text, number in zip(fields, numbers, strict=True) if number is None]
        yield (
            frame_idx,
            LabelNote(
                source=path.name,
                frame_idx=frame_idx,
                device_time_ns=frame_time_ns(frame_idx, rate_hz),
                values=values,
                texts=texts,
            ),
        )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def frame_time_ns(frame_idx: int, rate_hz: float) -> int:
    """Device time that a frame without a time of its own is given, ns."""
    return round(frame_idx * _NS / rate_hz)


# -- IndustReal ------------------------------------------------------------------------------------


def _head_pose(values: list[float]) -> bytes | None:
    """`forward, position, up` as world_from_head, columns right, up, back, position.

    Published with three decimals, so the axes are made orthonormal again: forward is kept.
    """
    forward, position, up = np.array(values).reshape(3, 3)
    if not np.any(forward) or not np.any(up):
        return None
    back = -forward / np.linalg.norm(forward)
    right = np.cross(up, back)
    length = np.linalg.norm(right)
    if length < 1e-3:
        return None
    pose = np.eye(4)
    pose[:3, 0] = right / length
    pose[:3, 1] = np.cross(back, pose[:3, 0])
    pose[:3, 2], pose[:3, 3] = back, position
    return pose.astype("<f4").tobytes()


INDUSTREAL = _DataSet(
    name="IndustReal",
    rate_hz=10.0,
    tables=(
        _Table(
            file="pose.csv",
            stream="head",
            encoding="pose_f32",
            columns=9,
            encode=_head_pose,
            told="pose.csv: forward, position and up (three decimals), made orthonormal",
        ),
    ),
    labels=("*labels*.csv", "gaze.csv", "hands.csv"),
    absent=(
        "gaze: only the pixel at 0.6 m is published, no ray; its rows are kept as labels",
        "hands: only pixels are published, no joints in the world; their rows are kept as labels",
        "depth and brightness: published as coloured JPEG, not metric",
        "grey cameras: published as JPEG without their orientation",
        "camera intrinsics and poses",
    ),
)

MECCANO = _DataSet(
    name="MECCANO",
    rate_hz=12.0,
    labels=("*labels*.csv", "*_GT.csv"),
    absent=(
        "gaze and depth: their files' layout is not known to this importer",
        "head, hands, camera intrinsics and poses: not published",
    ),
)


class IndustRealImporter(_FrameFolderImporter):
    """A recording of IndustReal (Schoonbeek et al., WACV 2024)."""

    title = "a recording of IndustReal: pictures, head, labels; gaze and hand pixels as labels"
    _data_set = INDUSTREAL


class MeccanoImporter(_FrameFolderImporter):
    """A recording of MECCANO (Ragusa et al.), with PSR's labels."""

    title = "a recording of MECCANO: pictures and labels"
    _data_set = MECCANO
