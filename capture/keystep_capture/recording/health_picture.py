"""A recording's health as a picture: each stream's rate over time, its gaps and key frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_capture.recording.health import Health
from keystep_capture.recording.measures import LaneHealth, Times

Image: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]  # blue, green, red, as OpenCV has them

_WIDTH: Final = 1600
_LEFT, _RIGHT = 190, 150
_TOP: Final = 74
_ROW: Final = 46
_BAR: Final = 30  # a bar's height at a stream's nominal rate
_AXIS: Final = 40
_MAX_ROWS: Final = 64
_MAX_REASONS: Final = 12
_PAPER: Final[Colour] = (255, 255, 255)
_INK: Final[Colour] = (40, 40, 40)
_DIM: Final[Colour] = (120, 120, 120)
_FAINT: Final[Colour] = (228, 228, 228)
_GOOD: Final[Colour] = (96, 160, 64)
_WEAK: Final[Colour] = (40, 160, 235)
_BAD: Final[Colour] = (40, 40, 215)
_KEYFRAME: Final[Colour] = (170, 90, 30)
_DELAY: Final[Colour] = (170, 60, 120)
_VERDICT_COLOURS: Final = {"good": _GOOD, "usable": _WEAK, "poor": _BAD}
_KEY: Final = "bar: packets, full at the nominal rate   red: none   blue: key frames"
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


class _Axis:
    """Device times of several epochs, one after the other, on the picture's width."""

    def __init__(self, lanes: Sequence[LaneHealth]) -> None:
        self.starts: dict[int, float] = {}  # where each epoch begins, seconds
        self._firsts: dict[int, int] = {}
        self.seconds = 0.0
        for epoch in sorted({lane.epoch for lane in lanes}):
            mine = [lane.times_ns for lane in lanes if lane.epoch == epoch]
            first = min(int(times.min()) for times in mine)
            last = max(int(times.max()) for times in mine)
            self.starts[epoch], self._firsts[epoch] = self.seconds, first
            self.seconds += (last - first) / 1e9
        self.seconds = max(self.seconds, 1e-3)

    def x_of(self, epoch: int, times_ns: Times) -> NDArray[np.intp]:
        seconds = self.starts[epoch] + (times_ns - self._firsts[epoch]) / 1e9
        share = np.clip(seconds / self.seconds, 0, 1)
        return (_LEFT + share * (_WIDTH - _LEFT - _RIGHT - 1)).astype(np.intp)

    def x_at(self, seconds: float) -> int:
        return round(_LEFT + seconds / self.seconds * (_WIDTH - _LEFT - _RIGHT - 1))


def write_health_picture(path: Path, health: Health) -> None:
    """Draw a recording's health into a PNG file; DataError where it cannot be written."""
    if not cv2.imwrite(str(path), draw_health(health)):
        raise DataError(f"cannot write the picture {path}; expected a path that ends in .png")


