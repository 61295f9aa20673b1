"""The STEPs authors' ready-made Meccano features as a feature folder.

    SRC/features/resnet50_features/*conv5c*_ROWS_COLUMNS.dat   float32, ROWS x COLUMNS, no header
    SRC/features/resnet50_features/*conv5c*_ROWS_COLUMNS.pkl   picture's path to row
    SRC/features/raft_motion_features/raft_motion_features.npy, .pkl   the same of optical flow
    SRC/annotations/NNNN.csv                                   EgoProceL's annotations of Meccano

A picture's path is FOLDER/VIDEO/NAME with the frame's number, from 1, at the end of the name. The
last column of the .dat file counts rows and is left out. 12 frames a second.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.psr.text_files import shown
from keystep_models.steps.datasets.annotation_files import read_egoprocel
from keystep_models.steps.datasets.labelled import Annotations, Converted, label_frames
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    map_array,
    write_json,
    write_video,
)

RATE_HZ: Final = 12.0
MAX_PICKLE_BYTES: Final = 1 << 26
_NS = 1_000_000_000
_DAT = re.compile(r".*_(\d{1,9})_(\d{1,6})\.dat")
_FRAME = re.compile(r"(?:.*_)?(\d{1,9})")
_MAX_VIDEO = 9999  # names are NNNN

Frames = Mapping[int, int]  # a frame's number to its row


def convert_meccano(source: Path, out: Path) -> Converted:
    """Write the annotated videos into a feature folder: cues `appearance` and `motion`, labels.

    Flow belongs to pairs of pictures, so a video has less of it than pictures; as in the published
    runs its n-th row goes with the n-th frame. Frames that then have none are missing.

    Raises:
        DataError: A file is missing or not as described.
        OSError: The disk does not take it.
    """
    looks, look_frames = _read_looks(source / "features" / "resnet50_features")
    flow, flow_frames = _read_flow(source / "features" / "raft_motion_features")
    annotations = read_egoprocel(source / "annotations")
    notes = []
    out.mkdir(parents=True, exist_ok=True)
    for name in annotations.videos:
        number = _video_number(name)
        if number is None or number not in look_frames:
            raise DataError(f"{source}: video {shown(name)} is annotated but has no features")
        if number not in flow_frames:
            notes.append(f"video {name} has no optical flow")
        frames = look_frames[number]
        count = len(frames)
        if set(frames) != set(range(1, count + 1)):
            raise DataError(f"{source}: the pictures of video {name} are not numbered 1 to {count}")
        cues = {"appearance": _cue(looks, _in_order(frames), count, drop_last=True)}
        if number in flow_frames:
            cues["motion"] = _cue(flow, _in_order(flow_frames[number])[:count], count)
        write_video(out, _video(name, count, cues, annotations))
    write_json(out / "keysteps.json", list(annotations.names))
    return Converted(folders=(out,), video_count=len(annotations.videos), notes=tuple(notes))


def _video(
    name: str, count: int, cues: Mapping[str, CueFeatures], annotations: Annotations
) -> VideoFeatures:
    times_ns = np.round(np.arange(count) * (_NS / RATE_HZ)).astype(np.int64)
    return VideoFeatures(
        name=f"{int(name):04d}",
        rate_hz=RATE_HZ,
        times_ns=times_ns,
        cues=cues,
        labels=label_frames(times_ns / _NS, RATE_HZ, annotations.videos[name]),
        recording={"dataset": "meccano", "origin": "the STEPs authors' ready-made features"},
    )


def _in_order(frames: Frames) -> list[int]:
    return [row for _, row in sorted(frames.items())]


def _cue(
    rows: NDArray[np.float32], places: list[int], count: int, *, drop_last: bool = False
) -> CueFeatures:
    """The n-th place's row for the n-th of `count` frames; frames beyond are missing."""
    size = rows.shape[1] - drop_last
    features = np.zeros((count, size), np.float32)
    features[: len(places)] = rows[places][:, :size]
    valid = np.arange(count) < len(places)
    valid &= np.isfinite(features).all(axis=1)
    features[~valid] = 0.0
    return CueFeatures(features=features, valid=valid, source={"extractor": "published files"})


