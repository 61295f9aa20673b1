"""A bundle in memory, and the way in: nothing of a folder is believed until it has been checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.bundles.array_files import MAX_FILE_BYTES, parse_arrays
from keystep_models.bundles.document import (
    DOCUMENT,
    ENCODER_MANIFEST,
    EXPERT,
    MAX_DOCUMENT_BYTES,
    MAX_TICKS,
    PROTOTYPES,
    BundleDocument,
    check_size,
    parse_document,
)
from keystep_models.guidance.emissions import EmissionModel, EmissionSettings, PartModel, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_filter import KeyStepFilter
from keystep_models.guidance.step_timing import StepTiming, check_segments
from keystep_models.onnx_model import MAX_MODEL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """All that guiding by one expert's key steps needs.

    Attributes:
        folder: Where it lies.
        document: What it says of itself.
        emissions: Prototypes.
        expert: Part to the expert's embeddings, a row per tick.
        emission_settings: How prototypes were made.
        filter_settings: How the filter is to run.
    """

    folder: Path
    document: BundleDocument
    emissions: EmissionModel
    expert: Mapping[str, PartRows]
    emission_settings: EmissionSettings
    filter_settings: FilterSettings

    @property
    def id(self) -> str:
        """Its SHA-256, by which procedures pin it."""
        return self.document.id

    @property
    def timing(self) -> StepTiming:
        """The steps in the expert's order, with durations."""
        return StepTiming.of_segments(self.document.segments)

    @property
    def encoder_manifest(self) -> Path | None:
        """Manifest of the encoders; None where every part is a raw feature."""
        has_encoders = ENCODER_MANIFEST in self.document.files
        return self.folder / ENCODER_MANIFEST if has_encoders else None

    def make_filter(self) -> KeyStepFilter:
        """A filter at the start of a session; give it `emissions.evidence(embedding)`."""
        return KeyStepFilter(self.timing, self.filter_settings)


def read_bundle(folder: Path | str) -> Bundle:
    """Read a bundle's folder and check all of it.

    Files that `bundle.json` does not name are not looked at. The encoders are checked to be the
    ones that were meant, not loaded.

    Raises:
        DataError: Something is missing, damaged, too large, or not as documented; one line.
    """
    folder = Path(folder)
    path = folder / DOCUMENT
    check_size(path, MAX_DOCUMENT_BYTES)
    document = parse_document(_read(path), str(path))
    contents = {name: _checked_file(folder, document, name) for name in document.files}
    expert = _expert(parse_arrays(contents[EXPERT], str(folder / EXPERT)), document, folder)
    ticks = len(next(iter(expert.values())).rows)
    check_segments(document.segments, ticks)
    settings, running = _settings(document, path)
    arrays = parse_arrays(contents[PROTOTYPES], str(folder / PROTOTYPES))
    return Bundle(
        folder=folder,
        document=document,
        emissions=_emissions(arrays, document, settings, folder / PROTOTYPES),
        expert=expert,
        emission_settings=settings,
        filter_settings=running,
    )


