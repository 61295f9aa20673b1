"""How likely each of the expert's steps makes what is seen: distances to prototypes.

Every *part* of an embedding (a cue's raw feature or an encoder's output) has its own space, in
which the expert's ticks of one class scatter by about 1 in all directions: linear discriminants
with the scatter shrunk, since one recording has few ticks. There are 2 S + 1 classes: the S
steps, and what lies before the first and after each one, which show how far the work is. A part
that is missing says nothing. T ticks, D values of a part, R directions, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError, ShapeError
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.guidance.step_filter import Evidence
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming, check_segments

Floats = NDArray[np.float64]

_BLOCK_TICKS: Final = 10  # held out together when distances are calibrated
_STRANGE_QUANTILE: Final = 0.99
_LEAST_SCALE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class EmissionSettings:
    """How prototypes are made and weighed.

    Attributes:
        components: Directions kept of a part, those in which the expert's ticks vary most.
        shrinkage: Of the scatter within classes towards a sphere, above 0 to 1. At 1 distances
            are plain ones.
        part_shrinkages: Of single parts, instead of `shrinkage`.
        tail: Degrees of freedom: small numbers let no single tick say much.
        strength: Of a tick's evidence at 10 Hz: below 1, as neighbouring ticks are alike.
        part_strengths: Of single parts, relative to `strength`; 1 for those not named.
        unit_parts: Parts that are scaled to length 1 first.
        stand_ins: Part to the one that it stands in for (`StandIns`).
        strange_factor: A tick is strange when it is so much farther from every prototype than
            all but 1 % of the expert's own ticks, squared.
    """

    components: int = 64
    shrinkage: float = 0.5
    tail: float = 10.0
    strength: float = 0.5
    part_strengths: Mapping[str, float] = field(default_factory=dict)
    unit_parts: tuple[str, ...] = ("appearance", GAZE_APPEARANCE)
    strange_factor: float = 6.0
    part_shrinkages: Mapping[str, float] = field(default_factory=lambda: {GAZE_APPEARANCE: 0.8})
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [self.shrinkage, self.tail, self.strength, self.strange_factor]
        if not np.isfinite([*numbers, *self.part_strengths.values()]).all():
            raise ConfigError("expected finite emission settings")
        shrinkages = [self.shrinkage, *self.part_shrinkages.values()]
        if not 1 <= self.components <= 1024 or not all(0 < each <= 1 for each in shrinkages):
            raise ConfigError("expected 1 to 1024 components and shrinkage above 0, at most 1")
        if min(self.tail, self.strange_factor) <= 0 or self.strength < 0:
            raise ConfigError("tail and strange_factor must be above 0, strength 0 or more")
        if any(value < 0 for value in self.part_strengths.values()):
            raise ConfigError("part_strengths must be 0 or more")
        if set(self.stand_ins) & set(self.stand_ins.values()):
            raise ConfigError("what stands in for a part cannot be stood in for itself")

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON; what older bundles lack, only where there is any.

        So a bundle made again of an older one has the older one's id.
        """
        plain = {**asdict(self), "unit_parts": list(self.unit_parts)}
        for name in ("part_shrinkages", "stand_ins"):
            if not plain[name]:
                del plain[name]
        return plain

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> EmissionSettings:
        """The inverse of `as_document`; ConfigError for unknown names or wrong types."""
        try:
            return msgspec.convert(document, _Checked).settings()
        except (msgspec.ValidationError, TypeError) as error:
            raise ConfigError(f"emission settings: {error}") from error


