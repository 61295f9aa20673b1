"""From a recording to a video in a feature folder: each cue cached, resumed where it was stopped.

A cue's key tells the recording, its ticks and how the cue is made; a call computes those that are
not there under their keys and leaves the others' files alone (see `cue_cache`). While a recording
is read, each cue's rows are appended to a file beside where the result goes (`VIDEO/.partial/`). A
later call counts them, reads on without computing them again, and goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from keystep_capture.errors import ConfigError, DataError, ModelError
from keystep_models.cues import depth_cue, gaze_crop, motion_cue, sensor_cues
from keystep_models.cues.appearance_cue import CROP, appearance_manifest_path
from keystep_models.cues.picture_model import PictureInput
from keystep_models.cues.tick_timeline import MAX_GAP_S
from keystep_models.onnx_model import ModelManifest, OnnxModel
from keystep_models.steps.cue_cache import CueCache
from keystep_models.steps.cue_reader import CueReader, Reading
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures, is_name, map_array
from keystep_models.steps.partial_rows import PartialRows
from keystep_models.steps.recording_source import RecordingSource

MAX_RATE_HZ: Final = 240.0
BUILT_IN_CUES: Final = (
    "appearance",
    gaze_crop.CUE,
    "motion",
    "depth",
    "gaze",
    "gaze_stack",
    "head",
    "left_hand",
    "right_hand",
)
_NS = 1_000_000_000
_TOLD_TICKS = 100

Progress = Callable[[int], None]
"""Called with ticks done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CueChoice:
    """Which cues to extract, and how.

    Attributes:
        cues: Of `BUILT_IN_CUES`.
        rate_hz: Ticks a second.
        appearance_manifest: Of the appearance model: uint8 pictures (B, 224, 224, 3) to (B, D).
        files: Further cues by name: a file of one row per tick, float (T, D), NumPy's format,
            or a folder with one for each recording (RECORDING.npy); rows with a value that is not
            finite are missing.
        models: Further cues by name: the manifest of an ONNX model on the colour picture, or on
            the one before and this one (see `picture_model`).
        threads: That a model may use.
    """

    cues: tuple[str, ...] = ("appearance", "motion")
    rate_hz: float = 10.0
    appearance_manifest: Path = field(default_factory=appearance_manifest_path)
    files: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)
    threads: int = 2

    def __post_init__(self) -> None:
        """Check every choice."""
        if not 0 < self.rate_hz <= MAX_RATE_HZ:
            raise ConfigError(f"rate_hz must be above 0, at most {MAX_RATE_HZ}; got {self.rate_hz}")
        for cue in self.cues:
            if cue not in BUILT_IN_CUES:
                known = ", ".join(BUILT_IN_CUES)
                raise ConfigError(f"no cue is called {cue!r}; there are {known}, or give a file")
        for cue in (*self.files, *self.models):
            if not is_name(cue):
                raise ConfigError(f"{cue!r} is no name of a cue: letters, digits, '.', '-', '_'")
        if both := set(BUILT_IN_CUES) & {*self.files, *self.models}:
            raise ConfigError(
                f"cue {sorted(both)[0]!r} is built in; call the file's or model's another name"
            )
        if both := set(self.files) & set(self.models):
            raise ConfigError(f"cue {sorted(both)[0]!r} is both a file's and a model's")


def extract_features(
    source: RecordingSource,
    choice: CueChoice,
    folder: Path,
    *,
    on_progress: Progress | None = None,
) -> VideoFeatures:
    """A recording's features, from the folder if they are there, else extracted into it.

    Args:
        source: The recording; it is only read.
        choice: Which cues.
        folder: The feature folder; the video's own is named like the recording. Other cues that
            are there of the same ticks stay.
        on_progress: Told now and then.

    Returns:
        The features of the cues chosen, memory-mapped. A cue that the recording lacks altogether
        is not among them, which `notes` says.

    Raises:
        DataError: The recording cannot be read or has no tick, or a cue's file does not fit.
        ModelError: A model cannot be used.
        OSError: The disk does not take it; what was done is used by the next call.
    """
    files = {cue: _cue_file(cue, path, source.name) for cue, path in choice.files.items()}
    models = _load_models(choice)
    sources = _cue_sources(choice, models, files)
    ticks = {"recording": dict(source.identity), "rate_hz": choice.rate_hz}
    ticks_key = _key(ticks)
    keys = {cue: _key({**ticks, "cue": cue, "source": own}) for cue, own in sources.items()}
    cache = CueCache(folder, source.name, ticks_key)
    new = cache.missing(keys)
    if cache.known is not None and not new:
        return cache.chosen(keys)
    made = {cue: keys[cue] for cue in new if cue not in files}
    partial = PartialRows(folder / source.name / ".partial", ticks_key, made)
    try:
        if made or cache.known is None:
            reader = CueReader(made, models, choice.rate_hz, partial)
            reading = _read(source, choice.rate_hz, reader, on_progress)
        else:  # from files alone: the ticks are known
            reading = Reading.of(cache.known)
    finally:
        partial.close()
    rows = dict(reading.cues)
    for cue in new:
        if cue in files:
            rows[cue] = _read_cue_file(files[cue], len(reading.times_ns))
    video = VideoFeatures(
        name=source.name,
        rate_hz=choice.rate_hz,
        times_ns=reading.times_ns,
        cues={cue: replace(rows[cue], source=sources[cue]) for cue in new},
        notes=reading.notes,
        recording={**source.identity, "epochs": reading.epochs},
    )
    cache.store(video, {cue: keys[cue] for cue in new})
    partial.remove()
    if on_progress is not None:
        on_progress(video.frame_count)
    return cache.chosen(keys)


