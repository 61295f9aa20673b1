"""Clips tick by tick through the engine, against `predict_clips` over the whole recording."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import stripe_clips
import stripe_detector as stripes
from keystep_capture.errors import KeystepError, ModelError
from keystep_models.psr.methods import choose_live_method
from keystep_models.psr.recogniser import CueTick
from keystep_models.storm.bundle import ClipGeometry, StormBundle
from keystep_models.storm.clip_model import ClipModel
from keystep_models.storm.clip_predictions import predict_clips
from keystep_models.storm.clip_recogniser import CLIP, ClipRecogniser, clip_options
from keystep_models.storm.clip_sampling import SessionTicks
from keystep_models.storm.inputs import SessionInputs
from keystep_server.clip_shelf import ClipShelf
from keystep_server.inference import LocalEngine

FEATURES = np.random.default_rng(0).normal(size=(stripes.FRAMES, 1280)).astype(np.float32)
PROCEDURE = replace(stripes.make_procedure(None), storm="0" * 64)


@pytest.fixture(scope="module", params=[(7, 2), (2, 1), (5, 4)])
def bundle(request: Any, tmp_path_factory: pytest.TempPathFactory) -> StormBundle:
    frames, every = request.param
    folder = tmp_path_factory.mktemp("bundles") / "one"
    geometry = ClipGeometry(frames=frames, every=every)
    return stripe_clips.make_bundle(folder, PROCEDURE, FEATURES, geometry)


def offline(bundle: StormBundle, features: Any, valid: NDArray[np.bool_]) -> Any:
    count = len(valid)
    ticks = SessionTicks(
        name="one",
        states=np.zeros((count, 3), np.int8),
        valid=valid,
        frames=np.arange(count),
        frame_count=count,
    )
    source = bundle.document.input_source
    return predict_clips(bundle, SessionInputs(ticks=ticks, inputs=features, source=source))


def recogniser_of(bundle: StormBundle, model: ClipModel) -> ClipRecogniser:
    options = clip_options(bundle)
    _, inner = choose_live_method("temporal", PROCEDURE, clip_options=options)
    return ClipRecogniser("temporal", inner, bundle, model)


class LiveSession:
    """One session's ticks through the engine; some are left out, some have no picture."""

    def __init__(self, name: str, bundle: StormBundle, model: ClipModel, kinds: list[int]) -> None:
        self.name, self.kinds = name, kinds
        rng = np.random.default_rng(len(kinds))
        self.features = rng.normal(size=(len(kinds), 1280)).astype(np.float32)
        self.recogniser = recogniser_of(bundle, model)
        self.found = np.full((len(kinds), 3), np.nan, np.float32)
        self.told: list[CueTick] = []

    @property
    def valid(self) -> NDArray[np.bool_]:
        return np.array([kind == 0 for kind in self.kinds])

    def ask(self, index: int, engine: LocalEngine, key: str) -> Any:
        if index >= len(self.kinds) or self.kinds[index] != 0:
            return None
        return engine.submit(key, self.name, self.recogniser.row(index, self.features[index]))

    def take(self, index: int, answer: Any) -> None:
        if index >= len(self.kinds) or self.kinds[index] == 2:
            return  # left out: the timeline jumps
        rows = {} if answer is None else self.recogniser.rows_of(answer.result()[0])
        tick = CueTick(index=index, rows=rows)
        self.recogniser.step_tick(tick)
        self.told.append(tick)
        if CLIP in rows:
            self.found[index] = rows[CLIP]

    def resume(self, bundle: StormBundle, model: ClipModel) -> None:
        """Go on as another process does: from the snapshot and the newest rows on disk."""
        snapshot = self.recogniser.snapshot()
        self.recogniser = recogniser_of(bundle, model)
        self.recogniser.restore(snapshot)
        for tick in self.told[-self.recogniser.memory_ticks :]:
            self.recogniser.remember(tick)


