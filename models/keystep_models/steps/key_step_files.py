"""From joined features to key steps on disk: key_steps.json, exemplars and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_models.measures.summary import min_disparity, representation
from keystep_models.steps.adapted import JoinedFeatures
from keystep_models.steps.clustering import cluster, separation
from keystep_models.steps.contact_sheet import ContactTile, draw_contact_sheet
from keystep_models.steps.cue_extraction import device_moments, epoch_spans
from keystep_models.steps.extraction import (
    FrameClusters,
    KeyStepSegment,
    segment_clusters,
    select_segments,
)
from keystep_models.steps.feature_folder import VideoFeatures, atomic_path, write_json
from keystep_models.steps.recording_source import RecordingSource
from keystep_models.steps.settings import ExtractionSettings
from keystep_models.steps.summary_search import choose_shots

FORMAT_VERSION = 1
_JPEG_QUALITY = 92
_NO_PICTURE = (168, 300)  # rows, columns of the tile where there is no picture


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKeySteps:
    """Key steps of one recording; frame indices are the video's. `notes`: what was not as asked."""

    segments: list[KeyStepSegment]
    frames: NDArray[np.int64]
    clusters: FrameClusters
    notes: tuple[str, ...] = ()


def find_key_steps(
    video: VideoFeatures,
    frames: NDArray[np.int64],
    joined: JoinedFeatures,
    settings: ExtractionSettings,
) -> FoundKeySteps:
    """Cluster, reject background, split, choose (algorithm 1).

    Args:
        video: The recording.
        frames: Which of its frames the features are of, int64 (N,).
        joined: Their features.
        settings: The choices.
    """
    clusters = cluster(
        joined.features,
        valid=joined.valid,
        method=settings.clustering,
        cluster_count=settings.cluster_count,
        seed=settings.seed,
    )
    times_s = video.times_s[frames]
    segments = segment_clusters(clusters, times_s, alpha=settings.alpha, gamma_s=settings.gamma_s)
    top_n = settings.top_n or None
    if settings.sampling == "ils":
        segments = select_segments(segments, min_duration_s=settings.min_duration_s)
        segments = _summary(segments, joined.features, clusters, times_s, settings)
        chosen = select_segments(segments, top_n=top_n)
    else:
        chosen = select_segments(segments, min_duration_s=settings.min_duration_s, top_n=top_n)
    notes = []
    if settings.cluster_count > (used := int(joined.valid.sum())):
        notes.append(f"{settings.cluster_count} clusters were asked for, of only {used} frames")
    if segments and not chosen:
        notes.append(
            f"none of {len(segments)} stretches is a key step (too short, or over the budget): "
            "choose fewer clusters, a larger --gamma, or a smaller --min-duration"
        )
    return FoundKeySteps(segments=chosen, frames=frames, clusters=clusters, notes=tuple(notes))


def _summary(
    segments: Sequence[KeyStepSegment],
    features: NDArray[np.float32],
    clusters: FrameClusters,
    times_s: NDArray[np.float64],
    settings: ExtractionSettings,
) -> list[KeyStepSegment]:
    if not segments:
        return []
    means = []
    for segment in segments:
        span = slice(segment.start_idx, segment.end_idx + 1)
        means.append(features[span][clusters.labels[span] == segment.cluster].mean(axis=0))
    durations = np.array([segment.end_s - segment.start_s for segment in segments])
    budget = settings.budget * max(float(times_s[-1] - times_s[0]), 1e-3)
    chosen = choose_shots(np.stack(means).astype(float), durations, budget, seed=settings.seed)
    return [segments[place] for place in chosen]


