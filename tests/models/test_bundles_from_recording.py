"""Key steps in seconds as stretches of ticks, and bundles of raw features."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_models.bundles.from_recording import (
    RecordedCue,
    TimedStep,
    make_raw_bundle,
    segments_of,
    why_not_gaze,
)
from keystep_models.guidance.emissions import PartRows
from keystep_models.guidance.step_timing import check_segments

TIMES_S = np.arange(400) / 10.0


def step(step_id: int, start_s: float, end_s: float, exemplar_s: float | None = None) -> TimedStep:
    return TimedStep(step_id=step_id, start_s=start_s, end_s=end_s, exemplar_s=exemplar_s)


def test_steps_that_overlap_share_the_time_between() -> None:
    first, second = segments_of([step(1, 0, 10), step(2, 8, 20)], TIMES_S)
    assert (first.start_tick, first.end_tick) == (0, 90)
    assert (second.start_tick, second.end_tick) == (91, 200)


def test_a_step_within_another_keeps_its_exemplar() -> None:
    outer, inner = segments_of([step(1, 0, 20, 3.0), step(2, 9, 12, 9.5)], TIMES_S)
    assert (outer.step_id, outer.start_tick) == (1, 0)
    assert outer.end_tick < inner.start_tick <= 95
    assert inner.end_tick == 120


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 380), st.integers(0, 60), st.integers(0, 60)),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_any_steps_become_stretches_that_hold_their_exemplars(
    drawn: list[tuple[int, int, int]],
) -> None:
    steps = [
        step(number, start / 10, min(start + length, 399) / 10,
             min(start + min(inside, length), 399) / 10)
        for number, (start, length, inside) in enumerate(drawn)
    ]  # fmt: skip
    exemplars = [each.exemplar_s for each in steps]
    if len(set(exemplars)) < len(exemplars):
        with contextlib.suppress(DataError):  # they may still lie apart
            segments_of(steps, TIMES_S)
        return
    found = check_segments(segments_of(steps, TIMES_S), len(TIMES_S))
    assert {segment.step_id for segment in found} == set(range(len(steps)))
    for segment in found:
        best = steps[segment.step_id].exemplar_s
        assert best is not None
        assert segment.start_tick <= round(best * 10) <= segment.end_tick


@pytest.mark.parametrize("steps", [[], [step(1, 50, 60)]])
def test_steps_without_a_tick_are_refused(steps: list[TimedStep]) -> None:
    with pytest.raises(DataError):
        segments_of(steps, TIMES_S)


def test_a_bundle_of_raw_features_tells_its_steps_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    rows[20:100, 0] += 6
    rows[150:260, 1] += 6
    part = PartRows(rows=rows, valid=np.ones(400, np.bool_))
    cue = RecordedCue(rows=part, source={"sha256": "0" * 64})
    steps = [step(7, 2.0, 9.9), step(3, 15.0, 25.9)]
    bundle = make_raw_bundle(tmp_path / "b", {"appearance": cue}, steps, TIMES_S, 10.0)
    assert bundle.timing.step_ids == (7, 3)
    assert bundle.document.tick_rate_hz == 10.0
    evidence = bundle.emissions.evidence({"appearance": rows[200]})
    assert evidence is not None
    assert int(evidence.log_likelihoods.argmax()) == 1


def test_a_bundle_is_by_gaze_only_where_every_step_has_some() -> None:
    segments = segments_of([step(1, 0, 10), step(2, 12, 14)], TIMES_S)
    valid = np.ones(400, np.bool_)
    assert why_not_gaze(valid, segments) is None
    assert "no gaze" in str(why_not_gaze(None, segments))
    valid[120:141] = False
    assert why_not_gaze(valid, segments) == "step 2 has no gaze"
    valid[130] = True
    assert why_not_gaze(valid, segments) is None
    valid[:60] = False
    assert "only" in str(why_not_gaze(valid, segments))
