"""One session-tick of temporal encoders against one masked forward over W ticks, in the same run.

Usage: python tests/bench/bench_incremental.py [--context 1024] [--cues appearance,motion]
       [--rounds 7] [--threads 1]

Prints one JSON object. Needs the [train] extra: encoders with fresh weights are exported twice, as
the graph that steps and, by torch.onnx, as the masked forward over W ticks at once. Both run in
ONNX Runtime with the same number of threads. CPU time of this process, per session: of the whole
`IncrementalEncoders.step` (checks, ring and all), and of the forward for a batch of one and of 4
sessions, of which the cheaper counts. Rounds alternate; medians count. "floor" is what one pass
over the same bytes of cache costs NumPy (a matrix-vector product) and ONNX Runtime (a MatMul).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from keystep_models.incremental.encoders import IncrementalEncoders, Ticks
from keystep_models.steps.settings import TrainingSettings
from keystep_models.training.export_incremental import export_incremental
from keystep_models.training.steps_model import StepsModel

TARGETS = {1: 60.0, 16: 80.0}
SIZES = {
    "appearance": 1280, "motion": 128, "gaze": 12, "head": 15, "left_hand": 78, "right_hand": 78,
}  # fmt: skip


class _Forward(torch.nn.Module):
    """All cues' masked forward; mask and positions are constants, which ONNX Runtime folds."""

    def __init__(self, model: StepsModel, context: int) -> None:
        super().__init__()
        self.frames = torch.arange(context)[None]
        self.encoders = torch.nn.ModuleList(model.encoders[cue] for cue in model.sizes)

    def forward(self, *raw: torch.Tensor) -> list[torch.Tensor]:
        return [
            encoder(each, self.frames) for encoder, each in zip(self.encoders, raw, strict=True)
        ]


def start(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def export_forward(model: StepsModel, context: int, folder: Path) -> bytes:
    example = [torch.randn(2, context, size) for size in model.sizes.values()]
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        _Forward(model, context),
        tuple(example),
        str(folder / "forward.onnx"),
        input_names=list(model.sizes),
        dynamic_shapes=(tuple({0: batch} for _ in example),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return (folder / "forward.onnx").read_bytes()


def pass_over_graph(bytes_per_layer: tuple[int, ...], threads: int) -> Callable[[], None]:
    """ONNX Runtime reading a slot's cache once: a vector times each layer's rows."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["weights", "rows"], ["sum"])],
        "floor",
        [
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [1, "n"]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", bytes_per_layer[1]]),
        ],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, bytes_per_layer[1]])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = start(model.SerializeToString(), threads)
    inputs = {
        "weights": np.ones((1, bytes_per_layer[0]), np.float32),
        "rows": np.ones(bytes_per_layer, np.float32),
    }
    return lambda: session.run(None, inputs)


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        work()
    return 1e3 * (time.process_time() - began) / repeats


class _Live:
    """A full pool of sessions that are stepped in batches, slots in any order."""

    def __init__(self, manifest: Path, batch: int, threads: int) -> None:
        self.encoders = IncrementalEncoders.load(
            manifest, slot_count=32, intra_op_threads=threads, providers=["CPUExecutionProvider"]
        )
        slots = [self.encoders.open() for _ in range(32)]
        rng = np.random.default_rng(0)
        self.slots = rng.permutation(slots)[:batch].astype(np.int64)
        self.raw = {
            cue: rng.normal(size=(batch, size)).astype(np.float32)
            for cue, size in self.encoders.spec.cues.items()
        }
        self.frame = 0
        for _ in range(self.encoders.spec.context):  # the ring is full from here on
            self.step()

    def step(self) -> NDArray[np.float32]:
        frames = np.full(len(self.slots), self.frame, np.int64)
        self.frame += 1
        found = self.encoders.step(Ticks(slots=self.slots, frames=frames, raw=self.raw, valid={}))
        return next(iter(found.adapted.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--cues", default="appearance,motion")
    parser.add_argument("--position", default="age")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    cues = tuple(options.cues.split(","))
    context, threads = options.context, options.threads
    settings = TrainingSettings(
        cues=cues, causal=True, context=context, spacing="live", position=options.position
    )
    model = StepsModel(SIZES, settings).eval()
    work: dict[str, Callable[[], object]] = {}
    per: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        difference = export_incremental(model, folder)
        forward = start(export_forward(model, context, folder), threads)
        for batch in (1, 4):
            rng = np.random.default_rng(1)
            inputs = {
                cue: rng.normal(size=(batch, context, SIZES[cue])).astype(np.float32)
                for cue in cues
            }
            work[f"forward_batch_{batch}"] = lambda given=inputs: forward.run(None, given)
            per[f"forward_batch_{batch}"] = batch
        for batch in TARGETS:
            live = _Live(folder / "manifest.json", batch, threads)
            work[f"tick_batch_{batch}"] = live.step
            per[f"tick_batch_{batch}"] = batch
        slot_bytes = live.encoders.slot_bytes
    rows = slot_bytes // 4 // 128
    cache, weights = np.ones((rows, 128), np.float32), np.ones(rows, np.float32)
    work["floor_numpy"] = lambda: weights @ cache
    work["floor_onnxruntime"] = pass_over_graph((rows, 128), threads)
    repeats = {name: 3 if "forward" in name else 60 for name in work}
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds):
        for name, each in work.items():
            found[name].append(cpu_ms(each, repeats[name]) / per.get(name, 1))
    medians = {name: statistics.median(values) for name, values in found.items()}
    cheapest = min(medians[f"forward_batch_{batch}"] for batch in (1, 4))
    ratios = {batch: cheapest / medians[f"tick_batch_{batch}"] for batch in TARGETS}
    print(
        json.dumps(
            {
                "context": context,
                "cues": cues,
                "threads": threads,
                "rounds": options.rounds,
                "largest_difference_from_torch": difference,
                "cache_bytes_per_session": slot_bytes,
                "cpu_ms_per_session": {name: round(value, 4) for name, value in medians.items()},
                "forward_over_tick": {batch: round(ratio, 1) for batch, ratio in ratios.items()},
                "targets": TARGETS,
                "reached": all(ratios[batch] >= target for batch, target in TARGETS.items()),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
