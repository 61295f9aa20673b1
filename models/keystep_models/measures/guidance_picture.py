"""A guided session as a picture: what was done, what the filter believed, what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_models.measures.guidance_report import Trace

Image: TypeAlias = NDArray[np.uint8]

_WIDTH: Final = 1500
_LEFT, _RIGHT, _TOP, _BOTTOM = 230, 20, 56, 40
_ROW: Final = 24
_INK, _GREY, _GREEN, _RED = (40, 40, 40), (150, 150, 150), (60, 140, 30), (40, 40, 215)
_BAR: Final = (225, 170, 90)
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_KEY: Final = (
    "bars: done   shade: believed under way   triangles: reported (green right, red wrong)"
)


def draw_trace(
    trace: Trace, labels: Sequence[int], titles: Mapping[int, str], *, tolerance_s: float
) -> Image:
    """Draw one session, a row per step in the expert's order: (H, W, 3) uint8, BGR.

    Args:
        trace: What happened; its posterior's columns are the steps of `labels` and none.
        labels: Steps in the expert's order.
        titles: What they are called.
        tolerance_s: As it was scored.
    """
    rows = len(labels) + 1
    image: Image = np.full((_TOP + rows * _ROW + _BOTTOM, _WIDTH, 3), 255, np.uint8)
    length = max(float(trace.session.times_s[-1]), 1.0)
    span = _WIDTH - _LEFT - _RIGHT
    if trace.posterior.shape[1] == rows:
        _shade(image, trace, span)
    score = trace.score
    title = (
        f"{trace.session.name}: F1 {score.f1:.2f}, precision {score.precision:.2f},"
        f" recall {score.recall:.2f}, {score.right} of {score.done} steps, {length:.0f} s"
    )
    _write(image, title, (12, 22), _INK, 0.55)
    _write(image, _KEY, (12, 44), _GREY, 0.42)
    for place, label in enumerate([*labels, 0]):
        y = _TOP + place * _ROW
        _write(image, titles.get(label, "(none)" if not label else str(label)), (10, y + 17), _INK)
        cv2.line(image, (_LEFT, y + _ROW), (_WIDTH - _RIGHT, y + _ROW), (225, 225, 225), 1)
    places = {label: place for place, label in enumerate(labels)}
    for step in trace.truth:
        y = _TOP + places[step.label] * _ROW
        left, right = (_LEFT + round(span * t / length) for t in (step.start_s, step.end_s))
        cv2.rectangle(image, (left, y + 4), (right, y + _ROW - 5), _BAR, 2)
    _mark_reports(image, trace, places, tolerance_s, span / length)
    for second in range(0, int(length) + 1, 20):
        x = _LEFT + round(span * second / length)
        _write(image, f"{second}", (x - 8, image.shape[0] - 16), _GREY)
    return image


def _shade(image: Image, trace: Trace, span: int) -> None:
    ticks = np.minimum(np.arange(span) * len(trace.posterior) // span, len(trace.posterior) - 1)
    belief = np.repeat(trace.posterior[ticks].T, _ROW, axis=0)
    shade = (255 - 150 * np.clip(belief, 0, 1)).astype(np.uint8)
    area = image[_TOP : _TOP + len(belief), _LEFT : _LEFT + span]
    area[:, :, :] = shade[:, :, None]


def _mark_reports(
    image: Image, trace: Trace, places: Mapping[int, int], tolerance_s: float, scale: float
) -> None:
    for label, time_s in trace.reports:
        if label not in places:
            continue
        is_right = any(
            step.label == label
            and (step.start_s + step.end_s) / 2 <= time_s <= step.end_s + tolerance_s
            for step in trace.truth
        )
        x, y = _LEFT + round(scale * time_s), _TOP + places[label] * _ROW
        corners = np.array([[x - 6, y + 3], [x + 6, y + 3], [x, y + _ROW - 3]], np.int32)
        cv2.fillPoly(image, [corners], _GREEN if is_right else _RED)


def _write(
    image: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int], size: float = 0.42
) -> None:
    plain = text.encode("ascii", "replace").decode()[:110]
    cv2.putText(image, plain, at, _FONT, size, colour, 1, cv2.LINE_AA)
