"""CPU of the spatio-temporal branch live, beside the bare cost of its two models.

    OMP_NUM_THREADS=1 python tests/bench/bench_storm_live.py [--frames 400] [--repeats 7]

Ours is all that a live session does with a tick whose appearance feature is there: its row is made
of the ring, runs in the engine's thread with those of the other sessions, comes back, is
accumulated (temporal, and storm-soft with detections), and its cues are written. Bare is one run
of the spatial and one of the temporal model per frame, at batch 1, or for all sessions at once.
Both in the same process, on the same weights, in turns tick by tick (in a loop of its own either
has warmer caches than a server at ten ticks a second), CPU time of all threads, one thread a
model; the median of the repeats' ratios. Random features: the models take as long for any.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keystep_capture.align import Tick
from keystep_models.detector.detecting_recogniser import DETECTIONS, pack
from keystep_models.onnx_model import OnnxModel
from keystep_models.psr.logic import Detection
from keystep_models.psr.methods import choose_live_method
from keystep_models.psr.recogniser import CueTick
from keystep_models.storm.bundle import StormBundle, read_storm_bundle
from keystep_models.storm.clip_model import ClipModel
from keystep_models.storm.clip_recogniser import ClipRecogniser, clip_options
from keystep_models.storm.shipped import shipped_bundles
from keystep_server.clip_shelf import add_clip_model
from keystep_server.inference import LocalEngine
from keystep_server.tick_clips import TickClips
from keystep_server.tick_following import TickFollowing

PERIOD_NS = 100_000_000
REST_S = 0.0005


class Session:
    """One session's way from an appearance feature to steps."""

    def __init__(
        self, name: str, method: str, bundle: StormBundle, model: ClipModel, engine: Any, key: str
    ) -> None:
        procedure = replace(
            bundle.procedure,
            storm=bundle.id,
            detector="0" * 64,
            states=(None, bundle.procedure.initial_state),
        )
        _, inner = choose_live_method(method, procedure, clip_options=clip_options(bundle))
        recogniser = ClipRecogniser(method, inner, bundle, model)
        self._folder = tempfile.TemporaryDirectory()
        self.following = TickFollowing(recogniser, Path(self._folder.name), 10.0)
        self.clips = TickClips(
            recogniser, lambda rows: engine.submit(key, name, rows, newest_wins=True), lambda: None
        )
        self.count, self.detects = 0, DETECTIONS in recogniser.cues
        self.row = pack([Detection(1, 0.9, (1.0, 1.0, 2.0, 2.0))])

    def describe(self) -> CueTick:
        """What the pipeline has of a tick when it is complete."""
        tick = Tick(device_time_ns=self.count * PERIOD_NS, index=self.count, samples={})
        cues, _ = self.following.describe(tick, 0, None)
        rows = {**cues.rows, DETECTIONS: self.row} if self.detects else cues.rows
        return CueTick(index=cues.index, rows=rows)


def live(sessions: list[Session], feature: Any) -> None:
    """A tick of every session: asked for together, then looked at and written."""
    ticks = [session.describe() for session in sessions]
    for session, tick in zip(sessions, ticks, strict=True):
        session.clips.rows_of(tick.index, feature, behind=0, wait=False)
    for session, tick in zip(sessions, ticks, strict=True):
        rows = session.clips.rows_of(tick.index, feature, behind=0, wait=True)
        assert rows
        whole = CueTick(index=tick.index, rows={**tick.rows, **rows})
        session.following.look(whole, feature, paused=False)
        session.following.append(session.count, whole)
        session.following.flush()
        session.count += 1


def cpu_us(run: Callable[[], None]) -> float:
    """CPU time of all threads, until they rest."""
    begun = time.process_time()
    run()
    time.sleep(REST_S)
    return (time.process_time() - begun) * 1e6


def in_turns(ours: Callable[[Any], None], bare: Callable[[Any], None], turns: Any) -> list[float]:
    """CPU of ours and of bare, us a turn."""
    spent = [0.0, 0.0]
    for number, given in enumerate(turns):
        for place in (0, 1) if number % 2 else (1, 0):
            spent[place] += cpu_us(functools.partial((ours, bare)[place], given))
    return [each / len(turns) for each in spent]


def measure(
    bundle: StormBundle, method: str, session_count: int, frames: int, repeats: int
) -> dict[str, Any]:
    document, rng = bundle.document, np.random.default_rng(0)
    spatial = OnnxModel.load(bundle.spatial_manifest)
    temporal = OnnxModel.load(bundle.temporal_manifest)
    model = ClipModel(bundle, spatial.beside(), temporal.beside())  # the same weights
    [size] = spatial.manifest.inputs[0].shape[1:]
    features = rng.normal(size=(frames, int(size))).astype(np.float32)
    shape = (session_count, document.clip.frames)
    clips = rng.normal(size=(*shape, document.embedding_size)).astype(np.float32)
    valid = np.ones(shape, np.bool_)

    def bare(feature: Any) -> None:
        spatial.run(np.repeat(feature[None], session_count, axis=0))
        temporal.run({"clips": clips, "valid": valid})

    found: list[list[float]] = []
    batches: list[int] = []
    with LocalEngine(on_batch=lambda _, rows: batches.append(rows)) as engine:
        key = add_clip_model(engine, model)
        sessions = [
            Session(f"s{n}", method, bundle, model, engine, key) for n in range(session_count)
        ]
        for number in range(document.clip.ticks + 8):  # full windows
            live(sessions, features[number % frames])
        batches.clear()
        nothing = statistics.median(cpu_us(lambda: None) for _ in range(50))
        for _ in range(repeats):
            both = in_turns(functools.partial(live, sessions), bare, features)
            found.append([(each - nothing) / session_count for each in both])
        for session in sessions:
            session.following.close()
    return {
        "method": method,
        "sessions": session_count,
        "bare_us_per_frame": round(statistics.median(two for _, two in found), 1),
        "ours_us_per_frame": round(statistics.median(one for one, _ in found), 1),
        "ratio": round(statistics.median(two / one for one, two in found), 3),
        "ratios": [round(two / one, 3) for one, two in found],
        "mean_batch": round(sum(batches) / len(batches), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=shipped_bundles()[0].parent)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    bundle = read_storm_bundle(options.bundle)
    for method in ("temporal", "storm-soft"):
        for sessions in (1, 4):
            found = measure(bundle, method, sessions, options.frames // sessions, options.repeats)
            print(json.dumps({**found, "asked": 0.7}), flush=True)


if __name__ == "__main__":
    main()
