"""From a recording to a video in a feature folder: cached, and resumed where it was stopped.

While a recording is read, each cue's rows are appended to a file beside where the result goes
(`VIDEO/.partial/`). A later call counts them, reads on without computing them again, and goes on. A
result is there only when everything is: `video.json` is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.cues import motion_cue, sensor_cues
from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.cues.motion_cue import MotionCue
from keystep_models.cues.sensor_cues import GazeCue, HeadCue, hand_in_head
from keystep_models.onnx_model import OnnxModel
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    read_video,
    write_json,
    write_video,
)
from keystep_models.steps.recording_source import Moment, RecordingSource

BUILT_IN_CUES: Final = ("appearance", "motion", "gaze", "head", "left_hand", "right_hand")
MAX_GAP_S: Final = 10.0
_BATCH = 16
_NS = 1_000_000_000
_FLUSH_TICKS = 100

Progress = Callable[[int], None]
"""Called with ticks done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CueChoice:
    """Which cues to extract, and how.

    Attributes:
        cues: Of `BUILT_IN_CUES`.
        rate_hz: Ticks a second.
        appearance_manifest: Of the appearance model: uint8 pictures (B, 224, 224, 3) to (B, D).
        files: Further cues by name: a file of one row per tick, float (T, D), NumPy's format;
            rows with a value that is not finite are missing.
        threads: That the appearance model may use.
    """

    cues: tuple[str, ...] = ("appearance", "motion")
    rate_hz: float = 10.0
    appearance_manifest: Path = field(default_factory=appearance_manifest_path)
    files: Mapping[str, Path] = field(default_factory=dict)
    threads: int = 2

    def __post_init__(self) -> None:
        """Check every choice."""
        if not self.rate_hz > 0:
            raise ConfigError(f"rate_hz must be above 0, got {self.rate_hz}")
        for cue in self.cues:
            if cue not in BUILT_IN_CUES:
                known = ", ".join(BUILT_IN_CUES)
                raise ConfigError(f"no cue is called {cue!r}; there are {known}, or give a file")
        if both := set(self.cues) & set(self.files):
            raise ConfigError(f"cue {sorted(both)[0]!r} is built in; call the file's another name")


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
        ModelError: The appearance model cannot be used.
        OSError: The disk does not take it; what was done is used by the next call.
    """
    model = OnnxModel.load(choice.appearance_manifest, intra_op_threads=choice.threads) if (
        "appearance" in choice.cues
    ) else None  # fmt: skip
    sources = _cue_sources(choice, model)
    key = _key({"recording": dict(source.identity), "rate_hz": choice.rate_hz, "cues": sources})
    target = folder / source.name
    if (target / "video.json").exists():
        video = read_video(target)
        if video.recording.get("key") == key:
            return video
    partial = _Partial(target / ".partial", key)
    try:
        reader = _Reader(choice, model, partial)
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


def _cue_sources(choice: CueChoice, model: OnnxModel | None) -> dict[str, dict[str, Any]]:
    """What makes each cue: part of the cache's key and of every result's provenance."""
    found: dict[str, dict[str, Any]] = {}
    for cue in choice.cues:
        if model is not None and cue == "appearance":
            found[cue] = {"model": model.manifest.name, "sha256": model.sha256}
        elif cue == "motion":
            found[cue] = {"extractor": "dis-flow", "version": motion_cue.VERSION}
        else:
            found[cue] = {"extractor": "sensor", "version": sensor_cues.VERSION}
    for cue, path in choice.files.items():
        if not path.is_file():
            raise DataError(f"{path}: no such file of cue {cue!r}")
        found[cue] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return found


def _key(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class _Partial:
    """Rows written so far, a file per cue: a validity byte and the values."""

    def __init__(self, folder: Path, key: str) -> None:
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
        size = self._sizes[cue]
        missing = row is None or not np.isfinite(row).all()
        values = np.zeros(size, "<f4") if missing else np.asarray(row, "<f4")
        self._files[cue].write(bytes([not missing]) + values.tobytes())

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def read(self, cue: str) -> CueFeatures:
        self._files[cue].flush()
        size = self._sizes[cue]
        row = np.dtype([("valid", "u1"), ("values", "<f4", (size,))])
        rows = np.fromfile(self.folder / f"{cue}.rows", row)
        values = np.ascontiguousarray(rows["values"])
        return CueFeatures(features=values.reshape(-1, size), valid=rows["valid"].astype(np.bool_))

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk has been told already
                file.close()


class _Reader:
    """Takes a recording's ticks one after the other."""

    def __init__(self, choice: CueChoice, model: OnnxModel | None, partial: _Partial) -> None:
        self._choice = choice
        self._model = model
        self._partial = partial
        self._motion, self._gaze, self._head = MotionCue(), GazeCue(), HeadCue()
        self._preprocessing = AppearancePreprocessing()
        self._pictures = np.empty((_BATCH, CROP, CROP, 3), np.uint8)
        self._waiting: list[bool] = []  # of the ticks not yet run: whether there is a picture
        self._times: list[int] = []  # on the timeline, ns
        self._origins: list[dict[str, int]] = []  # where each epoch lies on the timeline
        self._gaps: list[str] = []
        self._last: Moment | None = None
        self._done = partial.begin(self._sizes())

    @property
    def count(self) -> int:
        """Ticks so far, those that stand for gaps included."""
        return len(self._times)

    def _sizes(self) -> dict[str, int]:
        sizes = {
            "motion": motion_cue.SIZE,
            "gaze": sensor_cues.GAZE_SIZE,
            "head": sensor_cues.HEAD_SIZE,
            "left_hand": sensor_cues.HAND_SIZE,
            "right_hand": sensor_cues.HAND_SIZE,
        }
        if self._model is not None:
            size = self._model.manifest.outputs[0].shape[-1]
            if not isinstance(size, int):
                raise ConfigError("the appearance model's manifest must say its output's size")
            sizes["appearance"] = size
        return {cue: sizes[cue] for cue in self._choice.cues}

    def take(self, moment: Moment) -> None:
        """Add a tick, and missing ones before it where time jumped."""
        self._place(moment)
        index = len(self._times) - 1
        new = index >= self._done
        rows = self._sensor_rows(moment)
        if "motion" in self._choice.cues and moment.picture is not None:
            rows["motion"] = self._motion.see(moment.picture, describe=new)
        elif moment.picture is None:
            self._motion.forget()
        if not new:
            return
        for cue in self._choice.cues:
            if cue != "appearance":
                self._partial.append(cue, rows.get(cue))
        if self._model is not None:
            self._add_picture(moment)
        if index % _FLUSH_TICKS == 0:
            self._partial.flush()

    def _place(self, moment: Moment) -> None:
        last, self._last = self._last, moment
        period = _NS / self._choice.rate_hz
        if last is None or moment.epoch != last.epoch:
            start = 0 if last is None else self._times[-1] + round(MAX_GAP_S * _NS)
            if last is not None:
                self._gap(start)
                self._gaps.append(f"the device restarted before {start / _NS:.1f} s")
            self._head.restart()
            self._motion.forget()
            self._origins.append(
                {"epoch": moment.epoch, "device_time_ns": moment.device_time_ns, "time_ns": start}
            )
            self._times.append(start)
            return
        origin = self._origins[-1]
        time_ns = moment.device_time_ns - origin["device_time_ns"] + origin["time_ns"]
        elapsed = time_ns - self._times[-1]
        if elapsed > 2.5 * period:
            if elapsed > MAX_GAP_S * _NS:
                self._gaps.append(
                    f"nothing for {elapsed / _NS:.1f} s from {self._times[-1] / _NS:.1f} s"
                )
            self._gap(time_ns)
            self._motion.forget()
        self._times.append(time_ns)

    def _gap(self, until_ns: int) -> None:
        """Ticks that lack every cue, so that frame numbers keep pace with time (10 s at most)."""
        period = _NS / self._choice.rate_hz
        begin = self._times[-1]
        count = min(round((until_ns - begin) / period), round(MAX_GAP_S * self._choice.rate_hz)) - 1
        for number in range(1, count + 1):
            self._times.append(begin + round(number * (until_ns - begin) / (count + 1)))
            if len(self._times) - 1 < self._done:
                continue
            for cue in self._choice.cues:
                if cue != "appearance":
                    self._partial.append(cue, None)
            if self._model is not None:
                self._wait(there=False)

    def _sensor_rows(self, moment: Moment) -> dict[str, NDArray[np.float32] | None]:
        samples = moment.samples
        pose, hands = samples.get("head"), samples.get("hands")
        return {
            "gaze": self._gaze.see(samples.get("gaze"), pose),
            "head": self._head.see(pose, moment.device_time_ns / _NS),
            "left_hand": hand_in_head(hands, pose, 0),
            "right_hand": hand_in_head(hands, pose, 1),
        }

    def _add_picture(self, moment: Moment) -> None:
        if moment.picture is not None:
            place = sum(self._waiting)
            self._preprocessing.from_video_frame(moment.picture, self._pictures[place])
        self._wait(there=moment.picture is not None)

    def _wait(self, *, there: bool) -> None:
        self._waiting.append(there)
        if len(self._waiting) == _BATCH:
            self._run()

    def _run(self) -> None:
        """Run the appearance model on the pictures that wait; rows stay in order."""
        count = sum(self._waiting)
        assert self._model is not None
        embeddings = iter(self._model.run(self._pictures[:count]) if count else ())
        for there in self._waiting:
            self._partial.append("appearance", next(embeddings) if there else None)
        self._waiting.clear()

    def finish(
        self, source: RecordingSource, sources: Mapping[str, Mapping[str, Any]], key: str
    ) -> VideoFeatures:
        """Everything as a video's features."""
        if not self._times:
            raise DataError(f"{source.name}: the recording has no tick")
        if self._waiting:
            self._run()
        found = {cue: self._partial.read(cue) for cue in self._choice.cues}
        for cue, path in self._choice.files.items():
            found[cue] = _read_cue_file(path, len(self._times))
        notes = [*source.warnings, *self._gaps]
        cues = {}
        for cue, own in found.items():
            share = float(own.valid.mean())
            if not own.valid.any():
                notes.append(f"cue {cue} is missing everywhere and was left out")
                continue
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


def _read_cue_file(path: Path, count: int) -> CueFeatures:
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: no array that NumPy can read: {error}") from error
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise DataError(
            f"{path}: expected numbers of shape ({count}, D), a row for each tick; "
            f"got {rows.dtype} {rows.shape}"
        )
    values = rows.astype(np.float32)
    valid = np.isfinite(values).all(axis=1)
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
