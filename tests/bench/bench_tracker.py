"""One update of the tracker against one EfficientNet-Lite0 call, measured in the same run.

Usage: python tests/bench/bench_tracker.py [--updates 2000] [--calls 60] [--rounds 5]

Prints one JSON object. The procedure is simulated: 50 components installed one after another, a
detector class for every state on the way (52 classes with background and error state), frames with
two detections or none. CPU time of the process, all threads, so that neither side gains by using
more cores; rounds alternate between the two and the median round counts. Target: an update costs
less than a tenth of a call.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np

from keystep_models.cues.appearance_cue import CROP, appearance_manifest_path
from keystep_models.onnx_model import OnnxModel
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import Procedure, ProcedureStep
from keystep_models.psr.tracker import Tracker
from keystep_models.psr.tracker_model import TrackerModel

STEP_COUNT = 50
FRAMES_PER_STEP = 40
TARGET = 0.1


def simulated_procedure() -> Procedure:
    count = STEP_COUNT
    states = [tuple(int(c < done) for c in range(count)) for done in range(count + 1)]
    return Procedure(
        name="simulated-50",
        task="assy",
        steps=tuple(
            ProcedureStep(
                id=3 * c, title=f"Install {c}", component_idx=c, kind="completed", expected=True
            )
            for c in range(count)
        ),
        component_count=count,
        initial_state=(0,) * count,
        states=(None, *states, None),
    )


def simulated_frames(rng: np.random.Generator) -> list[list[Detection]]:
    frames: list[list[Detection]] = []
    for frame_idx in range(STEP_COUNT * FRAMES_PER_STEP):
        state_class = 1 + frame_idx // FRAMES_PER_STEP
        sure, other = rng.uniform(0.6, 0.9), rng.uniform(0.25, 0.5)
        wrong_class = int(rng.integers(1, STEP_COUNT + 2))
        seen = [Detection(state_class, sure), Detection(wrong_class, other)]
        frames.append(seen if frame_idx % 4 else [])
    return frames


def update_ms(frames: list[list[Detection]], update_count: int) -> tuple[float, int]:
    tracker = Tracker(simulated_procedure(), TrackerModel())
    event_count, start = 0, time.process_time()
    for frame_idx in range(update_count):
        event_count += len(tracker.step(frame_idx, frames[frame_idx % len(frames)]))
    return (time.process_time() - start) / update_count * 1e3, event_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    frames = simulated_frames(np.random.default_rng(0))
    network = OnnxModel.load(appearance_manifest_path(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(1).integers(0, 256, (1, CROP, CROP, 3), dtype=np.uint8)
    network.run(image)
    updates, calls, event_count = [], [], 0
    for _ in range(args.rounds):
        cost, event_count = update_ms(frames, args.updates)
        updates.append(cost)
        start = time.process_time()
        for _ in range(args.calls):
            network.run(image)
        calls.append((time.process_time() - start) / args.calls * 1e3)
    ratio = statistics.median(updates) / statistics.median(calls)
    result = {
        "machine": platform.processor() or platform.machine(),
        "step_count": STEP_COUNT,
        "events_reported": event_count,
        "update_cpu_ms": round(statistics.median(updates), 4),
        "efficientnet_lite0_call_cpu_ms": round(statistics.median(calls), 3),
        "ratio": round(ratio, 4),
        "target": TARGET,
        "met": ratio < TARGET,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
