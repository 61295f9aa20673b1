"""What causality, bounded context and position encodings cost in key-step localisation.

Usage: python tests/bench/compare_encoders.py --features FOLDER --out FOLDER [--seeds 5]

FOLDER is a feature folder with labels (docs/steps.md) of at least 12 sessions of one task. Needs
torch. A run that was stopped goes on when it is called again. Prints and writes one JSON object.

Sessions are sorted by length: the fastest and the slowest fifth are the other-speed wearers, whom
no encoder is trained on; of the rest, two thirds train and one third are the same-speed wearers,
drawn anew by every seed. KSL is measured as published (docs/steps.md) on each group by itself
("own": its frames are clustered), and with clusters found on the training sessions, to whose
centres the group's frames are assigned ("reference"), which is what live use comes to: prototypes
of one wearer are compared with the frames of another.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from keystep_models.measures.ksl import localize
from keystep_models.measures.ksl_protocol import unit_rows
from keystep_models.steps.feature_folder import VideoFeatures, keystep_count, read_folder
from keystep_models.steps.settings import TrainingSettings
from keystep_models.steps.temporal_sampling import evaluation_frames
from keystep_models.training.steps_model import StepsModel, adapt_video
from keystep_models.training.train_steps import train_steps

Rows = list[NDArray[np.float32]]

LIVE = TrainingSettings(cues=("appearance",), spacing="live", chunk_count=1024, batch_size=2)
CAUSAL = replace(LIVE, causal=True, context=1024)
VARIANTS = {
    "bidirectional, published sampling": replace(LIVE, spacing="chunks"),
    "bidirectional": LIVE,
    "causal, W=1024": CAUSAL,
    "causal, W=256": replace(CAUSAL, context=256),
    "causal, W=1024, no position": replace(CAUSAL, position="none"),
    "causal, W=1024, age": replace(CAUSAL, position="age"),
    "causal, W=1024, frame + tempo": replace(CAUSAL, tempo=2.0),
    "causal, W=1024, age + tempo": replace(CAUSAL, position="age", tempo=2.0),
}
REFERENCE = "causal, W=1024"
Groups = dict[str, list[VideoFeatures]]


def split(videos: list[VideoFeatures], seed: int) -> Groups:
    """Training sessions, same-speed and other-speed wearers."""
    ordered = sorted(videos, key=lambda video: video.frame_count)
    fifth = max(1, len(ordered) // 5)
    middle = ordered[fifth:-fifth]
    drawn = [middle[idx] for idx in np.random.default_rng(seed).permutation(len(middle))]
    train = 2 * len(middle) // 3
    return {
        "train": drawn[:train],
        "same speed": drawn[train:],
        "other speed": ordered[:fifth] + ordered[-fifth:],
    }


def adapted(model: StepsModel | None, videos: list[VideoFeatures]) -> Rows:
    """Features of every second frame; raw ones without a model."""
    if model is None:
        return [
            np.asarray(v.cues["appearance"].features[evaluation_frames(v.frame_count)], np.float32)
            for v in videos
        ]
    return [adapt_video(model, video)[1]["appearance"][0] for video in videos]


def measure(groups: Groups, rows: dict[str, Rows], keysteps: int, clusters: int, seed: int) -> Any:
    """F1 of KSL per group, with clusters of its own and with the training sessions'."""
    found: dict[str, float] = {}
    centres = fit(np.concatenate(rows["train"]), clusters, seed)
    for name, videos in groups.items():
        labels = np.concatenate(
            [v.labels[evaluation_frames(v.frame_count)] for v in videos if v.labels is not None]
        )
        group = np.concatenate(rows[name])
        for kind, model in (("own", fit(group, clusters, seed)), ("reference", centres)):
            assigned = model.predict(unit_rows(group)).astype(np.int64)
            found[f"{name}, {kind}"] = localize(labels, assigned, keysteps, clusters).f1
    return found


def fit(rows: NDArray[np.float32], clusters: int, seed: int) -> MiniBatchKMeans:
    with threadpool_limits(limits=1):
        return MiniBatchKMeans(clusters, n_init=10, random_state=seed).fit(unit_rows(rows))


def run(
    name: str, seed: int, videos: list[VideoFeatures], keysteps: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One variant with one seed; what was measured before is read."""
    folder = options.out / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
    result = folder / f"ksl-{options.clusters}.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    groups, model, began = split(videos, seed), None, time.process_time()
    if name in VARIANTS:
        drop = max(1, round(0.8 * options.epochs))
        settings = replace(VARIANTS[name], epochs=options.epochs, drop_epochs=(drop,), seed=seed)
        model = train_steps(groups["train"], settings, folder)
    rows = {group: adapted(model, members) for group, members in groups.items()}
    found = measure(groups, rows, keysteps, options.clusters, seed)
    folder.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"f1": found, "cpu_s": time.process_time() - began}))
    return dict(json.loads(result.read_text()))


def text(values: list[float], sign: str = "") -> str:
    """Mean and standard error over seeds."""
    mean = f"{np.mean(values):{sign}.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--clusters", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    videos = read_folder(options.features)
    keysteps = keystep_count(options.features, videos)
    table: dict[str, Any] = {}
    for seed in range(options.seeds):
        for name in ("raw features", *VARIANTS):
            found = run(name, seed, videos, keysteps, options)
            for measured, value in found["f1"].items():
                table.setdefault(name, {}).setdefault(measured, []).append(100 * value)
            table[name].setdefault("cpu_s", []).append(found["cpu_s"])
    summary = {
        name: {key: text(values) for key, values in row.items()} for name, row in table.items()
    }
    differences = {
        name: {
            key: text(list(np.subtract(values, table[REFERENCE][key])), sign="+")
            for key, values in row.items()
            if key != "cpu_s"
        }
        for name, row in table.items()
        if name != REFERENCE
    }
    shown = {"ksl_f1_percent": summary, f"paired_difference_to {REFERENCE}": differences}
    document = {**shown, "runs": table, "sessions": len(videos)}
    (options.out / f"encoders-{options.clusters}.json").write_text(
        json.dumps(document, indent=2) + "\n"
    )
    print(json.dumps(shown, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
