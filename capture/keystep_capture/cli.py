"""The `keystep` command; every package adds its subcommands by entry point."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console

from keystep_capture.errors import ConfigError, KeystepError

app = typer.Typer(
    name="keystep",
    help="Live key-step guidance from a headset's streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Live key-step guidance from a headset's streams."""


def main() -> None:
    """Run the command line: exit code 0 done, 1 failure, 2 wrong usage; errors are one line."""
    for entry in sorted(entry_points(group="keystep.commands"), key=lambda e: e.name):
        entry.load()(app)
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except (KeystepError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: Exception, code: int) -> None:
    message = " ".join(str(error).split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"keystep: {message}", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
