"""What `keystep evaluate occlusion`, `baselines` and `mistakes` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_models.detector.detector import Detector
    from keystep_models.psr.tracker_model import TrackerModel
    from keystep_models.storm.bundle import StormBundle
    from keystep_models.storm.study_data import StudySet
    from keystep_models.storm.study_runs import StudyMethod, StudyRun

Tell: TypeAlias = "Callable[[dict[str, Any]], None]"

BundlesOption: TypeAlias = Annotated[
    list[Path], typer.Option("--bundle", help="RUN/bundle of train storm; one for each seed.")
]
DetectorOption: TypeAlias = Annotated[
    Path, typer.Option(help="Its folder, or manifest.json (docs/detector.md).")
]
TrackerOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="JSON of fit_tracker: the tracker runs with these settings as well."),
]
CacheOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Features, detections and clips, kept; else OUT/cache. Can be shared."),
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """What looks, loaded and checked."""

    detector: Detector | None
    bundles: Sequence[StormBundle]
    tracker: TrackerModel | None

    @property
    def rate_hz(self) -> float:
        """Frames a second of the bundles."""
        return self.bundles[0].document.rate_hz

    def settings(self, sets: Sequence[StudySet]) -> dict[str, Any]:
        """All that decided a study, for JSON; no paths."""
        from keystep_models.psr.tracker_model import model_values

        names = [recording.name for data in sets for recording in data.recordings]
        return {
            "data": {data.name: [one.name for one in data.recordings] for data in sets},
            "simulated": {data.name: bool(data.about) for data in sets},
            "detector": None if self.detector is None else self.detector.id,
            "bundles": {b.id: dict(b.document.training) for b in self.bundles},
            "tracker": None if self.tracker is None else model_values(self.tracker),
            "trained_on": _trained_on(self.bundles, names),
            "rate_hz": self.rate_hz,
            "manner": "plain",
        }


def load_models(bundles: Sequence[Path], detector: Path | None, tracker: Path | None) -> Models:
    """Load and check what looks; one-line errors."""
    from keystep_models.detector.detector import Detector
    from keystep_models.psr.tracker_model import load_tracker_model
    from keystep_models.storm.bundle import read_storm_bundle
    from keystep_models.storm.clip_predictions import try_bundle

    found = [read_storm_bundle(path) for path in bundles]
    for one in found:
        try_bundle(one)
    return Models(
        detector=None if detector is None else Detector.load(detector),
        bundles=found,
        tracker=None if tracker is None else load_tracker_model(tracker),
    )


def load_sets(folders: Sequence[Path], models: Models) -> list[StudySet]:
    """Read and check the data sets; a warning where a bundle was trained on one of their names."""
    from keystep_models.storm.study_data import read_study_set

    sets = [read_study_set(folder, models.detector, models.bundles) for folder in folders]
    names = [data.name for data in sets]
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two data sets are called {again[0]!r}; give their folders other names")
    tested = [recording.name for data in sets for recording in data.recordings]
    if known := _trained_on(models.bundles, tested):
        typer.echo(
            f"Warning: bundles were trained on recordings called {', '.join(known)}; figures hold"
            " for people they have not seen.",
            err=True,
        )
    return sets


def _trained_on(bundles: Sequence[StormBundle], names: Sequence[str]) -> list[str]:
    from keystep_models.storm.study_runs import trained_on

    return trained_on(bundles, names)


def run_set(
    data: StudySet, methods: Sequence[StudyMethod], models: Models, cache: Path, tell: Tell
) -> Mapping[str, list[list[StudyRun]]]:
    """Every method on every recording of a set: by key, then seed, then recording."""
    from keystep_models.storm.study_data import SeenCache
    from keystep_models.storm.study_runs import by_seed, run_method

    looking = SeenCache(cache, models.detector, models.bundles, tell=tell)
    found: dict[str, list[list[StudyRun]]] = {method.key: [] for method in methods}
    for recording in data.recordings:
        seen = looking.look(data, recording)
        tell({"stage": "methods", "recording": f"{data.name}/{recording.name}"})
        for method in methods:
            runs = run_method(method, data.procedure, recording, seen, models.bundles)
            found[method.key].append(runs)
    return {key: by_seed(of_people) for key, of_people in found.items()}


def write_tables(out: Path, stem: str, document: dict[str, Any], markdown: str) -> None:
    """Write STEM.json and STEM.md, each at once, and print the latter."""
    from keystep_models.commands.psr_options import make_console
    from keystep_models.steps.feature_folder import atomic_path, write_json

    write_json(out / f"{stem}.json", document)
    with atomic_path(out / f"{stem}.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    console = make_console()
    console.print(markdown, markup=False, soft_wrap=True)
    console.print(f"{out / stem}.md, .json", markup=False, soft_wrap=True)


def told_people(sets: Sequence[StudySet], models: Models) -> str:
    """People, seeds and where the data come from, for headings."""
    people = len({recording.name for data in sets for recording in data.recordings})
    kind = "simulated sessions" if all(data.about for data in sets) else "recordings"
    return f"{kind}, {people} people, {len(models.bundles)} seeds"
