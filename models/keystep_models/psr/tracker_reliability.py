"""How the tracker does on participants it was not fitted on, and how far to trust its confidence.

    python -m keystep_models.psr.tracker_reliability --detections DIR [--truth DIR] [--tune 60]
        [--picture reliability.png] [--jobs 2] [--resume FILE]

Every participant is left out in turn: what is counted (and, with `--tune`, what is tuned) comes
from the others' recordings only. Tuning takes minutes: it runs in `--jobs` processes, shows how far
it is, and, with `--resume`, goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.psr import PlainScore, pair_plain, score_plain, summarise_plain
from keystep_models.psr.fit_tracker import (
    FitRecording,
    draw_settings,
    fit,
    read_recordings,
    steps_of,
    track,
    worth,
)
from keystep_models.psr.tracker import TrackerEvent
from keystep_models.psr.tracker_model import TrackerModel, model_values

Image: TypeAlias = NDArray[np.uint8]

_BIN_COUNT: Final = 5
_PLOT: Final = 520  # side of the square plot, pixels
_LEFT, _TOP, _RIGHT, _BOTTOM = 84, 56, 36, 76
_LOWEST: Final = 0.5  # nothing less probable is ever reported
_INK: Final = (40, 40, 40)
_FAINT: Final = (225, 225, 225)
_MARK: Final = (170, 90, 30)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Reports of similar confidence: their mean confidence, the share that was right, how many."""

    confidence: float
    right_share: float
    count: int


def reliability(confidences: Sequence[float], is_right: Sequence[bool]) -> list[ReliabilityBin]:
    """Sort reports by confidence into bins of equal size; ConfigError when there are none.

    Reports of one confidence may fall into neighbouring bins, in their given order.
    """
    if not confidences or len(confidences) != len(is_right):
        raise ConfigError(
            f"expected as many verdicts as confidences, at least one, got {len(is_right)} and"
            f" {len(confidences)}"
        )
    values, right = np.array(confidences), np.array(is_right, dtype=float)
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, min(_BIN_COUNT, len(order)))
    return [
        ReliabilityBin(float(values[part].mean()), float(right[part].mean()), len(part))
        for part in parts
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error: mean distance of confidence and right share over reports."""
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.confidence - part.right_share) for part in bins) / total


def judge(
    recording: FitRecording, events: Sequence[TrackerEvent]
) -> tuple[list[float], list[bool]]:
    """Confidence of every completed or removed step as reported, and whether it was right."""
    reports = [e for e in events if e.retracts is None and e.kind != "incorrect"]
    right = {reported for _, reported in pair_plain(recording.truth, steps_of(events))}
    return [e.confidence for e in reports], [idx in right for idx in range(len(reports))]


def draw_reliability(bins: Sequence[ReliabilityBin], title: str) -> Image:
    """Draw bins as dots against the diagonal of perfect confidence: (H, W, 3) uint8, BGR."""
    height, width = _TOP + _PLOT + _BOTTOM, _LEFT + _PLOT + _RIGHT
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    for value in np.arange(_LOWEST, 1.001, 0.1):
        cv2.line(image, _point(value, _LOWEST), _point(value, 1.0), _FAINT, 1)
        cv2.line(image, _point(_LOWEST, value), _point(1.0, value), _FAINT, 1)
        x, y = _point(value, value)
        _text(image, f"{value:.1f}", (x - 12, _TOP + _PLOT + 24))
        _text(image, f"{value:.1f}", (_LEFT - 40, y + 5))
    cv2.line(image, _point(_LOWEST, _LOWEST), _point(1.0, 1.0), (150, 150, 150), 1, cv2.LINE_AA)
    dots = [_point(part.confidence, max(part.right_share, _LOWEST)) for part in bins]
    cv2.polylines(image, [np.array(dots, dtype=np.int32)], False, _MARK, 2, cv2.LINE_AA)
    for dot, part in zip(dots, bins, strict=True):
        cv2.circle(image, dot, 6, _MARK, -1, cv2.LINE_AA)
        _text(image, f"{part.count}", (dot[0] - 8, dot[1] + 24))
    _text(image, title, (_LEFT, 34), scale=0.52)
    _text(image, "confidence of a reported step", (_LEFT + 130, height - 18))
    _text(image, "right", (10, _TOP + 16))
    return image


def _point(x: float, y: float) -> tuple[int, int]:
    scale = _PLOT / (1.0 - _LOWEST)
    return round(_LEFT + (x - _LOWEST) * scale), round(_TOP + (1.0 - y) * scale)


def _text(image: Image, text: str, at: tuple[int, int], scale: float = 0.48) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)


def fit_without(
    recordings: Sequence[FitRecording], draws: int, jobs: int, resume: Path | None
) -> dict[str, TrackerModel]:
    """For every participant the model fitted, and with `draws` tuned, on all others.

    Args:
        recordings: Of all participants.
        draws: Settings to choose from for each; 0 keeps the defaults.
        jobs: Processes to try settings in.
        resume: JSON lines of what was tried before and is tried now; None keeps no record.

    Raises:
        DataError: the record cannot be read or written.
    """
    people = sorted({recording.participant for recording in recordings})
    others = {p: [r for r in recordings if r.participant != p] for p in people}
    models = {p: fit(others[p], TrackerModel()) for p in people}
    if not draws:
        return models
    trials = [_Trial(p, drawn) for p in people for drawn in draw_settings(models[p], draws)]
    worths = _read_record(resume)
    open_trials = [trial for trial in trials if trial.key(others[trial.participant]) not in worths]
    for key, value in _try_all(open_trials, others, jobs, resume):
        worths[key] = value
    for p in people:
        mine = [trial.model for trial in trials if trial.participant == p]
        models[p] = max(mine, key=lambda drawn: worths[_Trial(p, drawn).key(others[p])])
    return models


@dataclass(frozen=True, slots=True)
class _Trial:
    """Settings to try on all participants but one."""

    participant: str
    model: TrackerModel

    def key(self, others: Sequence[FitRecording]) -> str:
        """What tells this trial from others, in this run and in earlier ones."""
        values = {"model": model_values(self.model), "on": [r.name for r in others]}
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _try_all(
    trials: Sequence[_Trial],
    others: Mapping[str, Sequence[FitRecording]],
    jobs: int,
    resume: Path | None,
) -> Iterator[tuple[str, float]]:
    """Try settings in several processes; each trial's key and worth, also kept in `resume`."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        sets = [others[trial.participant] for trial in trials]
        found = pool.map(worth, sets, [trial.model for trial in trials])
        for trial, mine, value in zip(
            trials, sets, progress.track(found, len(trials), description="tuning"), strict=True
        ):
            key = trial.key(mine)
            _write_record(resume, key, value)
            yield key, value


def _read_record(path: Path | None) -> dict[str, float]:
    if path is None or not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(row["trial"]): float(row["worth"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected trials of an earlier run ({error})") from error


def _write_record(path: Path | None, key: str, value: float) -> None:
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"trial": key, "worth": value}) + "\n")
    except OSError as error:
        raise DataError(f"cannot write the record {path}: {error}") from error


