"""`keystep psr score`: reported steps against ground truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError, DataError
from keystep_models.commands.psr_options import (
    InitialStateOption,
    StatesOption,
    TaskOption,
    choose_procedure,
    make_console,
)
from keystep_models.psr.text_files import plain, shown

if TYPE_CHECKING:
    from rich.table import Table

    from keystep_models.measures.psr import StepCounts
    from keystep_models.measures.psr_report import Manner, RecordingScore, Totals
    from keystep_models.psr.procedure import Procedure
    from keystep_models.psr.recording_files import ProcedureChoice
    from keystep_models.psr.steps_files import StepReport
    from keystep_models.psr.truth import RecordingTruth


class MannerChoice(StrEnum):
    """How to measure: Keystep's own way, or one of the published ones."""

    PLAIN = "plain"
    INDUSTREAL = "industreal"
    STORM = "storm"


class LayoutChoice(StrEnum):
    """Layout of the ground truth; found by the files' names otherwise."""

    LABELS = "labels"
    WITH_ERRORS = "with-errors"
    RAW = "raw"
    RAW_WITH_ERRORS = "raw-with-errors"
    STATES = "states"
    EXPECTED = "expected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A recording with everything that a table or picture of it needs."""

    truth: RecordingTruth
    reported: list[StepReport]
    procedure: Procedure | None
    score: RecordingScore


