"""`keystep evaluate baselines`: trainings of the spatio-temporal branch against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.steps_options import ProgressChoice, ProgressOption, progress_teller
from keystep_models.commands.study_options import (
    CacheOption,
    Models,
    load_models,
    load_sets,
    run_set,
    told_people,
    write_tables,
)

if TYPE_CHECKING:
    from keystep_models.storm.bundle import StormBundle


def baselines(
    data: Annotated[Path, typer.Argument(help="A folder of people that nothing was trained on.")],
    bundle: Annotated[
        list[str],
        typer.Option(help="NAME=RUN/bundle; those of one name are its seeds, the first compared."),
    ],
    out: Annotated[Path, typer.Option(help="Gets baselines.json and .md.")],
    cache: CacheOption = None,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """The spatio-temporal branch alone, trained in several ways, as many seeds of each.

    Stopped and called again, it goes on where it was.
    """
    from keystep_models.measures import baselines_report as report
    from keystep_models.storm.study_runs import StudyMethod, check_methods

    named = _named(bundle)
    models = {name: load_models(paths, None, None) for name, paths in named.items()}
    _check_seeds(models)
    everything = Models(
        detector=None, bundles=[b for m in models.values() for b in m.bundles], tracker=None
    )
    sets = load_sets([data], everything)
    method = StudyMethod(key="temporal", title="spatio-temporal", method="temporal")
    for one in models.values():
        check_methods([method], sets[0].procedure, one.bundles)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress_teller(progress)
    tables = {}
    for name, one in models.items():
        runs = run_set(sets[0], [method], one, cache or out / "cache", tell)[method.key]
        tables[name] = [[run.score for run in seed] for seed in runs]
    tell({"stage": "done"})
    rows = report.baseline_rows(tables, everything.rate_hz)
    heading = f"Trainings of branch 2: {told_people(sets, next(iter(models.values())))} of each"
    settings = everything.settings(sets)
    settings["names"] = {name: [b.id for b in one.bundles] for name, one in models.items()}
    write_tables(
        out, "baselines", report.as_document(rows, settings), report.as_markdown(rows, heading)
    )


def _named(bundles: list[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for text in bundles:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--bundle is {text!r}, expected NAME=RUN/bundle")
        found.setdefault(name, []).append(Path(path))
    if len(found) < 2:
        raise ConfigError("expected bundles of two names or more to compare")
    return found


def _check_seeds(models: Mapping[str, Models]) -> None:
    """Every name a training of its own, with the same seeds, in order; or ConfigError."""
    from keystep_models.storm.study_runs import check_bundles

    first = next(iter(models))
    for name, one in models.items():
        check_bundles(one.bundles)
        if _seeds(one) != _seeds(models[first]):
            raise ConfigError(
                f"{name} has the seeds {_seeds(one)}, {first} {_seeds(models[first])}: runs are"
                " compared seed by seed"
            )


def _seeds(models: Models) -> list[object]:
    return [_seed(bundle) for bundle in models.bundles]


def _seed(bundle: StormBundle) -> object:
    return bundle.document.training.get("settings", {}).get("seed")
