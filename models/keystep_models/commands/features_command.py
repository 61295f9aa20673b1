"""`keystep features convert`: data sets' files as feature folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keystep_models.commands.psr_options import make_console


def convert(
    kind: Annotated[
        str, typer.Argument(help="meccano-steps, egoprocel, procel, crosstask or simulated.")
    ],
    source: Annotated[Path, typer.Argument(help="The data set's folder (docs/steps.md).")],
    out: Annotated[
        Path, typer.Option(help="Feature folder; for egoprocel, procel, simulated: with features.")
    ],
) -> None:
    """Make a feature folder of a data set's files, or put its labels beside features."""
    from keystep_models.steps.datasets.convert import convert as run

    made = run(kind, source, out)
    console = make_console()
    for folder in made.folders:
        console.print(f"{folder}")
    console.print(f"{made.video_count} videos with labels")
    for note in made.notes:
        console.print(f"  note: {note}")
