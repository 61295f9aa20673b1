"""From a recording to a video in a feature folder: cached, and resumed where it was stopped.

While a recording is read, each cue's rows are appended to a file beside where the result goes
(`VIDEO/.partial/`). A later call counts them, reads on without computing them again, and goes on. A
result is there only when everything is: `video.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError, ModelError
from keystep_models.cues import depth_cue, gaze_crop, motion_cue, sensor_cues
from keystep_models.cues.appearance_cue import CROP, appearance_manifest_path
from keystep_models.cues.depth_cue import depth_picture
from keystep_models.cues.gaze_crop import PictureView, ViewMaker
from keystep_models.cues.motion_cue import MotionPreprocessing
from keystep_models.cues.picture_model import PictureCue, PictureInput
from keystep_models.cues.tick_cues import CUE_SIZES, TickCues, TickInput
from keystep_models.cues.tick_timeline import MAX_GAP_S, TickPlace
from keystep_models.onnx_model import ModelManifest, OnnxModel
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    is_name,
    map_array,
    read_video,
    write_video,
)
from keystep_models.steps.partial_rows import PartialRows
from keystep_models.steps.recording_source import Moment, RecordingSource

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
_FLUSH_TICKS = 100
_CONSTANT = 1e-6  # largest change of a cue that does not change, relative to its values

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
        folder: The feature folder; the video's own is named like the recording.
        on_progress: Told now and then.

    Returns:
        The features, memory-mapped. A cue that the recording lacks altogether is not among
        them, which `notes` says.

    Raises:
        DataError: The recording cannot be read or has no tick, or a cue's file does not fit.
        ModelError: A model cannot be used.
        OSError: The disk does not take it; what was done is used by the next call.
    """
    files = {cue: _cue_file(cue, path, source.name) for cue, path in choice.files.items()}
    models = _load_models(choice)
    sources = _cue_sources(choice, models, files)
    key = _key({"recording": dict(source.identity), "rate_hz": choice.rate_hz, "cues": sources})
    target = folder / source.name
    if (target / "video.json").exists():
        video = read_video(target)
        if video.recording.get("key") == key:
            return video
    partial = PartialRows(target / ".partial", key)
    try:
        reader = _Reader(choice, models, files, partial)
        for moment in source.moments(choice.rate_hz):
            reader.take(moment)
            if on_progress is not None and reader.count % _FLUSH_TICKS == 0:
                on_progress(reader.count)
        video = reader.finish(source, sources, key)
    finally:
        partial.close()
    write_video(folder, video)
    shutil.rmtree(partial.folder)
    if on_progress is not None:
        on_progress(video.frame_count)
    return read_video(target)


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


