"""Options that the `keystep psr` and `keystep procedure` commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, TypeVar

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from keystep_models.psr.procedure import ComponentState
    from keystep_models.psr.recording_files import ProcedureChoice

_T = TypeVar("_T")

_MANY_FRAMES: Final = 100_000  # the tracker takes seconds for so many

TaskOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="assy, main, ...; else each recording's own (its name, expected.json)."),
]
StatesOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="JSON list of what the detector's classes stand for (procedure_info files)."),
]
InitialStateOption: TypeAlias = Annotated[
    str | None, typer.Option(help="State before the first step, as digits (procedure_info files).")
]


def choose_procedure(
    source: str, task: str | None, states: Path | None, initial_state: str | None
) -> ProcedureChoice:
    """The procedure that the options name."""
    from keystep_models.psr.procedure_files import read_states
    from keystep_models.psr.recording_files import ProcedureChoice

    return ProcedureChoice(
        source=source,
        task=task,
        states=() if states is None else read_states(states),
        initial_state=parse_initial_state(initial_state),
    )


def parse_initial_state(text: str | None) -> ComponentState | None:
    """The state that --initial-state gives."""
    from keystep_models.psr.procedure import parse_state

    return None if text is None else parse_state(text)


def parse_image_size(text: str) -> tuple[int, int] | None:
    """Width and height in pixels of --image-size; None for "any"."""
    if text == "any":
        return None
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise ConfigError(f"--image-size is {text!r}, expected e.g. 1280x720, or any") from None
    if width < 1 or height < 1:
        raise ConfigError(f"--image-size is {text!r}, expected e.g. 1280x720, or any")
    return width, height


def make_console() -> Console:
    """A console for tables; wide enough for them where the output is a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def with_progress(frames: Sequence[_T], name: str) -> Iterable[_T]:
    """The frames, with a bar on a terminal's standard error while there are many to go."""
    if len(frames) < _MANY_FRAMES or not sys.stderr.isatty():
        return frames
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    from keystep_models.psr.text_files import plain

    console = Console(stderr=True)
    return track(frames, escape(plain(name)), console=console, transient=True)
