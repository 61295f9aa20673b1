"""`keystep procedure check` and `keystep procedure convert`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_models.commands.psr_options import (
    InitialStateOption,
    StatesOption,
    choose_procedure,
    parse_initial_state,
)

if TYPE_CHECKING:
    from keystep_models.psr.procedure import Procedure
    from keystep_models.psr.procedure_document import ProcedureDocument


def check(
    file: Annotated[Path, typer.Argument(help="Keystep's document, or a procedure_info file.")],
    task: Annotated[
        str | None, typer.Option(help="Only this task of a procedure_info file.")
    ] = None,
    initial_state: InitialStateOption = None,
) -> None:
    """Say what is wrong with a procedure, one line each (exit 1), or what it holds."""
    from keystep_models.psr.procedure_document import find_problems
    from keystep_models.psr.procedure_files import documents_to_check
    from keystep_models.psr.text_files import plain

    documents = documents_to_check(file, task, parse_initial_state(initial_state))
    has_problems = False
    for document in documents:
        problems = find_problems(document)
        has_problems |= bool(problems)
        for problem in problems:
            typer.echo(f"{file}: {plain(document.task)}: {problem}")
        if not problems:
            typer.echo(_summary(document))
    if has_problems:
        raise typer.Exit(1)


def _summary(document: ProcedureDocument) -> str:
    from keystep_models.psr.text_files import plain

    steps = document.steps
    expected = [step for step in steps if step.expected]
    counts = {
        "optional": sum(step.optional for step in steps),
        "repeatable": sum(step.repeatable for step in steps),
        "order relations": sum(len(step.requires) for step in steps),
        "detector classes": len(document.detector_states),
    }
    return (
        f"{plain(document.name)}: task {plain(document.task)},"
        f" {len(document.components)} components, {len(steps)} steps,"
        f" {len(expected)} of them expected, "
        + ", ".join(f"{count} {what}" for what, count in counts.items())
        + ": no problem found"
    )


def convert(
    file: Annotated[
        str, typer.Argument(help="procedure_info file, or built in: industreal-assy, ...")
    ],
    out: Annotated[Path, typer.Option(help="The document to write (JSON).")],
    task: Annotated[str | None, typer.Option(help="Which task: assy, main, ...")] = None,
    states: StatesOption = None,
    initial_state: InitialStateOption = None,
    detector: Annotated[
        Path | None,
        typer.Option(help="Detector of live sessions: its folder, or cart (docs/detector.md)."),
    ] = None,
    storm: Annotated[
        Path | None,
        typer.Option(help="Storm bundle of live sessions: its folder, or cart (docs/storm.md)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The procedure's; else from the file's.")] = None,
) -> None:
    """Write a procedure as Keystep's own document, to be edited and checked."""
    from keystep_models.psr.procedure_document import of_procedure, write_document
    from keystep_models.psr.text_files import plain

    choice = choose_procedure(file, task, states, initial_state)
    procedure = choice.of_recording("")
    if detector is not None:
        procedure = _with_detector(procedure, detector)
    if storm is not None:
        procedure = _with_storm_bundle(procedure, storm)
    if name is not None:
        procedure = replace(procedure, name=name)
    write_document(of_procedure(procedure), out)
    typer.echo(f"{out}: {plain(procedure.name)}, {len(procedure.steps)} steps")


def _with_detector(procedure: Procedure, folder: Path) -> Procedure:
    """A procedure that pins a detector; it takes its classes where it has none of its own."""
    from keystep_models.detector.classes import ClassMap, adopt_classes
    from keystep_models.detector.detector import Detector
    from keystep_models.detector.shipped import shipped_manifests

    loaded = Detector.load(_shipped_or(folder, shipped_manifests()))
    if not procedure.states:
        procedure = adopt_classes(loaded.spec, procedure)
    ClassMap.of(loaded.spec, procedure)
    return replace(procedure, detector=loaded.id)


def _with_storm_bundle(procedure: Procedure, folder: Path) -> Procedure:
    """A procedure that pins a storm bundle, whose models were tried."""
    from keystep_models.storm.bundle import read_storm_bundle
    from keystep_models.storm.clip_model import ClipModel
    from keystep_models.storm.clip_recogniser import check_fits
    from keystep_models.storm.shipped import shipped_bundles

    bundle = read_storm_bundle(_shipped_or(folder, shipped_bundles()))
    check_fits(procedure, bundle)
    ClipModel.load(bundle)
    return replace(procedure, storm=bundle.id)


def _shipped_or(folder: Path, shipped: list[Path]) -> Path:
    """A folder, or, where there is none, the one that ships under this name."""
    if folder.exists():
        return folder
    return next((each.parent for each in shipped if each.parent.name == str(folder)), folder)
