"""What a STORM run learns from: clips with what changed in them, key frames, densities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.storm.clip_sampling import (
    BACKGROUND,
    ClipDraw,
    SessionTicks,
    clip_changes,
    clip_ticks,
    end_density,
    frame_classes,
    made_up_gaps,
    state_classes,
)
from keystep_models.storm.settings import PRESETS, StageSettings, StormSettings, storm_preset

SMALL = StormSettings(clip_frames=5, clip_every=3, positive_s=0.5, negative_s=(1.0, 1.5))


def session(changes: dict[int, str], count: int = 100, name: str = "s") -> SessionTicks:
    """States "000" until each tick named, all seen."""
    states = np.zeros((count, 3), np.int8)
    for tick, state in sorted(changes.items()):
        states[tick:] = [int(value) for value in state]
    ticks = np.arange(count)
    valid = np.ones(count, np.bool_)
    return SessionTicks(name=name, states=states, valid=valid, frames=ticks, frame_count=count)


@given(
    flips=st.lists(st.tuples(st.integers(1, 59), st.integers(0, 2)), max_size=8),
    ends=st.lists(st.integers(0, 59), min_size=1, max_size=6),
)
def test_a_component_counts_where_first_and_last_frame_differ(
    flips: list[tuple[int, int]], ends: list[int]
) -> None:
    states = np.zeros((60, 3), np.int8)
    for tick, component in flips:
        states[tick:, component] ^= 1
    one = replace(session({}, 60), states=states)
    ticks = clip_ticks(np.array(ends), SMALL)
    found = clip_changes(one, ticks)
    for row, end in enumerate(ends):
        assert ticks[row].tolist() == [end - 12, end - 9, end - 6, end - 3, end]
        for component in range(3):
            inside = [t for t, c in flips if c == component and max(end - 12, 0) < t <= end]
            assert found[row, component] == len(inside) % 2  # off and on again is no change


def test_the_published_clip_spans_257_frames_and_ours_half_of_it() -> None:
    assert storm_preset("published").clip_ticks == 257
    assert storm_preset("small").clip_ticks == 129
    with pytest.raises(ConfigError, match="there are small, published"):
        storm_preset("tiny")


def test_key_frames_follow_completions_and_background_comes_before() -> None:
    one = session({30: "100", 60: "110", 63: "111"})
    found = frame_classes(one, ("100", "110", "111"), SMALL)
    places = {key: np.flatnonzero(found == key).tolist() for key in (BACKGROUND, 1, 2, 3)}
    assert places[1] == [30, 31, 32, 33, 34]
    assert places[2] == [60, 61, 62]  # the next completion ends them
    assert places[3] == [63, 64, 65, 66, 67]
    assert places[BACKGROUND] == [15, 16, 17, 18, 19, *range(45, 53)]


def test_without_key_frames_every_seen_frame_has_its_state() -> None:
    one = session({30: "100", 60: "010"})
    valid = one.valid.copy()
    valid[70:] = False
    found = frame_classes(replace(one, valid=valid), ("100",), replace(SMALL, key_frames=False))
    assert np.flatnonzero(found == 1).tolist() == list(range(30, 60))
    assert (found[:30] == -1).all()
    assert (found[60:] == -1).all()


def test_classes_are_states_that_enough_sessions_reach() -> None:
    both = [session({9: "100", 20: "110"}), session({9: "100", 20: "110", 40: "111"})]
    assert state_classes(both, SMALL) == ("100", "110")
    with pytest.raises(DataError, match="expected two states or more that 2 sessions reach, got 0"):
        state_classes([session({9: "100"}), session({9: "010"})], SMALL)


def test_clips_end_about_completions_or_anywhere() -> None:
    one = session({200: "100"}, 400)
    published = storm_preset("published")
    density = end_density(one, published)
    assert density.argmax() in (120, 280)
    assert density[120] == pytest.approx(density[280])
    assert density[200] < 1e-5
    assert set(end_density(one, replace(published, key_clips=False))) == {1.0}
    _, ends = ClipDraw([one], published).draw(500, np.random.default_rng(0))
    near = np.minimum(abs(ends - 120), abs(ends - 280))
    assert np.percentile(near, 95) < 3 * 15


def test_a_clip_never_ends_where_nothing_can_be_seen() -> None:
    one = session({50: "100"})
    valid = np.zeros(100, np.bool_)
    valid[80:90] = True
    hidden = replace(one, valid=valid)
    of, ends = ClipDraw([session({}), hidden], replace(SMALL, key_clips=False)).draw(
        300, np.random.default_rng(1)
    )
    assert set(ends[of == 1]) <= set(range(80, 90))
    with pytest.raises(DataError, match="something can be seen"):
        ClipDraw([replace(one, valid=np.zeros(100, np.bool_))], SMALL)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_made_up_gaps_leave_the_last_frame(seed: int, share: float) -> None:
    valid = np.ones((6, 9), np.bool_)
    made_up_gaps(valid, share, np.random.default_rng(seed))
    assert valid[:, -1].all()
    assert ((~valid).sum(axis=1) <= 4).all()


@pytest.mark.parametrize("name", list(PRESETS))
def test_settings_survive_a_document(name: str) -> None:
    import json

    known = PRESETS[name]
    assert StormSettings.from_document(json.loads(json.dumps(known.as_document()))) == known


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal": "lstm"},
        {"clip_frames": 1},
        {"negative_s": (3.0, 2.0)},
        {"dropout": 1.0},
        {"heads": 0},
        {"clip_every": 100},
        {"threshold": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        StormSettings(**changes)  # type: ignore[arg-type]


def test_the_learning_rate_falls_in_cycles() -> None:
    stage = StageSettings(
        epochs=4, steps=10, batch=1, learning_rate=1.0, weight_decay=0.0, cycles=2
    )
    assert stage.learning_rate_at(0) == stage.learning_rate_at(20) == 1.0
    assert stage.learning_rate_at(19) < 0.01
    assert stage.learning_rate_at(10) == pytest.approx(0.5)
