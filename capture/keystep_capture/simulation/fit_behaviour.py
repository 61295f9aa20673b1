"""Fit how people assemble to the published MECCANO labels; the labels stay where they are.

    python -m keystep_capture.simulation.fit_behaviour FOLDER --picture fitted.png

FOLDER holds {train,val,test}/<recording>/PSR_labels_raw.csv. Only the fitted numbers are shipped.
What the labels cannot tell (idle time, handedness, which wrong part) is set in `people.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.seeding import generator

FRAME_RATE_HZ = 12.0
_QUANTILES = tuple(range(5, 100, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The states of one recording: seconds, and per component -1, 0 or 1."""

    name: str
    times_s: NDArray[np.float64]
    states: NDArray[np.int64]


def read_recordings(folder: Path) -> list[Recording]:
    """Read every PSR_labels_raw.csv below a folder."""
    recordings = []
    for path in sorted(folder.glob("*/*/PSR_labels_raw.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines))
        times_s = np.array([int(row[0].split(".")[0]) for row in rows]) / FRAME_RATE_HZ
        states = np.array([[int(value) for value in row[1:]] for row in rows])
        recordings.append(Recording(name=path.parent.name, times_s=times_s, states=states))
    return recordings


def fit(recordings: list[Recording]) -> dict[str, object]:
    """Fit gaps between completions, mistakes, removals and orders."""
    pace = np.array([np.median(gaps_s(r)) for r in recordings])
    relative = np.log(np.concatenate([gaps_s(r) / np.median(gaps_s(r)) for r in recordings]))
    counts = counted(recordings)
    distance = mean_order_distance([first_installs(r) for r in recordings])
    return {
        "source": "MECCANO PSR labels (IndustReal / STORM-PSR), 20 recordings, 12 frames a second",
        "recordings": len(recordings),
        "gap_s": {
            "log_pace_mean": float(np.log(pace).mean()),
            "log_pace_sigma": float(np.log(pace).std(ddof=1)),
            "log_sigma_within": float(relative.std(ddof=1)),
            "log_quantiles_percent": list(_QUANTILES),
            "log_quantiles": np.percentile(relative, _QUANTILES).round(4).tolist(),
        },
        "mistakes_per_install": counts["mistakes"] / counts["installs"],
        "mistakes_corrected": counts["corrected"] / max(counts["mistakes"], 1),
        "removals_per_install": counts["removals"] / counts["installs"],
        "order_distance": distance,
        "order_noise": fit_order_noise(distance, recordings[0].states.shape[1]),
    }


def gaps_s(recording: Recording) -> NDArray[np.float64]:
    """Seconds between one labelled change and the next."""
    return np.diff(recording.times_s)


_COUNTED = ("installs", "mistakes", "corrected", "removals")


def counted(recordings: list[Recording]) -> dict[str, int]:
    """Correct installs, mistakes, mistakes put right later, removals of correct parts."""
    return {name: sum(c[name] for c in map(_counts, recordings)) for name in _COUNTED}


def _counts(recording: Recording) -> dict[str, int]:
    counts = dict.fromkeys(_COUNTED, 0)
    for component in recording.states.T:
        for idx, (before, after) in enumerate(pairwise(component)):
            counts["installs"] += int(before != 1 and after == 1)
            counts["removals"] += int(before == 1 and after == 0)
            wrong = before != -1 and after == -1
            counts["mistakes"] += int(wrong)
            counts["corrected"] += int(wrong and bool((component[idx + 2 :] == 1).any()))
    return counts


def first_installs(recording: Recording) -> NDArray[np.float64]:
    """When each component was first there, seconds; inf if never."""
    there = recording.states != 0
    first = recording.times_s[there.argmax(axis=0)]
    return np.where(there.any(axis=0), first, np.inf)


def mean_order_distance(times: list[NDArray[np.float64]]) -> float:
    """Mean share of pairs that two people do in opposite orders (Kendall's distance); ties out."""
    distances = []
    for one, other in combinations(times, 2):
        both = np.isfinite(one) & np.isfinite(other)
        a, b = one[both], other[both]
        signs = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
        counted = np.abs(signs).sum()
        distances.append((signs < 0).sum() / max(counted, 1))
    return float(np.mean(distances))


def fit_order_noise(distance: float, components: int) -> float:
    """How far (in places, one standard deviation) people stray from one order to differ so much."""
    candidates = np.arange(0.1, 4.0, 0.1)
    rng = generator(0, "order noise")
    noise = rng.normal(size=(24, components))
    places = np.arange(components)
    found = [mean_order_distance([places + c * n for n in noise]) for c in candidates]
    return float(candidates[np.argmin(np.abs(np.array(found) - distance))].round(2))


def main() -> None:
    """Read, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data/behaviour.json")
    parser.add_argument("--picture", type=Path, help="Fitted against simulated, as PNG.")
    options = parser.parse_args()
    recordings = read_recordings(options.folder)
    fitted = fit(recordings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")
    if options.picture is not None:
        from keystep_capture.simulation.behaviour_picture import draw

        draw(recordings, options.picture)


if __name__ == "__main__":
    main()
