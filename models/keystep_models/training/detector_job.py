"""`keystep train detector` as a whole: train, export, test on other people, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.detector.detection_file import write_detections
from keystep_models.detector.detector import Detector
from keystep_models.detector.frame_labels import (
    choose_people,
    find_people,
    read_frame_labels,
)
from keystep_models.detector.letterbox import Scaler, place
from keystep_models.detector.recorded_pictures import at_rate, open_pictures
from keystep_models.measures.detector_report import (
    ScoredFrames,
    confusion,
    join,
    score_frames,
    summarise,
)
from keystep_models.psr.detections import read_detections
from keystep_models.steps.feature_folder import write_json
from keystep_models.training.detector_data import letterboxed
from keystep_models.training.detector_model import HEIGHT, WIDTH
from keystep_models.training.detector_pictures import draw_report
from keystep_models.training.export_detector import export_detector
from keystep_models.training.train_detector import DetectorSettings, Tell, train_detector

_CHECKED: Final = 8  # pictures on which the graph is compared with torch


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Who is trained on, calibrated on and tested on: folders of a data set, all different."""

    train: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    test: tuple[Path, ...]


def share_out(dataset: Path, train: str | None, calibrate: str | None, test: str | None) -> People:
    """Who does what; in order of number 60 %, 15 % and 25 % of the people where nothing is said.

    Raises:
        ConfigError: Some, not all, of the three are given; nobody is left for one; or somebody
            is in two.
        DataError: The data set is none.
    """
    everybody = find_people(dataset)
    groups: list[list[Path]]
    if train is None and calibrate is None and test is None:
        first = round(0.6 * len(everybody))
        second = max(first + 1, round(0.75 * len(everybody)))
        groups = [everybody[:first], everybody[first:second], everybody[second:]]
    elif train is None or calibrate is None or test is None:
        raise ConfigError("give all of --people, --calibrate and --test, or none of them")
    else:
        groups = [choose_people(everybody, text) for text in (train, calibrate, test)]
    names = [path.name for group in groups for path in group]
    if not all(groups) or len(set(names)) < len(names):
        raise ConfigError(
            "expected people to train on, others to calibrate on and others to test on, got "
            + ", ".join(" ".join(path.name for path in group) or "nobody" for group in groups)
        )
    return People(train=tuple(groups[0]), calibrate=tuple(groups[1]), test=tuple(groups[2]))


def run(
    people: People,
    settings: DetectorSettings,
    out: Path,
    *,
    name: str,
    licence: str,
    threads: int,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Train, export to `out/model`, test, and write report.json and report.png.

    Returns:
        The report.

    Raises:
        ConfigError, DataError, StateError: As `train_detector`.
        ModelError: The exported graph differs from the trained heads.
        OSError: The disk does not take it; a later call goes on.
    """
    for person in people.test:  # before training, not after
        read_frame_labels(person)
    detector, curves = train_detector(people.train, people.calibrate, settings, out, tell=tell)
    tell({"stage": "export"})
    difference = export_detector(
        detector,
        out / "model",
        name=name,
        source=f"keystep train detector on simulated sessions of {len(people.train)} people of "
        f"{people.train[0].parent.name}; trunk: EfficientNet-Lite0 (ImageNet), see "
        "cues/appearance/LICENCE.md",
        licence=licence,
        simulated=True,
        check=_some_pictures(people.calibrate[0]),
    )
    loaded = Detector.load(out / "model", intra_op_threads=threads)
    scored = [_test(person, loaded, out / "detections", tell) for person in people.test]
    together = join(scored)
    summary = summarise(together)
    report = {
        "simulated": True,
        "people": {g: [p.name for p in getattr(people, g)] for g in People.__slots__},
        "export_difference": difference,
        "sharpness": float(detector.sharpness),
        "bias": float(detector.bias),
        "all": summary,
        "by_person": {p.name: summarise(s) for p, s in zip(people.test, scored, strict=True)},
    }
    write_json(out / "report.json", report)
    names = loaded.spec.class_names
    draw_report(out / "report.png", curves, summary, confusion(together, len(names)), names)
    return report


def _test(person: Path, detector: Detector, folder: Path, tell: Tell) -> ScoredFrames:
    labels = read_frame_labels(person)
    path = folder / f"{person.name}.csv"

    def on_progress(done: int) -> None:
        tell({"stage": "test", "recording": person.name, "done": done, "of": len(labels.states)})

    write_detections(open_pictures(person), detector, path, rate_hz=None, on_progress=on_progress)
    return score_frames(read_detections(path), labels, detector.spec.states)


def _some_pictures(person: Path) -> NDArray[np.uint8]:
    """Pictures of a recording, about a second apart."""
    scaler = Scaler()
    found: list[NDArray[np.uint8]] = []
    for _, _, picture in at_rate(open_pictures(person).read(), 1.0):
        if picture is not None:
            placement = place(picture.width, picture.height, WIDTH, HEIGHT, "letterbox")
            found.append(letterboxed(scaler, picture, placement))
        if len(found) == 10 * _CHECKED:
            break
    if not found:
        raise DataError(f"{person}: no picture could be decoded")
    return np.stack(found[:: max(1, len(found) // _CHECKED)])


def table_rows(report: dict[str, Any]) -> Sequence[tuple[str, ...]]:
    """The report's figures by share hidden, as texts for a table."""
    parts = [("all", report["all"])] + [
        (f"{100 * p['hidden'][0]:.0f}-{100 * p['hidden'][1]:.0f} % hidden", p)
        for p in report["all"]["by_hidden"]
    ]
    keys = ("detected", "right", "components", "overlap")
    return [
        (title, str(part["frames"]), *("" if part[k] is None else f"{part[k]:.3f}" for k in keys))
        for title, part in parts
    ]
