"""`keystep train steps`: temporal encoders from a feature folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keystep_capture.errors import ConfigError
from keystep_capture.folder_lock import locked_folder
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
    progress_teller,
    training_extra,
    training_settings,
)


def steps(
    features: Annotated[Path, typer.Option(help="Feature folder (docs/steps.md).")],
    out: Annotated[Path, typer.Option(help="The run's folder; a stopped run goes on.")],
    preset: PresetOption = "published",
    cues: CuesOption = None,
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
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """Train temporal encoders on a feature folder, without a label."""
    from keystep_models.steps.feature_folder import read_folder

    settings = training_settings(
        preset, seed, causal,
        cues=cues, bootstrap=bootstrap, encoder=encoder, position=position, context=context,
        spacing=spacing, tempo=tempo,
        window=window, sigma_seconds=sigma, extent=extent, chunk_count=chunks, batch_size=batch,
        epochs=epochs, learning_rate=learning_rate, drop_epochs=drop_epochs,
        drop_factor=drop_factor, pair_weights=pairs, soft_dtw=soft_dtw,
    )  # fmt: skip
    videos = read_folder(features)
    tell = progress_teller(progress)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, expected a folder for the run")
    with training_extra(threads), locked_folder(out):
        from keystep_models.training.train_steps import train_steps

        train_steps(
            videos,
            settings,
            out,
            on_progress=lambda done, of, loss: tell(
                {"stage": "training", "done": done, "of": of, "loss": loss}
            ),
        )
    tell({"stage": "done", "model": str(out / "model.pt")})
    if progress not in (ProgressChoice.JSON, ProgressChoice.NONE):
        make_console().print(f"{len(videos)} videos, {settings.epochs} epochs: {out / 'model.pt'}")
