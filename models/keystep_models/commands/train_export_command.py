"""`keystep train export`: causal encoders as an ONNX graph that runs tick by tick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import training_extra


def export(
    model: Annotated[Path, typer.Option(help="A run's folder or model.pt.")],
    out: Annotated[Path, typer.Option(help="Folder for encoders.onnx and manifest.json.")],
    name: Annotated[str, typer.Option(help="What the manifest calls it.")] = "encoders",
    rate: Annotated[float, typer.Option(help="Ticks a second it was trained with.")] = 10.0,
    licence: Annotated[
        str, typer.Option(help="Of the weights, an SPDX expression.")
    ] = "LicenseRef-own-data",
) -> None:
    """Export causal encoders for live use (docs/incremental.md), checked against torch."""
    with training_extra(1):
        from keystep_models.training.export_incremental import export_incremental
        from keystep_models.training.steps_model import StepsModel

        path = model / "model.pt" if model.is_dir() else model
        difference = export_incremental(
            StepsModel.load(path), out, name=name, rate_hz=rate, licence=licence
        )
    make_console().print(
        f"{out / 'manifest.json'}: stepping differs from torch by {difference:.1e} at most"
    )
