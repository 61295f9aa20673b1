"""Encoders tick by tick: as a plain masked forward, no state between slots, clear errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keystep_capture.errors import (
    ConfigError,
    DataError,
    KeystepError,
    ModelError,
    ShapeError,
    StateError,
)
from keystep_models.incremental.encoders import KIND, IncrementalEncoders, Ticks
from keystep_models.incremental.snapshot import CueRows, SlotSnapshot
from keystep_models.training.step_graph import (
    CueWeights,
    GraphOptions,
    LayerWeights,
    build_step_graph,
    tensor_entries,
)

Array = NDArray[np.float32]
SIZES = {"appearance": 5, "motion": 4}
WIDTH, HEADS, CONTEXT, SLOPES = 8, 2, 4, (0.25, 0.0)
TOLERANCE = 1e-4


def weights(seed: int) -> dict[str, CueWeights]:
    rng = np.random.default_rng(seed)

    def linear(out: int, into: int) -> tuple[Array, Array]:
        matrix, shift = rng.normal(size=(out, into)), rng.normal(size=out)
        return (matrix / math.sqrt(into)).astype("f4"), (0.3 * shift).astype("f4")

    def norm() -> tuple[Array, Array]:
        return rng.normal(1.0, 0.3, WIDTH).astype("f4"), rng.normal(0.0, 0.3, WIDTH).astype("f4")

    def layer() -> LayerWeights:
        return LayerWeights(
            queries_keys_values=linear(3 * WIDTH, WIDTH), out=linear(WIDTH, WIDTH),
            norm_attention=norm(), wide=linear(12, WIDTH), narrow=linear(WIDTH, 12),
            norm_feed=norm(),
        )  # fmt: skip

    return {
        cue: CueWeights(inward=linear(WIDTH, size), raw_scale=2.0, layers=(layer(), layer()))
        for cue, size in SIZES.items()
    }


RATES = {
    cue: np.exp(-np.arange((n + 1) // 2)).astype(np.float32) for cue, n in SIZES.items()
}  # other angles than the encoders' own: the graph takes any


def export(folder: Path, seed: int = 0, **changes: Any) -> Path:
    options = GraphOptions(context=CONTEXT, heads=HEADS, slopes=SLOPES, frame_rates=RATES)
    graph = build_step_graph(weights(seed), options)
    payload = graph.SerializeToString()
    (folder / "encoders.onnx").write_bytes(payload)
    document = {
        "name": "encoders", "version": "1", "file": "encoders.onnx", "rate_hz": 10.0,
        "sha256": hashlib.sha256(payload).hexdigest(), "licence": "CC0-1.0", "source": "a test",
        "inputs": tensor_entries(graph.graph.input),
        "outputs": tensor_entries(graph.graph.output),
        "preprocessing": {
            "kind": KIND, "cues": SIZES, "layers": ["layer_0", "layer_1"], "width": WIDTH,
            "context": CONTEXT, "position": "frame", **changes,
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("encoders"))


def plain_forward(cue: str, raw: Array, frames: NDArray[np.int64]) -> Array:
    """The encoder in float64, tick by tick and head by head, from its definition."""
    own, size = weights(0)[cue], WIDTH // HEADS

    def normed(x: Any, scale: Array, shift: Array) -> Any:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift

    angles = frames[:, None] * RATES[cue].astype("f8")
    encoded = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(raw), -1)
    x = (raw * own.raw_scale + encoded[:, : raw.shape[1]]) @ own.inward[0].T + own.inward[1]
    for layer in own.layers:
        matrix, shift = layer.queries_keys_values
        queries, keys, values = np.split(x @ matrix.T + shift, 3, axis=1)
        following = []
        for t, frame in enumerate(frames):
            seen = [s for s in range(t + 1) if frame - frames[s] < CONTEXT]
            heads = []
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                scores = np.array(
                    [
                        queries[t, part] @ keys[s, part] / math.sqrt(size)
                        - SLOPES[head] * (frame - frames[s])
                        for s in seen
                    ]
                )
                share = np.exp(scores - scores.max())
                heads.append(share / share.sum() @ values[seen, part])
            attended = layer.out[0] @ np.concatenate(heads) + layer.out[1]
            y = normed(x[t] + attended, *layer.norm_attention)
            wide = np.maximum(layer.wide[0] @ y + layer.wide[1], 0.0)
            fed = layer.narrow[0] @ wide + layer.narrow[1]
            following.append(normed(y + fed, *layer.norm_feed))
        x = np.array(following)
    return np.asarray(x, np.float32)


def ticks(slots: list[int], frames: list[int], raw: dict[str, Any], **valid: Any) -> Ticks:
    return Ticks(
        slots=np.array(slots, np.int64),
        frames=np.array(frames, np.int64),
        raw={cue: np.asarray(rows, np.float32) for cue, rows in raw.items()},
        valid={cue: np.array(there, np.bool_) for cue, there in valid.items()},
    )


class Person:
    """A session's features as they come, and what the plain forward makes of them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.frame = -1
        self.seen: dict[str, list[tuple[int, Array]]] = {cue: [] for cue in SIZES}
        self.slot = -1

    def next(self, skipped: int, missing: set[str]) -> tuple[dict[str, Array], dict[str, bool]]:
        self.frame += 1 + skipped
        raw = {cue: self._rng.normal(size=size).astype("f4") for cue, size in SIZES.items()}
        for cue in set(SIZES) - missing:
            self.seen[cue].append((self.frame, raw[cue]))
        return raw, {cue: cue not in missing for cue in SIZES}

    def check(self, adapted: dict[str, Array], valid: dict[str, bool]) -> None:
        for cue, rows in self.seen.items():
            if not valid[cue]:
                assert not adapted[cue].any()
                continue
            frames = np.array([frame for frame, _ in rows])
            expected = plain_forward(cue, np.stack([row for _, row in rows]), frames)[-1]
            np.testing.assert_allclose(adapted[cue], expected, atol=TOLERANCE)


