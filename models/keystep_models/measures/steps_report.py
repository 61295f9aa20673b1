"""Tables of STEPs' measures: baselines, raw features, trained encoders, mean and standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.baselines import random_clusters, uniform_clusters
from keystep_models.measures.kendall import kendalls_tau
from keystep_models.measures.ksl import Localisation, localize
from keystep_models.measures.ksl_protocol import localize_videos, mean_localisation
from keystep_models.measures.phase import FRACTIONS, phase_accuracy
from keystep_models.measures.summary import min_disparity, representation
from keystep_models.steps.adapted import JoinedFeatures
from keystep_models.steps.extraction import cluster_frames, segment_clusters, select_segments

_PUBLISHED_KSL = {  # data set and K: random, uniform, STEPs as F1 and IoU (None: not told)
    ("meccano", 7): ((13.4, 5.3), (16.2, 6.7), (36.4, 18.0)),
    ("meccano", 10): ((10.1, None), (13.2, None), (31.2, None)),
    ("meccano", 12): ((8.8, None), (11.8, None), (27.5, None)),
    ("meccano", 15): ((7.4, None), (11.2, None), (25.6, None)),
    ("epic-tents", 7): ((14.1, 6.5), (16.2, 7.9), (42.2, 21.4)),
    ("cmu", 7): ((15.7, 5.9), (18.4, 6.1), (28.3, 11.4)),
    ("egtea", 7): ((15.3, 4.6), (20.1, 6.6), (30.8, 12.4)),
    ("procel", 7): ((None, None), (10.3, None), (24.9, None)),
    ("crosstask", 7): ((None, None), (9.0, None), (25.9, None)),
}

OVERALL_DATASETS = frozenset({"procel", "crosstask"})
"""Data sets whose published figures pool the key steps' counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        name: Which features or baseline.
        values: Measure to its mean; None where it is not known.
        errors: Measure to its standard error over runs; 0 for a single run.
        runs: Measured runs; 0 for published figures.
    """

    name: str
    values: Mapping[str, float | None]
    errors: Mapping[str, float]
    runs: int

    @classmethod
    def of(cls, name: str, runs: Sequence[Mapping[str, float]]) -> Row:
        """Mean and standard error of several runs' measures."""
        table = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        spread = {
            key: float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0
            for key, each in table.items()
        }
        means: dict[str, float | None] = {key: float(each.mean()) for key, each in table.items()}
        return cls(name=name, values=means, errors=spread, runs=len(runs))

    def text(self, measure: str, scale: float) -> str:
        """A cell: mean, and the standard error where there are several runs."""
        value = self.values.get(measure)
        if value is None:
            return "-"
        digits = 1 if scale > 1 else 3
        words = f"{scale * value:.{digits}f}"
        return words + (f" ± {scale * self.errors[measure]:.{digits}f}" if self.runs > 1 else "")

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "values": dict(self.values),
            "standard_errors": dict(self.errors),
            "runs": self.runs,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSet:
    """A data set's frames; those that lack a cue are left out everywhere.

    Attributes:
        names: Of the videos.
        labels: Key step of each frame, int (T,); None where there are no labels.
        times_s: Of each frame, float (T,).
        raw: Raw features of each video, float32 (T, D).
        adapted: Model to each video's adapted features.
        keystep_count: Key steps there are.
    """

    names: list[str]
    labels: list[NDArray[np.int64]] | None
    times_s: list[NDArray[np.float64]]
    raw: list[NDArray[np.float32]]
    adapted: dict[str, list[NDArray[np.float32]]]
    keystep_count: int

    @classmethod
    def of(
        cls,
        *,
        names: list[str],
        labels: Sequence[NDArray[np.int64] | None],
        times_s: Sequence[NDArray[np.float64]],
        raw: Sequence[JoinedFeatures],
        adapted: Mapping[str, Sequence[JoinedFeatures]],
        keystep_count: int,
    ) -> DataSet:
        """From joined features; all rows are measured on the same frames.

        Raises:
            DataError: A video has no frame with every cue, or its features another size.
        """
        for joined in (raw, *adapted.values()):
            sizes = {own.features.shape[1]: name for own, name in zip(joined, names, strict=True)}
            if len(sizes) > 1:
                told = " and ".join(f"{size} ({name})" for size, name in sorted(sizes.items())[:2])
                raise DataError(f"features have {told} values, expected one size in all videos")
        kept = []
        for place, own in enumerate(raw):
            of_models = [joined[place].valid for joined in adapted.values()]
            valid = np.logical_and.reduce([own.valid, *of_models])
            if not valid.any():
                raise DataError(f"{names[place]}: no frame has every cue")
            kept.append(valid)

        def those(joined: Sequence[JoinedFeatures]) -> list[NDArray[np.float32]]:
            return [own.features[valid] for own, valid in zip(joined, kept, strict=True)]

        known = [each for each in labels if each is not None]
        return cls(
            names=names,
            labels=[each[valid] for each, valid in zip(known, kept, strict=True)]
            if len(known) == len(names)
            else None,
            times_s=[each[valid] for each, valid in zip(times_s, kept, strict=True)],
            raw=those(raw),
            adapted={name: those(joined) for name, joined in adapted.items()},
            keystep_count=keystep_count,
        )

    @property
    def known_labels(self) -> list[NDArray[np.int64]]:
        """The labels.

        Raises:
            DataError: There are none.
        """
        if self.labels is None:
            raise DataError("a video has no labels.npy; this measure needs one for every video")
        return self.labels