def main(
    detections: Annotated[Path, typer.Option(help="Folder with _pred.csv.gz files.")],
    truth: Annotated[Path | None, typer.Option(help="Ground truth, if it lies elsewhere.")] = None,
    procedure: Annotated[str, typer.Option(help="As keystep psr run takes it.")] = "industreal",
    tune_draws: Annotated[int, typer.Option("--tune", help="Settings to try per fold.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Where to draw, PNG.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that try settings.")] = 1,
    resume: Annotated[
        Path | None, typer.Option(help="File of what was tried, to go on from when stopped.")
    ] = None,
) -> None:
    """Leave out every participant in turn and print how the tracker does on them."""
    recordings = read_recordings(detections, truth or detections, procedure)
    scores: list[PlainScore] = []
    confidences: list[float] = []
    is_right: list[bool] = []
    for participant, model in fit_without(recordings, tune_draws, jobs, resume).items():
        for recording in (r for r in recordings if r.participant == participant):
            events = track(recording, model)
            scores.append(score_plain(recording.truth, steps_of(events)))
            values, right = judge(recording, events)
            confidences += values
            is_right += right
            typer.echo(f"{recording.name}: F1 {scores[-1].f1:.3f} POS {scores[-1].pos:.3f}")
    bins = reliability(confidences, is_right)
    typer.echo(f"{summarise_plain(scores)}")
    typer.echo(f"calibration error {calibration_error(bins):.3f}: {bins}")
    if picture is not None:
        title = f"{len(confidences)} reports, participants left out: ECE"
        image = draw_reliability(bins, f"{title} {calibration_error(bins):.3f}")
        if not cv2.imwrite(str(picture), image):
            raise DataError(f"cannot write the picture {picture}; expected a path ending in .png")


if __name__ == "__main__":
    typer.run(main)
