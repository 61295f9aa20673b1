"""A session's cues tick by tick: gaps, restarts, and going on from a snapshot."""

from __future__ import annotations

import json

import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_models.cues.tick_cues import CUE_SIZES, TickCues, TickInput
from keystep_models.cues.tick_timeline import TickTimeline

PERIOD_NS = 100_000_000


def ticks(count: int, seed: int = 0) -> list[TickInput]:
    """Simulated ticks: a texture that drifts, a head that turns, gaze and hands that shake."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 255, (12, 40), np.uint8), np.ones((8, 8), np.uint8))
    found = []
    for number in range(count):
        yaw = 0.02 * number
        head = np.eye(4, dtype=np.float32)
        head[0, [0, 2]] = np.cos(yaw), np.sin(yaw)
        head[2, [0, 2]] = -np.sin(yaw), np.cos(yaw)
        samples = {
            "head": head,
            "gaze": rng.normal(size=(2, 3)).astype(np.float32),
            "hands": rng.normal(size=(2, 26, 9)).astype(np.float32),
        }
        small = np.ascontiguousarray(texture[:, number : number + 160])
        found.append(
            TickInput(epoch=1, device_time_ns=number * PERIOD_NS, small=small, samples=samples)
        )
    return found


def test_a_session_goes_on_from_a_snapshot_to_the_bit() -> None:
    whole, first = TickCues(CUE_SIZES, 10.0), TickCues(CUE_SIZES, 10.0)
    session = ticks(20)
    expected = [whole.take(tick) for tick in session]
    for tick in session[:9]:
        first.take(tick)
    resumed = TickCues(CUE_SIZES, 10.0)
    resumed.restore(json.loads(json.dumps(first.snapshot())))
    for tick, (place, rows) in zip(session[9:], expected[9:], strict=True):
        found_place, found = resumed.take(tick)
        assert found_place == place
        for cue, row in rows.items():
            assert (row is None) == (found[cue] is None)
            np.testing.assert_array_equal(row, found[cue])
    assert {cue for cue, row in expected[-1][1].items() if row is not None} == {
        "motion", "gaze", "head", "left_hand", "right_hand"
    }  # fmt: skip


def test_samples_of_what_is_no_cue_are_not_looked_at() -> None:
    session = ticks(3)
    for tick in session:  # so they come back from a checkpoint where hands are no cue
        tick.samples["hands"] = np.zeros(0, np.uint8)
    cues = TickCues(["head", "gaze_appearance"], 10.0)
    assert cues.take(session[0])[1].keys() == {"head"}


@pytest.mark.parametrize("last", [(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 2)])
def test_a_head_that_is_no_pose_is_missing(last: tuple[float, ...]) -> None:
    (tick,) = ticks(1)
    head = tick.samples["head"]
    assert head is not None
    head[3] = last
    _, rows = TickCues(CUE_SIZES, 10.0).take(tick)
    assert {cue for cue, row in rows.items() if row is not None} == set()


def test_time_that_jumps_leaves_numbers_out_and_ends_the_motion() -> None:
    cues = TickCues(["motion"], 10.0)
    session = ticks(12)
    indices, motion = [], []
    for tick in (*session[:3], *session[8:]):
        place, rows = cues.take(tick)
        indices.append(place.index)
        motion.append(rows["motion"] is not None)
    assert indices == [0, 1, 2, 8, 9, 10, 11]
    assert motion == [False, True, True, False, True, True, True]


def test_a_restarted_device_goes_on_ten_seconds_later() -> None:
    timeline = TickTimeline(10.0)
    assert timeline.place(1, 5 * PERIOD_NS).index == 0
    place = timeline.place(2, 777)
    assert (place.index, place.time_ns, place.starts_epoch) == (100, 10_000_000_000, True)
    assert len(place.missing_ns) == 99
    assert "restarted" in place.note


def test_a_long_silence_counts_as_ten_seconds_of_ticks() -> None:
    timeline = TickTimeline(10.0)
    timeline.place(1, 0)
    place = timeline.place(1, 3600 * 10**9)
    assert place.index == 100
    assert "nothing for 3600.0 s" in place.note


@pytest.mark.parametrize(
    "change", [{"timeline": {}}, {"picture": "AAAA"}, {"picture": "?"}, {"gaze": [[1.0]]},
               {"head": {"start_from_world": [1], "before": None}}]
)  # fmt: skip
def test_a_malformed_snapshot_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    cues = TickCues(CUE_SIZES, 10.0)
    for tick in ticks(3):
        cues.take(tick)
    before = cues.snapshot()
    with pytest.raises(DataError):
        cues.restore({**before, **change})
    assert cues.snapshot() == before
