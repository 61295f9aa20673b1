import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keystep_capture.errors import (
    ConfigError,
    DataError,
    ModelError,
    NotFoundError,
    ShapeError,
    StateError,
)
from keystep_models.onnx_model import OnnxModel
from keystep_server.inference import InferenceEngine, LocalEngine, model_key

TIMEOUT_S = 20.0
HOUR_MS = 3_600_000.0


class TurnedClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def load(folder: Path, name: str, nodes: list[Any], row: list[int], **more: Any) -> OnnxModel:
    """Build, write and load a model uint8 (batch, *row) -> float32 (batch, 3)."""
    batch = more.pop("batch", "batch")
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [batch, *row])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3])],
        more.pop("weights", []),
    )
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    manifest = {
        "name": name,
        "version": "1",
        "file": f"{name}.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "Apache-2.0",
        "source": "made by the test",
        "inputs": [{"name": "frames", "dtype": "uint8", "shape": [batch, *row]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": [batch, 3]}],
        "preprocessing": {},
        "rate_hz": 10.0,
    }
    (folder / f"{name}.onnx").write_bytes(content)
    (folder / f"{name}.json").write_text(json.dumps(manifest))
    return OnnxModel.load(folder / f"{name}.json")


def load_mean(folder: Path, name: str = "mean", **more: Any) -> OnnxModel:
    """Mean colour of 4x4 images."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["embedding"], axes=[1, 2], keepdims=0),
    ]
    return load(folder, name, nodes, [4, 4, 3], **more)


def load_table(folder: Path) -> OnnxModel:
    """Row i of a table of 10; ONNX Runtime fails on an index of 10 or more."""
    table = np.arange(30, dtype=np.float32).reshape(10, 3)
    nodes: list[onnx.NodeProto] = [
        helper.make_node("Cast", ["frames"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["embedding"], axis=0),
    ]
    return load(folder, "table", nodes, [], weights=[numpy_helper.from_array(table, "table")])


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return load_mean(tmp_path_factory.mktemp("mean"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return load_table(tmp_path_factory.mktemp("table"))


def image(value: int, count: int = 1) -> NDArray[np.uint8]:
    return np.full((count, 4, 4, 3), value, np.uint8)


def value_of(future: Future[NDArray[Any]]) -> int:
    return int(future.result(TIMEOUT_S)[0, 0])


@contextmanager
def busy(engine: LocalEngine, model: OnnxModel) -> Iterator[Future[NDArray[Any]]]:
    """Keep the model's worker from taking anything up for the time of the block.

    A request is kept waiting for a session that is active, so that its callback, which runs on
    the worker, is sure to be in place; then that session is forgotten and the callback blocks.
    Needs an engine with a long `max_wait_ms`.
    """
    key, gate, reached = model_key(model), threading.Event(), threading.Event()
    rows = np.zeros([1, *model.manifest.inputs[0].shape[1:]], np.uint8)  # type: ignore[list-item]
    engine.submit(key, "doorman", rows).result(TIMEOUT_S)
    first = engine.submit(key, "guest", rows)
    first.add_done_callback(lambda _: (reached.set(), gate.wait(TIMEOUT_S)))
    engine.forget("doorman")
    assert reached.wait(TIMEOUT_S)
    engine.forget("guest")
    try:
        yield first
    finally:
        gate.set()


def make_engine(*models: OnnxModel, **settings: Any) -> LocalEngine:
    settings = {"max_wait_ms": HOUR_MS, "clock": TurnedClock()} | settings
    return LocalEngine({model_key(model): model for model in models}, **settings)


def test_one_session_alone_is_answered_without_waiting_for_others(mean: OnnxModel) -> None:
    with make_engine(mean) as engine:
        for value in range(5):
            assert value_of(engine.submit(model_key(mean), "a", image(value))) == value
        stats = engine.stats()[model_key(mean)]
    assert (stats.batches, stats.rows, stats.mean_batch_rows, stats.waiting) == (5, 5, 1.0, 0)


def test_sessions_are_batched_once_every_active_one_has_submitted(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean) as engine:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        second = engine.submit(key, "b", image(2, count=3))  # waits for a, which is active
        third = engine.submit(key, "a", image(3))
        assert (value_of(second), value_of(third)) == (2, 3)
        assert second.result().shape == (3, 3)
        stats = engine.stats()[key]
    assert (stats.batches, stats.rows) == (2, 5)


def test_a_full_batch_runs_at_once(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean, max_batch=2) as engine:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        futures = [engine.submit(key, "b", image(value)) for value in (2, 3)]
        assert [value_of(future) for future in futures] == [2, 3]


def test_a_batch_closes_after_its_longest_wait(mean: OnnxModel) -> None:
    clock, key = TurnedClock(), model_key(mean)
    with make_engine(mean, max_wait_ms=1.0, clock=clock) as engine:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        waiting = engine.submit(key, "b", image(2))
        assert not waiting.done()
        clock.now_ns += 1_000_000
        assert value_of(waiting) == 2


def test_a_session_that_fell_silent_is_not_waited_for(mean: OnnxModel) -> None:
    clock, key = TurnedClock(), model_key(mean)
    with make_engine(mean, active_s=1.0, clock=clock) as engine:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        clock.now_ns += 1_000_000_001
        assert value_of(engine.submit(key, "b", image(2))) == 2


def test_forgetting_the_awaited_session_releases_the_batch(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean) as engine:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        waiting = engine.submit(key, "b", image(2))
        engine.forget("a")
        assert value_of(waiting) == 2


def test_inline_the_request_that_completes_a_batch_runs_it_at_once(mean: OnnxModel) -> None:
    with make_engine() as engine:
        key = engine.add_model(mean, inline=True)
        alone = engine.submit(key, "a", image(1))
        assert alone.done()
        waiting = engine.submit(key, "b", image(2))
        assert not waiting.done()
        last = engine.submit(key, "a", image(3))
        assert waiting.done()
        assert last.done()
        assert [value_of(future) for future in (alone, waiting, last)] == [1, 2, 3]
        assert engine.stats()[key].batches == 2


def test_inline_a_batch_closes_after_its_longest_wait_too(mean: OnnxModel) -> None:
    clock = TurnedClock()
    with make_engine(clock=clock) as engine:
        key = engine.add_model(mean, max_wait_ms=1.0, inline=True)
        for _ in range(3):  # the thread that closes it has been dozing, or has not
            engine.submit(key, "a", image(1)).result(TIMEOUT_S)
            waiting = engine.submit(key, "b", image(2))
            clock.now_ns += 1_000_000
            assert value_of(waiting) == 2
            clock.now_ns += 2_000_000_000  # both fall silent


@pytest.mark.parametrize("inline", [False, True])
def test_many_sessions_at_once_get_the_rows_they_get_alone(mean: OnnxModel, inline: bool) -> None:
    rng = np.random.default_rng(7)
    rows = rng.integers(0, 256, (6, 30, 4, 4, 3), np.uint8)
    alone = [mean.run(session) for session in rows]
    key = model_key(mean)

    def session(number: int) -> NDArray[Any]:
        futures = []
        for row in rows[number]:
            futures.append(engine.submit(key, f"s{number}", row[None]))
            futures[max(0, len(futures) - 4)].result(TIMEOUT_S)
        return np.concatenate([future.result(TIMEOUT_S) for future in futures])

    with LocalEngine(max_batch=4) as engine, ThreadPoolExecutor(6) as pool:
        engine.add_model(mean, inline=inline)
        for got, expected in zip(pool.map(session, range(6)), alone, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert engine.stats()[key].rows == 180


def test_answers_keep_each_sessions_order_and_sessions_take_turns(mean: OnnxModel) -> None:
    key, answered = model_key(mean), []
    with make_engine(mean, max_batch=2) as engine:
        with busy(engine, mean):
            futures = []
            for number, session in enumerate("aaaabb"):
                futures.append(engine.submit(key, session, image(number)))
                futures[-1].add_done_callback(lambda future: answered.append(value_of(future)))
        for future in futures:
            future.result(TIMEOUT_S)
    assert answered == [0, 4, 1, 5, 2, 3]


def test_calls_run_at_once_but_never_two_for_one_session(mean: OnnxModel) -> None:
    key, answered = model_key(mean), []
    first_runs, second_done = threading.Event(), threading.Event()
    with make_engine(mean, max_batch=1, max_calls=2) as engine:

        def hold(future: Future[NDArray[Any]]) -> None:
            answered.append(value_of(future))
            first_runs.set()
            assert second_done.wait(TIMEOUT_S)  # of the other session, so by another thread

        held = engine.submit(key, "a", image(0))
        held.add_done_callback(hold)
        if not first_runs.wait(0.2):  # it was done before it was asked to hold
            hold(held)
        after = engine.submit(key, "a", image(1))
        after.add_done_callback(lambda future: answered.append(value_of(future)))
        assert value_of(engine.submit(key, "b", image(2))) == 2
        answered.append(2)
        second_done.set()
        after.result(TIMEOUT_S)
    assert answered == [0, 2, 1]


def test_a_large_request_gets_its_turn_among_small_ones(mean: OnnxModel) -> None:
    key, answered, clock = model_key(mean), [], TurnedClock()
    with make_engine(mean, max_batch=4, active_s=0.0, clock=clock) as engine:
        with busy(engine, mean):
            futures = []
            for session, value, count in [("a", 0, 1), ("b", 1, 4), ("c", 2, 1), ("a", 3, 1)]:
                futures.append(engine.submit(key, session, image(value, count)))
                futures[-1].add_done_callback(lambda future: answered.append(value_of(future)))
            clock.now_ns += 1  # nobody is active any more, so that nobody is waited for
        for future in futures:
            future.result(TIMEOUT_S)
    assert answered[:2] == [0, 1]
    assert sorted(answered) == [0, 1, 2, 3]


def test_newest_wins_replaces_the_oldest_waiting_request_of_that_session(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean, queue_limit=2) as engine:
        with busy(engine, mean):
            kept = engine.submit(key, "a", image(1))
            oldest, newer, newest = (
                engine.submit(key, session, image(value), newest_wins=True)
                for session, value in (("a", 2), ("a", 3), ("a", 4))
            )
            other = engine.submit(key, "b", image(9), newest_wins=True)
        for replaced in (oldest, newer):
            with pytest.raises(StateError, match="superseded: session a is faster"):
                replaced.result(TIMEOUT_S)
        assert [value_of(future) for future in (kept, newest, other)] == [1, 4, 9]
        assert engine.stats()[key].superseded == 2


def test_live_requests_wait_in_small_numbers_however_long_the_queue_may_be(
    mean: OnnxModel,
) -> None:
    key = model_key(mean)
    with make_engine(mean, queue_limit=8, live_limit=1) as engine:
        with busy(engine, mean):
            lossless = [engine.submit(key, "a", image(value)) for value in (1, 2)]
            older, newest = (
                engine.submit(key, "a", image(value), newest_wins=True) for value in (3, 4)
            )
        with pytest.raises(StateError, match="superseded"):
            older.result(TIMEOUT_S)
        assert [value_of(future) for future in (*lossless, newest)] == [1, 2, 4]


def test_lossless_requests_are_never_replaced_but_refused_when_the_queue_is_full(
    mean: OnnxModel,
) -> None:
    key = model_key(mean)
    with make_engine(mean, queue_limit=2) as engine:
        with busy(engine, mean):
            futures = [engine.submit(key, "a", image(value)) for value in (1, 2)]
            for newest_wins in (False, True):
                with pytest.raises(StateError, match="already has 2 requests waiting"):
                    engine.submit(key, "a", image(3), newest_wins=newest_wins)
            assert engine.stats()[key].waiting == 2
        assert [value_of(future) for future in futures] == [1, 2]
        assert engine.stats()[key].refused == 2


def test_a_request_the_model_cannot_take_fails_alone(table: OnnxModel) -> None:
    key = model_key(table)
    with make_engine(table) as engine:
        with busy(engine, table):
            good, bad, other = (
                engine.submit(key, session, np.uint8([value]))
                for session, value in (("a", 3), ("b", 200), ("c", 5))
            )
        with pytest.raises(ModelError, match="table failed on"):
            bad.result(TIMEOUT_S)
        np.testing.assert_array_equal(good.result(TIMEOUT_S), [[9, 10, 11]])
        np.testing.assert_array_equal(other.result(TIMEOUT_S), [[15, 16, 17]])
        again = engine.submit(key, "b", np.uint8([1]))
        engine.forget("a")
        engine.forget("c")
        np.testing.assert_array_equal(again.result(TIMEOUT_S), [[3, 4, 5]])
        assert engine.stats()[key].failed == 1


@pytest.mark.parametrize(
    "rows",
    [
        image(1).astype(np.float32),
        np.zeros((1, 5, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        image(1, count=0),
        image(1, count=5),
        np.zeros((1, 4, 4, 6), np.uint8)[..., ::2],
    ],
    ids=["dtype", "size", "rank", "empty", "too many", "strided"],
)
def test_rows_that_are_not_as_documented_are_refused_at_submit(
    mean: OnnxModel, rows: NDArray[Any]
) -> None:
    with make_engine(mean, max_batch=4) as engine:
        with pytest.raises(ShapeError, match="mean@"):
            engine.submit(model_key(mean), "a", rows)
        assert value_of(engine.submit(model_key(mean), "a", image(6))) == 6


def test_a_request_cancelled_while_it_waits_is_left_out(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean) as engine:
        with busy(engine, mean):
            cancelled, kept = (engine.submit(key, "a", image(value)) for value in (1, 2))
            assert cancelled.cancel()
            rows_before = engine.stats()[key].rows
        assert value_of(kept) == 2
        assert engine.stats()[key].rows == rows_before + 1


async def test_asyncio_can_await_the_answers(mean: OnnxModel) -> None:
    with make_engine(mean) as engine:
        futures = [
            asyncio.wrap_future(engine.submit(model_key(mean), "a", image(value)))
            for value in range(3)
        ]
        answers = await asyncio.gather(*futures)
    assert [int(answer[0, 0]) for answer in answers] == [0, 1, 2]


def test_forgetting_a_session_fails_what_it_has_waiting(mean: OnnxModel) -> None:
    key = model_key(mean)
    with make_engine(mean) as engine:
        with busy(engine, mean):
            gone, kept = (engine.submit(key, session, image(8)) for session in "ab")
            engine.forget("a")
        with pytest.raises(StateError, match="session a was forgotten"):
            gone.result(TIMEOUT_S)
        assert value_of(kept) == 8


def test_close_while_busy_answers_what_runs_and_fails_what_waits(mean: OnnxModel) -> None:
    engine = make_engine(mean)
    closing = threading.Thread(target=engine.close)
    with busy(engine, mean) as running:
        waiting = engine.submit(model_key(mean), "a", image(1))
        closing.start()
        with pytest.raises(StateError, match="the engine closed before"):
            waiting.result(TIMEOUT_S)
        assert closing.is_alive()  # it waits for the worker
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    assert value_of(running) == 0
    with pytest.raises(StateError, match="the engine closed"):
        engine.submit(model_key(mean), "a", image(1))
    engine.close()


def test_a_callback_may_close_the_engine(mean: OnnxModel) -> None:
    engine, closed = make_engine(mean), threading.Event()
    with busy(engine, mean):
        future = engine.submit(model_key(mean), "a", image(1))
        future.add_done_callback(lambda _: (engine.close(), closed.set()))
    assert closed.wait(TIMEOUT_S)


def test_models_come_and_go_while_sessions_run(mean: OnnxModel, tmp_path: Path) -> None:
    other = load_mean(tmp_path, "other")
    with make_engine(mean) as engine:
        with busy(engine, mean):
            waiting = engine.submit(model_key(mean), "a", image(1))
            key = engine.add_model(other)
            assert value_of(engine.submit(key, "a", image(2))) == 2
            leaving = threading.Thread(target=engine.remove_model, args=(model_key(mean),))
            leaving.start()
        assert value_of(waiting) == 1
        leaving.join(TIMEOUT_S)
        with pytest.raises(NotFoundError, match=f"no model mean@.*there are \\['{key}'\\]"):
            engine.submit(model_key(mean), "a", image(1))
        assert value_of(engine.submit(key, "a", image(3))) == 3


def test_a_model_is_named_by_its_hash_and_added_once(mean: OnnxModel, tmp_path: Path) -> None:
    changed = load_mean(tmp_path, "mean", weights=[numpy_helper.from_array(np.zeros(1), "x")])
    with make_engine(mean) as engine:
        assert engine.add_model(mean) == f"mean@{mean.sha256[:12]}"
        assert engine.add_model(changed) != model_key(mean)
        assert len(engine.stats()) == 2
        with pytest.raises(NotFoundError):
            engine.remove_model("mean")


def test_a_model_whose_rows_cannot_be_batched_is_refused(tmp_path: Path) -> None:
    fixed = load_mean(tmp_path, batch=1)
    with pytest.raises(ModelError, match="free dimension 'batch' first"):
        make_engine(fixed)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch": 0},
        {"max_calls": 0},
        {"queue_limit": 0},
        {"live_limit": 0},
        {"max_wait_ms": -1.0},
        {"active_s": -1.0},
    ],
)
def test_limits_out_of_range_are_a_config_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected max_batch, max_calls"):
        LocalEngine({}, **settings)


def test_a_model_under_another_key_is_a_config_error(mean: OnnxModel) -> None:
    with pytest.raises(ConfigError, match="expected the model under the key mean@"):
        LocalEngine({"mean": mean})


def test_state_names_the_models_a_session_used_and_survives_the_round_trip(
    mean: OnnxModel, table: OnnxModel
) -> None:
    key = model_key(mean)
    with make_engine(mean, table) as engine, make_engine(mean) as resumed:
        engine.submit(key, "a", image(1)).result(TIMEOUT_S)
        state = engine.export_state("a")
        assert msgspec.msgpack.decode(state) == {"version": 1, "models": {key: b""}}
        resumed.import_state("a", state)
        assert resumed.export_state("a") == state
        assert value_of(resumed.submit(key, "b", image(2))) == 2  # a is not waited for yet
        resumed.forget("a")
        assert msgspec.msgpack.decode(resumed.export_state("a"))["models"] == {}


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        ({"version": 2, "models": {}}, "of version 1, got 2"),
        ({"version": 1}, "models"),
        ({"version": 1, "models": {"mean": "text"}}, "models"),
        ({"version": 1, "models": {"mean@0": b"cache"}}, "expected no state for the stateless"),
    ],
)
def test_state_of_another_form_is_refused(envelope: dict[str, Any], words: str) -> None:
    with LocalEngine() as engine, pytest.raises(DataError, match=words):
        engine.import_state("a", msgspec.msgpack.encode(envelope))


@given(data=st.binary(max_size=100))
def test_garbage_for_state_is_a_data_error(data: bytes) -> None:
    with LocalEngine() as engine, pytest.raises(DataError, match="start the session without it"):
        engine.import_state("a", data)


def test_state_of_a_model_that_is_not_here_asks_for_it() -> None:
    state = msgspec.msgpack.encode({"version": 1, "models": {"mean@000000000000": b""}})
    with LocalEngine() as engine, pytest.raises(NotFoundError, match="add it first"):
        engine.import_state("a", state)


def test_busy_time_is_counted_by_the_given_clock(mean: OnnxModel) -> None:
    ticks = iter(range(0, 10**12, 1_000_000))
    engine: InferenceEngine = make_engine(mean, clock=lambda: next(ticks))
    engine.submit(model_key(mean), "a", image(1)).result(TIMEOUT_S)
    engine.close()
    assert isinstance(engine, LocalEngine)
    assert engine.stats()[model_key(mean)].busy_s == pytest.approx(0.001)