MOVE = st.tuples(
    st.sampled_from(["step", "step", "step", "step", "leave", "move"]),
    st.sets(st.integers(0, 3), min_size=1),
    st.sampled_from([0, 0, 0, 1, CONTEXT - 1, CONTEXT, 3 * CONTEXT]),
    st.sets(st.sampled_from(sorted(SIZES))),
)


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(MOVE, max_size=25), seed=st.integers(0, 99))
def test_whoever_shares_the_pool_every_session_gets_its_own_masked_forward(
    manifest: Path, moves: list[Any], seed: int
) -> None:
    encoders = IncrementalEncoders.load(manifest, slot_count=4)
    people: dict[int, Person] = {}
    for count, (what, who, skipped, missing) in enumerate(moves):
        for key in who - set(people):
            people[key] = Person(1000 * seed + count)
            people[key].slot = encoders.open()
        chosen = [people[key] for key in who]
        if what == "leave":
            for key in who:
                encoders.close(people.pop(key).slot)
        elif what == "move":
            for person in chosen:
                taken = encoders.snapshot(person.slot).to_bytes()
                encoders.close(person.slot)
                person.slot = encoders.restore(SlotSnapshot.from_bytes(taken))
        else:
            came = [person.next(skipped, missing) for person in chosen]
            found = encoders.step(
                ticks(
                    [person.slot for person in chosen],
                    [person.frame for person in chosen],
                    {cue: np.stack([raw[cue] for raw, _ in came]) for cue in SIZES},
                    **{cue: [valid[cue] for _, valid in came] for cue in SIZES},
                )
            )
            for row, (person, (_, valid)) in enumerate(zip(chosen, came, strict=True)):
                person.check({cue: rows[row] for cue, rows in found.adapted.items()}, valid)