class _Checked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    components: int
    shrinkage: float
    tail: float
    strength: float
    part_strengths: dict[str, float]
    unit_parts: tuple[str, ...]
    strange_factor: float
    part_shrinkages: dict[str, float] = {}
    stand_ins: dict[str, str] = {}

    def settings(self) -> EmissionSettings:
        return EmissionSettings(**msgspec.structs.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartRows:
    """One part of the expert's embeddings, a row per tick.

    Attributes:
        rows: float32 (T, D); rows that are not valid mean nothing.
        valid: bool (T,): where the part is there.
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartModel:
    """The prototypes of one part.

    Attributes:
        mean: float64 (D,).
        projection: Onto the space of distances, float64 (D, R).
        centres: Prototypes by class, float64 (C, R).
        present: Whether the expert shows the class, bool (C,).
        scale: Mean squared distance of held-out ticks to their own prototype, over R.
        strange: Squared distance to the nearest prototype, over R, that is strange.
        strength: Weight of its evidence.
        is_unit: Whether rows are scaled to length 1 first.
    """

    mean: Floats
    projection: Floats
    centres: Floats
    present: NDArray[np.bool_]
    scale: float
    strange: float
    strength: float
    is_unit: bool

    def squared_distances(self, rows: NDArray[np.floating]) -> Floats:
        """Of rows (T, D) to the prototypes, over R; (T, C), infinite where there is none."""
        places = (_scaled(rows, self.is_unit) - self.mean) @ self.projection
        # |a - b|^2 in one product; tiny negatives are rounding
        square = (places**2).sum(axis=1)[:, None] + (self.centres**2).sum(axis=1)
        apart = np.maximum(square - 2.0 * places @ self.centres.T, 0.0) / places.shape[1]
        return np.where(self.present, apart, np.inf)


class EmissionModel:
    """Prototypes of all parts: embeddings in, evidence out."""

    def __init__(self, parts: Mapping[str, PartModel], step_count: int, tail: float) -> None:
        """Take prototypes; `fit` makes them."""
        if not parts:
            raise DataError("expected prototypes of at least one part")
        for name, part in parts.items():
            if part.centres.shape[0] != 2 * step_count + 1 or not part.present[:step_count].all():
                raise DataError(
                    f"part {name!r}: expected a prototype for each of {step_count} steps"
                )
        self.parts = dict(parts)
        self.step_count = step_count
        self.tail = tail

    def evidence(self, embedding: Mapping[str, NDArray[np.floating] | None]) -> Evidence | None:
        """What one tick says.

        Args:
            embedding: Part to its values, (D,); a part that is missing is None or not there.

        Returns:
            None where no known part is there.

        Raises:
            ShapeError: A part has another size, or a value that is not finite.
        """
        total = np.zeros(2 * self.step_count + 1)
        seen, strange = 0, 0
        for name, part in self.parts.items():
            values = embedding.get(name)
            if values is None:
                continue
            if values.shape != part.mean.shape or not np.isfinite(values).all():
                raise ShapeError(
                    f"part {name!r}: expected finite values of shape {part.mean.shape}, got"
                    f" {values.shape}"
                )
            apart = part.squared_distances(values[None])[0]
            seen += 1
            strange += bool(apart.min() > part.strange)
            total += part.strength * self._log_likelihoods(apart / part.scale)
        if not seen:
            return None
        return Evidence(log_likelihoods=total, is_strange=2 * strange > seen)

    def _log_likelihoods(self, apart: Floats) -> Floats:
        """Of a heavy-tailed distribution about each prototype, up to a constant; (C,)."""
        logs = -0.5 * self.tail * np.log1p(apart / self.tail)
        gaps = logs[self.step_count :]
        if np.isinf(gaps).all():
            # No gap was ever seen: as likely as the usual step, so that steps can end.
            gaps[:] = np.median(logs[: self.step_count])
        else:
            gaps[np.isinf(gaps)] = gaps[np.isfinite(gaps)].max()
        return np.asarray(logs)

    @classmethod
    def fit(
        cls,
        embeddings: Mapping[str, PartRows],
        segments: Sequence[ExpertSegment],
        settings: EmissionSettings | None = None,
    ) -> EmissionModel:
        """Make prototypes from the expert's own ticks; deterministic, seconds.

        Args:
            embeddings: Parts of the expert's recording.
            segments: Its reviewed key steps.
            settings: How.

        Raises:
            DataError: A stretch lies outside the recording, a part is not as documented, or no
                part is there in every step.
        """
        settings = settings or EmissionSettings()
        if not embeddings:
            raise DataError("expected at least one part of an embedding, got none")
        counts = {name: len(part.rows) for name, part in embeddings.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"expected parts of the same number of ticks, got {counts}")
        timing = StepTiming.of_segments(segments)
        labels = tick_classes(segments, timing, next(iter(counts.values())))
        parts = {}
        for name, part in embeddings.items():
            _check_part(name, part)
            known = labels[part.valid]
            if len(np.intersect1d(known, np.arange(len(timing.step_ids)))) == len(timing.step_ids):
                parts[name] = _fit_part(name, part.rows[part.valid], known, timing, settings)
        if not parts:
            raise DataError(
                "no part of the embeddings is there in every step: merge steps without any, or"
                " record again"
            )
        return cls(parts, len(timing.step_ids), settings.tail)


def tick_classes(
    segments: Sequence[ExpertSegment], timing: StepTiming, tick_count: int
) -> NDArray[np.int64]:
    """Class of each tick, (T,): the step's place, or S + the number of steps begun before."""
    count = len(timing.step_ids)
    labels = np.full(tick_count, count, np.int64)
    furthest = 0
    for segment in check_segments(segments, tick_count):
        place = timing.step_ids.index(segment.step_id)
        furthest = max(furthest, place + 1)
        labels[segment.start_tick : segment.end_tick + 1] = place
        labels[segment.end_tick + 1 :] = count + furthest
    return labels


def _fit_part(
    name: str,
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    timing: StepTiming,
    settings: EmissionSettings,
) -> PartModel:
    is_unit = name in settings.unit_parts
    settings = replace(settings, shrinkage=settings.part_shrinkages.get(name, settings.shrinkage))
    values = _scaled(rows, is_unit)
    classes = 2 * len(timing.step_ids) + 1
    mean, projection, centres = _discriminants(values, labels, classes, settings)
    present: NDArray[np.bool_] = np.asarray(np.isfinite(centres).all(axis=1), np.bool_)
    centres = np.where(present[:, None], centres, 0.0)
    model = PartModel(
        mean=mean, projection=projection, centres=centres, present=present, scale=1.0, strange=1.0,
        strength=settings.strength * settings.part_strengths.get(name, 1.0), is_unit=is_unit,
    )  # fmt: skip
    own, nearest = _held_out(values, labels, classes, settings)
    strange = settings.strange_factor * float(np.quantile(nearest, _STRANGE_QUANTILE))
    return PartModel(
        mean=model.mean, projection=model.projection, centres=model.centres, present=model.present,
        scale=max(float(np.median(own)), _LEAST_SCALE), strange=max(strange, _LEAST_SCALE),
        strength=model.strength, is_unit=is_unit,
    )  # fmt: skip


def _discriminants(
    values: Floats, labels: NDArray[np.int64], classes: int, settings: EmissionSettings
) -> tuple[Floats, Floats, Floats]:
    """Mean (D,), projection (D, R), centres (C, R) with NaN where a class has no tick."""
    mean = values.mean(axis=0)
    _, sizes, directions = np.linalg.svd(values - mean, full_matrices=False)
    kept = max(1, min(settings.components, int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum())))
    principal = directions[:kept].T
    places = (values - mean) @ principal
    centres = np.full((classes, kept), np.nan)
    for label in np.unique(labels):
        centres[label] = places[labels == label].mean(axis=0)
    apart = places - centres[labels]
    scatter = apart.T @ apart / len(apart)
    sphere = max(float(np.trace(scatter)) / kept, _LEAST_SCALE)
    scatter = (1 - settings.shrinkage) * scatter + settings.shrinkage * sphere * np.eye(kept)
    spread, axes = np.linalg.eigh(scatter)
    whiten = axes / np.sqrt(spread)
    return mean, principal @ whiten, centres @ whiten


