"""`keystep psr run`: from detections and clips to steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.psr_options import (
    InitialStateOption,
    StatesOption,
    TaskOption,
    choose_procedure,
    make_console,
    parse_image_size,
    with_progress,
)
from keystep_models.psr.text_files import MAX_FRAME_COUNT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keystep_models.psr.clips import ClipPrediction
    from keystep_models.psr.logic import Detection
    from keystep_models.psr.methods import Method
    from keystep_models.psr.procedure import Procedure
    from keystep_models.psr.recogniser import Recogniser
    from keystep_models.psr.recording_files import ProcedureChoice


class FusionChoice(StrEnum):
    """How STORM's two branches come together."""

    SHARED = "shared"
    SOFT = "soft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a method is given of a recording; lists hold one entry per frame."""

    name: str
    procedure: Procedure
    detections: list[list[Detection]]
    clips: list[ClipPrediction | None]


def run(
    method: Annotated[str, typer.Option(help="b1, b2, b3, temporal, storm, tracker.")],
    procedure: Annotated[
        str,
        typer.Option(help="JSON file, or built in: industreal, industreal-assy, industreal-main."),
    ],
    out: Annotated[
        Path, typer.Option(help="File (.json, or .csv for the label layout), or a folder.")
    ],
    detections: Annotated[
        Path | None, typer.Option(help="CSV[.gz] of a recording, or a folder of them.")
    ] = None,
    clips: Annotated[
        Path | None, typer.Option(help="Clip predictions: CSV or JSON[.gz], or a folder of them.")
    ] = None,
    task: TaskOption = None,
    states: StatesOption = None,
    initial_state: InitialStateOption = None,
    threshold: Annotated[
        float | None, typer.Option(help="Sum to exceed; 8 for b2 and b3, 6 for temporal and storm.")
    ] = None,
    tracker_settings: Annotated[
        Path | None,
        typer.Option(help="JSON of fit_tracker, in place of the settings shipped for IndustReal."),
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Factor for sums that did not gain; else 0.75.")
    ] = None,
    fusion: Annotated[
        FusionChoice | None, typer.Option(help="Of storm's branches; else shared.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of the clips where storm's sums unite; else 0.5.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_FRAME_COUNT, help="Frames that a clip spans; else 257."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_FRAME_COUNT, help="Frames in the recording; else up to the last row."
        ),
    ] = None,
    meta: Annotated[
        Path | None, typer.Option(help="expected.json: frame counts and tasks of recordings.")
    ] = None,
    image_size: Annotated[
        str, typer.Option(help="Boxes must lie within WIDTHxHEIGHT; any: unchecked.")
    ] = "1280x720",
    branches: Annotated[
        bool, typer.Option("--branches", help="Also write each branch's own steps (storm).")
    ] = False,
    with_incorrect: Annotated[
        bool,
        typer.Option(
            "--with-incorrect",
            help="Put incorrect steps among the others, for ground truth that has them.",
        ),
    ] = False,
) -> None:
    """Recognise steps in one recording, or in a folder of them, frame by frame as live."""
    from keystep_models.psr.methods import MethodOptions, find_method
    from keystep_models.psr.tracker_model import load_tracker_model

    chosen = find_method(method)
    settings = {
        "threshold": threshold,
        "decay": decay,
        "fusion": None if fusion is None else fusion.value,
        "weight": weight,
        "window_frames": window,
        "tracker_model": tracker_settings,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    _check_used(method, given)
    if branches and (method != "storm" or fusion is FusionChoice.SOFT):
        raise ConfigError("--branches is for --method storm with --fusion shared")
    if tracker_settings is not None:
        given["tracker_model"] = load_tracker_model(tracker_settings)
    choice = choose_procedure(procedure, task, states, initial_state)
    options = MethodOptions(**given)
    sources = _sources(method, chosen, detections, clips)
    outs = _out_files(out, list(sources), into_folder=_is_folder(detections or clips))
    limits = _Limits(frames=frames, meta=meta, image_size=parse_image_size(image_size))
    lists = _Lists(branches=branches, incorrect_among_steps=with_incorrect)
    recordings = _read_all(sources, choice, limits)
    started = [chosen.make(recording.procedure, options) for recording in recordings]
    for note in dict.fromkeys(recogniser.note for recogniser in started if recogniser.note):
        typer.echo(f"Note: {note}.", err=True)
    counts = {
        recording.name: _run_one(recording, recogniser, outs[recording.name], lists)
        for recording, recogniser in zip(recordings, started, strict=True)
    }
    _print_totals(method, counts, out)


_FLAGS = {"window_frames": "--window", "tracker_model": "--tracker-settings"}


def _check_used(method: str, given: Mapping[str, object]) -> None:
    """ConfigError where an option is given that the method does not take."""
    from keystep_models.psr.methods import METHODS

    for name in given:
        users = [other for other, known in METHODS.items() if name in known.options]
        if method not in users:
            flag = _FLAGS.get(name, f"--{name}")
            raise ConfigError(f"{flag} is for --method {', '.join(users)}, not {method}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    frames: int | None
    meta: Path | None
    image_size: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """Which steps go where in the file."""

    branches: bool
    incorrect_among_steps: bool


_Sources = dict[str, tuple[Path | None, Path | None]]  # per recording: detections, clips


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()


def _sources(name: str, method: Method, detections: Path | None, clips: Path | None) -> _Sources:
    """Every recording's files; ConfigError where one that the method needs is missing."""
    from keystep_models.psr.recording_files import find_clips, find_detections

    if method.needs_detections and detections is None:
        raise ConfigError(f"--method {name} needs --detections")
    if method.needs_clips and clips is None:
        raise ConfigError(f"--method {name} needs --clips")
    seen = {} if detections is None else find_detections(detections)
    spanned = {} if clips is None else find_clips(clips)
    if len(seen) == len(spanned) == 1 and not _is_folder(detections) and not _is_folder(clips):
        spanned = dict(zip(seen, spanned.values(), strict=True))  # two files, one recording
    names = sorted({*seen, *spanned})
    for recording in names:
        if method.needs_detections and recording not in seen:
            raise ConfigError(f"{detections}: expected detections of {recording}, found none")
        if method.needs_clips and recording not in spanned:
            raise ConfigError(f"{clips}: expected clip predictions of {recording}, found none")
    return {recording: (seen.get(recording), spanned.get(recording)) for recording in names}


def _out_files(out: Path, names: list[str], *, into_folder: bool) -> Mapping[str, Path]:
    if into_folder or out.is_dir():
        if out.suffix in (".json", ".csv"):
            raise ConfigError(f"--out {out}: expected a folder for a folder of recordings")
        out.mkdir(parents=True, exist_ok=True)
        return {name: out / f"{name}.json" for name in names}
    if out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out {out}: expected a file ending in .json or .csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    return dict.fromkeys(names, out)


def _read_all(sources: _Sources, choice: ProcedureChoice, limits: _Limits) -> list[Recording]:
    """Read everything before anything is written: bad input leaves no half of the results."""
    from keystep_models.psr.truth import read_expected

    known = {} if limits.meta is None else read_expected(limits.meta)
    if limits.frames is not None and len(sources) > 1:
        raise ConfigError("--frames is for one recording; give --meta for a folder of them")
    recordings = []
    for name, (seen, spanned) in sources.items():
        if limits.meta is not None and name not in known:
            raise ConfigError(f"{limits.meta}: expected an entry for {name}, found none")
        told = known.get(name)
        procedure = choice.of_recording(name, None if told is None else told.task)
        count = limits.frames if told is None else told.frame_count
        recordings.append(_read(name, procedure, seen, spanned, count, limits.image_size))
    return recordings


def _read(
    name: str,
    procedure: Procedure,
    seen: Path | None,
    spanned: Path | None,
    frame_count: int | None,
    image_size: tuple[int, int] | None,
) -> Recording:
    from keystep_models.psr.clips import read_clips
    from keystep_models.psr.detections import DetectionLimits, read_detections

    if seen is not None and not procedure.states:
        raise ConfigError(
            f"procedure {procedure.name!r} does not say what the detector's classes stand for; give"
            " --states, or a document with detector_states"
        )
    boxes = DetectionLimits(class_count=len(procedure.states), image_size=image_size)
    detections = [] if seen is None else read_detections(seen, frame_count, boxes)
    count = procedure.component_count
    clips = [] if spanned is None else read_clips(spanned, count, frame_count)
    length = max(len(detections), len(clips))
    detections += [[] for _ in range(length - len(detections))]
    clips += [None] * (length - len(clips))
    return Recording(name=name, procedure=procedure, detections=detections, clips=clips)


def _run_one(
    recording: Recording, recogniser: Recogniser, out: Path, lists: _Lists
) -> tuple[int, int]:
    """Write a recording's steps; its numbers of frames and steps."""
    from keystep_models.psr.recogniser import run_recording
    from keystep_models.psr.steps_files import write_steps

    seen = with_progress(recording.detections, recording.name)
    done = run_recording(recogniser, seen, recording.clips)
    steps, more = done.steps, dict(done.branches) if lists.branches else {}
    if not lists.incorrect_among_steps:
        more["incorrect"] = [step for step in steps if step.kind == "incorrect"]
        steps = [step for step in steps if step.kind != "incorrect"]
    more["retracted"] = done.retracted
    apart = {name: found for name, found in more.items() if found or name in done.branches}
    write_steps(out, steps, recording.procedure, more=apart)
    return len(recording.detections), len(steps)


def _print_totals(method: str, counts: Mapping[str, tuple[int, int]], out: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from keystep_models.psr.text_files import plain

    table = Table(title=f"{method}: steps written to {out}", title_justify="left")
    table.add_column("recording")
    table.add_column("frames", justify="right")
    table.add_column("steps", justify="right")
    for name, (frame_count, step_count) in counts.items():
        table.add_row(escape(plain(name)), str(frame_count), str(step_count))
    if len(counts) > 1:
        table.add_section()
        frame_counts, step_counts = zip(*counts.values(), strict=True)
        totals = (str(sum(frame_counts)), str(sum(step_counts)))
        table.add_row(f"{len(counts)} recordings", *totals)
    make_console().print(table)
