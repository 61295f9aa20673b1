"""`keystep psr` and `keystep procedure`."""

from __future__ import annotations

import typer

from keystep_models.commands.procedure_commands import check, convert
from keystep_models.commands.psr_run import run
from keystep_models.commands.psr_score import score


def register(app: typer.Typer) -> None:
    """Add the models' subcommands to the `keystep` command."""
    psr = typer.Typer(no_args_is_help=True, help="Recognise steps from detections, and measure it.")
    psr.command("run")(run)
    psr.command("score")(score)
    app.add_typer(psr, name="psr")
    procedure = typer.Typer(no_args_is_help=True, help="Procedures: check and convert them.")
    procedure.command("check")(check)
    procedure.command("convert")(convert)
    app.add_typer(procedure, name="procedure")
