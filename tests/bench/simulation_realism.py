"""How real simulated sessions are, and how hard: against real video, tracks and labels.

Usage: python tests/bench/simulation_realism.py DATASET [--video FOLDER] [--tracks FOLDER]

DATASET is what `keystep simulate generate --profile learn` wrote, of at least four people. Prints
one JSON object. Features are those of the shipped EfficientNet-Lite0 at 2 frames a second. Each
person is tested once, with training on three quarters of the people. FOLDERs hold the real video
(`egocentric_bike_repair.mp4`, `pour_coffee.mp4`) and the real HoloLens 2 tracks that
`fit_tracks.py` reads; without them those parts are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from keystep_capture.recording import Recording
from keystep_capture.simulation.fit_tracks import (
    BANDS_HZ,
    band_shares,
    percentiles,
    read_tracks,
    simulate_tracks,
)
from keystep_capture.simulation.looking import track_model
from keystep_capture.simulation.tasks import find_task
from keystep_capture.video import PacketDecoder
from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.measures.step_baselines import (
    BACKGROUND,
    LinearProbe,
    averaged,
    distance_ratio,
    elapsed_labels,
    frame_scores,
    uniform_labels,
)
from keystep_models.onnx_model import OnnxModel

RATE_HZ = 2.0
REACH = 2  # the probe sees the mean of 2.5 s
# As read from the real pictures, seconds; what lies between is transition.
REAL_STEPS = {
    "egocentric_bike_repair.mp4": (
        (0, 2), (2, 5), (5, 7), (7, 12), (12.5, 14), (14.5, 18.5), (19, 24.5), (25, 30),
    ),
    "pour_coffee.mp4": ((0, 4.8), (4.8, 9.6)),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Features (T, 1280), key steps (T,) and states (T, C) of a video at 2 Hz.

    Mistakes and removals are no key steps: they count as background.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    states: NDArray[np.int64]


class Extractor:
    """Pictures to features."""

    def __init__(self) -> None:
        self._model = OnnxModel.load(appearance_manifest_path())
        self._preprocess = AppearancePreprocessing()

    def __call__(self, frames: Iterator[av.VideoFrame]) -> NDArray[np.float32]:
        found = []
        for frame in frames:
            pixels = np.empty((1, CROP, CROP, 3), np.uint8)
            self._preprocess.from_video_frame(frame, pixels[0])
            found.append(self._model.run(pixels).copy())
        return np.concatenate(found)


def every(frames: Iterator[av.VideoFrame], step: int) -> Iterator[av.VideoFrame]:
    yield from (frame for idx, frame in enumerate(frames) if idx % step == 0)


def simulated(folder: Path, extract: Extractor) -> Watched:
    with (folder / "frames.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    step = round(len(rows) / float(rows[-1]["time_s"]) / RATE_HZ)
    kept = rows[::step]
    components = [name for name in rows[0] if name.startswith("state_")]

    def decoded(recording: Recording) -> Iterator[av.VideoFrame]:
        decoder = PacketDecoder("h264")
        for packet in recording.packets(["rgb"]):
            frame = decoder.decode(packet.payload)
            assert frame is not None
            yield frame

    with Recording(folder) as recording:
        features = extract(every(decoded(recording), step))
    labels = [int(row["segment_step"]) if row["segment_step"] else BACKGROUND for row in kept]
    states = [[int(row[name]) for name in components] for row in kept]
    key_steps = np.array([step if step % 3 == 0 else BACKGROUND for step in labels])
    return Watched(features=features, labels=key_steps, states=np.array(states))


def real(path: Path, extract: Extractor) -> Watched:
    with av.open(path) as video:
        stream = video.streams.video[0]
        rate = float(stream.average_rate or 30)
        features = extract(every(video.decode(stream), round(rate / RATE_HZ)))
    times = np.arange(len(features)) / RATE_HZ
    labels = np.full(len(features), BACKGROUND)
    for number, (start, end) in enumerate(REAL_STEPS[path.name]):
        labels[(times >= start) & (times < end)] = number
    return Watched(features=features, labels=labels, states=np.zeros((len(features), 0), int))


def described(watched: list[Watched]) -> dict[str, float]:
    """What the appearance is like, averaged over videos."""
    unit = [w.features / np.linalg.norm(w.features, axis=1, keepdims=True) for w in watched]
    change = [np.sqrt(np.maximum(2 - 2 * (u[1:] * u[:-1]).sum(1), 0)).mean() for u in unit]
    spread = [np.linalg.norm(u - u.mean(0), axis=1).mean() for u in unit]
    ratios = [distance_ratio(w.features, w.labels) for w in watched]
    return {
        "between_over_within_steps": round(float(np.mean(ratios)), 3),
        "change_in_half_a_second": round(float(np.mean(change)), 3),
        "spread_of_a_session": round(float(np.mean(spread)), 3),
        "frames_in_transition": round(float(np.mean([(w.labels < 0).mean() for w in watched])), 3),
    }


def folds(sessions: list[Watched]) -> Iterator[tuple[list[Watched], list[Watched]]]:
    """Every person is tested once, by what was trained on the others."""
    for first in range(4):
        yield [w for k, w in enumerate(sessions) if k % 4 != first], sessions[first::4]


def floors_and_ceiling(sessions: list[Watched], usual: list[int]) -> dict[str, object]:
    truth: list[NDArray[np.int64]] = []
    guesses: dict[str, list[NDArray[np.int64]]] = {
        "uniform": [], "elapsed_time": [], "linear_probe": [],
    }  # fmt: skip
    states: list[dict[str, float]] = []
    for training, testing in folds(sessions):
        features = np.concatenate([averaged(w.features, REACH) for w in training])
        probe = LinearProbe().fit(features, np.concatenate([w.labels for w in training]))
        labels = [w.labels for w in training]
        truth += [w.labels for w in testing]
        guesses["uniform"] += [uniform_labels(len(w.labels), usual) for w in testing]
        guesses["elapsed_time"] += [elapsed_labels(labels, len(w.labels)) for w in testing]
        guesses["linear_probe"] += [probe.predict(averaged(w.features, REACH)) for w in testing]
        states.append(state_scores(training, testing))
    found: dict[str, object] = {}
    for name, guess in guesses.items():
        scores = asdict(frame_scores(np.concatenate(truth), np.concatenate(guess)))
        found[name] = {measure: round(value, 3) for measure, value in scores.items()}
    names = states[0]
    return found | {"state": {n: round(float(np.mean([s[n] for s in states])), 3) for n in names}}


def state_scores(training: list[Watched], testing: list[Watched]) -> dict[str, float]:
    """Balanced accuracy of "is this component there", averaged over components."""
    states = np.concatenate([w.states for w in training]) == 1
    truth = np.concatenate([w.states for w in testing]) == 1
    inputs = {
        "elapsed_time": [
            np.concatenate([elapsed_share(w) for w in s]) for s in (training, testing)
        ],
        "linear_probe": [
            np.concatenate([averaged(w.features, REACH) for w in s]) for s in (training, testing)
        ],
    }
    found: dict[str, list[float]] = {name: [] for name in inputs}
    for k in range(states.shape[1]):
        if len(np.unique(states[:, k])) < 2 or len(np.unique(truth[:, k])) < 2:
            continue
        for name, (given, asked) in inputs.items():
            guess = LinearProbe().fit(given, states[:, k].astype(int)).predict(asked)
            found[name].append(balanced_accuracy_score(truth[:, k], guess))
    return {name: float(np.mean(values)) for name, values in found.items()}


def elapsed_share(watched: Watched) -> NDArray[np.float32]:
    return np.linspace(0, 1, len(watched.labels), dtype=np.float32)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--tracks", type=Path)
    options = parser.parse_args()
    extract = Extractor()
    about = json.loads((options.dataset / "dataset.json").read_text())
    folders = sorted(options.dataset.glob("person_???"))
    sessions = [simulated(folder, extract) for folder in folders]
    usual = [3 * k for k in range(len(find_task(about["session"]["task"]).components))]
    report: dict[str, object] = {
        "simulated": {"people": len(sessions), **described(sessions)},
        "recognised": floors_and_ceiling(sessions, usual),
    }
    if options.video:
        names = [name for name in REAL_STEPS if (options.video / name).exists()]
        report["real_video"] = {n: described([real(options.video / n, extract)]) for n in names}
    if options.tracks:
        tracks, copies = read_tracks(options.tracks), simulate_tracks(track_model())
        report["speeds"] = {"real": percentiles(tracks), "simulated": percentiles(copies)}
        report["power_in_bands"] = {
            "bands_hz": BANDS_HZ,
            "real": band_shares(tracks),
            "simulated": band_shares(copies),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
