"""How far time alone goes: random and uniform clusters against labels of completed steps.

    python tests/bench/completion_baselines.py FOLDER...

A FOLDER holds PSR_labels.csv files at any depth, of real recordings or simulated ones. The frames
before a completion, since the one before it, are that key step; completions in the same frame count
for the first of them. Every second frame is taken, as key-step localisation does.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_models.measures.baselines import random_clusters, uniform_clusters
from keystep_models.measures.ksl import localize

CLUSTERS = 7


def completions(path: Path) -> list[tuple[int, int]]:
    """Frame and step of each completion."""
    with path.open(encoding="utf-8", newline="") as lines:
        return [(int(row[0].split(".")[0]), int(row[1])) for row in csv.reader(lines)]


def frame_labels(events: list[tuple[int, int]], numbers: dict[int, int]) -> NDArray[np.int64]:
    labels = np.zeros(events[-1][0], np.int64)
    last = 0
    for frame, step in events:
        if frame > last:
            labels[last:frame] = numbers[step]
            last = frame
    return labels[::2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+")
    for folder in parser.parse_args().folder:
        recordings = [completions(path) for path in sorted(folder.rglob("PSR_labels.csv"))]
        steps = sorted({step for events in recordings for _, step in events})
        numbers = {step: number for number, step in enumerate(steps, start=1)}
        labels = [frame_labels(events, numbers) for events in recordings]
        together = np.concatenate(labels)
        print(f"{folder.name}: {len(labels)} recordings, {len(steps)} key steps")
        for name, clusters in (
            ("random", [random_clusters(len(each), CLUSTERS, i) for i, each in enumerate(labels)]),
            ("uniform", [uniform_clusters(len(each), CLUSTERS) for each in labels]),
        ):
            found = localize(together, np.concatenate(clusters), len(steps), CLUSTERS)
            print(f"  {name}: F1 {100 * found.f1:.1f}, IoU {100 * found.iou:.1f}")


if __name__ == "__main__":
    main()
