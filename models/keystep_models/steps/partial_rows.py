"""Rows of features on their way to a feature folder: written as they come, counted by a later call.

A file per cue holds a validity byte and the values of each tick; `key.json` says what each is of.
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
    """Rows written so far, cue by cue.

    What another recording left behind is removed, and what is of a cue that is made otherwise now;
    other cues' rows stay for the call that wants them.
    """

    def __init__(self, folder: Path, ticks_key: str, cue_keys: Mapping[str, str]) -> None:
        """Go on in a folder, or begin anew where it is of another recording.

        Args:
            folder: Of the files.
            ticks_key: Tells the recording and its ticks from others.
            cue_keys: Of each cue that is to be written: how it is made.
        """
        self.folder = folder
        self._cues = tuple(cue_keys)
        marker = folder / "key.json"
        found = _read_keys(marker, ticks_key)
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        for cue, key in cue_keys.items():
            if found.get(cue) != key:
                self._path(cue).unlink(missing_ok=True)
        # Written after what it no longer holds is gone: rows are never taken for others.
        write_json(marker, {"ticks": ticks_key, "cues": {**found, **cue_keys}})
        self._files: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def _path(self, cue: str) -> Path:
        return self.folder / f"{cue}.rows"

    def begin(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Open a file per cue; how many ticks of each are there whole."""
        self._sizes = dict(sizes)
        done = {}
        for cue, size in sizes.items():
            file = self._path(cue).open("ab")
            self._files[cue] = file
            done[cue] = file.tell() // (4 * size + 1)
            file.truncate(done[cue] * (4 * size + 1))
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
        rows = np.fromfile(self._path(cue), row)
        values = np.ascontiguousarray(rows["values"])
        return CueFeatures(features=values.reshape(-1, size), valid=rows["valid"].astype(np.bool_))

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk has been told already
                file.close()

    def remove(self) -> None:
        """Delete the cues' files, and the folder with the last one."""
        for cue in self._cues:
            self._path(cue).unlink(missing_ok=True)
        if not any(self.folder.glob("*.rows")):
            shutil.rmtree(self.folder)


def _read_keys(marker: Path, ticks_key: str) -> dict[str, str]:
    """Cues' keys as an earlier call left them; none where they are of other ticks or torn."""
    try:
        document = json.loads(marker.read_bytes())
        if document["ticks"] == ticks_key:
            return {str(cue): str(key) for cue, key in document["cues"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {}
