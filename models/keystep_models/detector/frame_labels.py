"""A simulated data set's people and their frames' labels: states, box, what hands hide."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLabels:
    """A person's labels by frame (F frames, K components).

    Attributes:
        states: -1, 0 or 1, shape (F, K), int8.
        boxes: x1, y1, x2, y2 in pixels of the video, NaN where there is no assembly, (F, 4).
        hidden: Share of the assembly that hands hide, NaN where there is none, (F,).
    """

    states: NDArray[np.int8]
    boxes: NDArray[np.float64]
    hidden: NDArray[np.float64]


def find_people(dataset: Path) -> list[Path]:
    """The folders of a simulated data set that hold a recording with labels, by name.

    Raises:
        DataError: There are none, or one of them is not whole.
    """
    people = sorted(path for path in dataset.glob("person_*") if path.suffix != ".partial")
    if not people:
        raise DataError(
            f"{dataset}: expected folders person_000, ... of a simulated data set, found none; "
            "make one with `keystep simulate generate`"
        )
    for person in people:
        for name in ("frames.csv", "session.json"):
            if not (person / name).is_file():
                raise DataError(
                    f"{person}: expected {name}, found none; the data set is not whole: run "
                    "`keystep simulate generate` again, it goes on where it stopped"
                )
    return people


def read_frame_labels(person: Path) -> FrameLabels:
    """Read a person's frames.csv.

    Raises:
        DataError: A column is missing or a value is no number; says which line.
    """
    path = person / "frames.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise DataError(f"{path}: expected a row per frame, found none")
    components = sum(name.startswith("state_") for name in rows[0])
    states = np.zeros((len(rows), components), np.int8)
    boxes = np.full((len(rows), 4), np.nan)
    hidden = np.full(len(rows), np.nan)
    for idx, row in enumerate(rows):
        try:
            states[idx] = [int(row[f"state_{k}"]) for k in range(components)]
            if row["box_x"]:
                x, y, width, height = (
                    float(row[f"box_{name}"]) for name in ("x", "y", "width", "height")
                )
                boxes[idx] = x, y, x + width, y + height
                hidden[idx] = float(row["assembly_hidden"] or 0.0)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {idx + 2}: not as docs/simulation.md says: {error!r}"
            ) from error
    if not components or not np.isin(states, (-1, 0, 1)).all():
        raise DataError(f"{path}: expected columns state_0, ... of -1, 0 or 1")
    return FrameLabels(states=states, boxes=boxes, hidden=hidden)


def choose_people(people: Sequence[Path], wanted: str) -> list[Path]:
    """Those people that a text like "0-14" or "0,3,7-9" names.

    Raises:
        ConfigError: It is none, or the data set has no such person.
    """
    known = {path.name: path for path in people}
    numbers: list[int] = []
    for part in wanted.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ConfigError(f"expected people as 0-14 or 0,3,7-9, got {wanted!r}")
        numbers += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    names = [f"person_{number:03d}" for number in dict.fromkeys(numbers)]
    if lost := [name for name in names if name not in known]:
        raise ConfigError(f"the data set has no {lost[0]}; it has {', '.join(known)}")
    return [known[name] for name in names]
