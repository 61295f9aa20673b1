"""Recordings with labelled completions: found, and checked before anything is computed of them.

    DATASET/procedure_info.json     or --procedure
    DATASET/classes.json            names of the detector's classes; optional, checked if there
    DATASET/NAME/part-000.mcap      a recording of ours; or pictures as IndustReal, MECCANO publish
    DATASET/NAME/PSR_labels_raw.csv the state from each labelled frame on

Frames count from 0 in the order of the video's packets (recordings), or are the pictures' numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.recording import Recording
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.procedure_files import load_procedure, read_states
from keystep_models.psr.text_files import MAX_FRAME_COUNT, shown
from keystep_models.psr.truth import raw_states
from keystep_models.steps.recorded_session import RecordedSession, is_recording
from keystep_models.steps.recording_source import RecordingSource
from keystep_models.storm.picture_folder import PictureFolder

Layout: TypeAlias = Literal["recordings", "industreal", "meccano"]

LABELS: Final = "PSR_labels_raw.csv"
_PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledRecording:
    """A recording and what is true in each of its frames.

    Attributes:
        name: Its folder's.
        source: To read its pictures.
        epochs: Of each frame, int64 (F,).
        device_times_ns: Of each frame, int64 (F,).
        states: Of each component in each frame, int8 (F, C): 1 where it is there as it should be.
        image_size: Width and height.
    """

    name: str
    source: RecordingSource
    epochs: NDArray[np.int64]
    device_times_ns: NDArray[np.int64]
    states: NDArray[np.int8]
    image_size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledDataset:
    """Recordings of one procedure, by name."""

    procedure: Procedure
    recordings: tuple[LabelledRecording, ...]


def read_dataset(
    folder: Path,
    *,
    procedure: str | None = None,
    task: str | None = None,
    layout: Layout = "recordings",
) -> LabelledDataset:
    """Find and check the recordings of a data set; no picture is decoded.

    Args:
        folder: As described above.
        procedure: A name or file as `load_procedure` takes it; else the folder's own.
        task: Which one of it; "assy" where a file with several is not told.
        layout: "recordings" are ours.

    Raises:
        ConfigError: There is no such folder, or no recording in it.
        DataError: Something is missing, half copied, or contradicts something else; one line.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of labelled recordings, found none")
    steps = _procedure(folder, procedure, task)
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not found:
        raise ConfigError(f"{folder}: expected a folder for each recording, found none")
    for path in found:
        if path.name.endswith(_PARTIAL):
            raise DataError(f"{path}: is not finished; let `keystep simulate generate` finish it")
        _check_complete(path, layout)
    recordings = tuple(_read(path, steps.component_count, layout) for path in found)
    _check_sizes(recordings)
    return LabelledDataset(procedure=steps, recordings=recordings)


def _procedure(folder: Path, source: str | None, task: str | None) -> Procedure:
    own = folder / "procedure_info.json"
    if source is None and not own.is_file():
        raise DataError(
            f"{folder}: expected procedure_info.json (is the folder copied whole?), or --procedure"
        )
    classes = folder / "classes.json"
    states = read_states(classes) if classes.is_file() else ()
    steps = load_procedure(source or str(own), task, fallback_task="assy")
    for idx, state in enumerate(states):
        if state is not None and len(state) != steps.component_count:
            raise DataError(
                f"{classes}, class {idx}: a state of {len(state)} components; procedure"
                f" {shown(steps.name)} has {steps.component_count}"
            )
    return steps if not states else _with_states(source or str(own), task, states)


def _with_states(
    source: str, task: str | None, states: tuple[ComponentState | None, ...]
) -> Procedure:
    plain = load_procedure(source, task, fallback_task="assy")
    if plain.states:
        return plain
    return load_procedure(source, task, fallback_task="assy", states=states)


def _check_complete(path: Path, layout: Layout) -> None:
    labels = path / LABELS
    if not labels.is_file():
        raise DataError(f"{path}: expected {LABELS}; is the folder copied whole?")
    if layout == "recordings" and not is_recording(path):
        raise DataError(
            f"{path}: expected a recording's parts (part-000.mcap); is the folder copied whole?"
            " Published pictures need --layout industreal or meccano"
        )


def _read(path: Path, component_count: int, layout: Layout) -> LabelledRecording:
    if layout == "recordings":
        epochs, times, size = _frames_of_recording(path)
        source: RecordingSource = RecordedSession(path)
    else:
        pictures = PictureFolder(path, layout)
        epochs, times, size = pictures.frame_epochs, pictures.frame_times_ns, pictures.image_size
        source = pictures
    return LabelledRecording(
        name=source.name,
        source=source,
        epochs=epochs,
        device_times_ns=times,
        states=_states(path / LABELS, component_count, len(times)),
        image_size=size,
    )


def _frames_of_recording(
    path: Path,
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    epochs, times, sizes = [], [], set[tuple[int, int]]()
    with Recording(path) as recording:
        if not recording.finished:
            raise DataError(
                f"{path}: the recording breaks off; copy it whole, or mend it with"
                " `keystep recording repair`"
            )
        for packet in recording.packets(("rgb",)):
            header = packet.header
            epochs.append(header.epoch)
            times.append(header.device_time_ns)
            if header.width is not None and header.height is not None:
                sizes.add((header.width, header.height))
    if not times or len(times) > MAX_FRAME_COUNT:
        raise DataError(f"{path}: expected 1 to {MAX_FRAME_COUNT} pictures, got {len(times)}")
    if len(sizes) > 1:
        raise DataError(f"{path}: expected pictures of one size, got {_told(sizes)}")
    _check_frame_list(path / "frames.csv", len(times))
    size = next(iter(sizes), (0, 0))
    return np.array(epochs, np.int64), np.array(times, np.int64), size


def _check_frame_list(path: Path, count: int) -> None:
    """A simulated session lists its frames: another number of them is a half copy.

    The list may name one more: the generator can leave the last picture out of the recording.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        rows = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) - 1
    if rows not in (count, count + 1):
        raise DataError(
            f"{path}: lists {rows} frames, the video has {count}; is the folder copied whole?"
        )


def _states(path: Path, component_count: int, frame_count: int) -> NDArray[np.int8]:
    rows = list(raw_states(path, component_count))
    if not rows:
        raise DataError(f"{path}: expected a state per labelled frame, found none")
    last = rows[-1][0]
    if last >= frame_count:
        raise DataError(f"{path}: a label of frame {last}, the video has {frame_count} frames")
    starts = np.array([0, *(frame for frame, _ in rows[1:])], np.int64)
    values = np.array([state for _, state in rows], np.int8)
    which = np.searchsorted(starts, np.arange(frame_count), side="right") - 1
    return np.asarray(np.maximum(values[which], 0), np.int8)


def _check_sizes(recordings: tuple[LabelledRecording, ...]) -> None:
    sizes: dict[tuple[int, int], str] = {}
    for recording in recordings:
        sizes.setdefault(recording.image_size, recording.name)
    if len(sizes) > 1:
        (first, name), (other, other_name) = list(sizes.items())[:2]
        raise DataError(
            f"expected pictures of one size, got {_told({first})} in {name} and"
            f" {_told({other})} in {other_name}"
        )


def _told(sizes: set[tuple[int, int]]) -> str:
    return " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
