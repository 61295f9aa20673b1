"""What the spatial encoder sees at each tick: cached features, or cached pictures.

FEATURES/NAME/...       a feature folder (docs/steps.md) with the cue `appearance`
PICTURES/NAME.npy       uint8 (T, 224, 224, 3), for the "picture" input only
PICTURES/NAME.json      what it was made of
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError, ModelError
from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.onnx_model import ModelManifest
from keystep_models.steps.cue_extraction import CueChoice, device_moments, extract_features
from keystep_models.steps.feature_folder import VideoFeatures, atomic_path, read_video, write_json
from keystep_models.steps.recording_source import RecordingSource
from keystep_models.storm.clip_sampling import SessionTicks
from keystep_models.storm.labelled import LabelledRecording

CUE: Final = "appearance"

Progress = Callable[[str, int], None]
"""Called with a recording's name and ticks done."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionInputs:
    """A session as it is learnt from.

    Attributes:
        ticks: What is true at its ticks, and which can be seen.
        inputs: float32 (T, 1280), or uint8 (T, 224, 224, 3); perhaps memory-mapped.
        source: What made them: model and hash.
    """

    ticks: SessionTicks
    inputs: NDArray[Any]
    source: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputChoice:
    """How inputs are made, and where they are kept.

    `pictures` None: features alone are wanted.
    """

    rate_hz: float
    features: Path
    pictures: Path | None = None
    threads: int = 2


def read_inputs(
    recording: LabelledRecording, choice: InputChoice, on_progress: Progress | None = None
) -> SessionInputs:
    """A recording's inputs: those that are there already, else made and kept.

    Raises:
        DataError: The recording cannot be read.
        OSError: The disk does not take it.
    """

    def told(done: int) -> None:
        if on_progress is not None:
            on_progress(recording.name, done)

    video = appearance_features(recording.source, choice, told)
    cue = video.cues.get(CUE)
    if cue is None:
        raise DataError(f"{recording.name}: no picture of it can be decoded")
    inputs: NDArray[Any] = cue.features
    valid = cue.valid
    source = {key: cue.source[key] for key in ("model", "sha256") if key in cue.source}
    if choice.pictures is not None:
        inputs, valid = _pictures(recording.source, video, choice.pictures)
        source = {"preprocessing": "appearance", "crop": str(CROP)}
    frames = _frames(recording, video)
    ticks = SessionTicks(
        name=recording.name,
        states=recording.states[frames],
        valid=np.asarray(valid),
        frames=frames,
        frame_count=len(recording.device_times_ns),
    )
    return SessionInputs(ticks=ticks, inputs=inputs, source=source)


def appearance_features(
    source: RecordingSource, choice: InputChoice, on_progress: Callable[[int], None] | None = None
) -> VideoFeatures:
    """The appearance feature at every tick, also from a folder that holds further cues.

    Raises:
        DataError: The recording cannot be read.
        OSError: The disk does not take it.
    """
    manifest = ModelManifest.read(appearance_manifest_path())
    video = _stored(choice.features / source.name)
    if video is not None and video.rate_hz == choice.rate_hz and CUE in video.cues:
        known = {key: video.recording.get(key) for key in source.identity}
        made_alike = video.cues[CUE].source.get("sha256") == manifest.sha256
        if made_alike and msgspec.json.encode(known) == msgspec.json.encode(dict(source.identity)):
            return video
    cues = CueChoice(cues=(CUE,), rate_hz=choice.rate_hz, threads=choice.threads)
    return extract_features(source, cues, choice.features, on_progress=on_progress)


def _stored(folder: Path) -> VideoFeatures | None:
    """A video that is there already and can be read; one that cannot is made anew."""
    if not (folder / "video.json").exists():
        return None
    try:
        return read_video(folder)
    except (DataError, ModelError):
        return None


def _frames(recording: LabelledRecording, video: VideoFeatures) -> NDArray[np.int64]:
    """The newest video frame at each tick; ticks of a gap keep the frame before it."""
    moments = np.array(device_moments(video, range(video.frame_count)), np.int64)
    found = np.zeros(len(moments), np.int64)
    for epoch in np.unique(moments[:, 0]):
        of_epoch = np.flatnonzero(recording.epochs == epoch)
        rows = moments[:, 0] == epoch
        if not len(of_epoch):
            continue
        times = recording.device_times_ns[of_epoch]
        before = np.searchsorted(times, moments[rows, 1], side="right") - 1
        found[rows] = of_epoch[np.maximum(before, 0)]
    return np.asarray(np.maximum.accumulate(found), np.int64)


def _pictures(
    source: RecordingSource, video: VideoFeatures, folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture of every tick as the network takes it, and where there is one."""
    path, about = folder / f"{source.name}.npy", folder / f"{source.name}.json"
    key = {"key": str(video.recording.get("key")), "ticks": video.frame_count, "crop": CROP}
    if about.exists() and path.exists():
        document = msgspec.json.decode(about.read_bytes())
        if isinstance(document, dict) and document.get("made_of") == key:
            valid = np.zeros(video.frame_count, np.bool_)
            valid[document["ticks"]] = True
            return np.load(path, mmap_mode="r", allow_pickle=False), valid
    folder.mkdir(parents=True, exist_ok=True)
    moments = device_moments(video, range(video.frame_count))
    places = {moment: tick for tick, moment in enumerate(moments)}
    valid = np.zeros(video.frame_count, np.bool_)
    preprocessing = AppearancePreprocessing()
    row = np.empty((CROP, CROP, 3), np.uint8)
    with atomic_path(path) as temporary:
        shape = (video.frame_count, CROP, CROP, 3)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for moment, frame in source.pictures(list(places)):
            preprocessing.from_video_frame(frame, row)
            pixels[places[moment]] = row
            valid[places[moment]] = True
        pixels.flush()
        del pixels
    write_json(about, {"made_of": key, "ticks": np.flatnonzero(valid).tolist()})
    return np.load(path, mmap_mode="r", allow_pickle=False), valid
