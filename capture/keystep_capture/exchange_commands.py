"""`keystep import` and `keystep recording export`; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError, DataError

if TYPE_CHECKING:
    from keystep_capture.recording import Recording
    from keystep_capture.recording.importing import Importer, ImportPlan


def import_source(
    kind: Annotated[str, typer.Argument(help="Which importer; `list` names them.")],
    path: Annotated[Path | None, typer.Argument(help="What to import: a file or a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recording's folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be imported; write nothing.")
    ] = False,
) -> None:
    """Import another format into a recording; an interrupted import goes on where it was."""
    from keystep_capture.recording.importing import find_importer, importers

    if kind == "list":
        known = importers()
        for name, one in known.items():
            typer.echo(f"{name:<12} {one.title}")
        if not known:
            raise ConfigError("no importer is installed: install keystep anew")
        return
    importer = find_importer(kind)
    if path is None:
        raise ConfigError("expected the path of what to import")
    if dry_run:
        _tell(importer.plan(path))
        return
    if out is None:
        raise ConfigError("expected --out, the recording's folder (or --dry-run)")
    _import_with_progress(importer, path, out)


def _import_with_progress(importer: Importer, path: Path, out: Path) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from keystep_capture.recording.importing import run_import

    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("import", total=None)
        result = run_import(
            importer,
            path,
            out,
            on_progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    _tell(result.plan)
    before = f", {result.resumed_count} were there already" if result.resumed_count else ""
    typer.echo(f"{path} -> {out}: {result.written_count} packets and labels{before}")


def _tell(plan: ImportPlan) -> None:
    typer.echo(f"source: {plan.source}")
    for stream, told in plan.streams.items():
        typer.echo(f"{stream}: {told}")
    for lacking in plan.absent:
        typer.echo(f"absent: {lacking}")


def export(
    path: Annotated[Path, typer.Argument(help="A recording: one .mcap file or its folder.")],
    mp4: Annotated[Path | None, typer.Option(help="Write the video here, times beside it.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write numbers and notes into here.")] = None,
    stream: Annotated[str, typer.Option(help="The video's stream.")] = "rgb",
    epoch: Annotated[int | None, typer.Option(help="The video's epoch; else its first.")] = None,
) -> None:
    """Export a recording's video as MP4 with a JSON of its times, or all numbers as CSV."""
    from keystep_capture.recording import Recording
    from keystep_capture.recording.export import export_csv, export_mp4
    from keystep_capture.recording.source import DamagedError

    if (mp4 is None) == (csv is None):
        raise ConfigError("expected either --mp4 FILE or --csv FOLDER")
    with Recording(path) as recording:
        tell_damage(recording)
        try:
            if mp4 is not None:
                count = export_mp4(recording, mp4, stream=stream, epoch=epoch)
                typer.echo(f"{mp4}: {count} pictures, not encoded again")
            elif csv is not None:
                for name, rows in export_csv(recording, csv).items():
                    typer.echo(f"{csv / name}: {rows} rows")
        except DamagedError as error:
            raise DataError(
                f"{error}; `keystep recording repair` copies what is readable"
            ) from None


def tell_damage(recording: Recording) -> None:
    """Say on stderr what is known to be missing of a recording that is used all the same."""
    for damage in recording.damage:
        typer.echo(f"damaged: {damage}", err=True)