def prototype_arrays(model: EmissionModel) -> dict[str, NDArray[Any]]:
    """What `prototypes.npz` holds of a model, by part."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, part in model.parts.items():
        arrays[f"{name}/mean"] = part.mean
        arrays[f"{name}/projection"] = part.projection
        arrays[f"{name}/centres"] = part.centres
        arrays[f"{name}/present"] = part.present
        numbers = [part.scale, part.strange, part.strength, float(part.is_unit)]
        arrays[f"{name}/numbers"] = np.array(numbers)
    return arrays


def _emissions(
    arrays: Mapping[str, NDArray[Any]],
    document: BundleDocument,
    settings: EmissionSettings,
    path: Path,
) -> EmissionModel:
    sizes = {part.name: part.size for part in document.parts}
    names = sorted({name.rsplit("/", 1)[0] for name in arrays})
    if unknown := set(names) - set(sizes):
        raise DataError(f"{path}: prototypes of {sorted(unknown)[0][:60]!r}, which is no part")
    parts = {name: _part(arrays, name, sizes[name], path) for name in names}
    return EmissionModel(parts, len(document.steps), settings.tail)


def _part(arrays: Mapping[str, NDArray[Any]], name: str, size: int, path: Path) -> PartModel:
    try:
        mean, projection, centres, present, numbers = (
            arrays[f"{name}/{what}"]
            for what in ("mean", "projection", "centres", "present", "numbers")
        )
    except KeyError as error:
        raise DataError(f"{path}: expected the array {error.args[0]!r}") from error
    for what, array in (("mean", mean), ("projection", projection), ("centres", centres)):
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise DataError(f"{path}: {name}/{what}: expected finite float64")
    fits = (
        mean.shape == (size,)
        and projection.ndim == 2
        and projection.shape[0] == size
        and projection.shape[1] >= 1
        and centres.shape == (len(present), projection.shape[1])
        and present.dtype == np.bool_
        and numbers.dtype == np.float64
        and numbers.shape == (4,)
    )
    if not fits:
        raise DataError(f"{path}: the arrays of part {name!r} do not fit together")
    scale, strange, strength, is_unit = numbers.tolist()
    if not (np.isfinite(numbers).all() and scale > 0 and strange > 0 and strength >= 0):
        raise DataError(f"{path}: {name}/numbers: expected a scale and a limit above 0")
    return PartModel(
        mean=mean, projection=projection, centres=centres, present=present, scale=scale,
        strange=strange, strength=strength, is_unit=bool(is_unit),
    )  # fmt: skip


def _expert(
    arrays: Mapping[str, NDArray[Any]], document: BundleDocument, folder: Path
) -> dict[str, PartRows]:
    path = folder / EXPERT
    wanted = {f"{p.name}/{what}" for p in document.parts for what in ("rows", "valid")}
    if set(arrays) != wanted:
        raise DataError(f"{path}: expected rows and valid of each part, got {sorted(arrays)[:6]}")
    found, counts = {}, set()
    for part in document.parts:
        rows, valid = arrays[f"{part.name}/rows"], arrays[f"{part.name}/valid"]
        if rows.ndim != 2 or rows.shape[1] != part.size or rows.dtype != np.float32:
            raise DataError(f"{path}: {part.name}: expected float32 (T, {part.size})")
        if valid.shape != (len(rows),) or valid.dtype != np.bool_:
            raise DataError(f"{path}: {part.name}: expected valid to be bool ({len(rows)},)")
        if not np.isfinite(rows[valid]).all():
            raise DataError(f"{path}: {part.name}: expected finite rows where it is valid")
        found[part.name] = PartRows(rows=rows, valid=valid)
        counts.add(len(rows))
    if len(counts) != 1 or not 0 < min(counts) <= MAX_TICKS:
        raise DataError(f"{path}: expected parts of the same number of ticks, 1 to {MAX_TICKS}")
    return found


def _settings(document: BundleDocument, path: Path) -> tuple[EmissionSettings, FilterSettings]:
    try:
        emissions = EmissionSettings.from_document(document.emissions)
        running = FilterSettings.from_document(document.filter)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error
    if running.tick_rate_hz != document.tick_rate_hz:
        raise DataError(
            f"{path}: tick_rate_hz {document.tick_rate_hz}, its filter's is {running.tick_rate_hz}"
        )
    return emissions, running


def _checked_file(folder: Path, document: BundleDocument, name: str) -> bytes:
    path, entry = folder / name, document.files[name]
    if path.parent.is_symlink():
        raise DataError(f"{path.parent}: expected a folder of the bundle, got a link")
    limit = MAX_MODEL_BYTES if name.startswith("encoders/") else MAX_FILE_BYTES
    check_size(path, min(limit, entry.bytes))
    content = _read(path)
    came = hashlib.sha256(content).hexdigest()
    if len(content) != entry.bytes or came != entry.sha256:
        raise DataError(
            f"{path}: damaged or another version: expected {entry.bytes} bytes with sha256"
            f" {entry.sha256}, got {len(content)} with {came}; fetch the bundle again"
        )
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
