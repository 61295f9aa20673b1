"""Making bundles: from an expert's embeddings and reviewed key steps, and from another bundle."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from keystep_capture.errors import DataError, StateError
from keystep_models.bundles.array_files import write_arrays
from keystep_models.bundles.bundle import Bundle, prototype_arrays, read_bundle
from keystep_models.bundles.document import (
    DOCUMENT,
    ENCODERS,
    EXPERT,
    FORMAT_VERSION,
    PROTOTYPES,
    BundleDocument,
    FileEntry,
    PartEntry,
    StepEntry,
)
from keystep_models.guidance.emissions import EmissionModel, EmissionSettings, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming, check_segments
from keystep_models.onnx_model import ModelManifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertPart:
    """One part of the expert's embeddings and where it comes from.

    Attributes:
        cue: Which cue it is made of.
        is_encoded: Whether it is what encoders made of the cue; else the raw feature.
        rows: A row per tick.
        source: What makes the cue's feature, as a feature folder tells (sha256 or version).
    """

    cue: str
    is_encoded: bool
    rows: PartRows
    source: Mapping[str, Any] = field(default_factory=dict)


def make_bundle(
    folder: Path,
    parts: Mapping[str, ExpertPart],
    segments: Sequence[ExpertSegment],
    *,
    encoders: Path | None = None,
    emissions: EmissionSettings | None = None,
    filtering: FilterSettings | None = None,
) -> Bundle:
    """Make prototypes and write a bundle; the same input gives the same id.

    Args:
        folder: Where to; must not exist. Nothing is left there when something goes wrong.
        parts: The expert's embeddings by name of the part.
        segments: The reviewed key steps.
        encoders: Folder with the encoders' manifest and ONNX file; just when a part is encoded.
        emissions: How prototypes are made.
        filtering: How the filter is to run; its tick rate is the bundle's.

    Raises:
        StateError: The folder exists.
        DataError: The parts, segments or encoders are not as documented.
        OSError: The disk does not take it.
    """
    emissions, filtering = emissions or EmissionSettings(), filtering or FilterSettings()
    if folder.exists():
        raise StateError(f"{folder} exists; bundles never change, choose another folder")
    rows = {name: part.rows for name, part in parts.items()}
    with threadpool_limits(limits=1):  # the same bytes everywhere, and live sessions go first
        model = EmissionModel.fit(rows, segments, emissions)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_arrays(partial, model, rows)
        if encoders is not None:
            _copy_encoders(encoders, partial / ENCODERS)
        document = _document(partial, parts, segments, emissions, filtering)
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (partial / DOCUMENT).write_bytes(text + b"\n")
        read_bundle(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_bundle(folder)


def recompile(bundle: Bundle, segments: Sequence[ExpertSegment], folder: Path) -> Bundle:
    """A bundle with other steps (merged, split, moved, left out), without any new training.

    Prototypes are made anew from the embeddings that the bundle stores; encoders and settings stay.

    Args:
        bundle: As it was.
        segments: The steps as edited.
        folder: Where the new one goes; must not exist.

    Raises:
        StateError: The folder exists.
        DataError: The segments are not as documented.
    """
    parts = {
        entry.name: ExpertPart(
            cue=entry.cue,
            is_encoded=entry.of == "encoder",
            rows=bundle.expert[entry.name],
            source=entry.source,
        )
        for entry in bundle.document.parts
    }
    manifest = bundle.encoder_manifest
    return make_bundle(
        folder,
        parts,
        segments,
        encoders=None if manifest is None else manifest.parent,
        emissions=bundle.emission_settings,
        filtering=bundle.filter_settings,
    )


def merge_steps(segments: Sequence[ExpertSegment], step_ids: Sequence[int]) -> list[ExpertSegment]:
    """One step of several neighbouring ones; it has the first one's id and all the time between.

    Raises:
        DataError: A step is unknown, or another one lies between them.
    """
    ordered = check_segments(segments)
    chosen = [segment for segment in ordered if segment.step_id in set(step_ids)]
    if len({segment.step_id for segment in chosen}) != len(set(step_ids)) or len(chosen) < 2:
        raise DataError(f"expected at least two known steps to merge, got {list(step_ids)}")
    first, last = ordered.index(chosen[0]), ordered.index(chosen[-1])
    if last - first + 1 != len(chosen):
        raise DataError(f"another step lies between the steps {list(step_ids)}: merge it too")
    whole = replace(chosen[0], end_tick=chosen[-1].end_tick)
    return [*ordered[:first], whole, *ordered[last + 1 :]]


def split_step(
    segments: Sequence[ExpertSegment], step_id: int, tick: int, new_id: int
) -> list[ExpertSegment]:
    """Two steps of one: `tick` and what follows in its stretch get `new_id`.

    Raises:
        DataError: The id is taken, or the tick is not within the step (or is its first).
    """
    if any(segment.step_id == new_id for segment in segments):
        raise DataError(f"step {new_id} exists; choose another id")
    found: list[ExpertSegment] = []
    for segment in check_segments(segments):
        if segment.step_id == step_id and segment.start_tick < tick <= segment.end_tick:
            found.append(replace(segment, end_tick=tick - 1))
            found.append(replace(segment, step_id=new_id, start_tick=tick))
        else:
            found.append(segment)
    if len(found) == len(segments):
        raise DataError(f"expected a tick within step {step_id}, after its first; got {tick}")
    return found


def _write_arrays(folder: Path, model: EmissionModel, rows: Mapping[str, PartRows]) -> None:
    write_arrays(folder / PROTOTYPES, prototype_arrays(model))
    expert = {f"{name}/rows": part.rows for name, part in rows.items()}
    valid = {f"{name}/valid": part.valid for name, part in rows.items()}
    write_arrays(folder / EXPERT, {**expert, **valid})


def _copy_encoders(source: Path, target: Path) -> None:
    manifest = ModelManifest.read(source / "manifest.json")
    target.mkdir()
    shutil.copyfile(source / "manifest.json", target / "manifest.json")
    shutil.copyfile(source / manifest.file, target / Path(manifest.file).name)


def _document(
    folder: Path,
    parts: Mapping[str, ExpertPart],
    segments: Sequence[ExpertSegment],
    emissions: EmissionSettings,
    filtering: FilterSettings,
) -> BundleDocument:
    timing = StepTiming.of_segments(segments)
    ordered = check_segments(segments)
    draft = BundleDocument(
        format_version=FORMAT_VERSION,
        kind="steps",
        id="0" * 64,
        tick_rate_hz=float(filtering.tick_rate_hz),
        parts=tuple(
            PartEntry(
                name=name,
                cue=part.cue,
                of="encoder" if part.is_encoded else "raw",
                size=part.rows.rows.shape[1],
                source=dict(part.source),
            )
            for name, part in parts.items()
        ),
        steps=tuple(
            StepEntry(
                id=step_id,
                segments=tuple((s.start_tick, s.end_tick) for s in ordered if s.step_id == step_id),
                duration_ticks=duration,
            )
            for step_id, duration in zip(timing.step_ids, timing.duration_ticks, strict=True)
        ),
        emissions=emissions.as_document(),
        filter=filtering.as_document(),
        files={
            str(path.relative_to(folder)): FileEntry(
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    )
    return msgspec.structs.replace(draft, id=draft.content_id())
