"""From a session's progress or its features to key steps with pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import structlog
from av.video.frame import VideoFrame

from keystep_capture.recording import part_paths
from keystep_capture.recording.pictures import read_frames
from keystep_models.psr.procedure import Procedure
from keystep_models.steps.contact_sheet import ContactTile, draw_contact_sheet
from keystep_models.steps.extraction import KeyStepSegment, extract_key_steps
from keystep_server.features import APPEARANCE, read_ticks
from keystep_server.storage import (
    EpochSpan,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    NewRevision,
    RevisionOrigin,
    StepEventKind,
    StoredEvent,
    key_step_id,
)

_NS = 1_000_000_000
_JPEG_QUALITY = 92
_EPOCH_GAP_S = 10.0
PICTURES = "key_steps"  # folder of a session's pictures

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionSettings:
    """Choices of algorithm 1 (STEPs, section 3.4); K, alpha and gamma as published.

    `min_duration_s` leaves out segments of a few frames, which no person would call a step; the
    paper keeps them (0).
    """

    cluster_count: int = 7
    alpha: float = 0.1
    gamma_s: float = 2.0
    min_duration_s: float = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model made the features."""

    name: str
    sha256: str


def progress_key_steps(
    session_id: str,
    procedure: Procedure,
    events: Sequence[StoredEvent],
    *,
    first_device_time_ns: int | None,
    current_step_id: int | None,
) -> list[KeyStep]:
    """The expected steps of a procedure with what a session has shown of them so far.

    A step lasts from the completion before it (or the session's first packet) to its own.
    """
    found = {event.step_id: event for event in events if not event.retracted}
    undone = {
        procedure.step(event.step_id).component_idx: event
        for event in events
        if not event.retracted and event.kind is not StepEventKind.COMPLETED
    }
    times_ns = sorted({event.device_time_ns for event in found.values()})
    steps = []
    for position, step in enumerate(procedure.expected_steps):
        event = found.get(step.id)
        later = undone.get(step.component_idx)
        status = KeyStepStatus.PENDING
        if event is not None and later is not None and later.ordinal > event.ordinal:
            status = KeyStepStatus(later.kind.value)
        elif event is not None:
            status = KeyStepStatus.COMPLETED
        elif step.id == current_step_id:
            status = KeyStepStatus.CURRENT
        start_ns = end_ns = None
        if event is not None:
            end_ns = event.device_time_ns
            before = [time_ns for time_ns in times_ns if time_ns < end_ns]
            start_ns = before[-1] if before else first_device_time_ns
        steps.append(
            KeyStep(
                id=key_step_id(session_id, KeyStepSource.PROCEDURE, position),
                session_id=session_id,
                position=position,
                title=step.title,
                status=status,
                source=KeyStepSource.PROCEDURE,
                step_id=step.id,
                start_device_time_ns=start_ns,
                end_device_time_ns=end_ns,
                exemplar_device_time_ns=end_ns,
                start_s=_since(start_ns, first_device_time_ns),
                end_s=_since(end_ns, first_device_time_ns),
                exemplar_s=_since(end_ns, first_device_time_ns),
                confidence=event.confidence if event is not None else None,
                provenance={"procedure": procedure.name},
            )
        )
    return steps


def _since(time_ns: int | None, first_ns: int | None) -> float | None:
    return None if time_ns is None or first_ns is None else (time_ns - first_ns) / _NS


def extracted_key_steps(
    session_id: str,
    *,
    folder: Path,
    data_dir: Path,
    model: ModelIdentity,
    settings: ExtractionSettings,
) -> NewRevision | None:
    """Cluster a session's appearance features into key steps and cut out their pictures.

    Writes pictures (see `picture_path`) and `contact_sheet.jpg` into the session's folder. Blocks;
    seconds for an hour of ticks.

    Returns:
        The key steps in order of time; None where the session has no appearance features.
    """
    ticks = read_ticks(folder / "ticks.rows")
    valid = (ticks["cues"] & APPEARANCE) != 0
    if not valid.any():
        return None
    times_s = _timeline_s(ticks["device_time_ns"], ticks["epoch"])
    segments = extract_key_steps(
        np.ascontiguousarray(ticks["appearance"]),
        times_s,
        valid=valid,
        cluster_count=settings.cluster_count,
        alpha=settings.alpha,
        gamma_s=settings.gamma_s,
        min_duration_s=settings.min_duration_s,
        seed=settings.seed,
    )
    moments = [_moment(ticks, segment) for segment in segments]
    recording = folder / "recording"
    images = _read_images([recording] if part_paths(recording) else [], moments)
    provenance = {
        "method": "steps-algorithm-1",
        "features": "raw appearance",
        "model": model.name,
        "model_sha256": model.sha256,
        **asdict(settings),
        "epoch_count": len(np.unique(ticks["epoch"])),
    }
    key_steps = []
    tiles = []
    for position, (segment, moment) in enumerate(zip(segments, moments, strict=True)):
        picture = _write_picture(picture_path(folder, moment), images.get(moment))
        key_step = _proposed(session_id, position, ticks, segment, provenance)
        if picture is not None:
            path, image = picture
            key_step = replace(
                key_step,
                exemplar_path=path.relative_to(data_dir).as_posix(),
                exemplar_size=(image.shape[1], image.shape[0]),
            )
            tiles.append(_tile(image, key_step.title, segment))
        key_steps.append(key_step)
    if tiles:
        sheet = draw_contact_sheet(
            tiles, duration_s=float(times_s[-1]), title=f"Extracted key steps, {session_id}"
        )
        write_jpeg(folder / "contact_sheet.jpg", sheet)
    (folder / "extraction.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return NewRevision(
        origin=RevisionOrigin.CLOSING,
        key_steps=tuple(key_steps),
        provenance=provenance,
        timeline=tuple(_spans(ticks, times_s)),
    )