def one(encoders: IncrementalEncoders, slot: int, frame: int, value: float = 1.0) -> Array:
    raw = {cue: np.full((1, size), value) for cue, size in SIZES.items()}
    return encoders.step(ticks([slot], [frame], raw)).adapted["appearance"][0]


def test_a_slot_that_was_used_is_like_a_new_one(manifest: Path) -> None:
    used, fresh = (IncrementalEncoders.load(manifest, slot_count=2) for _ in range(2))
    first, slot = used.open(), used.open()
    for frame in range(9):
        one(used, first, frame, 7.0)
        one(used, slot, frame, 1e6)
    used.close(slot)
    assert used.open() == slot
    assert used.last_frame(slot) == -1
    other = fresh.open()
    for frame in range(3, 12):
        np.testing.assert_array_equal(one(used, slot, frame), one(fresh, other, frame))


def test_a_neighbour_that_ticks_changes_nothing(manifest: Path) -> None:
    crowded, alone = (IncrementalEncoders.load(manifest, slot_count=2) for _ in range(2))
    neighbour, slot, other = crowded.open(), crowded.open(), alone.open()
    for frame in range(9):
        one(crowded, neighbour, frame, -50.0)
        before = crowded.snapshot(neighbour).to_bytes()
        np.testing.assert_array_equal(one(crowded, slot, frame), one(alone, other, frame))
        assert crowded.snapshot(neighbour).to_bytes() == before


def test_an_error_leaves_every_slot_as_it_was(manifest: Path) -> None:
    encoders = IncrementalEncoders.load(manifest, slot_count=2)
    good, bad = encoders.open(), encoders.open()
    one(encoders, good, 0)
    before = encoders.snapshot(good).to_bytes()
    rows = {"motion": [[0.0] * 4, [0.0, math.nan, 0.0, 0.0]]}
    with pytest.raises(DataError, match="not finite"):
        encoders.step(ticks([good, bad], [1, 0], rows))
    assert encoders.snapshot(good).to_bytes() == before
    assert encoders.last_frame(bad) == -1
    found = encoders.step(ticks([good, bad], [1, 0], rows, motion=[True, False]))
    assert found.valid["motion"].tolist() == [True, False]
    assert not found.valid["appearance"].any()
    assert np.isfinite(found.adapted["motion"]).all()


FEATURES = {"appearance": np.zeros((1, 5)), "motion": np.zeros((1, 4))}


@pytest.mark.parametrize(
    ("given_ticks", "error", "message"),
    [
        (ticks([1], [0], FEATURES), StateError, "slots .1. are not open"),
        (ticks([9], [0], FEATURES), StateError, "slots .9. are not open"),
        (ticks([-1], [0], FEATURES), StateError, "slots .-1. are not open"),
        (ticks([0], [4], FEATURES), StateError, "tick 4 must be after 4"),
        (ticks([0], [1 << 24], FEATURES), StateError, "below 16777216"),
        (ticks([0, 0], [5, 6], {}), StateError, "twice in one batch"),
        (ticks([], [], {}), ShapeError, "slots must be int64"),
        (ticks([0], [5, 6], {}), ShapeError, "frames must be int64"),
        (ticks([0], [5], {"gaze": [[1.0]]}), ShapeError, "no encoder for gaze"),
        (ticks([0], [5], {"motion": [[1.0]]}), ShapeError, r"'motion' must be float32 \(1, 4\)"),
        (ticks([0], [5], FEATURES, motion=[True, True]), ShapeError, "valid of 'motion'"),
        (ticks([0], [5], {"motion": [[1e7] * 4]}), DataError, "above 1e"),
    ],
)
def test_ticks_that_do_not_fit_are_refused(
    manifest: Path, given_ticks: Ticks, error: type[KeystepError], message: str
) -> None:
    encoders = IncrementalEncoders.load(manifest, slot_count=2)
    one(encoders, encoders.open(), 4)
    with pytest.raises(error, match=message):
        encoders.step(given_ticks)
    one(encoders, 0, 5)


