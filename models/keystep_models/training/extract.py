"""Recordings to key steps: features, training on just these recordings, clustering, files."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.folder_lock import locked_folder
from keystep_models.bundles.from_recording import BECAUSE, INSTEAD_OF
from keystep_models.steps.adapted import join_cues
from keystep_models.steps.cue_extraction import CueChoice, extract_features
from keystep_models.steps.feature_folder import VideoFeatures, write_json
from keystep_models.steps.key_step_files import FoundKeySteps, find_key_steps, write_key_steps
from keystep_models.steps.recording_source import RecordingSource
from keystep_models.steps.settings import ExtractionSettings, TrainingSettings, with_changes
from keystep_models.training.extract_bundle import FOLDER, train_encoders, write_bundle
from keystep_models.training.steps_model import adapt_video
from keystep_models.training.train_steps import run_name, train_steps

_LEAST_WINDOWS = 4  # half-widths of the window that the longest recording must hold

Progress = Callable[[dict[str, Any]], None]
"""Called with a plain dict: `stage` and what belongs to it (docs/steps.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """All choices of one extraction.

    Attributes:
        cues: What is extracted of the recordings.
        training: How the encoders are trained.
        extraction: How key steps are made of their features.
        out: Folder for everything.
        bundle: Whether one is made of each recording, of raw features alone or of encoders' too.
    """

    cues: CueChoice
    training: TrainingSettings
    extraction: ExtractionSettings
    out: Path
    bundle: Literal["none", "raw", "encoded"] = "raw"


def extract(
    sources: Sequence[RecordingSource], plan: ExtractionPlan, on_progress: Progress
) -> dict[str, Any]:
    """Run everything; what is there from an earlier call with the same choices is used.

    Args:
        sources: Recordings of one task; names must differ.
        plan: The choices.
        on_progress: Told of every stage.

    Returns:
        A summary: per recording the key steps' number, folder and notes.

    Raises:
        KeystepError: Nothing can be made of it, or another process writes into the folder; what
            was finished stays.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"expected recordings with different names, got {', '.join(names)}")
    if plan.out.exists() and not plan.out.is_dir():
        raise ConfigError(f"{plan.out}: is a file, expected a folder for the results")
    with locked_folder(plan.out):
        try:
            return _extract(sources, names, plan, on_progress)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(plan.out)) from error


def _extract(
    sources: Sequence[RecordingSource],
    names: list[str],
    plan: ExtractionPlan,
    on_progress: Progress,
) -> dict[str, Any]:
    videos = [_features(source, plan, on_progress) for source in sources]
    training, notes = usable_training(videos, plan.training)
    run = plan.out / "training" / run_name(videos, training)

    def told(done: int, of: int, loss: float) -> None:
        on_progress({"stage": "training", "done": done, "of": of, "loss": loss})

    model = train_steps(videos, training, run, on_progress=told)
    provenance = {
        "method": "steps",
        "keystep": version("keystep"),
        "training": training.as_document(),
        "extraction": plan.extraction.as_document(),
        "run": run.relative_to(plan.out).as_posix(),
        "model_sha256": hashlib.sha256((run / "model.pt").read_bytes()).hexdigest(),
        "trained_on": names,
    }
    encoders = None
    if plan.bundle == "encoded":
        encoders = train_encoders(videos, training, plan.out, told)
    results = {}
    for number, (source, video) in enumerate(zip(sources, videos, strict=True)):
        on_progress(
            {"stage": "key_steps", "recording": source.name, "done": number, "of": len(sources)}
        )
        frames, adapted = adapt_video(model, video, stride=plan.extraction.stride)
        joined = join_cues(adapted, plan.extraction.inference_cues)
        found = find_key_steps(video, frames, joined, plan.extraction)
        folder = plan.out / source.name
        told_notes = write_key_steps(folder, source, video, joined, found, provenance)
        bundle_id, bundle_notes = _bundle(folder, video, found, plan, encoders)
        results[source.name] = {
            "key_steps": len(found.segments),
            "folder": str(folder),
            "bundle": bundle_id,
            "notes": [*notes, *told_notes, *bundle_notes],
        }
    write_json(plan.out / "extraction.json", {"provenance": provenance, "recordings": results})
    on_progress({"stage": "done", "recordings": results})
    return results


def _bundle(
    folder: Path,
    video: VideoFeatures,
    found: FoundKeySteps,
    plan: ExtractionPlan,
    encoders: Path | None,
) -> tuple[str | None, list[str]]:
    """The id of a recording's bundle, and why there is none or it looks at something else."""
    if plan.bundle == "none":
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return None, []
    try:
        bundle = write_bundle(folder, video, found, encoders)
    except DataError as error:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return None, [f"no bundle was made: {error}"]
    notes = [
        f"the bundle looks at {part.cue} instead of {part.source[INSTEAD_OF]}:"
        f" {part.source[BECAUSE]}"
        for part in bundle.document.parts
        if INSTEAD_OF in part.source
    ]
    return bundle.id, notes


def _features(source: RecordingSource, plan: ExtractionPlan, tell: Progress) -> VideoFeatures:
    def told(ticks: int) -> None:
        tell({"stage": "features", "recording": source.name, "done": ticks})

    return extract_features(source, plan.cues, plan.out / "features", on_progress=told)


def usable_training(
    videos: Sequence[VideoFeatures], settings: TrainingSettings
) -> tuple[TrainingSettings, list[str]]:
    """The settings without cues that no recording has, the window fitted, and notes on both.

    Raises:
        DataError: Then no cue is left, or one that the settings need by name is missing.
    """
    there = {name for video in videos for name in video.cues}
    settings, notes = _fitting_window(videos, settings)
    missing = [cue for cue in settings.cues if cue not in there]
    if not missing:
        return settings, notes
    kept = tuple(cue for cue in settings.cues if cue in there)
    if not kept:
        raise DataError(
            f"no recording has any of the cues {', '.join(settings.cues)}; "
            f"there are {', '.join(sorted(there)) or 'none'}: choose with --cues"
        )
    named = {*settings.bootstrap, *(c for u, v, _ in settings.pair_weights for c in (u, v))}
    if lost := sorted(named - set(kept)):
        raise DataError(f"no recording has cue {lost[0]!r}, which --bootstrap or --pairs names")
    notes += [f"cue {cue} is in no recording and was not trained on" for cue in missing]
    return with_changes(settings, cues=kept), notes


def _fitting_window(
    videos: Sequence[VideoFeatures], settings: TrainingSettings
) -> tuple[TrainingSettings, list[str]]:
    """A window as long as the recordings would leave nothing to push apart: it is narrowed."""
    longest_s = max(float(video.times_s[-1]) for video in videos)
    if longest_s >= _LEAST_WINDOWS * settings.sigma_seconds or longest_s <= 0:
        return settings, []
    fitting_s = round(longest_s / (2 * _LEAST_WINDOWS), 3)
    note = (
        f"the longest recording has {longest_s:.1f} s: the window of {settings.sigma_seconds:g} s "
        f"was narrowed to {fitting_s:g} s"
    )
    return with_changes(settings, sigma_seconds=fitting_s), [note]
