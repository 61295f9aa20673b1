"""`keystep evaluate ksl|phase|tau|summary`: what features are worth, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from keystep_capture.errors import ConfigError, DataError
from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import split_cues, training_extra

if TYPE_CHECKING:
    from keystep_models.measures.steps_report import DataSet, Row

FeaturesOption: TypeAlias = Annotated[
    Path, typer.Option(help="Feature folder, or a folder with one for each task (docs/steps.md).")
]
ModelsOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--model", help="A run's folder or model.pt; several: mean and spread over them."),
]
CueOption: TypeAlias = Annotated[
    str, typer.Option("--cues", help="Cues to use, joined; the published runs use one.")
]
ClustersOption: TypeAlias = Annotated[int, typer.Option("--clusters", "-k", max=100_000, help="K.")]
JsonOption: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write the rows too.")]
SeedsOption: TypeAlias = Annotated[int, typer.Option(min=1, help="Clusterings or draws per row.")]
StrideOption: TypeAlias = Annotated[int, typer.Option(help="Every how many frames one is taken.")]


def ksl(
    features: FeaturesOption,
    model: ModelsOption = None,
    cues: CueOption = "appearance",
    clusters: ClustersOption = 7,
    seeds: SeedsOption = 3,
    stride: StrideOption = 2,
    overall: Annotated[
        bool | None,
        typer.Option(
            "--overall/--per-keystep",
            help="Pool the key steps' counts, or average over key steps; by the data set.",
        ),
    ] = None,
    no_background: Annotated[
        bool, typer.Option("--no-background", help="Leave background out of the matching.")
    ] = False,
    per_video: Annotated[
        bool, typer.Option("--per-video", help="Cluster each video by itself.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="meccano, epic-tents, ...: the paper's figures beside ours.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Key-step localisation: clusters matched with labels."""
    from keystep_models.measures.steps_report import OVERALL_DATASETS, ksl_rows, published_ksl

    published = published_ksl(dataset, clusters)
    pooled = dataset in OVERALL_DATASETS if overall is None else overall

    def measure(data: DataSet) -> list[Row]:
        return ksl_rows(
            data, clusters=clusters, seeds=seeds, per_keystep=not pooled,
            background=not no_background, together=not per_video,
        )  # fmt: skip

    rows = _measure(features, model, cues, stride, measure)
    settings = {
        "clusters": clusters,
        "overall": pooled,
        "background": not no_background,
        "per_video": per_video,
    }
    _report("Key-step localisation, %", rows + published, json_file, settings, scale=100)


def phase(
    features: FeaturesOption,
    model: ModelsOption = None,
    cues: CueOption = "appearance",
    seeds: SeedsOption = 3,
    stride: StrideOption = 2,
    folds: Annotated[int, typer.Option(min=2, help="Videos are split into so many parts.")] = 5,
    json_file: JsonOption = None,
) -> None:
    """Phase classification with 0.1, 0.5 and 1.0 of the labels, tested on other videos."""
    from keystep_models.measures.steps_report import phase_rows

    def measure(data: DataSet) -> list[Row]:
        return phase_rows(data, folds=folds, seeds=seeds)

    rows = _measure(features, model, cues, stride, measure)
    _report("Phase classification, accuracy in %", rows, json_file, {"folds": folds}, scale=100)


def tau(
    features: FeaturesOption,
    model: ModelsOption = None,
    cues: CueOption = "appearance",
    stride: StrideOption = 2,
    json_file: JsonOption = None,
) -> None:
    """Kendall's tau between all pairs of videos; for tasks with one order of steps only."""
    from keystep_models.measures.steps_report import tau_rows

    rows = _measure(features, model, cues, stride, tau_rows, labels=False)
    _report("Kendall's tau", rows, json_file, {}, scale=1)


