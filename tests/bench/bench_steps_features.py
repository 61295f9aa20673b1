"""Feature extraction of a recording against its bare parts, measured in the same run.

Usage: python tests/bench/bench_steps_features.py [--rounds 5]

Prints one JSON object. The bundled 1280 x 720 clip, 10 ticks a second, one thread for the model.
"Bare" decodes every frame with PyAV and runs ONNX Runtime on as many pictures as there are ticks,
nothing else. CPU seconds of the process; rounds alternate and medians count. Target: appearance
features at no less than 0.8 of bare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from keystep_capture.samples.catalogue import find_sample
from keystep_models.cues.appearance_cue import CROP, appearance_manifest_path
from keystep_models.onnx_model import OnnxModel
from keystep_models.steps.cue_extraction import CueChoice, extract_features
from keystep_models.steps.recording_source import open_recording

TARGET = 0.8
TICKS, BATCH = 96, 16
CLIP = find_sample("pour-coffee").video_path


def bare(model: OnnxModel) -> None:
    pictures = np.zeros((BATCH, CROP, CROP, 3), np.uint8)
    with av.open(str(CLIP)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass
    for _ in range(TICKS // BATCH):
        model.run(pictures)


def ours(*cues: str) -> None:
    assert CLIP is not None
    with tempfile.TemporaryDirectory() as folder:
        choice = CueChoice(cues=cues, threads=1)
        assert extract_features(open_recording(CLIP), choice, Path(folder)).frame_count == TICKS


def cpu_s(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = OnnxModel.load(appearance_manifest_path(), intra_op_threads=1)
    sides: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(model),
        "appearance": lambda: ours("appearance"),
        "appearance_motion": lambda: ours("appearance", "motion"),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            found[name].append(cpu_s(work))
    medians = {name: statistics.median(times) for name, times in found.items()}
    ratio = medians["bare"] / medians["appearance"]
    print(
        json.dumps(
            {
                "cpu_s": {name: round(value, 3) for name, value in medians.items()},
                "bare_over_appearance": round(ratio, 2),
                "target": TARGET,
                "reached": ratio >= TARGET,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
