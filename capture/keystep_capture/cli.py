"""The `keystep` command; every package adds its subcommands by entry point."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import NoReturn, cast

import typer
from rich.console import Console

from keystep_capture.errors import ConfigError, KeystepError
from keystep_capture.recording_commands import register as register_recording
from keystep_capture.simulation.commands import register as register_simulation

app = typer.Typer(
    name="keystep",
    help="Live key-step guidance from a headset's streams.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


# Typer keeps click's errors under a private name; this is UsageError, the base of BadParameter.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


@app.callback()
def _root() -> None:
    """Live key-step guidance from a headset's streams."""


def main() -> None:
    """Run the command line; errors are one line.

    Exit codes: 0 done, 1 failure, 2 wrong usage or settings, 130 interrupted before it was done.
    """
    register_recording(app)
    register_simulation(app)
    for entry in sorted(entry_points(group="keystep.commands"), key=lambda e: e.name):
        entry.load()(app)
    try:
        code = app(args=sys.argv[1:] or ["--help"], prog_name="keystep", standalone_mode=False)
    except _UsageError as error:
        _fail(f"{error.format_message()} (see --help)", 2)
    except ConfigError as error:
        _fail(error, 2)
    except (KeystepError, OSError) as error:
        _fail(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception | str, code: int) -> NoReturn:
    message = " ".join(str(error).split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"keystep: {message}", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
