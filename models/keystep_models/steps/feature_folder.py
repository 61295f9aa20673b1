"""Feature folders: one memory-mapped file per video and cue, with JSON beside it.

    FOLDER/VIDEO/video.json         rate, frame count, cues and where each comes from
    FOLDER/VIDEO/CUE.npy            float32 (T, D), NumPy's own format
    FOLDER/VIDEO/CUE.valid.npy      bool (T,): false where the cue is missing; absent: nowhere
    FOLDER/VIDEO/times_ns.npy       int64 (T,): device time of each frame; absent: by the rate
    FOLDER/VIDEO/labels.npy         int64 (T,): key step of each frame, 0 background; optional
    FOLDER/keysteps.json            names of the key steps, from 1 on; optional

A video's folder is complete when its `video.json` is there, which is written last. docs/steps.md
describes the layout for people who bring their own features. T frames, D values of a feature.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

FORMAT_VERSION = 1
MAX_JSON_BYTES = 1 << 20
MAX_FRAMES = 1 << 24  # of a video: 19 days at 10 Hz
MAX_LABEL = 65_535
_NS = 1_000_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_RESERVED = {"times_ns", "labels"}


class _CueEntry(msgspec.Struct, frozen=True, kw_only=True):
    size: int
    source: dict[str, Any] = {}


class _VideoDocument(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    rate_hz: float
    frame_count: int
    cues: dict[str, _CueEntry]
    notes: tuple[str, ...] = ()
    recording: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CueFeatures:
    """One cue of one video.

    Attributes:
        features: float32 (T, D), perhaps memory-mapped; rows that are not valid mean nothing.
        valid: bool (T,): whether the cue is there.
        source: Which extractor made it, of which version, from what.
    """

    features: NDArray[np.float32]
    valid: NDArray[np.bool_]
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Values of a feature (D)."""
        return int(self.features.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoFeatures:
    """One video's features.

    Attributes:
        name: Of the video, also its folder's.
        rate_hz: Frames a second.
        times_ns: Device time of each frame, int64 (T,), never decreasing.
        cues: By name; a cue that the video lacks altogether is not among them.
        labels: Key step of each frame, int64 (T,), 0 background; None where unknown.
        notes: What a reader should know (gaps, cues left out).
        recording: Where the video comes from.
    """

    name: str
    rate_hz: float
    times_ns: NDArray[np.int64]
    cues: Mapping[str, CueFeatures]
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    recording: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frame_count(self) -> int:
        """Frames of the video (T)."""
        return len(self.times_ns)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Seconds since the first frame, float64 (T,)."""
        return (self.times_ns - self.times_ns[:1]) / _NS


def write_video(
    folder: Path, video: VideoFeatures, *, files: Collection[str] | None = None
) -> None:
    """Write a video into a feature folder, replacing one of the same name.

    Args:
        folder: The feature folder.
        video: The video.
        files: Cues whose files are written, where the video is there already with the same
            frames; the others are taken as they are. None: all, and nothing is there meanwhile.

    Raises:
        DataError: A name or an array is not as documented.
        OSError: The disk does not take it; then there is no `video.json`, or with `files` the old
            one.
    """
    target = folder / _checked_name(video.name)
    target.mkdir(parents=True, exist_ok=True)
    if files is None:
        (target / "video.json").unlink(missing_ok=True)
    count = video.frame_count
    for name, cue in video.cues.items():
        if files is not None and name not in files:
            continue
        _check_cue(f"{video.name}/{name}", cue.features, cue.valid, count)
        _save(target / f"{_checked_name(name)}.npy", np.asarray(cue.features, np.float32))
        valid_path = target / f"{name}.valid.npy"
        if cue.valid.all():
            valid_path.unlink(missing_ok=True)
        else:
            _save(valid_path, cue.valid)
    if files is None:
        _save(target / "times_ns.npy", video.times_ns.astype(np.int64))
    notes = list(video.notes)
    if video.labels is not None:
        _save(target / "labels.npy", video.labels.astype(np.int64))
    elif _set_aside_labels(target, count):
        notes.append("labels.npy was of another number of frames and is now labels.old.npy")
    document = {
        "format_version": FORMAT_VERSION,
        "rate_hz": video.rate_hz,
        "frame_count": count,
        "cues": {
            name: {"size": cue.size, "source": dict(cue.source)} for name, cue in video.cues.items()
        },
        "notes": notes,
        "recording": dict(video.recording),
    }
    write_json(target / "video.json", document)


def _set_aside_labels(target: Path, count: int) -> bool:
    """Labels of other frames (another tick rate's, say) would make the video unreadable."""
    path = target / "labels.npy"
    try:
        _read_labels(path, count)
    except DataError:
        path.replace(target / "labels.old.npy")
        return True
    return False


def write_labels(folder: Path, video: str, labels: NDArray[np.int64]) -> None:
    """Put labels beside a video's features, replacing what was there.

    Raises:
        DataError: There is no such video, or not as many frames.
        OSError: The disk does not take it.
    """
    target = folder / _checked_name(video)
    count = _read_document(target / "video.json").frame_count
    if labels.shape != (count,) or labels.dtype.kind != "i" or labels.min() < 0:
        raise DataError(f"{target}: expected {count} labels, whole numbers, 0 or more")
    _save(target / "labels.npy", labels.astype(np.int64))


def read_video(folder: Path) -> VideoFeatures:
    """Open one video's folder; features stay on disk until they are used.

    Raises:
        DataError: Something is missing or not as documented; one line with the file.
    """
    document = _read_document(folder / "video.json")
    count = document.frame_count
    cues = {}
    for name, entry in document.cues.items():
        path = folder / f"{_checked_name(name)}.npy"
        features = _load(path, mapped=True)
        valid_path = folder / f"{name}.valid.npy"
        valid = _load(valid_path) if valid_path.exists() else np.ones(len(features), np.bool_)
        _check_cue(str(path), features, valid, count)
        if features.shape[1] != entry.size:
            raise DataError(f"{path}: {features.shape[1]} values, video.json says {entry.size}")
        cues[name] = CueFeatures(features=features, valid=valid, source=entry.source)
    return VideoFeatures(
        name=folder.name,
        rate_hz=document.rate_hz,
        times_ns=_read_times(folder / "times_ns.npy", count, document.rate_hz),
        cues=cues,
        labels=_read_labels(folder / "labels.npy", count),
        notes=document.notes,
        recording=document.recording,
    )


def read_folder(folder: Path) -> list[VideoFeatures]:
    """Open all complete videos of a feature folder, in order of their names.

    Raises:
        DataError: There is none, or one is not as documented, or was begun or copied in part only:
            what is made of the others would not be of the whole folder.
    """
    videos = [read_video(path.parent) for path in sorted(folder.glob("*/video.json"))]
    if not videos:
        raise DataError(f"{folder}: expected folders with a video.json (docs/steps.md)")
    begun = {path.parent for path in (*folder.glob("*/*.npy"), *folder.glob("*/.partial"))}
    if torn := sorted(path for path in begun if not (path / "video.json").exists()):
        raise DataError(
            f"{torn[0]}: has no video.json, so it was not finished or not copied whole; finish it "
            "or delete that folder"
        )
    return videos


def task_folders(folder: Path) -> list[Path]:
    """The feature folders that a folder is or holds: itself, or one for each task, by name.

    Raises:
        DataError: It is none and holds none.
    """
    if any(folder.glob("*/video.json")):
        return [folder]
    tasks = sorted({path.parent.parent for path in folder.glob("*/*/video.json")})
    if not tasks:
        raise DataError(f"{folder}: expected folders with a video.json (docs/steps.md)")
    return tasks


def read_keystep_names(folder: Path) -> list[str]:
    """Names of the key steps, from 1 on; empty where the folder does not tell."""
    path = folder / "keysteps.json"
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(_read_bytes(path), type=list[str])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: expected a JSON list of names: {error}") from error


def keystep_count(folder: Path, videos: Sequence[VideoFeatures]) -> int:
    """Key steps of a data set: those named, or else the largest label.

    Raises:
        DataError: A video has no labels, or one that has no name.
    """
    names = read_keystep_names(folder)
    largest = 0
    for video in videos:
        if video.labels is None:
            raise DataError(f"{folder / video.name}: expected labels.npy, a key step per frame")
        largest = max(largest, int(video.labels.max(initial=0)))
    if names and largest > len(names):
        raise DataError(f"{folder}: label {largest}, but keysteps.json names {len(names)}")
    return len(names) or largest


def map_array(path: Path) -> NDArray[Any]:
    """An array file of NumPy's own format, memory-mapped: its header may promise anything.

    Raises:
        DataError: It is none, or cannot be read.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path}: no array that NumPy can read: {error}") from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise DataError(f"{path}: expected one array (.npy), got an archive of arrays")
    return loaded


def is_name(name: str) -> bool:
    """Whether a video or a cue can be called so: files are."""
    return _NAME.fullmatch(name) is not None and name not in _RESERVED


def write_json(path: Path, document: object) -> None:
    """Write JSON at once: readers see the old file or the new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


class atomic_path:  # noqa: N801  # used like a function
    """A temporary path beside `path` that takes its place when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(
            prefix=f".{self._path.stem}-", suffix=self._path.suffix, dir=self._path.parent
        )
        os.close(handle)
        self._temporary = Path(name)
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._temporary.chmod(0o644)
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic_path(path) as temporary:
        try:
            np.save(temporary, array, allow_pickle=False)
        except OSError as error:  # on a full disk NumPy says how many values it has written
            raise OSError(f"cannot write {path}, perhaps the disk is full: {error}") from error


def _load(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    if not path.exists():
        raise DataError(f"{path}: expected this file, there is none")
    loaded = map_array(path)
    return loaded if mapped else np.array(loaded)


def _check_cue(where: str, features: NDArray[Any], valid: NDArray[Any], count: int) -> None:
    if features.ndim != 2 or len(features) != count or features.shape[1] < 1:
        raise DataError(f"{where}: expected shape ({count}, D), got {features.shape}")
    if features.dtype != np.float32:
        raise DataError(f"{where}: expected float32, got {features.dtype}")
    if valid.shape != (count,) or valid.dtype != np.bool_:
        raise DataError(f"{where}: valid must be bool ({count},), got {valid.dtype} {valid.shape}")
    for start, rows in _blocks(features):
        broken = np.flatnonzero(valid[start : start + len(rows)] & ~np.isfinite(rows).all(axis=1))
        if len(broken):
            raise DataError(
                f"{where}: frame {start + broken[0]} is not finite but not marked as missing"
            )


def _blocks(features: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(features), 4096):
        yield start, np.asarray(features[start : start + 4096])


def _read_document(path: Path) -> _VideoDocument:
    try:
        document = msgspec.json.decode(_read_bytes(path), type=_VideoDocument)
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}") from error
    if document.format_version != FORMAT_VERSION:
        raise DataError(f"{path}: format_version {document.format_version}, expected 1")
    if not document.rate_hz > 0 or not 1 <= document.frame_count <= MAX_FRAMES:
        raise DataError(f"{path}: expected a rate above 0 and 1 to {MAX_FRAMES} frames")
    if document.frame_count * (_NS / document.rate_hz) >= 2**63:
        raise DataError(f"{path}: {document.frame_count} frames at {document.rate_hz:g} Hz")
    return document


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: expected this file, there is none") from None


def _read_times(path: Path, count: int, rate_hz: float) -> NDArray[np.int64]:
    if not path.exists():
        return np.round(np.arange(count) * (_NS / rate_hz)).astype(np.int64)
    times = _load(path)
    if times.shape != (count,) or times.dtype.kind != "i" or (np.diff(times) < 0).any():
        raise DataError(f"{path}: expected {count} whole numbers that never decrease")
    return times.astype(np.int64)


def _read_labels(path: Path, count: int) -> NDArray[np.int64] | None:
    if not path.exists():
        return None
    labels = _load(path)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{path}: expected {count} whole numbers, 0 or more")
    if labels.max() > MAX_LABEL:
        raise DataError(f"{path}: key step {labels.max()}; numbers go up to {MAX_LABEL}")
    return labels.astype(np.int64)


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise DataError(f"{name!r} cannot be a file's name: letters, digits, '.', '-' and '_' only")
    return name
