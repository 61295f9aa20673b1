"""Fit how head and eyes move to real HoloLens 2 tracks.

    python -m keystep_capture.simulation.fit_tracks FOLDER --out tracks.json

FOLDER holds `industreal_*_sensors.csv` (10 Hz: gaze in pixels of a 1280x720 picture, head poses)
and `*head_pose.txt.gz` (HoloAssist, 30 Hz). The fitted numbers are shipped, the tracks are not.
What is matched: percentiles and spectra of speeds at 10 Hz, of the head's turning and moving and of
the gaze in the head. Simulated speeds are taken from whole simulated sessions.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from scipy.signal import welch

from keystep_capture.simulation.geometry import Array, normalised, rotation_vectors
from keystep_capture.simulation.layout import Layout, make_layout
from keystep_capture.simulation.looking import Looking, TrackModel, look
from keystep_capture.simulation.motion import RATE_HZ, Movement, choreograph
from keystep_capture.simulation.people import Person, make_person
from keystep_capture.simulation.plan import Plan, make_plan
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.tasks import find_task

PERCENT = (10, 25, 50, 75, 90, 98)
COMPARED_HZ = 10
BANDS_HZ = ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 5.0))
_FOCAL_PX = 640 / np.tan(np.radians(64.7 / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A head at 10 Hz, and where known the gaze in it (T, 3), NaN where it was not measured."""

    head: Array
    gaze_in_head: Array | None


