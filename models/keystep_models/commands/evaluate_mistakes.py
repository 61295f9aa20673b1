"""`keystep evaluate mistakes`: what methods make of parts that are put in wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def mistakes(
    data: Annotated[
        Path, typer.Argument(help="A folder of `simulate generate`, with --mistakes for more.")
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
    (found,) = sets = load_sets([data], models)
    if not any(find_mistakes(recording.states) for recording in found.recordings):
        raise ConfigError(f"{data}: nobody in it makes a mistake; generate with --mistakes 6")
    threshold = models.bundles[0].document.accumulation.threshold
    methods = [m for m in study_methods(threshold, models.tracker) if not m.is_bound]
    check_methods(methods, found.procedure, models.bundles)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress_teller(progress)
    runs = run_set(found, methods, models, cache or out / "cache", tell)
    rows = [
        report.mistake_row(
            method.key,
            method.title,
            [[run.mistakes for run in seed] for seed in runs[method.key]],
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