class _Reader:
    """Takes a recording's ticks one after the other."""

    def __init__(
        self,
        choice: CueChoice,
        models: Mapping[str, OnnxModel],
        files: Mapping[str, Path],
        partial: PartialRows,
    ) -> None:
        self._choice = choice
        self._files = files
        self._partial = partial
        self._cues = (*choice.cues, *choice.models)  # those that are made tick by tick
        self._pictures = {cue: PictureCue(model) for cue, model in models.items()}
        self._ticks = TickCues(choice.cues, choice.rate_hz)
        self._small, self._views = MotionPreprocessing(), ViewMaker()
        self._times: list[int] = []  # on the timeline, ns
        self._origins: list[dict[str, int]] = []  # where each epoch lies on the timeline
        self._gaps: list[str] = []
        self._done = partial.begin(self._sizes())

    @property
    def count(self) -> int:
        """Ticks so far, those that stand for gaps included."""
        return len(self._times)

    def _sizes(self) -> dict[str, int]:
        sizes = {**CUE_SIZES, **{cue: made.size for cue, made in self._pictures.items()}}
        return {cue: sizes[cue] for cue in self._cues}

    def take(self, moment: Moment) -> None:
        """Add a tick, and missing ones before it where time jumped."""
        new = self.count >= self._done  # behind a gap there is no motion in any case
        picture = moment.picture if "motion" in self._choice.cues else None
        place, rows = self._ticks.take(
            TickInput(
                epoch=moment.epoch,
                device_time_ns=moment.device_time_ns,
                small=None if picture is None else self._small.from_video_frame(picture),
                samples=moment.samples,
                view=self._view(moment),
            ),
            describe=new,
        )
        self._place(moment, place)
        if place.index < self._done:
            for cue, made in self._pictures.items():
                if cue not in ("depth", gaze_crop.CUE):
                    made.remember(moment.picture)
            return
        self._append(rows)
        for cue, made in self._pictures.items():
            self._append_all(cue, made.take(self._picture(cue, moment)))
        if place.index % _FLUSH_TICKS == 0:
            self._partial.flush()

    def _append(self, rows: Mapping[str, NDArray[np.float32] | None]) -> None:
        """A tick's rows of the cues that need no model."""
        for cue in self._cues:
            if cue not in self._pictures:
                self._partial.append(cue, rows.get(cue))

    def _append_all(self, cue: str, rows: Sequence[NDArray[np.float32] | None]) -> None:
        for row in rows:
            self._partial.append(cue, row)

    def _picture(self, cue: str, moment: Moment) -> VideoFrame | NDArray[np.uint8] | None:
        """What a cue's model looks at in the tick that was placed last."""
        if cue == gaze_crop.CUE:
            return self._ticks.crop
        return self._depth(moment) if cue == "depth" else moment.picture

    def _view(self, moment: Moment) -> PictureView | None:
        if not self._ticks.cuts_at_gaze or moment.picture is None:
            return None
        return self._views.view(moment.picture, moment.intrinsics, moment.pose)

    def _depth(self, moment: Moment) -> VideoFrame | None:
        images = (moment.samples.get(stream) for stream in ("depth", "depth_ahat"))
        return depth_picture(next((image for image in images if image is not None), None))

    def _place(self, moment: Moment, place: TickPlace) -> None:
        """Note where a tick lies, after ticks that lack every cue where time jumped."""
        for time_ns in place.missing_ns:
            self._times.append(time_ns)
            if len(self._times) <= self._done:
                continue
            self._append({})
            for cue, made in self._pictures.items():
                self._append_all(cue, made.take(None))
        if place.note:
            self._gaps.append(place.note)
        if place.starts_epoch:
            self._origins.append(
                {
                    "epoch": moment.epoch,
                    "device_time_ns": moment.device_time_ns,
                    "time_ns": place.time_ns,
                }
            )
        if not place.follows:
            for made in self._pictures.values():  # the next picture does not follow the last one
                made.forget()
        self._times.append(place.time_ns)

    def finish(
        self, source: RecordingSource, sources: Mapping[str, Mapping[str, Any]], key: str
    ) -> VideoFeatures:
        """Everything as a video's features."""
        if not self._times:
            raise DataError(f"{source.name}: the recording has no tick")
        for cue, made in self._pictures.items():
            self._append_all(cue, made.finish())
        found = {cue: self._partial.read(cue) for cue in self._cues}
        for cue, path in self._files.items():
            found[cue] = _read_cue_file(path, len(self._times))
        notes = [*source.warnings, *self._gaps]
        cues = {}
        for cue, own in found.items():
            share = float(own.valid.mean())
            if not own.valid.any():
                notes.append(f"cue {cue} is missing everywhere and was left out{_why(cue)}")
                continue
            if _is_constant(own):
                notes.append(f"cue {cue} never changes: it tells moments apart by their time alone")
            if share < 0.9:
                notes.append(f"cue {cue} is there in {100 * share:.0f} % of the ticks")
            cues[cue] = CueFeatures(
                features=own.features, valid=own.valid, source=dict(sources[cue])
            )
        return VideoFeatures(
            name=source.name,
            rate_hz=self._choice.rate_hz,
            times_ns=np.array(self._times, np.int64),
            cues=cues,
            notes=tuple(notes),
            recording={**source.identity, "epochs": self._origins, "key": key},
        )


def _why(cue: str) -> str:
    if cue != gaze_crop.CUE:
        return ""
    return ": it needs gaze, and pictures with their camera's pose and intrinsics"


def _is_constant(cue: CueFeatures) -> bool:
    rows = cue.features[cue.valid]
    if len(rows) < 2:
        return False
    return bool(np.ptp(rows, axis=0).max() <= _CONSTANT * np.abs(rows[0]).max())


def _read_cue_file(path: Path, count: int) -> CueFeatures:
    rows = map_array(path)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise DataError(
            f"{path}: expected numbers of shape ({count}, D), a row for each tick; "
            f"got {rows.dtype} {rows.shape}"
        )
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
