"""`keystep bridge` and `keystep simulate`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the bridge's subcommands to the `keystep` command."""
