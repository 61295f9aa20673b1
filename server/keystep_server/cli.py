"""`keystep serve` and `keystep demo`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the server's subcommands to the `keystep` command."""
