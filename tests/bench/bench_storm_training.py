"""Training steps of the spatio-temporal stream against their bare forward and backward passes.

    python tests/bench/bench_storm_training.py --out FILE.json

Both are timed in one process, in turns, stage by stage of `--preset small` on simulated features:
the whole of a step (drawing, waiting for the batch, forward, backward, optimiser) and the bare
forward and backward pass on a batch that is there. The ratio is that of the CPU times of a turn;
`waited` is the share of a step's wall time spent waiting for its batch. `--published` counts the
published models' steps too (ViT-S/16 end to end, two clips of nine frames, since 65 do not fit).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from keystep_models.storm.clip_sampling import SessionTicks
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings, storm_preset

if find_spec("torch") is None:
    print(json.dumps({"skipped": "needs torch: make test-training installs it"}))
    raise SystemExit

import torch

from keystep_models.training.prefetch import Prefetched
from keystep_models.training.storm_run import STAGES, StormData, StormModel, StormRun
from keystep_models.training.storm_stage import StageTrainer

TARGET = 1.3
COMPONENTS = 13


def session(seed: int, *, picture: bool, count: int) -> SessionInputs:
    rng = np.random.default_rng(seed)
    ticks = np.linspace(40, count - 60, COMPONENTS).astype(np.int64)
    states = (np.arange(count)[:, None] >= ticks[None]).astype(np.int8)
    if picture:
        inputs: Any = rng.integers(0, 256, (count, 224, 224, 3), np.uint8)
    else:
        inputs = np.abs(rng.normal(size=(count, 1280))).astype(np.float32)
    about = SessionTicks(
        name=f"s{seed}",
        states=states,
        valid=np.ones(count, np.bool_),
        frames=np.arange(count),
        frame_count=count,
    )
    return SessionInputs(ticks=about, inputs=inputs, source={"model": "made up"})


def measure(settings: StormSettings, stage: int, data: StormData, turns: int) -> dict[str, float]:
    model = StormModel(settings, COMPONENTS)
    names = tuple(sorted({"".join(map(str, row)) for s in data.sessions for row in s.ticks.states}))
    run = StormRun(model=model, classes=names[1:], identity="bench", stage=stage)
    with tempfile.TemporaryDirectory() as folder:
        trainer = StageTrainer(run, data, settings, Path(folder), "cpu")
    model.train()
    rng = np.random.default_rng(0)
    held = next(iter(trainer._batches(rng)))
    for _ in range(3):
        trainer._step(held)
    ratios, waits, steps = [], [], []
    for _ in range(turns):
        waited = 0.0
        begun, begun_cpu = time.perf_counter(), time.process_time()
        with Prefetched(lambda: trainer._batches(np.random.default_rng(1))) as batches:
            iterator = iter(batches)
            count = 0
            while True:
                asked = time.perf_counter()
                batch = next(iterator, None)
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                trainer._step(batch)
                count += 1
        whole, whole_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
        begun_cpu = time.process_time()
        for _ in range(count):
            trainer._loss(held).backward()
        bare_cpu = time.process_time() - begun_cpu
        ratios.append(whole_cpu / bare_cpu)
        waits.append(waited / whole)
        steps.append(1000 * whole_cpu / count)
    return {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_least": round(min(ratios), 3),
        "waited_share_median": round(statistics.median(waits), 3),
        "cpu_ms_per_step": round(statistics.median(steps), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--published", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    small = replace(storm_preset("small"), fine_tuning="all")
    small = replace(
        small,
        contrastive=replace(small.contrastive, steps=20),
        temporal_stage=replace(small.temporal_stage, steps=20),
        fine_tune=replace(small.fine_tune, steps=8),
    )
    data = StormData(sessions=[session(n, picture=False, count=1500) for n in range(4)])
    found = {
        f"small/{name}": measure(small, stage, data, chosen.turns)
        for stage, name in enumerate(STAGES)
    }
    if chosen.published:
        whole = replace(storm_preset("published"), clip_frames=9, classes=4, per_class=2)
        few = {"steps": 2, "batch": 2}
        whole = replace(
            whole,
            background=2,
            contrastive=replace(whole.contrastive, steps=2),
            temporal_stage=replace(whole.temporal_stage, steps=2, batch=16),
            fine_tune=replace(whole.fine_tune, **few),
        )
        pictures = StormData(sessions=[session(n, picture=True, count=160) for n in range(2)])
        for stage, name in ((0, "contrastive"), (2, "fine_tune")):
            found[f"published/{name}"] = measure(whole, stage, pictures, 3)
    result = {
        "bench": "storm_training",
        "torch": torch.__version__,
        "threads": chosen.threads,
        "machine": platform.machine(),
        "stages": found,
        "target": TARGET,
        "reached": all(each["ratio_median"] <= TARGET for each in found.values()),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