def test_the_pool_is_bounded(manifest: Path) -> None:
    encoders = IncrementalEncoders.load(manifest, slot_count=2)
    assert [encoders.open(), encoders.open(), encoders.open_count] == [0, 1, 2]
    with pytest.raises(StateError, match="all 2 slots"):
        encoders.open()
    encoders.close(0)
    assert encoders.open() == 0
    assert encoders.slot_bytes == 2 * len(SIZES) * CONTEXT * WIDTH * 4
    for count in (0, 5000):
        with pytest.raises(ConfigError, match="slot_count"):
            IncrementalEncoders.load(manifest, slot_count=count)


def test_a_closed_slot_is_closed(manifest: Path) -> None:
    encoders = IncrementalEncoders.load(manifest, slot_count=1)
    slot = encoders.open()
    encoders.close(slot)
    for call in (encoders.close, encoders.snapshot, encoders.last_frame):
        with pytest.raises(StateError, match="not open"):
            call(slot)


@pytest.mark.parametrize(
    "changes", [{"kind": "other"}, {"width": "8"}, {"layers": ["layer_0"]}, {"cues": {"gaze": 3}}]
)
def test_another_kind_of_model_is_refused(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(ModelError, match="no model of incremental encoders"):
        IncrementalEncoders.load(export(tmp_path, **changes), slot_count=1)


def test_sizes_that_are_not_the_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model of incremental encoders"):
        IncrementalEncoders.load(export(tmp_path, context=CONTEXT + 1), slot_count=1)


def taken(manifest: Path) -> SlotSnapshot:
    encoders = IncrementalEncoders.load(manifest, slot_count=1)
    slot = encoders.open()
    for frame in range(6):
        one(encoders, slot, frame)
    return encoders.snapshot(slot)


def test_a_snapshot_of_another_model_is_refused(manifest: Path, tmp_path: Path) -> None:
    other = IncrementalEncoders.load(export(tmp_path, seed=1), slot_count=1)
    with pytest.raises(ModelError, match="load the model the session is pinned to"):
        other.restore(taken(manifest))
    assert other.open_count == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda own: replace(own, frames=own.frames - 2),
        lambda own: replace(own, frames=own.frames + 1),
        lambda own: replace(own, frames=own.frames[::-1]),
        lambda own: replace(own, rows=own.rows[:, :2]),
        lambda own: replace(own, rows=own.rows * np.float32(np.nan)),
    ],
)
def test_a_snapshot_that_is_not_ours_is_refused(manifest: Path, change: Any) -> None:
    snapshot = taken(manifest)
    assert snapshot.cues["motion"].frames.tolist() == [2, 3, 4, 5]
    cues = {**snapshot.cues, "motion": change(snapshot.cues["motion"])}
    encoders = IncrementalEncoders.load(manifest, slot_count=1)
    with pytest.raises(DataError, match="does not hold rows"):
        encoders.restore(replace(snapshot, cues=cues))
    assert encoders.open_count == 0


@given(st.binary(max_size=200))
def test_any_bytes_give_a_snapshot_or_a_data_error(content: bytes) -> None:
    with pytest.raises(DataError):
        SlotSnapshot.from_bytes(content)


@given(cut=st.integers(0, 400), flip=st.integers(0, 255))
def test_damaged_snapshots_give_a_snapshot_or_a_data_error(cut: int, flip: int) -> None:
    rows = CueRows(frames=np.arange(3), rows=np.ones((2, 3, 4), np.float32))
    content = bytearray(
        SlotSnapshot(model_sha256="0" * 64, last_frame=2, cues={"gaze": rows}).to_bytes()
    )
    content[cut % len(content)] ^= flip
    with contextlib.suppress(DataError):
        found = SlotSnapshot.from_bytes(bytes(content))
        assert all(own.rows.shape[1] == len(own.frames) for own in found.cues.values())
