"""How the tracker does on participants it was not fitted on, and how far to trust its confidence.

    python -m keystep_models.psr.tracker_reliability --detections DIR [--truth DIR] [--tune 60]
        [--picture reliability.png]

Every participant is left out in turn: what is counted (and, with `--tune`, what is tuned) comes
from the others' recordings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.psr import PlainScore, pair_plain, score_plain, summarise_plain
from keystep_models.psr.fit_tracker import (
    FitRecording,
    fit,
    read_recordings,
    steps_of,
    track,
    tune,
)
from keystep_models.psr.tracker import TrackerEvent
from keystep_models.psr.tracker_model import TrackerModel

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


def main(
    detections: Annotated[Path, typer.Option(help="Folder with _pred.csv.gz files.")],
    truth: Annotated[Path | None, typer.Option(help="Ground truth, if it lies elsewhere.")] = None,
    procedure: Annotated[str, typer.Option(help="As keystep psr run takes it.")] = "industreal",
    tune_draws: Annotated[int, typer.Option("--tune", help="Settings to try per fold.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Where to draw, PNG.")] = None,
) -> None:
    """Leave out every participant in turn and print how the tracker does on them."""
    recordings = read_recordings(detections, truth or detections, procedure)
    scores: list[PlainScore] = []
    confidences: list[float] = []
    is_right: list[bool] = []
    for participant in sorted({recording.participant for recording in recordings}):
        others = [r for r in recordings if r.participant != participant]
        model = fit(others, TrackerModel())
        if tune_draws:
            model = tune(others, model, tune_draws)
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
