"""The key-step filter: probabilities, events, look-back, snapshots, what it cannot see."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError, NotFoundError, ShapeError, StateError
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_filter import Evidence, KeyStepFilter
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming
from keystep_models.psr.recogniser import FrameReport

COUNT = 4
TIMING = StepTiming(
    step_ids=(10, 20, 30, 40),
    duration_ticks=(30.0,) * COUNT,
    repeatable=(False, False, True, False),
    gap_ticks=20.0,
)
SETTINGS = FilterSettings(slowness=1.0)


def seen(activity: int, nats: float = 1.0) -> Evidence:
    """A tick that looks like a step (by place), or like the gap -1 - activity."""
    values = np.zeros(2 * COUNT + 1)
    values[activity if activity >= 0 else COUNT - 1 - activity] = nats
    return Evidence(log_likelihoods=values)


def work(order: list[int], *, step_ticks: int = 30, gap_ticks: int = 20) -> list[Evidence]:
    """What a wearer looks like who does these steps (by place), with gaps between."""
    ticks = [seen(-1)] * gap_ticks
    for idx, place in enumerate(order):
        done = len(set(order[: idx + 1]))
        ticks += [seen(place)] * step_ticks + [seen(-1 - done)] * gap_ticks
    return ticks


def run(ticks: list[Evidence], running: KeyStepFilter | None = None) -> list[FrameReport]:
    running = running or KeyStepFilter(TIMING, SETTINGS)
    return [running.step(running.tick_idx + 1, tick) for tick in ticks]


def reported(reports: list[FrameReport]) -> list[int]:
    return [step.step_id for report in reports for step in report.steps]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2, 3], [10, 20, 30, 40]),
        ([0, 2, 1, 3], [10, 30, 20, 40]),
        ([0, 2, 3], [10, 30, 40]),
        ([3], [40]),
        ([0, 1, 2, 1, 3], [10, 20, 30, 40]),
        ([0, 1, 2, 1, 2, 3], [10, 20, 30, 30, 40]),
    ],
    ids=["in order", "swapped", "skipped", "only the last", "done twice", "repeated"],
)
def test_steps_are_reported_as_they_were_done(order: list[int], expected: list[int]) -> None:
    assert reported(run(work(order))) == expected


def test_a_report_comes_soon_after_the_step_and_its_span_fits() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    reports = run(work([0, 1]), running)
    told = {s.step_id: s.frame_idx for report in reports for s in report.steps}
    assert 50 <= told[10] <= 65
    span = running.span(10)
    assert span is not None
    assert abs(span[0] - 20) <= 6
    assert abs(span[1] - 50) <= 8


def test_twice_as_slow_and_twice_as_fast_is_followed() -> None:
    for factor in (0.6, 2.0):
        ticks = work([0, 1, 2, 3], step_ticks=round(30 * factor), gap_ticks=round(20 * factor))
        assert reported(run(ticks)) == [10, 20, 30, 40]


def test_idling_completes_nothing() -> None:
    assert reported(run([seen(-1)] * 400)) == []


def test_a_long_silence_completes_nothing_and_cannot_see() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    run(work([0]), running)
    before = running.reported_steps
    for tick in range(running.tick_idx + 1, running.tick_idx + 300):
        assert running.step(tick, None).changes == ()
    assert not running.can_see
    assert running.reported_steps == before == (10,)
    running.step(running.tick_idx + 1, seen(-2))
    assert running.can_see


def test_ticks_left_out_count_as_not_seen() -> None:
    by_none, by_gap = KeyStepFilter(TIMING, SETTINGS), KeyStepFilter(TIMING, SETTINGS)
    run(work([0]), by_none)
    run(work([0]), by_gap)
    start = by_none.tick_idx + 1
    for tick in range(start, start + 40):
        by_none.step(tick, None)
    by_none.step(start + 40, seen(1))
    by_gap.step(start + 40, seen(1))
    assert by_none.snapshot() == by_gap.snapshot()


def test_strange_ticks_are_not_believed() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    strange = replace(seen(0), is_strange=True)
    assert reported(run([strange] * 200, running)) == []
    assert not running.can_see


def test_later_evidence_takes_a_report_back_within_the_look_back() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    doubtful = [seen(-1)] * 20 + [seen(0, 0.15)] * 30 + [seen(-2, 0.3)] * 12
    assert reported(run(doubtful, running)) == [10]
    reports = run([seen(-1, 0.6)] * 60, running)
    retractions = [taken for report in reports for taken in report.retracted]
    assert [taken.step.step_id for taken in retractions] == [10]
    assert 0 <= retractions[0].confidence <= 1


def test_a_report_older_than_the_look_back_is_final() -> None:
    running = KeyStepFilter(TIMING, replace(SETTINGS, look_back_s=5.0))
    run(work([0]), running)
    run([seen(-2)] * 60, running)
    reports = run([seen(-1, 3.0)] * 300, running)
    assert not [taken for report in reports for taken in report.retracted]
    assert running.done_chances()[10] == pytest.approx(1.0)


def test_what_the_wearer_declares_is_done_for_good() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    run([seen(-1)] * 20, running)
    report = running.declare(30)
    assert (report.step_id, report.confidence, report.frame_idx) == (30, 1.0, 19)
    assert running.done_chances()[30] == pytest.approx(1.0)
    assert 30 not in running.next_steps()
    assert sum(running.activity_chances()) == pytest.approx(1.0)
    reports = run(work([0, 1, 3]), running)
    assert reported(reports) == [10, 20, 40]
    with pytest.raises(NotFoundError):
        running.declare(11)


def test_next_steps_follow_the_expert_without_what_is_done() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    run(work([0, 2]), running)
    assert list(running.next_steps())[:2] == [20, 40]


def ticks_strategy(length: int = 80) -> st.SearchStrategy[list[tuple[int, float]]]:
    tick = st.tuples(st.integers(-COUNT - 1, COUNT - 1), st.floats(0, 6))
    return st.lists(tick, min_size=1, max_size=length)


@settings(max_examples=40, deadline=None)
@given(ticks=ticks_strategy(), missing=st.sets(st.integers(0, 79)))
def test_probabilities_sum_to_one_and_nothing_is_reported_twice(
    ticks: list[tuple[int, float]], missing: set[int]
) -> None:
    running = KeyStepFilter(TIMING, replace(SETTINGS, max_rows=8, hold_s=0.0))
    standing: set[int] = set()
    for tick, (activity, nats) in enumerate(ticks):
        report = running.step(tick, None if tick in missing else seen(activity, nats))
        for taken in report.retracted:
            standing.remove(taken.step.step_id)
        for step in report.steps:
            assert step.step_id not in standing or step.step_id == 30  # the expert repeats it
            assert 0 <= step.confidence <= 1
            standing.add(step.step_id)
        assert running.activity_chances().sum() == pytest.approx(1.0)
        assert all(0 <= chance <= 1 + 1e-9 for chance in running.done_chances().values())
        assert len(running.snapshot()["belief"]["done"]) <= 8 * (COUNT + 1)
    assert standing == set(running.reported_steps)


@settings(max_examples=25, deadline=None)
@given(ticks=ticks_strategy(60), cut=st.integers(0, 60))
def test_a_snapshot_goes_on_exactly(ticks: list[tuple[int, float]], cut: int) -> None:
    whole, first = KeyStepFilter(TIMING, SETTINGS), KeyStepFilter(TIMING, SETTINGS)
    evidence = [seen(activity, nats) for activity, nats in ticks]
    expected = run(evidence, whole)
    got = run(evidence[:cut], first)
    resumed = KeyStepFilter(TIMING, SETTINGS)
    resumed.restore(json.loads(json.dumps(first.snapshot())))
    got += run(evidence[cut:], resumed)
    assert got == expected
    assert resumed.snapshot() == whole.snapshot()


def test_the_same_ticks_make_the_same_events() -> None:
    assert run(work([0, 2, 1, 3])) == run(work([0, 2, 1, 3]))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "tracker"},
        {"steps": [1, 2]},
        {"settings": {}},
        {"tick_idx": -5},
        {"held": [1]},
        {"belief": {}},
        {"standing": [{"step_id": 10}]},
        {"strange": float("nan")},
        {"ahead": [0.0]},
        {"ahead": [float("nan")] * (2 * COUNT + 1)},
        {"weighed_ticks": -1},
    ],
)
def test_a_foreign_or_damaged_snapshot_is_refused_and_changes_nothing(
    change: dict[str, object],
) -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    run(work([0]), running)
    before = running.snapshot()
    with pytest.raises(DataError):
        running.restore({**before, **change})
    assert running.snapshot() == before


def test_a_class_that_is_ahead_all_the_time_says_less_and_less() -> None:
    """Another person's sleeves look like step 40, whatever is done."""
    always = np.zeros(2 * COUNT + 1)
    always[3] = 0.8
    ticks = [Evidence(log_likelihoods=tick.log_likelihoods + always) for tick in work([0, 1, 2])]
    silence = [Evidence(log_likelihoods=always)] * 600
    levelled = replace(SETTINGS, level_share=1.0, level_prior_s=10.0)
    assert 40 in reported(
        run([*silence, *ticks], KeyStepFilter(TIMING, replace(SETTINGS, level_share=0.0)))
    )
    running = KeyStepFilter(TIMING, levelled)
    run(silence[:1], running)
    assert 40 not in reported(run(ticks, running))


