"""What studies of the methods compare on: labelled recordings, and what was seen in them, kept.

    CACHE/features/SET/NAME/...       appearance features (docs/steps.md)
    CACHE/detections/KEY.csv          what a detector saw, by video frame
    CACHE/clips/KEY.csv               what a bundle said of the clip that ends at each frame

KEY stands for the recording and for the detector or bundle, so that nothing is taken for another.
A stopped run goes on within the recording (features, detections) or with the next one (clips).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.detector.classes import adopt_classes
from keystep_models.detector.detection_file import write_detections
from keystep_models.detector.detector import Detector
from keystep_models.detector.recorded_pictures import open_pictures
from keystep_models.measures.psr import GroundTruthStep
from keystep_models.psr.clips import ClipPrediction, read_clips
from keystep_models.psr.detections import DetectionLimits, read_detections
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.truth import raw_states, read_raw_labels
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.clip_predictions import predict_clips, write_clips
from keystep_models.storm.inputs import InputChoice, SessionInputs, read_inputs
from keystep_models.storm.labelled import LABELS, LabelledRecording, read_dataset

_RATE_TOLERANCE: Final = 0.2

Tell = Callable[[dict[str, Any]], None]
"""Told of progress: `stage`, `recording`, `done`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyRecording:
    """One person's recording.

    Attributes:
        folder: Where it lies.
        labelled: Its pictures and what is true in them.
        truth: Steps in time, as the raw labels tell them.
        states: True state of each component in each frame, int8 (F, C) of -1, 0, 1.
    """

    folder: Path
    labelled: LabelledRecording
    truth: tuple[GroundTruthStep, ...]
    states: NDArray[np.int8]

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.labelled.name

    @property
    def frame_count(self) -> int:
        """Frames of its video (F)."""
        return len(self.states)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudySet:
    """A data set.

    Attributes:
        name: Its folder's.
        procedure: What everyone in it follows, with the detector's classes.
        recordings: By name.
        about: What its generator wrote of it (`dataset.json`), empty where it wrote nothing.
    """

    name: str
    procedure: Procedure
    recordings: tuple[StudyRecording, ...]
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What was seen in a recording: lists of one entry per frame; clips by bundle id."""

    detections: list[list[Detection]]
    clips: Mapping[str, list[ClipPrediction | None]]


def read_study_set(
    folder: Path, detector: Detector | None, bundles: Sequence[StormBundle]
) -> StudySet:
    """Read a data set of our recordings and check that everything fits; no picture is decoded.

    Args:
        folder: As `keystep simulate generate` makes one.
        detector: Whose classes the procedure gets; None: none is used.
        bundles: Of the spatio-temporal branch.

    Raises:
        ConfigError: A bundle or the detector is of another task, or the video of another rate.
        DataError: Something is missing or contradicts something else.
    """
    found = read_dataset(folder)
    procedure = replace(found.procedure, states=())
    if detector is not None:
        procedure = adopt_classes(detector.spec, procedure)
    changes = _changes(procedure)
    for bundle in bundles:
        if _changes(bundle.procedure) != changes:
            raise ConfigError(
                f"{bundle.folder}: was trained for another procedure than that of {folder}"
            )
    for recording in found.recordings:
        for bundle in bundles[:1]:  # all are of one rate
            _check_rate(recording, bundle)
    return StudySet(
        name=folder.resolve().name,
        procedure=procedure,
        recordings=tuple(_recording(folder, each, procedure) for each in found.recordings),
        about=_about(folder / "dataset.json"),
    )


def _recording(folder: Path, labelled: LabelledRecording, procedure: Procedure) -> StudyRecording:
    path = folder / labelled.name / LABELS
    rows = list(raw_states(path, procedure.component_count))
    starts = np.array([0, *(frame for frame, _ in rows[1:])], np.int64)
    which = np.searchsorted(starts, np.arange(len(labelled.states)), side="right") - 1
    return StudyRecording(
        folder=folder / labelled.name,
        labelled=labelled,
        truth=read_raw_labels(path, labelled.name, procedure).steps,
        states=np.array([state for _, state in rows], np.int8)[which],
    )


def _changes(procedure: Procedure) -> set[tuple[int, int, str]]:
    return {(step.id, step.component_idx, step.kind) for step in procedure.steps}


def _check_rate(recording: LabelledRecording, bundle: StormBundle) -> None:
    gaps = np.diff(recording.device_times_ns)
    wanted = bundle.document.rate_hz
    rate = 1e9 / float(np.median(gaps)) if len(gaps) and np.median(gaps) > 0 else 0.0
    if abs(rate - wanted) > _RATE_TOLERANCE * wanted:
        raise ConfigError(
            f"{recording.name}: {rate:.1f} pictures a second; methods are compared frame by frame"
            f" at the bundles' {wanted:g} Hz (simulate generate --profile learn)"
        )


def _about(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    session = document.get("session")
    return session if isinstance(session, dict) else {}


class SeenCache:
    """Makes what is seen in recordings, and keeps it."""

    def __init__(
        self,
        folder: Path,
        detector: Detector | None,
        bundles: Sequence[StormBundle],
        *,
        threads: int = 1,
        tell: Tell | None = None,
    ) -> None:
        """Models are those to look with; nothing is done yet.

        Args:
            folder: CACHE, as described above.
            detector: None: no detections are wanted.
            bundles: Perhaps none; of one kind, but for their weights.
            threads: Of each model.
            tell: Told of progress.
        """
        self._folder, self._detector, self._bundles = folder, detector, tuple(bundles)
        self._threads, self._tell = threads, tell

    def look(self, data: StudySet, recording: StudyRecording) -> Seen:
        """What is seen in a recording: as kept, else made now.

        Raises:
            DataError: The recording cannot be read.
            ModelError: A model failed.
            OSError: The disk does not take it; what is finished stays.
        """
        detections: list[list[Detection]] = [[] for _ in range(recording.frame_count)]
        if self._detector is not None:
            detections = self._detections(recording, self._detector)
        return Seen(detections=detections, clips=self._clips(data, recording))

    def _detections(self, recording: StudyRecording, detector: Detector) -> list[list[Detection]]:
        path = self._folder / "detections" / f"{_key(recording, detector.id)}.csv"
        if not path.exists():
            self._told("detections", recording, 0)
            write_detections(
                open_pictures(recording.folder),
                detector,
                path,
                rate_hz=None,
                on_progress=lambda done: self._told("detections", recording, done),
            )
        limits = DetectionLimits(class_count=len(detector.spec.states), image_size=None)
        return read_detections(path, recording.frame_count, limits)

    def _clips(
        self, data: StudySet, recording: StudyRecording
    ) -> dict[str, list[ClipPrediction | None]]:
        paths = {
            bundle.id: self._folder / "clips" / f"{_key(recording, bundle.id)}.csv"
            for bundle in self._bundles
        }
        missing = [bundle for bundle in self._bundles if not paths[bundle.id].exists()]
        if missing:
            inputs = self._inputs(data, recording, missing[0])
            for number, bundle in enumerate(missing):
                self._told("clips", recording, number)
                values = predict_clips(bundle, inputs, threads=self._threads)
                paths[bundle.id].parent.mkdir(parents=True, exist_ok=True)
                write_clips(paths[bundle.id], inputs, values)
        count = data.procedure.component_count
        return {key: read_clips(path, count, recording.frame_count) for key, path in paths.items()}

    def _inputs(
        self, data: StudySet, recording: StudyRecording, bundle: StormBundle
    ) -> SessionInputs:
        is_picture = bundle.document.input == "picture"
        self._told("features", recording, 0)
        choice = InputChoice(
            rate_hz=bundle.document.rate_hz,
            features=self._folder / "features" / data.name,
            pictures=self._folder / "pictures" / data.name if is_picture else None,
            threads=self._threads,
        )
        return read_inputs(
            recording.labelled, choice, lambda _, done: self._told("features", recording, done)
        )

    def _told(self, stage: str, recording: StudyRecording, done: int) -> None:
        if self._tell is not None:
            where = f"{recording.folder.parent.name}/{recording.name}"
            self._tell({"stage": stage, "recording": where, "done": done})


def _key(recording: StudyRecording, model_id: str) -> str:
    told = json.dumps([dict(recording.labelled.source.identity), model_id], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]
