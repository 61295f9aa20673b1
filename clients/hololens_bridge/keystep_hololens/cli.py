"""`keystep bridge` and `keystep simulate`."""

from __future__ import annotations

import typer

from keystep_hololens.bridge_command import bridge
from keystep_hololens.simulate_command import simulate


def register(app: typer.Typer) -> None:
    """Add the bridge's subcommands to the `keystep` command."""
    app.command("bridge")(bridge)
    app.command("simulate")(simulate)