@settings(max_examples=25, deadline=None)
@given(ticks=ticks_strategy(40), offset=st.floats(-5, 5))
def test_levelling_looks_at_differences_between_classes_alone(
    ticks: list[tuple[int, float]], offset: float
) -> None:
    evidence = [seen(activity, nats) for activity, nats in ticks]
    moved = [Evidence(log_likelihoods=tick.log_likelihoods + offset) for tick in evidence]
    first, second = KeyStepFilter(TIMING, SETTINGS), KeyStepFilter(TIMING, SETTINGS)
    run(evidence, first)
    run(moved, second)
    np.testing.assert_allclose(
        list(first.done_chances().values()), list(second.done_chances().values()), atol=1e-6
    )


def test_settings_of_older_bundles_do_not_level_and_stay_as_they_were() -> None:
    older = FilterSettings().as_document()
    del older["level_share"], older["level_prior_s"]
    read = FilterSettings.from_document(older)
    assert read.level_share == 0
    assert read.as_document() == older
    running = KeyStepFilter(TIMING, read)
    run(work([0]), running)
    assert not {"ahead", "weighed_ticks"} & set(running.snapshot())


def test_bad_ticks_are_refused_and_count_as_not_given() -> None:
    running = KeyStepFilter(TIMING, SETTINGS)
    running.step(3, None)
    before = running.snapshot()
    with pytest.raises(StateError):
        running.step(3, None)
    with pytest.raises(ShapeError):
        running.step(4, Evidence(log_likelihoods=np.zeros(COUNT + 1)))
    with pytest.raises(ShapeError):
        running.step(4, Evidence(log_likelihoods=np.full(2 * COUNT + 1, np.nan)))
    assert running.snapshot() == before


def test_timing_comes_from_segments_in_the_experts_order() -> None:
    segments = [
        ExpertSegment(step_id=5, start_tick=60, end_tick=69),
        ExpertSegment(step_id=9, start_tick=10, end_tick=29),
        ExpertSegment(step_id=9, start_tick=40, end_tick=49),
    ]
    timing = StepTiming.of_segments(segments)
    assert timing.step_ids == (9, 5)
    assert timing.duration_ticks == (15.0, 10.0)
    assert timing.repeatable == (True, False)
    assert timing.gap_ticks == 10.0
    with pytest.raises(DataError, match="do not overlap"):
        StepTiming.of_segments([*segments, replace(segments[0], start_tick=65)])


@pytest.mark.parametrize(
    "change", [{"phases": 0}, {"skip_rate": 2.0}, {"look_back_s": -1.0}, {"slowness": float("nan")}]
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(SETTINGS, **change)  # type: ignore[arg-type]