def score(
    truth: Annotated[
        Path, typer.Option(help="PSR_labels*.csv, _gt.csv[.gz], expected.json, or a folder.")
    ],
    steps: Annotated[Path, typer.Option(help="What `psr run` wrote: a file or a folder.")],
    manner: Annotated[MannerChoice, typer.Option(help="How to measure.")] = MannerChoice.PLAIN,
    layout: Annotated[
        LayoutChoice | None, typer.Option(help="Of the ground truth, where its name does not say.")
    ] = None,
    procedure: Annotated[
        str | None,
        typer.Option(help="Whose ids and states to expect; IndustReal's for its own layouts."),
    ] = None,
    task: TaskOption = None,
    states: StatesOption = None,
    initial_state: InitialStateOption = None,
    window: Annotated[int, typer.Option(min=1, help="Frames of a clip (STORM's manner).")] = 257,
    recording: Annotated[
        str | None, typer.Option(help="Which recording of the truth a single steps file is of.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="List recordings without a partner, go on.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Everything as JSON.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Timeline: PNG, or a folder for several recordings.")
    ] = None,
    detections: Annotated[
        Path | None, typer.Option(help="Shown in the pictures: CSV[.gz] or a folder of them.")
    ] = None,
) -> None:
    """Measure reported steps: POS, F1, precision, recall, delay and counts, in one manner."""
    from keystep_models.measures.psr_report import as_json
    from keystep_models.psr.recording_files import find_steps, read_truths
    from keystep_models.psr.truth import titles_of

    choice = None if procedure is None else choose_procedure(procedure, task, states, initial_state)
    if choice is None and (task or states or initial_state):
        choice = choose_procedure("industreal", task, states, initial_state)
    truths = read_truths(truth, choice, None if layout is None else layout.value)
    files = find_steps(steps)
    if steps.is_file():
        truths, files = _single(truths, files, recording)
    names = _matched(truths, files, truth, steps, allow_missing=allow_missing)
    for note in _notes([truths[name] for name in names], choice):
        typer.echo(f"Note: {note}.", err=True)
    scored = [_score_one(truths[name], files[name], choice, manner.value, window) for name in names]
    titles = titles_of(
        [one.truth for one in scored], [one.procedure for one in scored if one.procedure]
    )
    scores = [one.score for one in scored]
    _print_tables(manner.value, scores, titles)
    if out is not None:
        document = as_json(manner.value, scores, titles)
        out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if picture is not None:
        _write_pictures(picture, scored, titles, detections)


def _single(
    truths: dict[str, RecordingTruth], files: dict[str, Path], recording: str | None
) -> tuple[dict[str, RecordingTruth], dict[str, Path]]:
    """One steps file is about one recording: that of its name, --recording, or the only one."""
    [(stem, file)] = files.items()
    name = recording or (stem if stem in truths or len(truths) > 1 else next(iter(truths)))
    if name not in truths:
        raise ConfigError(
            f"expected --recording to be one of {', '.join(map(plain, sorted(truths)))}, got"
            f" {shown(name)}"
        )
    if len(truths) > 1:
        typer.echo(f"{file}: {name}, one of {len(truths)} recordings of the ground truth")
    return {name: truths[name]}, {name: file}


def _matched(
    truths: Mapping[str, object],
    files: Mapping[str, object],
    truth: Path,
    steps: Path,
    *,
    allow_missing: bool,
) -> list[str]:
    """Recordings that have both; the others are an error, or listed where that is allowed."""
    gaps = [
        f"no steps in {steps} for {plain(name)}" for name in sorted(truths.keys() - files.keys())
    ]
    gaps += [
        f"no truth in {truth} for {plain(name)}" for name in sorted(files.keys() - truths.keys())
    ]
    if gaps and not allow_missing:
        raise DataError(
            f"{len(gaps)} recordings without a partner: {'; '.join(gaps)}; --allow-missing leaves"
            " them out and lists them"
        )
    for gap in gaps:
        typer.echo(f"left out: {gap}")
    names = sorted(truths.keys() & files.keys())
    if not names:
        raise DataError(f"expected recordings that both {truth} and {steps} hold, found none")
    return names


def _notes(truths: Sequence[RecordingTruth], choice: ProcedureChoice | None) -> list[str]:
    """What a reader of the scores must know of the ground truth."""
    notes = [
        f"{truth.source} has no step of {plain(truth.name)}: all that was reported counts as false"
        for truth in truths
        if not truth.steps
    ]
    if choice is None and any(truth.task is None for truth in truths):
        notes.append("no --procedure is given, so step ids were not checked")
    return notes


def _score_one(
    truth: RecordingTruth,
    file: Path,
    choice: ProcedureChoice | None,
    manner: Manner,
    window_frames: int,
) -> Scored:
    from keystep_models.measures.psr_report import score_recording
    from keystep_models.psr.recording_files import ProcedureChoice
    from keystep_models.psr.steps_files import read_steps
    from keystep_models.psr.truth import check_known_steps

    if choice is None and truth.task is not None:  # IndustReal's own layouts
        choice = ProcedureChoice(source="industreal")
    procedure = None if choice is None else choice.of_recording(truth.name, truth.task)
    if procedure is not None and truth.task is not None:
        check_known_steps(truth, procedure)
    reported = read_steps(file, procedure, truth.frame_count)
    score = score_recording(
        manner,
        truth.steps,
        reported,
        name=truth.name,
        has_errors=truth.has_errors,
        window_frames=window_frames,
    )
    return Scored(truth=truth, reported=reported, procedure=procedure, score=score)


# --- tables -----------------------------------------------------------------------------------

_MEASURES = ("F1", "POS", "precision", "recall", "delay median", "delay mean")
_COUNTS = ("perc. FP", "perc. FN", "sys. TP", "sys. FP", "sys. FN")


def _print_tables(
    manner: Manner, scores: Sequence[RecordingScore], titles: Mapping[int, str]
) -> None:
    from rich.markup import escape

    from keystep_models.measures.psr_report import groups, steps_total, total

    console = make_console()
    table = _table(f"{manner} manner; delays in frames", ("recording", "errors"))
    for score in scores:
        known = {True: "yes", False: "no", None: "?"}[score.has_errors]
        table.add_row(escape(plain(score.name)), known, *_cells(score))
    table.add_section()
    for name, members in groups(scores).items():
        table.add_row(f"{name} ({len(members)})", "", *_cells(total(manner, members)), style="bold")
    console.print(table)
    console.print(_steps_table(steps_total(scores), titles))


def _table(title: str, names: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in (*_MEASURES, *_COUNTS):
        table.add_column(name, justify="right")
    return table


def _cells(values: RecordingScore | Totals) -> list[str]:
    shares = (values.f1, values.pos, values.precision, values.recall)
    delays = (values.median_delay_frames, values.mean_delay_frames)
    counts = (
        values.perception_fp_count,
        values.perception_fn_count,
        values.system_tp_count,
        values.system_fp_count,
        values.system_fn_count,
    )
    return [
        *(f"{share:.3f}" for share in shares),
        *(_delay(delay) for delay in delays),
        *(str(count) for count in counts),
    ]


def _delay(frames: float) -> str:
    return "-" if math.isnan(frames) else f"{frames:.1f}"


def _steps_table(by_step: Mapping[int, StepCounts], titles: Mapping[int, str]) -> Table:
    import statistics

    from rich.markup import escape
    from rich.table import Table

    table = Table(title="steps, over all recordings", title_justify="left")
    table.add_column("id", justify="right")
    table.add_column("step")
    for name in ("true", "reported", "TP", "FP", "FN", "delay median", "delay mean"):
        table.add_column(name, justify="right")
    for step_id, counts in by_step.items():
        numbers = (counts.true_count, counts.reported_count, counts.tp_count)
        delays = counts.delays_frames
        table.add_row(
            str(step_id),
            escape(plain(titles.get(step_id, ""))),
            *(str(n) for n in (*numbers, counts.fp_count, counts.fn_count)),
            _delay(statistics.median(delays) if delays else math.nan),
            _delay(statistics.fmean(delays) if delays else math.nan),
        )
    return table


# --- pictures ---------------------------------------------------------------------------------


def _write_pictures(
    picture: Path, scored: Sequence[Scored], titles: Mapping[int, str], detections: Path | None
) -> None:
    from keystep_models.psr.recording_files import find_detections

    seen = {} if detections is None else find_detections(detections)
    if len(scored) == 1 and detections is not None and detections.is_file():
        seen = dict(zip([scored[0].truth.name], seen.values(), strict=True))
    if len(scored) > 1:
        if picture.suffix:
            raise ConfigError(f"--picture {picture}: expected a folder for several recordings")
        picture.mkdir(parents=True, exist_ok=True)
    for one in scored:
        name = one.truth.name
        if detections is not None and name not in seen:
            raise DataError(f"{detections}: expected detections of {name}, found none")
        to_file = len(scored) == 1 and not picture.is_dir()
        _write_picture(picture if to_file else picture / f"{name}.png", one, titles, seen.get(name))


def _write_picture(
    path: Path, one: Scored, titles: Mapping[int, str], detections: Path | None
) -> None:
    from keystep_models.psr.detections import read_detections
    from keystep_models.psr.timeline_picture import Timeline, write_picture

    if path.suffix != ".png":
        raise ConfigError(f"--picture {path}: expected a file ending in .png, or a folder")
    frame_count = one.truth.frame_count
    seen = None if detections is None else read_detections(detections, frame_count)
    ends = [step.frame_idx + 1 for step in one.truth.steps]
    ends += [step.frame_idx + 1 for step in one.reported]
    score = one.score
    write_picture(
        path,
        Timeline(
            title=f"{score.name}:  F1 {score.f1:.3f}  POS {score.pos:.3f}"
            f"  mean delay {_delay(score.mean_delay_frames)} frames",
            truth=one.truth.steps,
            reported=one.reported,
            frame_count=frame_count or max([1, len(seen or ()), *ends]),
            titles=titles,
            detections=seen,
            class_names=_class_names(one.procedure),
        ),
    )


def _class_names(procedure: Procedure | None) -> dict[int, str]:
    names = {}
    for class_id, state in enumerate(() if procedure is None else procedure.states):
        what = "no state" if state is None else "".join(str(value) for value in state)
        names[class_id] = f"class {class_id}: {what}"
    return names