def draw_health(health: Health) -> Image:
    """Draw a recording's health: (H, W, 3) uint8, BGR.

    A row a stream and epoch, its packets in bars that are full at the nominal rate; red where there
    are none. Then, per epoch, the ticks that have every cue, and how much later than the soonest
    the leading stream's packets arrived.
    """
    lanes = health.lanes[:_MAX_ROWS]
    shown = {(lane.epoch, lane.stream): lane for lane in lanes}
    ticks = [tick for tick in health.ticks if (tick.epoch, tick.leading) in shown]
    ticks = ticks[: _MAX_ROWS // 4]
    reasons = health.reasons[:_MAX_REASONS] or ("nothing to object",)
    rows = len(lanes) + 2 * len(ticks)
    axis_y = _TOP + _ROW * rows
    image: Image = np.full((axis_y + _AXIS + 22 * len(reasons) + 14, _WIDTH, 3), _PAPER, np.uint8)
    _draw_title(image, health)
    if lanes:
        axis = _Axis(lanes)
        _draw_axis(image, axis, axis_y)
        y = _TOP
        for lane in lanes:
            _draw_lane(image, axis, lane, y)
            y += _ROW
        for tick in ticks:
            _draw_ticks(image, axis, tick.epoch, tick.complete_times_ns, y)
            _label(image, y, "every cue", f"{tick.complete_share:.0%} of {tick.tick_count} ticks")
            _draw_delay(image, axis, shown[tick.epoch, tick.leading], y + _ROW)
            y += 2 * _ROW
    for number, reason in enumerate(reasons):
        _write(image, f"- {reason}", (14, axis_y + _AXIS + 22 * number + 10))
    return image


def _draw_title(image: Image, health: Health) -> None:
    title = f"{health.path.name}: "
    _write(image, title, (14, 30), scale=0.65)
    left = 14 + _text_width(title, 0.65)
    _write(image, health.verdict, (left, 30), scale=0.65, colour=_VERDICT_COLOURS[health.verdict])
    _write(image, _KEY, (_WIDTH - _RIGHT - _text_width(_KEY, 0.45), 30), colour=_DIM)


def _draw_lane(image: Image, axis: _Axis, lane: LaneHealth, y: int) -> None:
    width = _WIDTH - _LEFT - _RIGHT
    x = axis.x_of(lane.epoch, lane.times_ns)
    # Bins of at least three nominal periods, so that one packet more or less is no gap.
    wide = max(1, int(np.ceil(3 / lane.nominal_hz / (axis.seconds / width))))
    counts = np.bincount((x - _LEFT) // wide, minlength=-(-width // wide))
    full = lane.nominal_hz * axis.seconds / width * wide
    first, last = int(x.min()), int(x.max())
    base = y + _BAR + 6
    for idx, count in enumerate(counts.tolist()):
        left, right = _LEFT + idx * wide, min(_LEFT + (idx + 1) * wide, _LEFT + width) - 1
        if right < first or left > last:
            continue
        height = min(_BAR, round(_BAR * count / full))
        colour = _GOOD if count >= 0.8 * full or left <= first or right >= last else _WEAK
        corner = (left, base - max(1, height))
        if not count:
            colour, corner = _BAD, (left, base - _BAR)
        cv2.rectangle(image, corner, (right, base), colour, cv2.FILLED)
    if lane.starts_with_keyframe is not None:
        for at in np.unique(axis.x_of(lane.epoch, lane.keyframe_times_ns)).tolist():
            cv2.line(image, (at, base + 2), (at, base + 9), _KEYFRAME, 1)
    name = lane.stream if lane.epoch <= 1 else f"{lane.stream}, epoch {lane.epoch}"
    rate = "one packet" if lane.rate_hz is None else f"{lane.rate_hz:.1f} of {lane.nominal_hz:g} Hz"
    _label(image, y, name, rate)
    if lane.lost_count:
        _write(image, f"{lane.lost_count} lost", (_WIDTH - _RIGHT + 10, y + 42), colour=_BAD)


def _draw_ticks(image: Image, axis: _Axis, epoch: int, times_ns: Times, y: int) -> None:
    base = y + _BAR + 6
    cv2.rectangle(image, (_LEFT, base - 12), (_WIDTH - _RIGHT, base), _FAINT, cv2.FILLED)
    if len(times_ns):
        x = axis.x_of(epoch, times_ns)
        step = max(1, round(0.12 / axis.seconds * (_WIDTH - _LEFT - _RIGHT)))
        for at in np.unique(x).tolist():
            right = min(at + step, _WIDTH - _RIGHT)
            cv2.rectangle(image, (at, base - 12), (right, base), _GOOD, cv2.FILLED)


def _draw_delay(image: Image, axis: _Axis, lane: LaneHealth, y: int) -> None:
    base = y + _BAR + 6
    cv2.line(image, (_LEFT, base), (_WIDTH - _RIGHT, base), _FAINT, 1)
    if not lane.arrival_ns.any():
        _label(image, y, f"{lane.stream} delay", "arrival unknown")
        return
    delays = (lane.arrival_ns - lane.times_ns).astype(np.float64)
    late_ms = (delays - delays.min()) / 1e6
    x = axis.x_of(lane.epoch, lane.times_ns)
    worst = np.zeros(_WIDTH)
    np.maximum.at(worst, x, late_ms)
    top = max(1.0, float(late_ms.max()))
    for at in np.unique(x).tolist():
        cv2.line(image, (at, base), (at, base - round(_BAR * worst[at] / top)), _DELAY, 1)
    _label(image, y, f"{lane.stream} delay", f"up to +{late_ms.max():.0f} ms")


def _draw_axis(image: Image, axis: _Axis, y: int) -> None:
    step = _tick_step(axis.seconds)
    count = int(axis.seconds / step) + 1
    for number in range(count):
        seconds = number * step
        x = axis.x_at(seconds)
        cv2.line(image, (x, _TOP - 8), (x, y), _FAINT, 1)
        cv2.line(image, (x, y), (x, y + 5), _INK, 1)
        label = f"{seconds:g} s"
        _write(image, label, (x - _text_width(label, 0.45) // 2, y + 20))
    for start in list(axis.starts.values())[1:]:
        cv2.line(image, (axis.x_at(start), _TOP - 8), (axis.x_at(start), y), _INK, 1)
    cv2.line(image, (_LEFT, y), (_WIDTH - _RIGHT, y), _INK, 1)


def _tick_step(seconds: float) -> float:
    """A round number of seconds, so that there are about ten."""
    rough = max(1e-3, seconds / 10)
    power = 10.0 ** np.floor(np.log10(rough))
    return float(next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough))


def _label(image: Image, y: int, name: str, right: str) -> None:
    _write(image, name, (14, y + 26))
    _write(image, right, (_WIDTH - _RIGHT + 10, y + 26), colour=_DIM)


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def _write(
    image: Image, text: str, where: tuple[int, int], *, scale: float = 0.45, colour: Colour = _INK
) -> None:
    printable = text.encode("ascii", "replace").decode()  # what OpenCV's fonts hold
    cv2.putText(image, printable, where, _FONT, scale, colour, 1, cv2.LINE_AA)