def _read_looks(folder: Path) -> tuple[NDArray[np.float32], Mapping[int, Frames]]:
    found = sorted(folder.glob("*conv5c*.dat"))
    if len(found) != 1:
        raise DataError(f"{folder}: expected one file *conv5c*.dat, found {len(found)}")
    path = found[0]
    named = _DAT.fullmatch(path.name)
    if named is None:
        raise DataError(f"{path}: expected a name that ends in _ROWS_COLUMNS.dat")
    shape = int(named[1]), int(named[2])
    if shape[1] < 2 or path.stat().st_size != 4 * shape[0] * shape[1] or not shape[0]:
        raise DataError(
            f"{path}: expected {shape[0]} x {shape[1]} float32 values as its name says, got "
            f"{path.stat().st_size} bytes"
        )
    rows: NDArray[np.float32] = np.memmap(path, np.float32, "r", shape=shape)
    return rows, _read_frames(path.with_suffix(".pkl"), shape[0])


def _read_flow(folder: Path) -> tuple[NDArray[np.float32], Mapping[int, Frames]]:
    path = folder / "raft_motion_features.npy"
    rows = map_array(path)
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.size:
        raise DataError(f"{path}: expected numbers of shape (rows, D), got {rows.shape}")
    return rows, _read_frames(path.with_suffix(".pkl"), len(rows))


def _read_frames(path: Path, row_count: int) -> Mapping[int, Frames]:
    """A pickled mapping from a picture's path to its row, by video and frame."""
    videos: dict[int, dict[int, int]] = {}
    for key, row in _read_pickle(path).items():
        parts = PurePosixPath(key).parts if isinstance(key, str) else ()
        frame = _FRAME.fullmatch(PurePosixPath(parts[2]).stem) if len(parts) == 3 else None
        video = _video_number(parts[1]) if frame is not None else None
        if frame is None or video is None:
            raise DataError(f"{path}: expected paths FOLDER/VIDEO/FRAME.jpg, got {shown(key)}")
        if not isinstance(row, int | np.integer) or not 0 <= row < row_count:
            raise DataError(f"{path}: {shown(key)} has row {shown(row)} of {row_count}")
        videos.setdefault(video, {})[int(frame[1])] = int(row)
    if not videos:
        raise DataError(f"{path}: names no picture")
    return videos


def _video_number(name: str) -> int | None:
    """A video's number by its name; None where that is no number up to 9999."""
    number = int(name) if name.isdecimal() and len(name) <= len(str(_MAX_VIDEO)) else None
    return number or None


class _IntegerType:
    """Stands for NumPy's type of a pickled number: its bytes are read here, not by NumPy."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise pickle.UnpicklingError(f"expected whole numbers, got {shown(code)}")
        self._code, self._order = str(code), "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self._order = ">"

    def value_of(self, content: object) -> int:
        """The number that bytes stand for."""
        if not isinstance(content, bytes) or len(content) != int(self._code[1]):
            raise pickle.UnpicklingError("a number has other bytes than its type says")
        order: Literal["big", "little"] = "big" if self._order == ">" else "little"
        return int.from_bytes(content, order, signed=self._code[0] == "i")


def _integer(kind: object, content: object = None) -> int:
    if not isinstance(kind, _IntegerType):
        raise pickle.UnpicklingError("expected a number with its type")
    return kind.value_of(content)


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("expected bytes as text in latin1")
    return text.encode("latin1")


# What is called in place of what a file names. Numbers may be NumPy's; nothing else needs a name.
_STANDS_FOR: Final[Mapping[tuple[str, str], Callable[..., Any]]] = {
    ("numpy.core.multiarray", "scalar"): _integer,
    ("numpy._core.multiarray", "scalar"): _integer,
    ("numpy", "dtype"): _IntegerType,
    ("_codecs", "encode"): _encoded,
}


class _DataOnly(pickle._Unpickler):
    """Reads plain values; a file that names anything to call is refused.

    The unpickler that is written in Python: the one in C makes a table as long as the largest
    number that a file gives one of its values, 32 GiB for a file of ten bytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS_FOR:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which is no plain value")
        return _STANDS_FOR[module, name]


def _read_pickle(path: Path) -> dict[Any, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise DataError(f"{path}: has {size} bytes, at most {MAX_PICKLE_BYTES} are read")
        with path.open("rb") as file:
            document = _DataOnly(file).load()
    except FileNotFoundError:
        raise DataError(f"{path}: expected this file, there is none") from None
    except DataError:
        raise
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        raise DataError(f"{path}: no mapping from pictures to rows: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a mapping from pictures to rows")
    return document
