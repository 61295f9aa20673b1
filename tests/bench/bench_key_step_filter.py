"""What one tick of guidance costs beside one EfficientNet-Lite0 call, CPU time in one run.

python tests/bench/bench_key_step_filter.py [--steps 13] [--ticks 2000]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_models.guidance.emissions import EmissionModel, PartRows
from keystep_models.guidance.step_filter import KeyStepFilter
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming
from keystep_models.onnx_model import OnnxModel


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--ticks", type=int, default=2000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    segments = [
        ExpertSegment(step_id=place, start_tick=20 + 80 * place, end_tick=59 + 80 * place)
        for place in range(options.steps)
    ]
    rows = rng.normal(size=(80 * options.steps + 40, 1280)).astype(np.float32)
    part = PartRows(rows=rows, valid=np.ones(len(rows), np.bool_))
    model = EmissionModel.fit({"appearance": part}, segments)
    running = KeyStepFilter(StepTiming.of_segments(segments))
    seen = emission = filtering = 0.0
    for tick in range(options.ticks):
        start = time.process_time()
        evidence = model.evidence({"appearance": rows[tick % len(rows)]})
        seen = time.process_time()
        running.step(tick, evidence)
        filtering += time.process_time() - seen
        emission += seen - start
    network = _network_us(rng)
    tick_us = 1e6 * (emission + filtering) / options.ticks
    result = {
        "steps": options.steps,
        "emission_us": round(1e6 * emission / options.ticks),
        "filter_us": round(1e6 * filtering / options.ticks),
        "efficientnet_lite0_us": round(network),
        "ratio": round(tick_us / network, 4),
    }
    print(json.dumps(result))


def _network_us(rng: np.random.Generator, calls: int = 50) -> float:
    network = OnnxModel.load(appearance_manifest_path(), providers=["CPUExecutionProvider"])
    frames = rng.integers(0, 256, size=(1, 224, 224, 3), dtype=np.uint8)
    inputs = {network.manifest.inputs[0].name: frames}
    network.run(inputs)
    start = time.process_time()
    for _ in range(calls):
        network.run(inputs)
    return 1e6 * (time.process_time() - start) / calls


if __name__ == "__main__":
    main()