_KINDS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=1, max_size=40)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kinds=st.lists(_KINDS, min_size=1, max_size=4), cut=st.integers(0, 39))
def test_clips_tick_by_tick_are_those_of_the_whole_recording(
    bundle: StormBundle, kinds: list[list[int]], cut: int
) -> None:
    model = ClipModel.load(bundle)
    sessions = [LiveSession(f"s{n}", bundle, model, each) for n, each in enumerate(kinds)]
    with LocalEngine(max_batch=1) as engine:
        key = engine.add_model(model, max_batch=4, max_calls=1)
        for index in range(max(map(len, kinds))):
            if index == cut:
                for session in sessions:
                    session.resume(bundle, model)
            answers = [session.ask(index, engine, key) for session in sessions]
            for session, answer in zip(sessions, answers, strict=True):
                session.take(index, answer)
    for session in sessions:
        expected = offline(bundle, session.features, session.valid)
        np.testing.assert_allclose(session.found, expected, atol=1e-4, rtol=0)


def test_the_clips_of_sessions_run_together(tmp_path: Path) -> None:
    bundle = stripe_clips.make_bundle(tmp_path / "one", PROCEDURE, FEATURES)
    model = ClipModel.load(bundle)
    recogniser = recogniser_of(bundle, model)
    row = recogniser.row(0, FEATURES[0])
    sizes: list[int] = []
    with LocalEngine(
        max_batch=1, max_wait_ms=10_000, on_batch=lambda _, rows: sizes.append(rows)
    ) as engine:
        key = engine.add_model(model, max_batch=4, max_calls=1)
        for name in ("a", "b", "c", "d"):
            engine.import_state(name, engine.export_state(name))
        first = engine.submit(key, "a", row)
        first.result()
        # All have submitted lately from here on, so that a batch waits for them.
        for _ in range(3):
            answers = [engine.submit(key, name, row) for name in ("a", "b", "c", "d")]
            for answer in answers:
                np.testing.assert_allclose(answer.result(), first.result(), atol=1e-6)
    assert max(sizes) == 4


def test_a_session_that_ended_is_let_go_and_its_last_tick_fails(tmp_path: Path) -> None:
    bundle = stripe_clips.make_bundle(tmp_path / "one", PROCEDURE, FEATURES)
    model = ClipModel.load(bundle)
    row = recogniser_of(bundle, model).row(0, FEATURES[0])
    gc.collect()
    with LocalEngine() as engine:
        answer = engine.submit(engine.add_model(model), "a", row)
        with pytest.raises(ModelError, match="session of this tick was closed"):
            answer.result(20)


def damage(folder: Path, what: str) -> None:
    path = folder / "temporal" / "temporal.onnx"
    if what == "bytes":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif what == "missing":
        path.unlink()
    else:
        text = (folder / "bundle.json").read_text()
        (folder / "bundle.json").write_text(text.replace('"every": 2', '"every": 3'))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("bytes", "damaged or another version"),
        ("missing", "temporal.onnx"),
        ("edited", "is not on this server; .*mine: .*damaged or edited"),
        ("appearance", "was made with the appearance model"),
        ("components", "sees 3 components, procedure 'stripes' has 2"),
        ("steps", "has step 3"),
        ("nan", "expected finite values"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_refused_when_it_is_asked_for(
    tmp_path: Path, what: str, words: str
) -> None:
    features = np.full_like(FEATURES, np.nan) if what == "nan" else FEATURES
    bundle = stripe_clips.make_bundle(tmp_path / "storm" / "mine", PROCEDURE, features)
    procedure = replace(PROCEDURE, storm=bundle.id)
    appearance = bundle.document.input_source["sha256"]
    if what == "appearance":
        appearance = "1" * 64
    if what == "components":
        two = tuple(step for step in procedure.steps if step.component_idx < 2)
        procedure = replace(
            procedure, steps=two, component_count=2, initial_state=(0, 0), states=()
        )
    if what == "steps":
        other = tuple(replace(step, id=step.id + 100 * (step.id > 0)) for step in procedure.steps)
        procedure = replace(procedure, steps=other)
    if what in ("bytes", "missing", "edited"):
        damage(bundle.folder, what)
    with LocalEngine() as engine:
        shelf = ClipShelf(tmp_path / "storm", engine, appearance_sha256=appearance)
        with pytest.raises(KeystepError, match=words) as raised:
            shelf.check(procedure)
    assert "\n" not in str(raised.value)
