"""`keystep psr detect`: what a detector sees in a recording, as `keystep psr run` reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_models.commands.psr_options import TaskOption, choose_procedure, make_console

if TYPE_CHECKING:
    from keystep_models.detector.detection_file import Progress


def detect(
    recording: Annotated[Path, typer.Argument(help="A recording's folder or part, or a video.")],
    detector: Annotated[
        Path, typer.Option(help="Its folder, or manifest.json (docs/detector.md).")
    ],
    out: Annotated[Path, typer.Option(help="File of detections, .csv.")],
    procedure: Annotated[
        str | None,
        typer.Option(help="Whose classes to write, matched by state; else the detector's own."),
    ] = None,
    task: TaskOption = None,
    rate: Annotated[
        float,
        typer.Option(help="Pictures a second at most; 0: every one, numbered as the video's."),
    ] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="That the model may use.")] = 2,
    states_out: Annotated[
        Path | None,
        typer.Option(help="Also write what the classes stand for, for `psr run --states`."),
    ] = None,
) -> None:
    """Run a detector over a recording; stopped and called again, it goes on where it was."""
    from keystep_models.detector.classes import ClassMap
    from keystep_models.detector.detection_file import write_detections
    from keystep_models.detector.detector import Detector
    from keystep_models.detector.recorded_pictures import open_pictures
    from keystep_models.steps.feature_folder import write_json

    loaded = Detector.load(detector, intra_op_threads=threads)
    class_map, states = None, loaded.spec.states
    if procedure is not None:
        chosen = choose_procedure(procedure, task, None, None).of_recording(recording.name)
        class_map, states = ClassMap.of(loaded.spec, chosen), chosen.states
    pictures = open_pictures(recording)
    with _bar(pictures.name) as progress:
        counts = write_detections(
            pictures,
            loaded,
            out,
            rate_hz=rate or None,
            class_map=class_map,
            on_progress=progress,
        )
    if states_out is not None:
        texts = [None if state is None else "".join(map(str, state)) for state in states]
        write_json(states_out, texts)
    lost = f", {counts.lost} could not be decoded" if counts.lost else ""
    make_console().print(
        f"{out}: {counts.pictures} pictures{lost}, {counts.with_detections} with detections"
    )


@contextmanager
def _bar(name: str) -> Iterator[Progress | None]:
    """A count of pictures on a terminal's standard error."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeElapsedColumn

    from keystep_models.psr.text_files import plain

    columns = ("{task.description}", "{task.completed} pictures")
    shown = [TextColumn(text) for text in columns]
    with Bar(*shown, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(plain(name)), total=None)
        yield lambda count: bar.update(task, completed=count)
