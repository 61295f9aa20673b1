"""`keystep psr clips`: what a STORM bundle says of every frame of labelled recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import (
    ProgressChoice,
    ProgressOption,
    ThreadsOption,
    progress_teller,
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


def clips(
    dataset: DatasetArgument,
    bundle: Annotated[Path, typer.Option(help="RUN/bundle of `keystep train storm`.")],
    out: Annotated[Path, typer.Option(help="Gets clips/NAME_clips.csv, for `psr run --clips`.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Recordings to take; a name or pattern, also several times."),
    ] = None,
    procedure: ProcedureOption = None,
    task: TaskOption = None,
    layout: LayoutOption = LayoutChoice.RECORDINGS,
    features: FeaturesOption = None,
    threads: ThreadsOption = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """Predict the clip that ends at each frame, without torch, from features kept beside them."""
    from keystep_models.storm.bundle import read_storm_bundle
    from keystep_models.storm.clip_predictions import predict_clips, try_bundle, write_clips
    from keystep_models.storm.inputs import InputChoice

    tell = progress_teller(progress)
    loaded = read_storm_bundle(bundle)
    try_bundle(loaded)
    document = loaded.document
    found = load_dataset(dataset, procedure, task, layout)
    choice = InputChoice(
        rate_hz=document.rate_hz,
        features=features or out / "features",
        pictures=out / "pictures" if document.input == "picture" else None,
        threads=threads,
    )
    chosen = choose_recordings(found, only or ["*"])
    target = out / "clips"
    target.mkdir(parents=True, exist_ok=True)
    for recording in chosen:
        (session,) = load_inputs([recording], choice, tell)
        values = predict_clips(loaded, session, threads=threads)
        write_clips(target / f"{recording.name}_clips.csv", session, values)
    tell({"stage": "done"})
    if progress not in (ProgressChoice.JSON, ProgressChoice.NONE):
        accumulation = document.accumulation
        make_console().print(
            f"{len(chosen)} recordings: keystep psr run --method temporal --clips {target}"
            f" --window {accumulation.window_ticks} --threshold {accumulation.threshold:g}"
            f" --decay {accumulation.decay:g} ...",
            soft_wrap=True,  # to be copied
        )
