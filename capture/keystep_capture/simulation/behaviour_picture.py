"""Simulated behaviour against the real labels it was fitted to, as a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.fit_behaviour import (
    Recording,
    counted,
    first_installs,
    gaps_s,
    mean_order_distance,
)
from keystep_capture.simulation.people import make_person
from keystep_capture.simulation.plan import make_plan
from keystep_capture.simulation.tasks import TASKS

_REAL, _SIMULATED, _INK = (60, 60, 200), (180, 110, 30), (40, 40, 40)  # BGR
_VALUE_OF = {"install": 1, "misinstall": -1, "remove": 0}
_WIDTH, _HEIGHT = 920, 360


def simulated_recordings(task_name: str, people: int = 30, seed: int = 1) -> list[Recording]:
    """The labels of simulated people, experts left out."""
    task = TASKS[task_name]
    recordings = []
    for idx in range(1, people + 1):
        person = make_person(seed, idx)
        state = np.zeros(len(task.components), np.int64)
        times, states = [0.0], [state.copy()]
        for action in make_plan(task, person, seed).actions:
            state[action.component] = _VALUE_OF[action.kind]
            times.append(action.complete_s)
            states.append(state.copy())
        recordings.append(
            Recording(name=person.name, times_s=np.array(times), states=np.array(states))
        )
    return recordings


def summary(recordings: list[Recording]) -> dict[str, float]:
    """Rates and spreads that both real and simulated labels have."""
    counts = counted(recordings)
    pace = np.log([np.median(gaps_s(r)) for r in recordings])
    return {
        "mistakes per install": counts["mistakes"] / counts["installs"],
        "removals per install": counts["removals"] / counts["installs"],
        "order distance": mean_order_distance([first_installs(r) for r in recordings]),
        "spread of pace (log)": float(pace.std(ddof=1)),
        "spread of gaps (log)": float(_relative_gaps(recordings).std()),
    }


def draw(real: list[Recording], path: Path) -> None:
    """Draw gaps as distributions, and rates side by side.

    Args:
        real: The recordings that were fitted.
        path: The PNG.
    """
    simulated = [recording for name in sorted(TASKS) for recording in simulated_recordings(name)]
    canvas = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    _text(canvas, "Gap between changes / session's median: share below", (20, 26))
    _axes(canvas)
    for recordings, colour in ((real, _REAL), (simulated, _SIMULATED)):
        _distribution(canvas, _relative_gaps(recordings), colour)
    _text(canvas, "MECCANO, 20 real recordings", (60, 60), _REAL)
    _text(canvas, "simulated, 90 people, 3 tasks", (60, 80), _SIMULATED)
    by_task = [summary(simulated_recordings(name)) for name in sorted(TASKS)]
    mean = {name: float(np.mean([one[name] for one in by_task])) for name in by_task[0]}
    _bars(canvas, summary(real), mean)
    cv2.imwrite(str(path), canvas)


def _relative_gaps(recordings: list[Recording]) -> NDArray[np.float64]:
    """Logarithms of gaps over their session's median."""
    relative = [gaps_s(r) / np.median(gaps_s(r)) for r in recordings]
    return np.asarray(np.log(np.concatenate(relative)))


_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 470, 40, 310
_LOW, _HIGH = np.log(0.05), np.log(10.0)


def _axes(canvas: NDArray[np.uint8]) -> None:
    cv2.rectangle(canvas, (_LEFT, _TOP), (_RIGHT, _BOTTOM), (200, 200, 200), 1)
    for ratio in (0.1, 0.3, 1.0, 3.0, 10.0):
        x = round(_LEFT + (np.log(ratio) - _LOW) / (_HIGH - _LOW) * (_RIGHT - _LEFT))
        cv2.line(canvas, (x, _TOP), (x, _BOTTOM), (230, 230, 230), 1)
        _text(canvas, f"{ratio:g}", (x - 8, _BOTTOM + 18))
    for share in (0.0, 0.5, 1.0):
        y = round(_BOTTOM - share * (_BOTTOM - _TOP))
        _text(canvas, f"{share:g}", (18, y + 5))


def _distribution(
    canvas: NDArray[np.uint8], values: NDArray[np.float64], colour: tuple[int, int, int]
) -> None:
    ordered = np.sort(values)
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    x = _LEFT + (np.clip(ordered, _LOW, _HIGH) - _LOW) / (_HIGH - _LOW) * (_RIGHT - _LEFT)
    y = _BOTTOM - share * (_BOTTOM - _TOP)
    line = np.stack([x, y], axis=1).round().astype(np.int32)
    cv2.polylines(canvas, [line], False, colour, 2, cv2.LINE_AA)


def _bars(canvas: NDArray[np.uint8], real: dict[str, float], simulated: dict[str, float]) -> None:
    for row, name in enumerate(real):
        top = 36 + 62 * row
        _text(canvas, name, (510, top))
        longest = max(real[name], simulated[name], 1e-9)
        for k, (value, colour) in enumerate(((real[name], _REAL), (simulated[name], _SIMULATED))):
            y, length = top + 8 + 18 * k, round(270 * value / longest)
            cv2.rectangle(canvas, (510, y), (510 + length, y + 13), colour, -1)
            _text(canvas, f"{value:.3f}", (520 + length, y + 12))


def _text(
    canvas: NDArray[np.uint8],
    words: str,
    at: tuple[int, int],
    colour: tuple[int, int, int] = _INK,
) -> None:
    cv2.putText(canvas, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
