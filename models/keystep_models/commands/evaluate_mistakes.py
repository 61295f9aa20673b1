"""`keystep evaluate mistakes`: what methods make of parts that are put in wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.steps_options import ProgressChoice, ProgressOption, progress_teller
from keystep_models.commands.study_options import (
    BundlesOption,
    CacheOption,
    DetectorOption,
    TrackerOption,
    load_models,
    load_sets,
    run_set,
    told_people,
    write_tables,
)

if TYPE_CHECKING:
    from keystep_models.measures.mistakes_report import Outcomes
    from keystep_models.storm.study_runs import StudyRun


def mistakes(
    data: Annotated[
        list[Path],
        typer.Argument(help="Folders of `simulate generate`, with --mistakes for more of them."),
    ],
    bundle: BundlesOption,
    detector: DetectorOption,
    out: Annotated[Path, typer.Option(help="Gets mistakes.json and .md.")],
    tracker_settings: TrackerOption = None,
    cache: CacheOption = None,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """How often a wrong part is called completed, and how long until guidance is right again.

    Stopped and called again, it goes on where it was.
    """
    from keystep_models.measures import mistakes_report as report
    from keystep_models.measures.mistakes import find_mistakes
    from keystep_models.storm.study_runs import check_bundles, check_methods, study_methods

    models = load_models(bundle, detector, tracker_settings)
    check_bundles(models.bundles)
    sets = load_sets(data, models)
    people = [recording for one in sets for recording in one.recordings]
    if again := [one.name for one in people if [o.name for o in people].count(one.name) > 1]:
        raise ConfigError(f"{again[0]} is in two data sets; give people that differ")
    if not any(find_mistakes(recording.states) for recording in people):
        raise ConfigError("nobody in these data makes a mistake; generate with --mistakes 6")
    threshold = models.bundles[0].document.accumulation.threshold
    methods = [m for m in study_methods(threshold, models.tracker) if not m.is_bound]
    for one in sets:
        check_methods(methods, one.procedure, models.bundles)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress_teller(progress)
    runs = [run_set(one, methods, models, cache or out / "cache", tell) for one in sets]
    rows = [
        report.mistake_row(
            method.key,
            method.title,
            _outcomes([found[method.key] for found in runs]),
            models.rate_hz,
        )
        for method in methods
    ]
    tell({"stage": "done"})
    heading = f"Parts put in wrongly: {told_people(sets, models)}"
    settings = models.settings(sets)
    write_tables(
        out, "mistakes", report.as_document(rows, settings), report.as_markdown(rows, heading)
    )


def _outcomes(found: Sequence[Sequence[Sequence[StudyRun]]]) -> list[list[Outcomes]]:
    """From sets of runs by seed, then recording, to outcomes by seed, then all recordings."""
    return [
        [run.mistakes for runs in of_sets for run in runs] for of_sets in zip(*found, strict=True)
    ]
