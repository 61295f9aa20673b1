"""A session's ticks on disk: one row a tick, appended as they come, read by memory mapping."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keystep_capture.align import Tick
from keystep_capture.errors import DataError

EMBEDDING_SIZE = 1280
APPEARANCE, GAZE, HEAD, HANDS, DEPTH = 1, 2, 4, 8, 16

TICK_ROW = np.dtype(
    [
        ("device_time_ns", "<i8"),
        ("epoch", "<i4"),
        ("cues", "<u4"),  # bits of the cues that are not missing
        ("gaze", "<f4", (2, 3)),
        ("head", "<f4", (4, 4)),
        ("appearance", "<f4", (EMBEDDING_SIZE,)),
    ]
)
_CUES = {"gaze": GAZE, "head": HEAD, "hands": HANDS, "depth": DEPTH, "depth_ahat": DEPTH}
_WRITTEN = ("gaze", "head")
_CUE_NAMES = {
    "appearance": APPEARANCE,
    "gaze": GAZE,
    "head": HEAD,
    "hands": HANDS,
    "depth": DEPTH,
}


BUFFER_BYTES = 16 * TICK_ROW.itemsize
"""A row that fits the buffer goes there whole or, where the disk is full, not at all."""


class TickStore:
    """Appends rows to one file; what a crash cut off at its end is removed when it is opened."""

    def __init__(self, path: Path) -> None:
        """Open or create the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=BUFFER_BYTES)
        whole_rows = self._file.tell() // TICK_ROW.itemsize
        os.truncate(path, whole_rows * TICK_ROW.itemsize)
        self._file.seek(0, os.SEEK_END)
        self.row_count = self.flushed_count = whole_rows
        self.feature_count = 0
        self.cue_counts = dict.fromkeys(_CUE_NAMES, 0)  # ticks that have it, since it was opened
        self._row = np.zeros(1, TICK_ROW)

    def append(self, tick: Tick, epoch: int, embedding: npt.NDArray[np.float32] | None) -> None:
        """Append a tick; an absent embedding or sample is marked missing in `cues`.

        Raises:
            OSError: The disk did not take it: it can be appended again later.
        """
        row = self._row
        row.fill(0)
        row["device_time_ns"], row["epoch"] = tick.device_time_ns, epoch
        cues = 0
        for name, bit in _CUES.items():
            sample = tick.samples.get(name)
            if sample is None or sample.value is None:
                continue
            cues |= bit
            if name in _WRITTEN:
                row[name][0] = sample.value
        if embedding is not None:
            cues |= APPEARANCE
            row["appearance"][0] = embedding
        row["cues"] = cues
        self._file.write(row.tobytes())
        self.row_count += 1
        self.feature_count += embedding is not None
        for name, bit in _CUE_NAMES.items():
            self.cue_counts[name] += cues & bit != 0

    def truncate(self, row_count: int, feature_count: int) -> None:
        """Take back all rows but the first ones, as a checkpoint counted them.

        Raises:
            DataError: The file has fewer rows.
        """
        if row_count > self.row_count:
            raise DataError(f"{self.path.name} has {self.row_count} rows, expected {row_count}")
        os.truncate(self.path, row_count * TICK_ROW.itemsize)
        self._file.seek(0, os.SEEK_END)
        self.row_count = self.flushed_count = row_count
        self.feature_count = feature_count

    def flush(self) -> None:
        """Hand what was appended to the operating system."""
        self._file.flush()
        self.flushed_count = self.row_count

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; may run beside `append`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


def read_ticks(path: Path) -> npt.NDArray[np.void]:
    """All whole rows of a file, (T,) of `TICK_ROW`, read-only and memory-mapped; may be empty."""
    rows = path.stat().st_size // TICK_ROW.itemsize if path.exists() else 0
    if rows == 0:
        return np.zeros(0, TICK_ROW)
    return np.memmap(path, dtype=TICK_ROW, mode="r", shape=(rows,))
