"""A bundle of each extracted recording, so that its key steps can guide at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from keystep_capture.errors import DataError
from keystep_models.bundles.bundle import Bundle
from keystep_models.bundles.from_recording import (
    WHOLE_PICTURE,
    TimedStep,
    raw_emissions,
    segments_of,
    whole_picture_source,
    why_not_gaze,
)
from keystep_models.bundles.making import ExpertPart, make_bundle
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.cues.tick_cues import CUE_SIZES
from keystep_models.guidance.emissions import PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import ExpertSegment
from keystep_models.incremental.encoders import IncrementalEncoders
from keystep_models.incremental.session_slot import SessionSlot
from keystep_models.steps.feature_folder import VideoFeatures
from keystep_models.steps.key_step_files import FoundKeySteps
from keystep_models.steps.settings import TrainingSettings, preset, with_changes
from keystep_models.training.export_incremental import export_incremental
from keystep_models.training.train_steps import Progress, run_name, train_steps

FOLDER: Final = "bundle"
_LIVE: Final = frozenset({WHOLE_PICTURE, GAZE_APPEARANCE, *CUE_SIZES}) - {"gaze_stack"}


def train_encoders(
    videos: Sequence[VideoFeatures],
    settings: TrainingSettings,
    out: Path,
    on_progress: Progress,
) -> Path:
    """Train causal encoders of the cues that live sessions have, and export them.

    Args:
        videos: The recordings.
        settings: Of the extraction: its cues, window, epochs and seed are taken.
        out: Runs and exports are kept below it.
        on_progress: Told after every epoch.

    Returns:
        The folder with `manifest.json` and the ONNX file.

    Raises:
        DataError: No cue of the settings can be had live.
        ModelError: The exported graph differs from what was trained.
    """
    cues = tuple(cue for cue in settings.cues if cue in _LIVE)
    if not cues:
        raise DataError(f"none of the cues {', '.join(settings.cues)} can be had live")
    causal = with_changes(
        preset("live"),
        cues=cues,
        position="none",
        sigma_seconds=settings.sigma_seconds,
        chunk_count=settings.chunk_count,
        epochs=settings.epochs,
        drop_epochs=settings.drop_epochs,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    run = out / "training" / run_name(list(videos), causal)
    model = train_steps(list(videos), causal, run, on_progress=on_progress)
    folder = run / "export"
    if not (folder / "manifest.json").exists():
        export_incremental(model, folder, rate_hz=videos[0].rate_hz)
    return folder


def write_bundle(
    folder: Path, video: VideoFeatures, found: FoundKeySteps, encoders: Path | None = None
) -> Bundle:
    """Make a recording's bundle in `folder/bundle`; what an earlier extraction left is replaced.

    Args:
        folder: The recording's results.
        video: Its features.
        found: Its key steps; their numbers count from 1 in the order of key_steps.json.
        encoders: Of `train_encoders`; None for raw features alone.

    Raises:
        DataError: There is no key step, or no cue that can be had live.
        OSError: The disk does not take it.
    """
    steps = [
        TimedStep(
            step_id=number, start_s=each.start_s, end_s=each.end_s, exemplar_s=each.exemplar_s
        )
        for number, each in enumerate(found.segments, start=1)
    ]
    segments = segments_of(steps, video.times_s)
    parts = _raw_parts(video, segments)
    if encoders is not None:
        parts |= _encoded_parts(video, encoders)
    target, draft = folder / FOLDER, folder / f".{FOLDER}"
    shutil.rmtree(draft, ignore_errors=True)
    bundle = make_bundle(
        draft,
        parts,
        segments,
        encoders=encoders,
        emissions=raw_emissions(parts),
        filtering=FilterSettings(tick_rate_hz=video.rate_hz),
    )
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return bundle


def _raw_parts(video: VideoFeatures, segments: Sequence[ExpertSegment]) -> dict[str, ExpertPart]:
    """What is around the gaze point and the whole picture to stand in for it; or what there is."""
    at_gaze = video.cues.get(GAZE_APPEARANCE)
    reason = why_not_gaze(None if at_gaze is None else at_gaze.valid, segments)
    if reason is None:
        both = [cue for cue in (GAZE_APPEARANCE, WHOLE_PICTURE) if cue in video.cues]
        return {cue: _raw_part(video, cue) for cue in both}
    if WHOLE_PICTURE in video.cues:
        part = _raw_part(video, WHOLE_PICTURE)
        source = whole_picture_source(part.source, reason)
        return {WHOLE_PICTURE: replace(part, source=source)}
    there = [cue for cue in video.cues if cue in _LIVE - {GAZE_APPEARANCE}]
    if not there:
        raise DataError(f"{video.name}: no cue of it can be had live")
    return {cue: _raw_part(video, cue) for cue in there}


def _raw_part(video: VideoFeatures, cue: str) -> ExpertPart:
    own = video.cues[cue]
    rows = PartRows(rows=np.array(own.features), valid=np.array(own.valid))
    return ExpertPart(cue=cue, is_encoded=False, rows=rows, source=own.source)


def _encoded_parts(video: VideoFeatures, folder: Path) -> Mapping[str, ExpertPart]:
    """What the encoders make of every tick, one by one as they will live."""
    encoders = IncrementalEncoders.load(folder / "manifest.json", slot_count=1)
    slot = SessionSlot(encoders)
    count, width = video.frame_count, encoders.spec.width
    cues = [cue for cue in slot.cues if cue in video.cues]
    rows = {cue: np.zeros((count, width), np.float32) for cue in cues}
    valid = {cue: np.zeros(count, np.bool_) for cue in cues}
    for tick in range(count):
        there = {c: video.cues[c].features[tick] for c in cues if video.cues[c].valid[tick]}
        for cue, row in slot.step(tick, there).items():
            rows[cue][tick], valid[cue][tick] = row, True
    return {
        f"{cue}-encoded": ExpertPart(
            cue=cue,
            is_encoded=True,
            rows=PartRows(rows=rows[cue], valid=valid[cue]),
            source=video.cues[cue].source,
        )
        for cue in cues
    }