def write_key_steps(
    folder: Path,
    source: RecordingSource,
    video: VideoFeatures,
    joined: JoinedFeatures,
    found: FoundKeySteps,
    provenance: Mapping[str, Any],
) -> list[str]:
    """Write key_steps/NN.jpg, contact_sheet.jpg and, last, key_steps.json.

    Args:
        folder: Where to; what an earlier extraction left there is replaced.
        source: The recording, for the pictures.
        video: Its features.
        joined: What was clustered.
        found: The key steps.
        provenance: Settings, models and cues: enough to make the same again.

    Returns:
        Notes: what a reader should know of the result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key_steps.json").unlink(missing_ok=True)
    exemplars = [int(found.frames[segment.exemplar_idx]) for segment in found.segments]
    moments = device_moments(video, exemplars)
    pictures = {
        moment: np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
        for moment, frame in source.pictures(sorted(set(moments)))
    }
    notes = [*video.notes, *joined.notes, *found.notes]
    if missing := [moment for moment in moments if moment not in pictures]:
        notes.append(f"{len(missing)} of {len(moments)} key steps have no picture")
    key_steps = []
    for position, (segment, moment) in enumerate(zip(found.segments, moments, strict=True)):
        path = None
        if moment in pictures:
            path = f"key_steps/{position:02d}.jpg"
            _write_jpeg(folder / path, pictures[moment])
        key_steps.append(_described(position, segment, found, video, moment, path))
    for stale in sorted((folder / "key_steps").glob("*.jpg"))[len(found.segments) :]:
        stale.unlink()
    _write_jpeg(folder / "contact_sheet.jpg", _sheet(video, found, moments, pictures))
    write_json(
        folder / "key_steps.json",
        {
            "format": "keystep-key-steps",
            "format_version": FORMAT_VERSION,
            "recording": dict(source.identity),
            "duration_s": float(video.times_s[-1]),
            "timeline": epoch_spans(video),
            "provenance": {**provenance, "cues": _cue_sources(video, joined)},
            "notes": notes,
            "quality": _quality(joined, found),
            "key_steps": key_steps,
        },
    )
    return notes


def _cue_sources(video: VideoFeatures, joined: JoinedFeatures) -> dict[str, Any]:
    return {
        name: {"source": dict(cue.source), "joined": name in joined.cues}
        for name, cue in video.cues.items()
    }


def _quality(joined: JoinedFeatures, found: FoundKeySteps) -> dict[str, Any]:
    """Measures without ground truth: they compare settings, they do not say what is right."""
    exemplars = np.array([segment.exemplar_idx for segment in found.segments], np.int64)
    labels = found.clusters.labels
    quality: dict[str, Any] = {
        "clusters": len(np.unique(labels[labels >= 0])),
        "separation": separation(joined.features, found.clusters),
    }
    if len(exemplars):
        there = np.flatnonzero(joined.valid)
        chosen = np.searchsorted(there, exemplars)
        quality["representation"] = representation(joined.features[there], chosen)
    if len(exemplars) > 1:
        quality["min_disparity"] = min_disparity(joined.features, exemplars)
    return quality


def _described(
    position: int,
    segment: KeyStepSegment,
    found: FoundKeySteps,
    video: VideoFeatures,
    moment: tuple[int, int],
    picture: str | None,
) -> dict[str, Any]:
    start, end = (
        device_moments(video, [int(found.frames[index])])[0]
        for index in (segment.start_idx, segment.end_idx)
    )
    return {
        "position": position,
        "title": f"Key step {position + 1}",
        "status": "proposed",
        "source": "extracted",
        "start_s": segment.start_s,
        "end_s": segment.end_s,
        "exemplar_s": segment.exemplar_s,
        "epoch": moment[0],
        "start_device_time_ns": start[1],
        "end_device_time_ns": end[1],
        "exemplar_device_time_ns": moment[1],
        "confidence": segment.confidence,
        "cluster": segment.cluster,
        "distance": segment.distance,
        "picture": picture,
    }


def _sheet(
    video: VideoFeatures,
    found: FoundKeySteps,
    moments: Sequence[tuple[int, int]],
    pictures: Mapping[tuple[int, int], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    blank = np.full((*_NO_PICTURE, 3), 60, np.uint8)
    tiles = [
        ContactTile(
            image=pictures.get(moment, blank),
            title=f"Key step {position + 1}",
            start_s=segment.start_s,
            end_s=segment.end_s,
            exemplar_s=segment.exemplar_s,
            confidence=segment.confidence,
        )
        for position, (segment, moment) in enumerate(zip(found.segments, moments, strict=True))
    ]
    duration = max(float(video.times_s[-1]), 0.1)
    return draw_contact_sheet(tiles, duration_s=duration, title=f"Key steps of {video.name}")


def _write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
