"""Reads which steps are done when in a simulated sample."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.samples.catalogue import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledStep:
    """A step that is done at a frame of the sample's video, counted from 0."""

    frame: int
    title: str


def load_labels(sample: Sample) -> list[LabelledStep]:
    """Load the labels of a sample, in order of time.

    Raises:
        ConfigError: The sample has none.
        DataError: Its file is not as documented.
    """
    if sample.labels_path is None:
        raise ConfigError(f"sample {sample.name!r} has no labels")
    found = []
    with sample.labels_path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            try:
                found.append(LabelledStep(frame=int(row[0].removesuffix(".jpg")), title=row[2]))
            except (IndexError, ValueError) as error:
                raise DataError(f"{sample.labels_path}: no label: {row}") from error
    return found
