"""The cues of a guided session's ticks on disk, row by row beside `ticks.rows`.

Appearance lies there already. After a restart the newest rows bring the encoders to where they
were.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keystep_models.psr.recogniser import CueTick

_BUFFERED_ROWS = 16


class CueRows:
    """Appends a row per tick to one file; what a crash cut off is removed when it is opened."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        """Open or create the file of cues of these sizes; at most 32 of them."""
        self._sizes = dict(sizes)
        fields = [(f"cue_{cue}", "<f4", (size,)) for cue, size in sizes.items()]
        self._dtype = np.dtype([("index", "<i8"), ("cues", "<u4"), *fields])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # A row that fits the buffer goes there whole or, where the disk is full, not at all.
        self._file = path.open("ab", buffering=_BUFFERED_ROWS * self._dtype.itemsize)
        self.row_count = self._file.tell() // self._dtype.itemsize
        self.resize(self.row_count)
        self._row = np.zeros(1, self._dtype)
        self._bytes = self._row.view(np.uint8)
        self._values = {cue: self._row[f"cue_{cue}"][0] for cue in sizes}  # views of it

    def append(self, tick: CueTick) -> None:
        """Append a tick's rows.

        Raises:
            OSError: The disk did not take it: it can be appended again later.
        """
        row = self._row
        self._bytes.fill(0)
        given = 0
        for bit, (cue, place) in enumerate(self._values.items()):
            values = tick.rows.get(cue)
            if values is not None:
                given |= 1 << bit
                place[:] = values
        row["index"], row["cues"] = tick.index, given
        self._file.write(row.tobytes())
        self.row_count += 1

    def read(self, start: int, stop: int) -> list[CueTick]:
        """Rows from `start` up to `stop`, which must have been flushed."""
        found: npt.NDArray[np.void] = np.fromfile(
            self._path, self._dtype, count=stop - start, offset=start * self._dtype.itemsize
        )
        return [self._tick(row) for row in found]

    def _tick(self, row: np.void) -> CueTick:
        rows = {
            cue: np.array(row[f"cue_{cue}"], np.float32)
            for bit, cue in enumerate(self._sizes)
            if int(row["cues"]) >> bit & 1
        }
        return CueTick(index=int(row["index"]), rows=rows)

    def resize(self, row_count: int) -> None:
        """Take back all rows but the first ones; where there are fewer, add empty ones."""
        self._file.flush()
        os.truncate(self._path, row_count * self._dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        self.row_count = row_count

    def flush(self) -> None:
        """Hand what was appended to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; may run beside `append`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()