def picture_path(folder: Path, moment: tuple[int, int]) -> Path:
    """Where a session keeps the picture of a moment (epoch, device_time_ns).

    The moment says which picture it is: revisions share it, and none overwrites another's.
    """
    epoch, device_time_ns = moment
    return folder / PICTURES / f"{epoch}-{device_time_ns}.jpg"


def _spans(ticks: npt.NDArray[np.void], times_s: npt.NDArray[np.float64]) -> Iterator[EpochSpan]:
    """Where the epochs lie on the timeline."""
    for epoch in dict.fromkeys(ticks["epoch"].tolist()):
        mine = np.flatnonzero(ticks["epoch"] == epoch)
        yield EpochSpan(
            epoch=epoch,
            start_s=float(times_s[mine[0]]),
            end_s=float(times_s[mine[-1]]),
            device_time_ns=int(ticks["device_time_ns"][mine[0]]),
        )


def _moment(ticks: npt.NDArray[np.void], segment: KeyStepSegment) -> tuple[int, int]:
    """Epoch and device time (ns) of a segment's exemplar."""
    tick = ticks[segment.exemplar_idx]
    return int(tick["epoch"]), int(tick["device_time_ns"])


def _proposed(
    session_id: str,
    position: int,
    ticks: npt.NDArray[np.void],
    segment: KeyStepSegment,
    provenance: Mapping[str, Any],
) -> KeyStep:
    """A segment as a key step that no person has looked at, without its picture."""
    times_ns = ticks["device_time_ns"]
    return KeyStep(
        id=key_step_id(session_id, KeyStepSource.EXTRACTED, position),
        session_id=session_id,
        position=position,
        title=f"Key step {position + 1}",
        status=KeyStepStatus.PROPOSED,
        source=KeyStepSource.EXTRACTED,
        epoch=int(ticks["epoch"][segment.exemplar_idx]),
        start_device_time_ns=int(times_ns[segment.start_idx]),
        end_device_time_ns=int(times_ns[segment.end_idx]),
        exemplar_device_time_ns=int(times_ns[segment.exemplar_idx]),
        start_s=segment.start_s,
        end_s=segment.end_s,
        exemplar_s=segment.exemplar_s,
        confidence=segment.confidence,
        provenance={**provenance, "cluster": segment.cluster},
    )


def _tile(image: npt.NDArray[np.uint8], title: str, segment: KeyStepSegment) -> ContactTile:
    return ContactTile(
        image=image,
        title=title,
        start_s=segment.start_s,
        end_s=segment.end_s,
        exemplar_s=segment.exemplar_s,
        confidence=segment.confidence,
    )


def _timeline_s(
    device_time_ns: npt.NDArray[np.int64], epoch: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Seconds since the first tick.

    Clocks of two epochs cannot be compared, so a later epoch is placed ten seconds behind the one
    before it: far enough that no segment spans both.
    """
    times_s = np.empty(len(device_time_ns))
    start_s = 0.0
    for value in dict.fromkeys(epoch.tolist()):
        mine = epoch == value
        own_ns = device_time_ns[mine]
        times_s[mine] = start_s + (own_ns - own_ns[0]) / _NS
        start_s = float(times_s[mine][-1]) + _EPOCH_GAP_S
    return times_s


def _read_images(
    recordings: Sequence[Path], moments: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], npt.NDArray[np.uint8]]:
    return {moment: _to_bgr(frame) for moment, frame in read_frames(recordings, moments)}


def _to_bgr(frame: VideoFrame) -> npt.NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)


def _write_picture(
    path: Path, image: npt.NDArray[np.uint8] | None
) -> tuple[Path, npt.NDArray[np.uint8]] | None:
    """Write an exemplar; None where there is none or the disk does not take it."""
    if image is None:
        return None
    return (path, image) if write_jpeg(path, image) else None


def write_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> bool:
    """Write a picture, whole or not at all; whether that went well, as OpenCV says no more.

    Args:
        path: Where to; its folder is made.
        image: BGR, shape (height, width, 3).
    """
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    if not cv2.imwrite(str(unfinished), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        log.warning("a picture could not be written", path=path.name)
        return False
    unfinished.replace(path)
    return True
