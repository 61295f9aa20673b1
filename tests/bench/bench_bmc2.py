"""One training step with our loss against the loss written straight from the formulas.

Usage: python tests/bench/bench_bmc2.py [--rounds 3] [--threads 2]

Prints one JSON object. Batch of 4 x 1024 frames, cues of 2048 and 128 values, the same temporal
encoders for both: forward, loss, backward, optimiser. Each measurement is a fresh process: CPU
seconds and wall seconds of a step after one that is not counted, and peak memory above what the
process held when its libraries were imported. Rounds alternate; medians count. `plain_bmc2.py` is a
copy of the project's shared reference vectors' file of that name. Threads wait without spinning, so
that CPU seconds mean work where other programs run beside. Targets: 2.5 times faster, half the
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

BATCH, FRAMES = 4, 1024
SIZES = {"rgb": 2048, "flow": 128}
SPEED_TARGET, MEMORY_TARGET = 2.5, 0.5


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, threads: int, steps: int) -> dict[str, float]:
    """Runs in a process of its own."""
    import plain_bmc2
    import torch

    from keystep_models.training.bmc2 import bmc2_loss
    from keystep_models.training.encoders import CueEncoder, Projection

    torch.set_num_threads(threads)
    torch.zeros(1).sum()
    before = peak_bytes()
    torch.manual_seed(0)
    encoders = {cue: CueEncoder(size) for cue, size in SIZES.items()}
    projections = {cue: Projection() for cue in SIZES}
    parts = [*encoders.values(), *projections.values()]
    optimiser = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=1e-3)
    raw = {cue: 0.1 * torch.randn(BATCH, FRAMES, size) for cue, size in SIZES.items()}
    timestamps = torch.sort(torch.randint(0, 7200, (BATCH, FRAMES)), dim=1).values
    num_frames = torch.full((BATCH,), 7200)

    def step() -> float:
        projected = {cue: projections[cue](encoders[cue](raw[cue], timestamps)) for cue in SIZES}
        if side == "ours":
            total = bmc2_loss(
                projected, raw, timestamps, num_frames, 12.0, anchor="rgb", bootstrap="rgb"
            ).total
        else:
            total, _ = plain_bmc2.loss(
                projected, raw, timestamps, num_frames, 12.0, "rgb", ["rgb"], 10.0
            )
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        return float(total.detach())

    first = step()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        step()
    return {
        "cpu_s": (time.process_time() - cpu) / steps,
        "wall_s": (time.perf_counter() - wall) / steps,
        "peak_mb": (peak_bytes() - before) / 1e6,
        "first_loss": first,
    }


def fresh(side: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--threads", str(options.threads)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(
        [*command, "--steps", str(options.steps)], env=environment, check=True, stdout=-1
    )
    return dict(json.loads(done.stdout))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for side, rounds in found.items():
            rounds.append(fresh(side, options))
    medians = {
        side: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        for side, rounds in found.items()
    }
    plain, ours = medians["plain"], medians["ours"]
    faster, memory = plain["cpu_s"] / ours["cpu_s"], ours["peak_mb"] / plain["peak_mb"]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "batch": [BATCH, FRAMES],
        "sizes": SIZES,
        **medians,
        "times_faster_cpu": round(faster, 2),
        "times_faster_cpu_rounds": [
            round(p["cpu_s"] / o["cpu_s"], 2) for p, o in zip(*found.values(), strict=True)
        ],
        "times_faster_wall": round(plain["wall_s"] / ours["wall_s"], 2),
        "memory_ratio": round(memory, 2),
        "targets": {"times_faster": SPEED_TARGET, "memory_ratio": MEMORY_TARGET},
        "reached": faster >= SPEED_TARGET and memory <= MEMORY_TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["plain", "ours"], help="measure one side only, here")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.threads, options.steps)))
        return
    if find_spec("torch") is None:
        print(json.dumps({"skipped": "needs torch: make test-training installs it"}))
        return
    print(json.dumps(compare(options), indent=2))


if __name__ == "__main__":
    main()
