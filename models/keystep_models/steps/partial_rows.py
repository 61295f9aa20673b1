"""Rows of features on their way to a feature folder: written as they come, counted by a later call.

A file per cue holds a validity byte and the values of each tick.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_models.steps.feature_folder import CueFeatures, write_json


class PartialRows:
    """Rows written so far; what another recording or choice left behind is removed."""

    def __init__(self, folder: Path, key: str) -> None:
        """Go on in a folder, or begin anew where it is of another key."""
        self.folder = folder
        marker = folder / "key.json"
        if not marker.exists() or json.loads(marker.read_bytes() or b"{}") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(marker, key)
        self._files: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def begin(self, sizes: Mapping[str, int]) -> int:
        """Open a file per cue; how many ticks are whole in all of them."""
        self._sizes = dict(sizes)
        rows = []
        for cue, size in sizes.items():
            path = self.folder / f"{cue}.rows"
            rows.append(path.stat().st_size // (4 * size + 1) if path.exists() else 0)
        done = min(rows, default=0)
        for cue, size in sizes.items():
            file = (self.folder / f"{cue}.rows").open("ab")
            file.truncate(done * (4 * size + 1))
            self._files[cue] = file
        return done

    def append(self, cue: str, row: NDArray[np.float32] | None) -> None:
        """Add a tick's row; None, or a value that is not finite, marks it as missing."""
        size = self._sizes[cue]
        missing = row is None or not np.isfinite(row).all()
        values = np.zeros(size, "<f4") if missing else np.asarray(row, "<f4")
        self._files[cue].write(bytes([not missing]) + values.tobytes())

    def flush(self) -> None:
        """Hand everything to the system."""
        for file in self._files.values():
            file.flush()

    def read(self, cue: str) -> CueFeatures:
        """All rows of a cue."""
        self._files[cue].flush()
        size = self._sizes[cue]
        row = np.dtype([("valid", "u1"), ("values", "<f4", (size,))])
        rows = np.fromfile(self.folder / f"{cue}.rows", row)
        values = np.ascontiguousarray(rows["values"])
        return CueFeatures(features=values.reshape(-1, size), valid=rows["valid"].astype(np.bool_))

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk has been told already
                file.close()