def _read(
    source: RecordingSource, rate_hz: float, reader: CueReader, on_progress: Progress | None
) -> Reading:
    for moment in source.moments(rate_hz):
        reader.take(moment)
        if on_progress is not None and reader.count % _TOLD_TICKS == 0:
            on_progress(reader.count)
    return reader.finish(source)


def _cue_file(cue: str, path: Path, recording: str) -> Path:
    """A cue's file for a recording."""
    found = path / f"{recording}.npy" if path.is_dir() else path
    if not found.is_file():
        raise DataError(f"{found}: no such file of cue {cue!r}")
    return found


def _load_models(choice: CueChoice) -> dict[str, OnnxModel]:
    """The model of each cue that has one."""
    found = {}
    on_pictures = [cue for cue in choice.cues if cue in ("appearance", gaze_crop.CUE, "depth")]
    if on_pictures:
        model = OnnxModel.load(choice.appearance_manifest, intra_op_threads=choice.threads)
        if len(model.manifest.inputs) != 1:
            raise ModelError(
                f"{choice.appearance_manifest}: an appearance model takes one picture, this one "
                f"has {len(model.manifest.inputs)} inputs; give it with --cue-model"
            )
        if gaze_crop.CUE in on_pictures and not PictureInput.of(model.manifest).crop:
            raise ModelError(
                f"{choice.appearance_manifest}: the cue {gaze_crop.CUE} needs an appearance model"
                f" whose manifest has `crop` {CROP}; leave the cue out, or take the shipped model"
            )
        found.update(dict.fromkeys(on_pictures, model))
    for cue, path in choice.models.items():
        found[cue] = OnnxModel.load(path, intra_op_threads=choice.threads)
    return found


def takes_crops(manifest: Path) -> bool:
    """Whether an appearance model can look at what is cut out around the gaze point.

    Raises:
        ModelError: The manifest cannot be read.
    """
    read = ModelManifest.read(manifest)
    try:
        wanted = PictureInput.of(read)
    except ModelError:
        return False
    return wanted.crop and len(wanted.names) == 1


def _cue_sources(
    choice: CueChoice, models: Mapping[str, OnnxModel], files: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """What makes each cue: part of the cache's key and of every result's provenance."""
    found: dict[str, dict[str, Any]] = {}
    for cue in choice.cues:
        if cue == "motion":
            found[cue] = {"extractor": "dis-flow", "version": motion_cue.VERSION}
        elif cue not in models:
            found[cue] = {"extractor": "sensor", "version": sensor_cues.VERSION}
    for cue, model in models.items():
        found[cue] = {
            "model": model.manifest.name,
            "sha256": model.sha256,
            **PictureInput.of(model.manifest).describe(),
        }
        if cue == "depth":
            found[cue] |= {"extractor": "depth-picture", "version": depth_cue.VERSION}
        elif cue == gaze_crop.CUE:
            found[cue] |= {"extractor": "gaze-crop", "version": gaze_crop.VERSION}
    for cue, path in files.items():
        found[cue] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return found


def _key(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _read_cue_file(path: Path, count: int) -> CueFeatures:
    rows = map_array(path)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise DataError(
            f"{path}: expected numbers of shape ({count}, D), a row for each tick; "
            f"got {rows.dtype} {rows.shape}"
        )
    with np.errstate(over="ignore"):  # beyond float32: missing, as what is not finite
        values = rows.astype(np.float32)
    valid = np.asarray(np.isfinite(values).all(axis=1))
    values[~valid] = 0.0
    return CueFeatures(features=values, valid=valid)


def device_moments(video: VideoFeatures, frames: Sequence[int]) -> list[tuple[int, int]]:
    """(epoch, device_time_ns) of frames, from the timeline that `extract_features` wrote."""
    origins = list(video.recording.get("epochs", ()))
    found = []
    for frame in frames:
        time_ns = int(video.times_ns[frame])
        origin = next((o for o in reversed(origins) if o["time_ns"] <= time_ns), None)
        if origin is None:
            raise DataError(f"{video.name}: video.json does not say where its epochs begin")
        found.append((origin["epoch"], time_ns - origin["time_ns"] + origin["device_time_ns"]))
    return found


def epoch_spans(video: VideoFeatures) -> list[dict[str, Any]]:
    """Where the recording's epochs lie on its timeline: from `start_s` to `end_s`, in order."""
    origins = list(video.recording.get("epochs", ()))
    starts_ns = [origin["time_ns"] for origin in origins]
    ends_ns = [start_ns - round(MAX_GAP_S * _NS) for start_ns in starts_ns[1:]]
    return [
        {
            "epoch": origin["epoch"],
            "start_s": start_ns / _NS,
            "end_s": end_ns / _NS,
            "start_device_time_ns": origin["device_time_ns"],
        }
        for origin, start_ns, end_ns in zip(
            origins, starts_ns, [*ends_ns, int(video.times_ns[-1])], strict=True
        )
    ]
