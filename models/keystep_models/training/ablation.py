"""One ablation after the other: jobs, runs, baselines, and the files that tell the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from keystep_capture.errors import DataError
from keystep_models.measures.ablation_floors import floors
from keystep_models.measures.ablation_picture import draw_ablation
from keystep_models.measures.ablation_report import (
    AblationResult,
    ablation_rows,
    as_document,
    as_markdown,
    floor_rows,
)
from keystep_models.measures.ablation_tables import AblationTable, Variant, find_tables
from keystep_models.steps.feature_folder import (
    VideoFeatures,
    atomic_path,
    keystep_count,
    read_folder,
    write_json,
)
from keystep_models.steps.settings import TrainingSettings, preset, with_changes
from keystep_models.steps.temporal_sampling import evaluation_frames
from keystep_models.training.ablation_runs import (
    CLUSTERINGS,
    STRIDE,
    Job,
    Scores,
    data_digest,
    drawn_recordings,
    measurement_name,
    raw_features,
    run_jobs,
    variant_settings,
)
from keystep_models.training.steps_model import feature_sizes

Progress = Callable[[dict[str, Any]], None]
"""Called with `stage` "baselines" and `table`; "run" with `table`, `done` and `of`; or "table" with
`table` and `markdown` (the file's path)."""

Draws = dict[str, list[dict[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationPlan:
    """What every ablation of a call shares.

    Attributes:
        features: Feature folder, with labels.
        out: Folder of the results.
        seeds: Runs of each row.
        data: What the recordings are, in a few words.
        steps: Training steps of the base settings.
        chunk_count: N of the base settings.
        sigma_seconds: Half-width of the window, s.
        processes: Runs at a time.
    """

    features: Path
    out: Path
    seeds: int
    data: str
    steps: int
    chunk_count: int
    sigma_seconds: float
    processes: int

    @property
    def base(self) -> TrainingSettings:
        """Preset `small` with the plan's changes."""
        return with_changes(
            preset("small"), chunk_count=self.chunk_count, sigma_seconds=self.sigma_seconds
        )


def run_ablation(name: str, plan: AblationPlan, on_progress: Progress) -> None:
    """Train, measure and write TABLE.json, TABLE.md and TABLE.png for every table named.

    Args:
        name: As `find_tables`.
        plan: The rest.
        on_progress: Told of every run and table.

    Raises:
        ConfigError: No such table.
        DataError: The features are not as documented, or lack labels or a cue that is needed.
        OSError: The disk does not take it; what was finished stays.
    """
    videos = read_folder(plan.features)
    keysteps = keystep_count(plan.features, videos)
    tables = find_tables(name, base_chunks=plan.chunk_count, recording_count=len(videos))
    for table in tables:
        feature_sizes(videos, table.cues)  # a cue that is missing is told before hours of training
    plan.out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        result = _result(table, plan, videos, keysteps, on_progress)
        stem = table.key if table.key.startswith("figure") else f"table{table.key}"
        markdown = plan.out / f"{stem}.md"
        heading = _heading(table)
        write_json(plan.out / f"{stem}.json", as_document(result))
        draw_ablation(result, plan.out / f"{stem}.png", data=plan.data, heading=heading)
        with atomic_path(markdown) as path:
            text = as_markdown(result, f"{heading} ({plan.data})")
            path.write_text(text, encoding="utf-8")
        on_progress({"stage": "table", "table": stem, "markdown": str(markdown)})


def _heading(table: AblationTable) -> str:
    number = table.key.removeprefix("figure")
    return f"{'Table' if number == table.key else 'Figure'} {number}: {table.title}"


def _result(
    table: AblationTable,
    plan: AblationPlan,
    videos: Sequence[VideoFeatures],
    keysteps: int,
    on_progress: Progress,
) -> AblationResult:
    counts = sorted({variant.clusters for variant in table.variants})
    on_progress({"stage": "baselines", "table": table.key})
    baselines = {k: _baselines(plan.out, videos, keysteps, k) for k in counts}
    names = [video.name for video in videos]
    asked = {
        (variant.name, seed): _job(variant, plan, names, seed)
        for variant in table.variants
        for seed in range(plan.seeds)
    }
    jobs = _merged(list(asked.values()))

    def told(done: int, of: int, _: Job) -> None:
        on_progress({"stage": "run", "table": table.key, "done": done, "of": of})

    found = run_jobs(
        plan.features, plan.out / "runs", jobs, processes=plan.processes, on_progress=told
    )
    by_training = {_training(job): scores for job, scores in zip(jobs, found, strict=True)}
    scores: dict[str, list[Scores]] = {}
    for (row, _), job in asked.items():
        own = by_training[_training(job)][measurement_name(*job.wanted[0])]
        scores.setdefault(row, []).append(own)
    settings = {
        "data": plan.data,
        "recordings": names,
        "seeds": plan.seeds,
        "steps": plan.steps,
        "clusterings": CLUSTERINGS,
        "stride": STRIDE,
        "base": plan.base.as_document(),
        "runs": {
            f"{row}, seed {seed}": job.settings.as_document() for (row, seed), job in asked.items()
        },
    }
    return AblationResult(
        table=table,
        rows=ablation_rows(table, scores),
        floors=floor_rows(baselines),
        settings=settings,
    )


def _job(variant: Variant, plan: AblationPlan, names: Sequence[str], seed: int) -> Job:
    recordings = drawn_recordings(names, variant.recordings, seed)
    settings = variant_settings(
        plan.base, variant, steps=plan.steps, recording_count=len(recordings), seed=seed
    )
    return Job(
        settings=settings,
        recordings=recordings,
        wanted=((variant.inference, variant.clusters),),
    )


def _training(job: Job) -> tuple[TrainingSettings, tuple[str, ...]]:
    return job.settings, job.recordings


def _merged(jobs: Sequence[Job]) -> list[Job]:
    """Jobs with equal trainings as one that measures all that they ask for."""
    wanted: dict[tuple[TrainingSettings, tuple[str, ...]], dict[Any, None]] = {}
    for job in jobs:
        wanted.setdefault(_training(job), {}).update(dict.fromkeys(job.wanted))
    return [
        Job(settings=settings, recordings=recordings, wanted=tuple(asked))
        for (settings, recordings), asked in wanted.items()
    ]


def _baselines(
    out: Path, videos: Sequence[VideoFeatures], keysteps: int, clusters: int
) -> Mapping[str, list[dict[str, float]]]:
    """Measured once for each K and data set, then read."""
    path = out / "baselines.json"
    key = hashlib.sha256(f"{data_digest(videos)} {keysteps} {clusters}".encode()).hexdigest()[:16]
    known: dict[str, Draws] = {}
    if path.exists():
        try:
            known = msgspec.json.decode(path.read_bytes(), type=dict[str, Draws])
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: not what was written here ({error}); delete it") from error
    if key not in known:
        features, labels = [], []
        for video in videos:
            raw = raw_features(video)
            frames = evaluation_frames(video.frame_count, STRIDE)
            features.append(raw.features[raw.valid])
            labels.append(np.asarray(video.labels)[frames][raw.valid])
        known[key] = floors(
            features, labels, keysteps=keysteps, clusters=clusters,
            rate_hz=videos[0].rate_hz / STRIDE,
        )  # fmt: skip
        write_json(path, known)
    return known[key]
