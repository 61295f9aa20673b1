"""A guided session's pipeline killed between any two batches: the same files as if it had not been.

In this process and at random moments, so that many can be tried: between what was marked, what was
written and what was worked off since, as a killed server leaves them.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

import guided_session as cart
from keystep_capture.peers import Lane
from keystep_capture.streams import STREAMS
from keystep_models.bundles.bundle import Bundle
from keystep_models.bundles.making import make_bundle
from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_models.guidance.bundle_recogniser import BundleRecogniser
from keystep_models.guidance.step_timing import ExpertSegment
from keystep_models.onnx_model import OnnxModel
from keystep_models.psr.procedure_document import to_procedure
from keystep_server.batches import Item, Outcome
from keystep_server.checkpoint import LaneState, PipelineState
from keystep_server.inference import LocalEngine, model_key
from keystep_server.pipeline import SessionPipeline
from keystep_server.progress import StreamProgress
from keystep_server.recorder import SessionRecorder
from keystep_server.storage import Session, SessionKind, SessionState

FRAMES = 40
CUES = ("gaze_appearance", "motion", "right_hand")


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint: of the pipeline, of each lane, of the recogniser."""

    pipeline: PipelineState
    lanes: dict[str, LaneState]
    logic: dict[str, Any]


class Sessions:
    """Runs of one session."""

    def __init__(self, items: list[Item], engine: LocalEngine, key: str, bundle: Bundle) -> None:
        self.items, self.engine, self.key, self.bundle = items, engine, key, bundle

    def pipeline(self, folder: Path) -> SessionPipeline:
        """At the session's start, or on what one left."""
        session = Session(
            id="ses_" + "0" * 26, device_id="hl2", kind=SessionKind.EXPERT,
            state=SessionState.OPEN, task=None, procedure=None, method=None, replay=True,
            time_scale=1.0, created_at=datetime.now(UTC),
        )  # fmt: skip
        titles = {number: ReviewedStep(title=f"Step {number}") for number in (1, 2)}
        document = procedure_of_bundle(self.bundle, titles, name="cart", task="cart")
        procedure = to_procedure(document)
        return SessionPipeline(
            session_id="one", folder=folder, engine=self.engine, appearance_model=self.key,
            lossless=True, rate_hz=10.0, logic=BundleRecogniser(procedure, self.bundle, None),
            recorder=SessionRecorder(folder, session, everything=True, clock=time.monotonic_ns),
        )  # fmt: skip

    def whole(self, folder: Path, rng: random.Random) -> tuple[bytes, bytes]:
        """The files of a session that nothing befalls."""
        running = self.pipeline(folder)
        for batch in batches(self.items, rng):
            running.process(batch)
        return ended(running, folder)

    def killed(self, folder: Path, rng: random.Random) -> tuple[bytes, bytes]:
        """The files of a session whose server is killed once."""
        kept = self.until_killed(folder / "first", folder / "second", rng)
        running = self.pipeline(folder / "second")
        following = running._following  # what a session has restored before its pipeline
        assert following is not None
        following.recogniser.restore(kept.logic)
        taken = {name: (state.epoch, state.sequence) for name, state in kept.lanes.items()}
        running.restore(kept.pipeline, taken, Outcome())
        since = {name: (state.resume or state).sequence for name, state in kept.lanes.items()}
        again = [i for i in self.items if i.header.sequence > since.get(i.header.stream, -1)]
        for batch in batches(again, rng):
            running.process(batch)
        return ended(running, folder / "second")

    def until_killed(self, folder: Path, left: Path, rng: random.Random) -> Kept:
        """Work off packets until a random one; copy what a killed server leaves."""
        running = self.pipeline(folder)
        lanes = {n: StreamProgress(STREAMS[n], kept_by_source=True) for n in cart.STREAMS}
        pending: Any = None
        kept: Kept | None = None
        count, enough = 0, rng.randrange(len(self.items) // 4, 3 * len(self.items) // 4)
        for batch in batches(self.items, rng):
            running.process(batch)
            count += len(batch)
            for item in batch:
                lanes[item.header.stream].note(item.header, len(item.payload))
            if pending is not None and running.is_written(pending[0]):
                kept = Kept(through_json(pending[0].state(), PipelineState), *pending[1:])
                pending = None
            if pending is None and rng.random() < 0.2:
                states = {n: lane.state("i", finished=False) for n, lane in lanes.items()}
                logic = running._following.recogniser.snapshot()  # type: ignore[union-attr]
                pending = running.mark(), states, json.loads(json.dumps(logic))
            if kept is not None and count >= enough:
                break
        shutil.copytree(folder, left)
        running.finish(Outcome())
        running.close()
        assert kept is not None
        return kept


def batches(items: list[Item], rng: random.Random) -> Iterator[list[Item]]:
    start = 0
    while start < len(items):
        count = rng.choice((1, 1, 2, 3, 5, 8, 20))
        yield items[start : start + count]
        start += count


def through_json(value: Any, kind: Any) -> Any:
    return msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(value))), kind)


def ended(running: SessionPipeline, folder: Path) -> tuple[bytes, bytes]:
    running.finish(Outcome())
    running.close()
    return (folder / "cues.rows").read_bytes(), (folder / "ticks.rows").read_bytes()


@pytest.fixture
def sessions(learned: cart.Learned, tmp_path: Path) -> Iterator[Sessions]:
    packets = cart.gazing_packets(learned.packets, holes=True, frames=FRAMES)
    features = cart.recorded_features(packets, tmp_path / "made", CUES)
    parts = cart.raw_parts(features, features.cues)
    segments = [
        ExpertSegment(step_id=number, start_tick=start, end_tick=start + 12)
        for number, start in ((1, 3), (2, 18))
    ]
    bundle = make_bundle(tmp_path / "bundle", parts, segments)
    streams = {name: Lane(STREAMS[name], 1) for name in cart.STREAMS}
    items = [
        Item(streams[header.stream], header, payload, 0)
        for header, payload in cart.with_headers(packets)
    ]
    model = OnnxModel.load(appearance_manifest_path(), providers=["CPUExecutionProvider"])
    with LocalEngine({model_key(model): model}, max_batch=1) as engine:
        yield Sessions(items, engine, model_key(model), bundle)


def test_a_session_killed_at_any_moment_has_the_same_cues(
    sessions: Sessions, tmp_path: Path
) -> None:
    expected = sessions.whole(tmp_path / "whole", random.Random(0))
    assert len(expected[0]) % FRAMES == 0
    for seed in (1, 2, 3):
        found = sessions.killed(tmp_path / f"killed-{seed}", random.Random(seed))
        assert found == expected, seed
