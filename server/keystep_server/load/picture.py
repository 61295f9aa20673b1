"""Every tick's latency of each round as a histogram, drawn with OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

Image = NDArray[np.uint8]
_WIDTH, _ROW, _TOP, _LEFT, _RIGHT, _BOTTOM = 1000, 130, 56, 150, 24, 44
_FIRST_MS, _DECADES, _BINS = 1.0, 4, 160
_PAPER, _INK, _FAINT, _BAR, _MARK = (
    (252, 252, 252),
    (40, 40, 40),
    (225, 225, 225),
    (190, 140, 60),
    (50, 50, 200),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One row of the picture: a label and the latencies of every tick, ms."""

    label: str
    latencies_ms: Sequence[float]


def write_picture(path: Path, title: str, rows: Sequence[Histogram]) -> None:
    """Draw the histograms into a PNG file.

    Raises:
        DataError: It cannot be written.
    """
    try:
        written = cv2.imwrite(str(path), draw_histograms(title, rows))
    except cv2.error:  # an ending it does not know
        written = False
    if not written:
        raise DataError(f"cannot write the picture {path}; expected a path that ends in .png")


def draw_histograms(title: str, rows: Sequence[Histogram]) -> Image:
    """One histogram below the other on one logarithmic axis: (H, W, 3) uint8, BGR.

    Bars are scaled to their own row's highest; red lines mark p50, p95 and p99.
    """
    height = _TOP + _ROW * len(rows) + _BOTTOM
    image: Image = np.full((height, _WIDTH, 3), _PAPER, np.uint8)
    _write(image, title, (14, 30), scale=0.6)
    for decade in range(_DECADES + 1):
        for step in range(1, 10 if decade < _DECADES else 2):
            value_ms = _FIRST_MS * step * 10**decade
            x = _x_of(value_ms)
            cv2.line(image, (x, _TOP), (x, height - _BOTTOM), _FAINT, 1)
            if step in (1, 3):
                text = f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1000:.0f} s"
                _write(image, text, (x - 16, height - 18), scale=0.42)
    for number, row in enumerate(rows):
        _draw_row(image, row, base=_TOP + _ROW * (number + 1) - 8)
    return image


def _draw_row(image: Image, row: Histogram, *, base: int) -> None:
    _write(image, row.label, (14, base - _ROW // 2), scale=0.45)
    _write(image, f"{len(row.latencies_ms)} ticks", (14, base - _ROW // 2 + 20), scale=0.42)
    cv2.line(image, (_LEFT, base), (_WIDTH - _RIGHT, base), _INK, 1)
    if not row.latencies_ms:
        return
    values_ms = np.clip(row.latencies_ms, _FIRST_MS, _FIRST_MS * 10**_DECADES)
    edges_ms = _FIRST_MS * np.logspace(0, _DECADES, _BINS + 1)
    counts, _ = np.histogram(values_ms, edges_ms)
    for count, left_ms, right_ms in zip(counts, edges_ms, edges_ms[1:], strict=False):
        if count:
            top = base - max(1, round((_ROW - 36) * count / counts.max()))
            cv2.rectangle(image, (_x_of(left_ms), top), (_x_of(right_ms), base), _BAR, cv2.FILLED)
    for place, percent in enumerate((50, 95, 99)):
        value_ms = float(np.percentile(values_ms, percent))
        x = _x_of(value_ms)
        cv2.line(image, (x, base - _ROW + 30), (x, base), _MARK, 1, cv2.LINE_AA)
        where = (x + 3, base - _ROW + 36 + 14 * place)
        _write(image, f"p{percent} {value_ms:.0f}", where, scale=0.38)


def _x_of(value_ms: float) -> int:
    share = np.log10(max(value_ms, _FIRST_MS) / _FIRST_MS) / _DECADES
    return round(_LEFT + float(share) * (_WIDTH - _LEFT - _RIGHT))


def _write(image: Image, text: str, where: tuple[int, int], *, scale: float) -> None:
    cv2.putText(image, text, where, _FONT, scale, _INK, 1, cv2.LINE_AA)
