"""`keystep train storm`: STORM-PSR's spatio-temporal stream from labelled recordings."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import (
    ProgressChoice,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    check_drawing,
    progress_teller,
    training_extra,
)
from keystep_models.commands.storm_options import (
    DatasetArgument,
    FeaturesOption,
    LayoutChoice,
    LayoutOption,
    ProcedureOption,
    TaskOption,
    choose_recordings,
    load_dataset,
    load_inputs,
)

if TYPE_CHECKING:
    from keystep_models.storm.settings import StormSettings, TemporalKind


class TemporalChoice(StrEnum):
    """The temporal model."""

    TRANSFORMER = "transformer"
    GRU = "gru"
    MLP = "mlp"


class FineTuneChoice(StrEnum):
    """What the last stage changes."""

    NONE = "none"
    TEMPORAL = "temporal"
    ALL = "all"


def storm(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The run's folder; a stopped run goes on.")],
    preset: Annotated[
        str, typer.Option(help="small: minutes on a CPU; published: the paper's, for a GPU.")
    ] = "small",
    procedure: ProcedureOption = None,
    task: TaskOption = None,
    layout: LayoutOption = LayoutChoice.RECORDINGS,
    features: FeaturesOption = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="Recordings to look at only; a name or pattern, also several times."),
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="Recordings not to be used at all; likewise.")
    ] = None,
    temporal: Annotated[
        TemporalChoice | None, typer.Option(help="gru and mlp are baselines.")
    ] = None,
    key_frames: Annotated[
        bool | None,
        typer.Option(
            "--key-frames/--no-key-frames", help="Contrastive batches from key frames; else all."
        ),
    ] = None,
    key_clips: Annotated[
        bool | None,
        typer.Option("--key-clips/--no-key-clips", help="Clips about completions; else anywhere."),
    ] = None,
    fine_tune: Annotated[
        FineTuneChoice | None,
        typer.Option(help="End to end: none, temporal (spatial encoder frozen), all."),
    ] = None,
    clip_every: Annotated[
        int | None, typer.Option(help="Every how many ticks a clip has a frame.")
    ] = None,
    embedding: Annotated[int | None, typer.Option(help="Size of an embedding.")] = None,
    epochs: Annotated[
        str | None, typer.Option(help="Of the stages, e.g. 20,30,10; fewer for fewer stages.")
    ] = None,
    spatial_weights: Annotated[
        Path | None, typer.Option(help="Pretrained ViT-S/16 (published): a state dict.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, ...")] = "cpu",
    licence: Annotated[
        str, typer.Option(help="Of the weights, an SPDX expression.")
    ] = "LicenseRef-own-data",
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """Train the spatio-temporal stream: contrastive, temporal, fine-tuning; ends in RUN/bundle."""
    from keystep_models.storm.inputs import InputChoice

    settings = _settings(
        preset, epochs, seed, None if temporal is None else temporal.value,
        fine_tuning=None if fine_tune is None else fine_tune.value,
        key_frames=key_frames, key_clips=key_clips, clip_every=clip_every, embedding=embedding,
    )  # fmt: skip
    if spatial_weights is not None and settings.input != "picture":
        raise ConfigError("--spatial-weights is for --preset published")
    tell = progress_teller(progress)
    found = load_dataset(dataset, procedure, task, layout)
    held = choose_recordings(found, hold_out or [])
    left = choose_recordings(found, leave_out or [])
    learnt = [one for one in found.recordings if one not in held and one not in left]
    if not learnt:
        raise ConfigError("--hold-out and --leave-out leave no recording to train on")
    if not licence.strip():
        raise ConfigError("--licence is empty; expected an SPDX expression")
    with training_extra(threads):
        from keystep_models.training.storm_job import check_choices, train_and_export

        check_choices(settings, found.procedure.component_count, spatial_weights, device)
        check_drawing()
        choice = InputChoice(
            rate_hz=settings.rate_hz,
            features=features or out / "features",
            pictures=out / "pictures" if settings.input == "picture" else None,
            threads=threads,
        )
        bundle = train_and_export(
            load_inputs(learnt, choice, tell),
            load_inputs([one for one in held if one not in left], choice, tell),
            found.procedure,
            settings,
            out,
            spatial_weights=spatial_weights,
            device=device,
            licence=licence,
            on_progress=tell,
        )
    tell({"stage": "done", "bundle": str(bundle.folder)})
    if progress not in (ProgressChoice.JSON, ProgressChoice.NONE):
        window = bundle.document.accumulation.window_ticks
        make_console().print(
            f"{len(learnt)} sessions, {len(bundle.document.states)} states: {bundle.folder}"
            f" (clips of {window / bundle.document.rate_hz:.1f} s, --window {window})"
        )


def _settings(
    preset: str, epochs: str | None, seed: int, temporal: TemporalKind | None, **changes: Any
) -> StormSettings:
    """The preset with what the options change (None changes nothing)."""
    from keystep_models.storm.settings import change_epochs, storm_preset

    given = {name: value for name, value in changes.items() if value is not None}
    settings = replace(storm_preset(preset), seed=seed, **given)
    if temporal is not None:
        settings = settings.with_temporal(temporal)
    counts: list[int | None] = [None, None, None]
    if epochs is not None:
        parts = epochs.split(",")
        if len(parts) > 3 or not all(part.strip().isdecimal() for part in parts):
            raise ConfigError(f"--epochs is {epochs!r}, expected up to three numbers: 20,30,10")
        counts[: len(parts)] = [int(part) for part in parts]
    return replace(
        settings,
        contrastive=change_epochs(settings.contrastive, counts[0]),
        temporal_stage=change_epochs(settings.temporal_stage, counts[1]),
        fine_tune=change_epochs(settings.fine_tune, counts[2]),
    )
