"""`keystep train detector`: a small detector of assembly states from simulated sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import (
    ProgressChoice,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    progress_teller,
    training_extra,
)


def detector(
    dataset: Annotated[Path, typer.Argument(help="Folder of `keystep simulate generate`.")],
    out: Annotated[Path, typer.Option(help="The run's folder; a stopped run goes on.")],
    people: Annotated[
        str | None, typer.Option(help="To train on, e.g. 0-11; else the first 60 %.")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="To calibrate confidences on; else the next 15 %.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="To test on; else the rest.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Learn from every so manyth frame.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs.")] = 20,
    name: Annotated[str, typer.Option(help="What the manifest calls it.")] = "assembly-states",
    licence: Annotated[
        str, typer.Option(help="Of the weights, an SPDX expression.")
    ] = "LicenseRef-own-data",
    seed: SeedOption = 0,
    threads: ThreadsOption = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """Train a small detector of assembly states and test it on other people (docs/detector.md)."""
    tell = progress_teller(progress)
    with training_extra(threads):
        from keystep_models.training.detector_job import run, share_out, table_rows
        from keystep_models.training.train_detector import DetectorSettings

        chosen = share_out(dataset, people, calibrate, test)
        settings = DetectorSettings(every=every, epochs=epochs, seed=seed)
        report = run(
            chosen,
            settings,
            out,
            name=name,
            licence=licence,
            threads=threads,
            tell=lambda event: tell(dict(event)),
        )
    tell({"stage": "done", "model": str(out / "model" / "manifest.json")})
    if progress in (ProgressChoice.JSON, ProgressChoice.NONE):
        return
    from rich.table import Table

    table = Table(title="frames of the test people (simulated)", title_justify="left")
    for column in ("frames", "", "detected", "state right", "components right", "box overlap"):
        table.add_column(column)
    for row in table_rows(report):
        table.add_row(*row)
    console = make_console()
    console.print(table)
    console.print(f"{out / 'model' / 'manifest.json'}, {out / 'report.png'}")
