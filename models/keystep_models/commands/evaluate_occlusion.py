"""`keystep evaluate occlusion`: STORM-PSR's claim, that a second branch sees through hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.steps_options import (
    ProgressChoice,
    ProgressOption,
    check_drawing,
    progress_teller,
)
from keystep_models.commands.study_options import (
    BundlesOption,
    CacheOption,
    DetectorOption,
    Models,
    TrackerOption,
    load_models,
    load_sets,
    run_set,
    told_people,
    write_tables,
)

if TYPE_CHECKING:
    from keystep_models.measures.study import RunScore, Table
    from keystep_models.storm.study_data import StudySet
    from keystep_models.storm.study_runs import StudyRun


def occlusion(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Folders of `simulate generate` at several --occlusion, or RATE=FOLDER."
        ),
    ],
    bundle: BundlesOption,
    detector: DetectorOption,
    out: Annotated[Path, typer.Option(help="Gets occlusion.json, .md and .png.")],
    tracker_settings: TrackerOption = None,
    cache: CacheOption = None,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """Both branches, fusions and tracker, against how often hands hide completions.

    Stopped and called again, it goes on where it was.
    """
    from keystep_models.measures import occlusion_report as report
    from keystep_models.measures.occlusion_picture import draw_occlusion
    from keystep_models.storm.study_runs import (
        BRANCH_1,
        check_bundles,
        check_methods,
        study_methods,
    )

    check_drawing()
    models = load_models(bundle, detector, tracker_settings)
    check_bundles(models.bundles)
    sets = _sets(data, models)
    threshold = models.bundles[0].document.accumulation.threshold
    methods = study_methods(threshold, models.tracker)
    check_methods(methods, next(iter(sets.values())).procedure, models.bundles)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress_teller(progress)
    rows: list[report.OcclusionRow] = []
    for rate, found in sets.items():
        runs = run_set(found, methods, models, cache or out / "cache", tell)
        rows += report.occlusion_rows(
            rate,
            {key: _scores(table) for key, table in runs.items()},
            {method.key: method.title for method in methods},
            reference=BRANCH_1,
            rate_hz=models.rate_hz,
        )
    settings = models.settings(list(sets.values()))
    result = report.OcclusionReport(rows=tuple(rows), settings=settings)
    heading = f"Hidden completions: {told_people(list(sets.values()), models)}"
    drawn = [m.key for m in methods if not m.is_bound or m.key == "soft_true"]
    draw_occlusion(result, out / "occlusion.png", methods=drawn, heading=heading)
    tell({"stage": "done"})
    write_tables(out, "occlusion", report.as_document(result), report.as_markdown(result, heading))


def _scores(table: Sequence[Sequence[StudyRun]]) -> Table[RunScore]:
    return [[run.score for run in runs] for runs in table]


def _sets(data: list[str], models: Models) -> Mapping[float, StudySet]:
    """Sets by rate, rising; ConfigError unless all show the same people doing the same."""
    told = [_split(text) for text in data]
    sets = load_sets([folder for _, folder in told], models)
    found: dict[float, StudySet] = {}
    for (rate, folder), one in zip(told, sets, strict=True):
        known = one.about.get("occlusion_rate") if rate is None else rate
        if not isinstance(known, int | float):
            raise ConfigError(f"{folder}: its dataset.json tells no rate; write RATE={folder}")
        if known in found:
            raise ConfigError(f"{found[known].name} and {one.name} both have the rate {known:g}")
        found[float(known)] = one
        _check_same_scenes(sets[0], one)
    return dict(sorted(found.items()))


def _split(text: str) -> tuple[float | None, Path]:
    before, equals, after = text.partition("=")
    if not equals or Path(text).is_dir():
        return None, Path(text)
    try:
        rate = float(before)
    except ValueError:
        raise ConfigError(f"{text}: expected RATE=FOLDER, e.g. 0.4=DATA, or a folder") from None
    if not 0 <= rate <= 1:
        raise ConfigError(f"{text}: expected a rate from 0 to 1")
    return rate, Path(after)


def _check_same_scenes(first: StudySet, other: StudySet) -> None:
    names = [[recording.name for recording in one.recordings] for one in (first, other)]
    if names[0] != names[1]:
        raise ConfigError(
            f"{first.name} and {other.name} show other people: {', '.join(names[0])} and"
            f" {', '.join(names[1])}"
        )
    for one, two in zip(first.recordings, other.recordings, strict=True):
        if not np.array_equal(one.states, two.states):
            raise ConfigError(
                f"{one.name} does other things in {first.name} than in {other.name}; generate both"
                " with the same --seed, differing in --occlusion only"
            )
