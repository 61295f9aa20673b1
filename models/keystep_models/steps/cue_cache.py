"""A recording's cues in a feature folder, each under a key of its own.

`video.json` notes below `recording` the ticks' key (`ticks_key`), each cue's (`cue_keys`, also of
cues that are missing everywhere) and what is to be said of it (`cue_notes`); `key` is all of them
together. It is replaced after the files that it names are there, so that a call that ends at any
moment leaves no cue that is not whole, and takes none away that was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from keystep_capture.errors import DataError
from keystep_models.cues import gaze_crop
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures, read_video, write_video

_CONSTANT: Final = 1e-6  # largest change of a cue that does not change, relative to its values
_OWN: Final = ("ticks_key", "cue_keys", "cue_notes")  # of a recording's document


class CueCache:
    """What is there of one recording's ticks; of other ticks nothing is taken."""

    def __init__(self, folder: Path, name: str, ticks_key: str) -> None:
        """Look into a feature folder.

        Args:
            folder: The feature folder.
            name: The recording's.
            ticks_key: Tells the recording and its ticks from others. What is there of other
                ticks, or cannot be read (half copied, say), counts for nothing.
        """
        self._folder, self._name, self._ticks_key = folder, name, ticks_key
        self._known = self._read()

    @property
    def known(self) -> VideoFeatures | None:
        """All that is there, with `labels` if there are some."""
        return self._known

    def missing(self, keys: Mapping[str, str]) -> list[str]:
        """Cues that are not there under these keys."""
        there = {} if self._known is None else self._known.recording["cue_keys"]
        return [cue for cue, key in keys.items() if there.get(cue) != key]

    def store(self, video: VideoFeatures, keys: Mapping[str, str]) -> None:
        """Add cues, or replace those of the same name.

        Args:
            video: With the new cues only, those included that are missing everywhere.
            keys: Of the new cues.

        Raises:
            DataError: The ticks are not those of the cues that are there.
            OSError: The disk does not take it; what was there and is not replaced stays.
        """
        kept = self._kept(video, keys)
        notes = {cue: _notes_on(cue, own) for cue, own in video.cues.items()}
        new = {cue: own for cue, own in video.cues.items() if own.valid.any()}
        self._write(
            replace(kept, cues={**kept.cues, **new}),
            {**kept.recording["cue_keys"], **keys},
            {**kept.recording["cue_notes"], **notes},
            files=None if self._known is None else tuple(new),
        )
        self._known = self._read()

    def chosen(self, keys: Mapping[str, str]) -> VideoFeatures:
        """The video with these cues alone, in this order, whatever else is there.

        Raises:
            DataError: They are not all there.
        """
        if self._known is None or self.missing(keys):
            raise DataError(f"{self._folder / self._name}: lacks what was just written")
        recording = self._known.recording
        told = [note for cue in keys for note in recording["cue_notes"].get(cue, ())]
        return replace(
            self._known,
            cues={cue: self._known.cues[cue] for cue in keys if cue in self._known.cues},
            notes=(*_general_notes(self._known), *told),
            recording={
                **{name: value for name, value in recording.items() if name not in _OWN},
                "key": self._combined(keys),
            },
        )

    def _read(self) -> VideoFeatures | None:
        target = self._folder / self._name
        if not (target / "video.json").exists():
            return None
        try:
            video = read_video(target)
        except DataError:
            return None
        told = video.recording
        if told.get("ticks_key") != self._ticks_key:
            return None
        return video if all(isinstance(told.get(name), dict) for name in _OWN[1:]) else None

    def _kept(self, video: VideoFeatures, keys: Collection[str]) -> VideoFeatures:
        """What stays of what is there; cues to be replaced are taken out on disk first."""
        if self._known is None:
            recording = {**video.recording, "cue_keys": {}, "cue_notes": {}}
            return replace(video, cues={}, recording=recording)
        known = self._known
        if not np.array_equal(known.times_ns, video.times_ns):
            raise DataError(
                f"{self._folder / self._name}: holds features of other ticks than the recording "
                "has now; delete that folder and repeat the call"
            )
        told = {
            name: {cue: value for cue, value in known.recording[name].items() if cue not in keys}
            for name in _OWN[1:]
        }
        kept = replace(
            known,
            cues={cue: own for cue, own in known.cues.items() if cue not in keys},
            notes=_general_notes(known),
            recording={**known.recording, **told},
        )
        if len(told["cue_keys"]) < len(known.recording["cue_keys"]):
            self._write(kept, told["cue_keys"], told["cue_notes"], files=())
        return kept

    def _combined(self, cue_keys: Mapping[str, str]) -> str:
        """What a video of these cues is made of; the same whatever their order."""
        told = repr([self._ticks_key, *sorted(cue_keys.items())])
        return hashlib.sha256(told.encode()).hexdigest()

    def _write(
        self,
        video: VideoFeatures,
        cue_keys: Mapping[str, str],
        cue_notes: Mapping[str, Any],
        *,
        files: Collection[str] | None,
    ) -> None:
        notes = [note for each in cue_notes.values() for note in each]
        recording = {
            **video.recording,
            "ticks_key": self._ticks_key,
            "cue_keys": dict(cue_keys),
            "cue_notes": dict(cue_notes),
            "key": self._combined(cue_keys),
        }
        whole = replace(video, notes=(*video.notes, *notes), recording=recording, labels=None)
        write_video(self._folder, whole, files=files)


def _general_notes(video: VideoFeatures) -> tuple[str, ...]:
    of_cues = [note for notes in video.recording["cue_notes"].values() for note in notes]
    return tuple(note for note in video.notes if note not in of_cues)


def _notes_on(cue: str, own: CueFeatures) -> list[str]:
    """What a reader should know of a cue."""
    if not own.valid.any():
        return [f"cue {cue} is missing everywhere and was left out{_why(cue)}"]
    notes = []
    if _is_constant(own):
        notes.append(f"cue {cue} never changes: it tells moments apart by their time alone")
    if (share := float(own.valid.mean())) < 0.9:
        notes.append(f"cue {cue} is there in {100 * share:.0f} % of the ticks")
    return notes


def _why(cue: str) -> str:
    if cue != gaze_crop.CUE:
        return ""
    return ": it needs gaze, and pictures with their camera's pose and intrinsics"


def _is_constant(cue: CueFeatures) -> bool:
    rows = cue.features[cue.valid]
    if len(rows) < 2:
        return False
    return bool(np.ptp(rows, axis=0).max() <= _CONSTANT * np.abs(rows[0]).max())