def summary(
    features: FeaturesOption,
    model: ModelsOption = None,
    cues: CueOption = "appearance",
    clusters: ClustersOption = 7,
    top_n: Annotated[int, typer.Option(help="Key steps of each video; 0: all.")] = 10,
    seeds: SeedsOption = 3,
    stride: StrideOption = 2,
    json_file: JsonOption = None,
) -> None:
    """Representation and diversity of the key steps, measured on the raw features."""
    from keystep_models.measures.steps_report import summary_rows

    def measure(data: DataSet) -> list[Row]:
        return summary_rows(data, clusters=clusters, top_n=top_n, seeds=seeds)

    rows = _measure(features, model, cues, stride, measure, labels=False)
    settings = {"clusters": clusters, "top_n": top_n}
    _report("Key steps as a summary", rows, json_file, settings, scale=1)


def _measure(
    folder: Path,
    models: list[Path] | None,
    cues: str,
    stride: int,
    measure: Callable[[DataSet], list[Row]],
    *,
    labels: bool = True,
) -> list[Row]:
    """A table of a feature folder, or the mean over those of its tasks."""
    from keystep_models.measures.steps_report import over_tasks
    from keystep_models.steps.feature_folder import task_folders

    tasks = task_folders(folder)
    tables = []
    for task in tasks:  # a model may hold one for each task, as the folder does
        own = [path / task.name if (path / task.name).is_dir() else path for path in models or ()]
        tables.append(measure(_read(task, own, cues, stride, labels=labels)))
    return over_tasks(tables) if len(tasks) > 1 else tables[0]


def _read(
    folder: Path, models: list[Path] | None, cues: str, stride: int, *, labels: bool = True
) -> DataSet:
    """Raw features, and adapted ones of every model, of the frames that evaluation takes."""
    from keystep_models.measures.steps_report import DataSet
    from keystep_models.steps.adapted import join_cues
    from keystep_models.steps.feature_folder import keystep_count, read_folder
    from keystep_models.steps.temporal_sampling import evaluation_frames

    wanted = split_cues(cues)
    videos = read_folder(folder)
    count = keystep_count(folder, videos) if labels else 0
    frames = [evaluation_frames(video.frame_count, stride) for video in videos]
    raw = []
    for video, places in zip(videos, frames, strict=True):
        there = {
            name: (cue.features[places], cue.valid[places]) for name, cue in video.cues.items()
        }
        raw.append(join_cues(there, wanted))
    adapted = {str(path): _adapted(path, videos, wanted, stride) for path in models or ()}
    return DataSet.of(
        names=[video.name for video in videos],
        labels=[
            None if video.labels is None else video.labels[places]
            for video, places in zip(videos, frames, strict=True)
        ],
        times_s=[v.times_s[places] for v, places in zip(videos, frames, strict=True)],
        raw=raw,
        adapted=adapted,
        keystep_count=count,
    )


def _adapted(path: Path, videos: Any, cues: tuple[str, ...], stride: int) -> list[Any]:
    from keystep_models.steps.adapted import join_cues

    with training_extra():
        from keystep_models.training.steps_model import StepsModel, adapt_video

        model = StepsModel.load(path / "model.pt" if path.is_dir() else path)
        if lost := [cue for cue in cues if cue not in model.sizes]:
            raise DataError(f"{path}: was not trained on cue {lost[0]!r}")
        return [join_cues(adapt_video(model, video, stride=stride)[1], cues) for video in videos]


def _report(
    title: str,
    rows: Sequence[Row],
    path: Path | None,
    settings: Mapping[str, object],
    *,
    scale: float,
) -> None:
    from rich.table import Table

    from keystep_models.steps.feature_folder import write_json

    if not rows:
        raise ConfigError("there is nothing to measure")
    names = list(rows[0].values)
    table = Table(title=title, title_justify="left")
    table.add_column("features")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("runs", justify="right")
    for row in rows:
        table.add_row(row.name, *(row.text(name, scale) for name in names), str(row.runs or "-"))
    make_console().print(table)
    if path is not None:
        write_json(path, {"settings": settings, "rows": [row.as_document() for row in rows]})