def read_tracks(folder: Path) -> list[Track]:
    """Read every real track of a folder."""
    tracks = []
    for path in sorted(folder.glob("industreal_*_sensors.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        head = np.array([[float(row[f"pose_{k:02d}"]) for k in range(16)] for row in rows])
        gaze = np.array([[float(row["gaze_x"]), float(row["gaze_y"])] for row in rows])
        ray = np.stack(
            [(gaze[:, 0] - 640) / _FOCAL_PX, (360 - gaze[:, 1]) / _FOCAL_PX, -np.ones(len(gaze))], 1
        )
        ray[(gaze <= 0).any(axis=1)] = np.nan
        tracks.append(Track(head=head.reshape(-1, 4, 4), gaze_in_head=ray))
    for path in sorted(folder.glob("*head_pose.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            numbers = [[float(value) for value in line.split("\t")] for line in lines]
        whole = np.array([row[2:18] for row in numbers if len(row) >= 18]).reshape(-1, 4, 4)
        tracks.append(Track(head=whole[::3], gaze_in_head=None))
    return tracks


def simulated_track(looking: Looking) -> Track:
    """The same of a simulated session."""
    step = RATE_HZ // COMPARED_HZ
    head, gaze = looking.world_from_head[::step], looking.gaze_direction[::step]
    return Track(head=head, gaze_in_head=np.einsum("tji,tj->ti", head[:, :3, :3], gaze))


def speeds(track: Track) -> dict[str, Array]:
    """Speeds between samples at 10 Hz: degrees a second, centimetres a second."""
    rotation = track.head[:, :3, :3]
    turns = rotation_vectors(np.swapaxes(rotation[:-1], 1, 2) @ rotation[1:])
    result = {
        "head_turn_deg_s": np.degrees(np.linalg.norm(turns, axis=1)) * COMPARED_HZ,
        "head_move_cm_s": np.linalg.norm(np.diff(track.head[:, :3, 3], axis=0), axis=1)
        * (100 * COMPARED_HZ),
    }
    if track.gaze_in_head is not None:
        ray = normalised(track.gaze_in_head)
        angle = np.degrees(np.arccos(np.clip((ray[1:] * ray[:-1]).sum(axis=1), -1, 1)))
        result["gaze_in_head_deg_s"] = angle[np.isfinite(angle)] * COMPARED_HZ
        seen = ray[np.isfinite(ray).all(axis=1)]
        spread = np.degrees(np.arctan2(seen[:, :2], -seen[:, 2:]))
        result["gaze_spread_deg"] = np.abs(spread - np.median(spread, axis=0)).reshape(-1)
    return result


def percentiles(tracks: list[Track]) -> dict[str, list[float]]:
    """Percentiles of each speed, averaged over the tracks that have it (geometric mean)."""
    found: dict[str, list[Array]] = {}
    for track in tracks:
        for name, values in speeds(track).items():
            found.setdefault(name, []).append(np.percentile(values, PERCENT))
    means = {name: np.exp(np.log(np.maximum(rows, 1e-3)).mean(0)) for name, rows in found.items()}
    return {name: mean.round(3).tolist() for name, mean in means.items()}


@cache
def _sessions() -> tuple[tuple[Plan, Person, Layout, Movement, int], ...]:
    """A few people's sessions; they do not depend on how head and eyes move."""
    sessions = []
    for task_name, seed, who in (("cart", 11, 1), ("gearbox", 12, 2), ("lamp", 13, 3)):
        task, person = find_task(task_name), make_person(seed, who)
        plan = make_plan(task, person, seed)
        layout = make_layout(task, seed, person.name)
        movement = choreograph(task, plan, person, layout, seed, occlusion_rate=0.5)
        sessions.append((plan, person, layout, movement, seed))
    return tuple(sessions)


def simulate_tracks(model: TrackModel) -> list[Track]:
    """A few people's tracks under a model."""
    return [simulated_track(look(*session, model)) for session in _sessions()]


def band_shares(tracks: list[Track]) -> dict[str, list[float]]:
    """Share of the power of each speed in each of `BANDS_HZ`, averaged over the tracks."""
    found: dict[str, list[list[float]]] = {}
    for track in tracks:
        for name, values in speeds(track).items():
            if name == "gaze_spread_deg":
                continue
            hertz, power = welch(values, COMPARED_HZ, nperseg=min(128, len(values)))
            inside = [power[(hertz >= low) & (hertz < high)].sum() for low, high in BANDS_HZ]
            found.setdefault(name, []).append([value / sum(inside) for value in inside])
    return {name: np.mean(rows, axis=0).round(3).tolist() for name, rows in found.items()}


Described: TypeAlias = tuple[dict[str, list[float]], dict[str, list[float]]]


def described(tracks: list[Track]) -> Described:
    """All that is compared: percentiles and shares of power."""
    return percentiles(tracks), band_shares(tracks)


def mismatch(real: Described, simulated: Described) -> float:
    """Mean squared difference of the logarithms, of percentiles and of shares alike."""
    differences = [
        np.log(np.array(copied[name]) / np.array(values[name]))
        for values, copied in zip(real, simulated, strict=True)
        for name in values
    ]
    return float(np.mean(np.square(np.concatenate(differences))))


_FITTED = (
    "follow", "lag_s", "sway_deg", "sway_s", "shake_deg", "drift_m", "drift_s", "lean",
    "fixation_log_s", "fixation_log_sigma", "fixation_deg", "tremor_deg", "wander_deg",
)  # fmt: skip
_BOUNDS = {
    "follow": (0.3, 0.9),
    "lean": (0.05, 0.4),
    "lag_s": (0.08, 0.6),
    "drift_m": (0.005, 0.05),
    "fixation_log_sigma": (0.3, 0.9),
}


def fit(real: Described, start: TrackModel, rounds: int) -> tuple[TrackModel, float]:
    """Search one number at a time, in smaller and smaller steps, from a seed."""
    rng = generator(0, "fit tracks")
    best, error = start, mismatch(real, described(simulate_tracks(start)))
    for number in range(rounds):
        factor = float(np.exp(rng.normal(0.0, 0.35 * 0.985**number)))
        name = _FITTED[number % len(_FITTED)]
        low, high = _BOUNDS.get(name, (-np.inf, np.inf))
        value = getattr(best, name)
        moved = value + np.log(factor) if name == "fixation_log_s" else value * factor
        tried = msgspec.structs.replace(best, **{name: float(np.clip(moved, low, high))})
        found = mismatch(real, described(simulate_tracks(tried)))
        if found < error:
            best, error = tried, found
    return best, error


def main() -> None:
    """Read, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data/tracks.json")
    parser.add_argument("--rounds", type=int, default=120)
    options = parser.parse_args()
    real = described(read_tracks(options.folder))
    start = msgspec.convert(json.loads(options.out.read_text("utf-8"))["model"], TrackModel)
    model, error = fit(real, start, options.rounds)
    simulated = described(simulate_tracks(model))
    document: dict[str, Any] = {
        "source": "IndustReal 03_assy_0_1, 03_assy_1_3 (10 Hz), HoloAssist R007 (30 Hz, thinned)",
        "model": {k: round(v, 5) for k, v in msgspec.structs.asdict(model).items()},
        "percent": list(PERCENT),
        "real": real[0],
        "simulated": simulated[0],
        "bands_hz": BANDS_HZ,
        "real_power": real[1],
        "simulated_power": simulated[1],
        "mean_squared_log_difference": round(error, 4),
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
