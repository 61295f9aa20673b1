"""`keystep features convert`: which data sets there are, and how each becomes a feature folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.steps.datasets.annotation_files import (
    read_crosstask,
    read_crosstask_tasks,
    read_egoprocel,
    read_procel,
    read_simulated,
)
from keystep_models.steps.datasets.labelled import (
    Annotations,
    Converted,
    label_folder,
    label_frames,
)
from keystep_models.steps.datasets.meccano_steps import convert_meccano
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    map_array,
    write_json,
    write_video,
)

_NS = 1_000_000_000
# Of a second of a CrossTask video: which of the 3200 values come from where.
_CROSSTASK_CUES: Final = {"i3d": (0, 1024), "resnet152": (1024, 3072), "audio": (3072, 3200)}


def convert(kind: str, source: Path, out: Path) -> Converted:
    """Convert a data set's files.

    Args:
        kind: One of `KINDS`.
        source: Its folder, as docs/steps.md says for each kind.
        out: The feature folder; of kinds that have labels only, its features are there already.

    Raises:
        ConfigError: An unknown kind.
        DataError: A file is missing or not as documented; what was written before stays, without
            the file that a complete video ends with.
        OSError: The disk does not take it.
    """
    if kind not in KINDS:
        raise ConfigError(f"no converter is called {kind!r}; there are {', '.join(KINDS)}")
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder")
    return KINDS[kind](source, out)


def convert_crosstask(source: Path, out: Path) -> Converted:
    """CrossTask's release: a feature folder for each primary task, OUT/TASK.

    With `crosstask_features` in the source, its vectors (one a second) become the cues i3d,
    resnet152 and audio; else OUT/TASK holds features already and gets labels.
    """
    release, features = source / "crosstask_release", source / "crosstask_features"
    tasks = read_crosstask_tasks(release / "tasks_primary.txt")
    made = []
    for task, steps in tasks.items():
        annotations = read_crosstask(release / "annotations", task, steps)
        if features.is_dir():
            made.append(_crosstask_task(features, out / task, annotations))
        elif (out / task).is_dir():
            made.append(label_folder(out / task, annotations))
    if not any(each.video_count for each in made):
        raise DataError(
            f"{source}: has no crosstask_features, and {out} no task's folder with features"
        )
    return Converted(
        folders=tuple(folder for each in made for folder in each.folders),
        video_count=sum(each.video_count for each in made),
        notes=tuple(note for each in made for note in each.notes),
    )


def _crosstask_task(features: Path, out: Path, annotations: Annotations) -> Converted:
    without = []
    for name, stretches in annotations.videos.items():
        path = features / f"{name.partition('_')[2]}.npy"
        if not path.is_file():
            without.append(path.name)
            continue
        rows = _crosstask_rows(path)
        times_ns = np.arange(len(rows), dtype=np.int64) * _NS
        write_video(
            out,
            VideoFeatures(
                name=name,
                rate_hz=1.0,
                times_ns=times_ns,
                cues=_crosstask_cues(rows),
                labels=label_frames(times_ns / _NS, 1.0, stretches),
                recording={"dataset": "crosstask", "origin": path.name},
            ),
        )
    count = len(annotations.videos) - len(without)
    if count:
        write_json(out / "keysteps.json", list(annotations.names))
    notes = [
        f"task {out.name}: {len(without)} videos have no features: {name}, ..." for name in without
    ]
    return Converted(folders=(out,) if count else (), video_count=count, notes=tuple(notes[:1]))


def _crosstask_rows(path: Path) -> NDArray[np.float32]:
    rows = map_array(path)
    if rows.ndim != 2 or rows.shape[1] != 3200 or not len(rows) or rows.dtype.kind != "f":
        raise DataError(f"{path}: expected shape (seconds, 3200), got {rows.dtype} {rows.shape}")
    return np.asarray(rows, np.float32)


def _crosstask_cues(rows: NDArray[np.float32]) -> dict[str, CueFeatures]:
    cues = {}
    for cue, (start, end) in _CROSSTASK_CUES.items():
        own = np.ascontiguousarray(rows[:, start:end])
        valid = np.asarray(np.isfinite(own).all(axis=1))
        own[~valid] = 0.0
        if valid.any():
            cues[cue] = CueFeatures(
                features=own, valid=valid, source={"extractor": "published files"}
            )
    return cues


KINDS: Final[Mapping[str, Callable[[Path, Path], Converted]]] = {
    "meccano-steps": convert_meccano,
    "egoprocel": lambda source, out: label_folder(out, read_egoprocel(source)),
    "procel": lambda source, out: label_folder(out, read_procel(source)),
    "crosstask": convert_crosstask,
    "simulated": lambda source, out: label_folder(out, read_simulated(source)),
}
"""Converters by name: a source folder and the feature folder."""