def over_tasks(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """One table of several tasks' tables: the mean over the tasks, each counting the same.

    Standard errors are those of runs, taken as independent from task to task; how far tasks differ
    is not in them.
    """
    rows = []
    for own in zip(*tables, strict=True):
        values: dict[str, float | None] = {}
        for measure in own[0].values:
            known = [value for row in own if (value := row.values[measure]) is not None]
            values[measure] = float(np.mean(known)) if len(known) == len(own) else None
        rows.append(
            Row(
                name=own[0].name,
                values=values,
                errors={
                    measure: float(np.sqrt(sum(row.errors[measure] ** 2 for row in own))) / len(own)
                    for measure in own[0].errors
                },
                runs=min(row.runs for row in own),
            )
        )
    return rows


Measure = Callable[[list[NDArray[np.float32]], int], Mapping[str, float]]


def ksl_rows(
    data: DataSet,
    *,
    clusters: int,
    seeds: int,
    per_keystep: bool = True,
    background: bool = True,
    together: bool = True,
) -> list[Row]:
    """Key-step localisation of random and uniform clusters, raw and adapted features."""
    labels = data.known_labels
    options: Any = {"per_keystep": per_keystep, "background": background}

    def of_clusters(found: list[NDArray[np.int64]]) -> Mapping[str, float]:
        pairs = list(zip(labels, found, strict=True))
        if together:
            pairs = [(np.concatenate(labels), np.concatenate(found))]
        each = [localize(a, b, data.keystep_count, clusters, **options) for a, b in pairs]
        return _values(mean_localisation(each))

    def of_features(features: list[NDArray[np.float32]], seed: int) -> Mapping[str, float]:
        return _values(
            localize_videos(
                features, labels, num_keysteps=data.keystep_count, num_clusters=clusters,
                seed=seed, together=together, **options,
            )
        )  # fmt: skip

    drawn = [
        of_clusters(
            [random_clusters(len(each), clusters, 1000 * seed + i) for i, each in enumerate(labels)]
        )
        for seed in range(seeds)
    ]
    uniform = of_clusters([uniform_clusters(len(each), clusters) for each in labels])
    rows = [Row.of("random", drawn), Row.of("uniform", [uniform])]
    return rows + _feature_rows(data, of_features, seeds)


def phase_rows(data: DataSet, *, folds: int, seeds: int) -> list[Row]:
    """Phase classification of raw and adapted features, tested on videos not trained on."""
    labels = data.known_labels
    parts = min(folds, len(labels))
    if parts < 2:
        raise DataError("phase classification tests on other videos: expected 2 or more")

    def measure(features: list[NDArray[np.float32]], seed: int) -> Mapping[str, float]:
        order = np.random.default_rng(seed).permutation(len(features))
        found: dict[str, list[float]] = {f"labels_{fraction}": [] for fraction in FRACTIONS}
        for fold in range(parts):
            test, train = order[fold::parts], np.setdiff1d(order, order[fold::parts])
            train_x, test_x = (
                np.concatenate([features[i] for i in part]) for part in (train, test)
            )
            train_y, test_y = (np.concatenate([labels[i] for i in part]) for part in (train, test))
            for fraction in FRACTIONS:
                found[f"labels_{fraction}"].append(
                    phase_accuracy(train_x, train_y, test_x, test_y, fraction=fraction, seed=seed)
                )
        return {name: float(np.mean(values)) for name, values in found.items()}

    return _feature_rows(data, measure, seeds)


def tau_rows(data: DataSet) -> list[Row]:
    """Kendall's tau of raw and adapted features."""
    return _feature_rows(data, lambda features, _: {"tau": kendalls_tau(features)}, 1)


def summary_rows(data: DataSet, *, clusters: int, top_n: int, seeds: int) -> list[Row]:
    """Key steps of raw and adapted features as summaries, both measured on the raw features."""

    def measure(features: list[NDArray[np.float32]], seed: int) -> Mapping[str, float]:
        found: dict[str, list[float]] = {"representation": [], "min_disparity": []}
        for rows, times_s, raw in zip(features, data.times_s, data.raw, strict=True):
            clustered = cluster_frames(rows, cluster_count=clusters, seed=seed)
            segments = select_segments(segment_clusters(clustered, times_s), top_n=top_n or None)
            chosen = np.array([segment.exemplar_idx for segment in segments], np.int64)
            found["representation"].append(representation(raw, chosen))
            if len(chosen) > 1:
                found["min_disparity"].append(min_disparity(raw, chosen))
        return {name: float(np.mean(values or [0.0])) for name, values in found.items()}

    return _feature_rows(data, measure, seeds)


def published_ksl(dataset: str | None, clusters: int) -> list[Row]:
    """The paper's figures for a data set, to print beside ours; none where it has none.

    Raises:
        ConfigError: An unknown data set.
    """
    if dataset is None:
        return []
    known = sorted({name for name, _ in _PUBLISHED_KSL})
    if dataset not in known:
        raise ConfigError(f"no figures of {dataset!r}; there are {', '.join(known)}")
    rows = _PUBLISHED_KSL.get((dataset, clusters), ())
    return [
        Row(
            name=f"{name} (published)",
            values={
                measure: None if value is None else value / 100
                for measure, value in zip(("f1", "iou"), figures, strict=True)
            },
            errors={},
            runs=0,
        )
        for name, figures in zip(("random", "uniform", "STEPs"), rows, strict=False)
    ]


def _feature_rows(data: DataSet, measure: Measure, seeds: int) -> list[Row]:
    rows = [Row.of("raw features", [measure(data.raw, seed) for seed in range(seeds)])]
    if data.adapted:  # a run is a model: its clusterings are averaged before the spread is taken
        runs = []
        for features in data.adapted.values():
            found = [measure(features, seed) for seed in range(seeds)]
            runs.append({name: float(np.mean([each[name] for each in found])) for name in found[0]})
        rows.append(Row.of("STEPs", runs))
    return rows


def _values(found: Localisation) -> Mapping[str, float]:
    return {
        "f1": found.f1,
        "iou": found.iou,
        "recall": found.recall,
        "precision": found.precision,
    }
