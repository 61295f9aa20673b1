"""`keystep extract`: recordings to key steps, without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import (
    BatchOption,
    BootstrapOption,
    CausalOption,
    ChunksOption,
    ContextOption,
    CuesOption,
    DropsOption,
    EncoderOption,
    EpochsOption,
    ExtentOption,
    FactorOption,
    PairsOption,
    PositionOption,
    PresetOption,
    ProgressChoice,
    ProgressOption,
    RateOption,
    SeedOption,
    SigmaOption,
    SoftDtwOption,
    SpacingOption,
    TempoOption,
    ThreadsOption,
    WindowOption,
    parse_named_paths,
    progress_teller,
    split_cues,
    training_extra,
    training_settings,
)


def extract(
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of one task, or videos.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path(
        "keystep-extract"
    ),
    preset: PresetOption = "small",
    cues: CuesOption = None,
    cue_file: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.npy, a row per tick; for several recordings NAME=FOLDER."),
    ] = None,
    cue_model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=manifest.json: an ONNX model on a picture, or on two (motion)."),
    ] = None,
    appearance_model: Annotated[
        Path | None, typer.Option(help="manifest.json of an ONNX model of your own.")
    ] = None,
    tick_rate: Annotated[float, typer.Option(help="Ticks a second.")] = 10.0,
    bootstrap: BootstrapOption = None,
    encoder: EncoderOption = None,
    position: PositionOption = None,
    causal: CausalOption = False,
    context: ContextOption = None,
    spacing: SpacingOption = None,
    tempo: TempoOption = None,
    window: WindowOption = None,
    sigma: SigmaOption = None,
    extent: ExtentOption = None,
    chunks: ChunksOption = None,
    batch: BatchOption = None,
    epochs: EpochsOption = None,
    learning_rate: RateOption = None,
    drop_epochs: DropsOption = None,
    drop_factor: FactorOption = None,
    pairs: PairsOption = None,
    soft_dtw: SoftDtwOption = None,
    inference_cues: Annotated[
        str | None, typer.Option(help="Cues whose adapted features are joined; else all.")
    ] = None,
    stride: Annotated[int, typer.Option(help="Every how many ticks a frame is taken.")] = 2,
    clustering: Annotated[str, typer.Option(help="kmeans or finch.")] = "kmeans",
    clusters: Annotated[str, typer.Option("--clusters", "-k", help="K, or auto.")] = "7",
    alpha: Annotated[float, typer.Option(help="Fraction of a cluster that is background.")] = 0.1,
    gamma: Annotated[float, typer.Option(help="Gap that splits a cluster, s.")] = 2.0,
    min_duration: Annotated[float, typer.Option(help="Shortest key step, s.")] = 0.5,
    sampling: Annotated[str, typer.Option(help="nearest or ils.")] = "nearest",
    top_n: Annotated[int, typer.Option(help="Keep only so many key steps; 0: all.")] = 0,
    budget: Annotated[float, typer.Option(help="For ils: fraction of the recording.")] = 0.15,
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
    bundle: Annotated[
        bool, typer.Option("--bundle/--no-bundle", help="Make a bundle for live guidance too.")
    ] = True,
    bundle_encoders: Annotated[
        bool,
        typer.Option(
            "--bundle-encoders",
            help="Train causal encoders for the bundle too (docs/guidance.md: no better so far).",
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check choices and recordings, then stop.")
    ] = False,
) -> None:
    """Find the key steps of an expert's recordings: features, training on just these, clustering.

    Stopped and called again with the same choices, it goes on where it was.
    """
    from keystep_models.cues.appearance_cue import appearance_manifest_path
    from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
    from keystep_models.steps.cue_extraction import BUILT_IN_CUES, CueChoice, takes_crops
    from keystep_models.steps.recording_source import open_recording
    from keystep_models.steps.settings import ExtractionSettings

    files = parse_named_paths(cue_file or [], "--cue-file")
    models = parse_named_paths(cue_model or [], "--cue-model")
    training = training_settings(
        preset, seed, causal,
        cues=cues, bootstrap=bootstrap, encoder=encoder, position=position, context=context,
        spacing=spacing, tempo=tempo,
        window=window, sigma_seconds=sigma, extent=extent, chunk_count=chunks, batch_size=batch,
        epochs=epochs, learning_rate=learning_rate, drop_epochs=drop_epochs,
        drop_factor=drop_factor, pair_weights=pairs, soft_dtw=soft_dtw,
    )  # fmt: skip
    if unknown := [c for c in training.cues if c not in (*BUILT_IN_CUES, *files, *models)]:
        raise ConfigError(
            f"no cue is called {unknown[0]!r}; there are {', '.join(BUILT_IN_CUES)}, "
            "or give it with --cue-file or --cue-model"
        )
    if unused := [c for c in (*files, *models) if c not in training.cues]:
        raise ConfigError(
            f"cue {unused[0]!r} has a file or model but is not trained on; add it to --cues "
            f"({','.join(training.cues)})"
        )
    settings = ExtractionSettings(
        inference_cues=() if inference_cues is None else split_cues(inference_cues),
        stride=stride, clustering=clustering, cluster_count=_count(clusters),  # type: ignore[arg-type]
        alpha=alpha, gamma_s=gamma, min_duration_s=min_duration, sampling=sampling,  # type: ignore[arg-type]
        top_n=top_n, budget=budget, seed=seed,
    )  # fmt: skip
    if lost := [cue for cue in settings.inference_cues if cue not in training.cues]:
        raise ConfigError(f"--inference-cues names {lost[0]!r}, which is not trained on")
    built_in = [cue for cue in training.cues if cue not in files and cue not in models]
    manifest = appearance_model or appearance_manifest_path()
    if bundle and GAZE_APPEARANCE not in built_in and takes_crops(manifest):
        built_in.append(GAZE_APPEARANCE)  # not trained on: what the bundle looks at
    choice = CueChoice(
        cues=tuple(built_in),
        rate_hz=tick_rate,
        appearance_manifest=manifest,
        files=files,
        models=models,
        threads=threads,
    )
    if bundle_encoders and not bundle:
        raise ConfigError("--bundle-encoders needs a bundle: leave out --no-bundle")
    kind: Literal["none", "raw", "encoded"] = "raw" if bundle else "none"
    sources = [open_recording(path) for path in recordings]
    if check:
        return
    with training_extra(threads):
        from keystep_models.training.extract import ExtractionPlan
        from keystep_models.training.extract import extract as run

        plan = ExtractionPlan(
            cues=choice, training=training, extraction=settings, out=out,
            bundle="encoded" if bundle_encoders else kind,
        )  # fmt: skip
        results = run(sources, plan, progress_teller(progress))
    if progress in (ProgressChoice.JSON, ProgressChoice.NONE):
        return
    console = make_console()
    for name, result in results.items():
        console.print(f"{name}: {result['key_steps']} key steps in {result['folder']}")
        if result["bundle"] is not None:
            console.print(f"  bundle {result['bundle']}")
        for note in result["notes"]:
            console.print(f"  note: {note}")


def _count(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--clusters is {text!r}, expected a number above 0, or auto")
    return int(text)