def _held_out(
    values: Floats, labels: NDArray[np.int64], classes: int, settings: EmissionSettings
) -> tuple[Floats, Floats]:
    """Squared distances over R of ticks that prototypes were not made of: to their own, nearest.

    Every other block of a second is held out; classes that then have no tick are left out.
    """
    is_out = (np.arange(len(values)) // _BLOCK_TICKS) % 2 == 1
    own, nearest = [], []
    for out in (is_out, ~is_out):
        if out.all() or not out.any():
            out = np.zeros(len(values), np.bool_)  # a recording of a second: its own ticks
        mean, projection, centres = _discriminants(values[~out], labels[~out], classes, settings)
        tested = out if out.any() else ~out
        places = (values[tested] - mean) @ projection
        apart = ((places[:, None] - centres[None]) ** 2).mean(axis=2)
        mine = apart[np.arange(len(apart)), labels[tested]]
        own.append(mine[np.isfinite(mine)])
        nearest.append(np.nanmin(apart, axis=1))
    mine_all = np.concatenate(own)
    return (mine_all if len(mine_all) else np.ones(1)), np.concatenate(nearest)


def _scaled(rows: NDArray[np.floating], is_unit: bool) -> Floats:
    values = np.asarray(rows, np.float64)
    if not is_unit:
        return values
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def _check_part(name: str, part: PartRows) -> None:
    if part.rows.ndim != 2 or part.rows.shape[1] < 1 or part.valid.shape != (len(part.rows),):
        raise DataError(
            f"part {name!r}: expected rows (T, D) and valid (T,), got {part.rows.shape}"
        )
    if not np.isfinite(part.rows[part.valid]).all():
        raise DataError(f"part {name!r}: expected finite rows where it is valid")
