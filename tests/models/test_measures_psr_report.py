import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError
from keystep_models.measures.psr import GroundTruthStep, ReportedStep, pair_plain, score_plain
from keystep_models.measures.psr_report import (
    MANNERS,
    Manner,
    as_json,
    groups,
    score_recording,
    steps_total,
    total,
)

reports = st.lists(st.builds(ReportedStep, st.integers(0, 60), st.integers(0, 3)), max_size=6).map(
    lambda steps: sorted(steps, key=lambda step: step.frame_idx)
)
truths = st.lists(
    st.builds(GroundTruthStep, st.integers(1, 60), st.integers(0, 3)), max_size=5
).map(lambda steps: sorted(steps, key=lambda step: step.frame_idx))


@pytest.mark.parametrize("manner", MANNERS)
@given(truth=truths, reported=reports)
def test_counts_by_step_add_up_to_the_recordings(
    manner: Manner, truth: list[GroundTruthStep], reported: list[ReportedStep]
) -> None:
    score = score_recording(manner, truth, reported, name="a")
    steps = score.by_step.values()
    assert sum(step.true_count for step in steps) == len(truth)
    assert sum(step.reported_count for step in steps) == len(reported)
    assert sum(step.tp_count for step in steps) == score.system_tp_count
    assert sum(step.fp_count for step in steps) == score.system_fp_count
    assert sum(step.fn_count for step in steps) == score.system_fn_count


@given(truth=truths, reported=reports)
def test_pairs_are_one_to_one_on_time_and_of_the_same_step(
    truth: list[GroundTruthStep], reported: list[ReportedStep]
) -> None:
    pairs = pair_plain(truth, reported)
    assert len({t for t, _ in pairs}) == len({r for _, r in pairs}) == len(pairs)
    for true_idx, report_idx in pairs:
        assert truth[true_idx].step_id == reported[report_idx].step_id
        assert reported[report_idx].frame_idx > truth[true_idx].last_old_frame_idx


@given(truth=truths)
def test_a_perfect_report_scores_1_however_often_a_step_recurs(
    truth: list[GroundTruthStep],
) -> None:
    reported = [ReportedStep(step.frame_idx, step.step_id) for step in truth]
    score = score_plain(truth, reported)
    assert (score.f1, score.pos) == (1.0, 1.0)


def example(manner: Manner) -> list[float]:
    truth = [GroundTruthStep(10, 0), GroundTruthStep(20, 3), GroundTruthStep(30, 6)]
    reported = [ReportedStep(5, 0), ReportedStep(24, 3), ReportedStep(40, 9)]
    score = score_recording(manner, truth, reported, name="a")
    return [
        score.perception_fp_count,
        score.perception_fn_count,
        score.system_tp_count,
        score.system_fp_count,
        score.system_fn_count,
        score.mean_delay_frames,
    ]


def test_counts_of_a_small_example() -> None:
    # step 0 early, step 3 four frames late, step 6 missed, step 9 never happened
    assert example("plain") == [1, 1, 1, 2, 2, 4.0]
    assert example("industreal")[:2] == [1, 1]
    assert example("storm") == [1, 1, 1, 2, 1, 4.0]


def test_recordings_are_grouped_by_errors_and_totals_average_them() -> None:
    truth = [GroundTruthStep(10, 0)]
    right, wrong = [ReportedStep(14, 0)], [ReportedStep(14, 3)]
    scores = [
        score_recording("plain", truth, reported, name=name, has_errors=errors)
        for name, reported, errors in (("a", right, False), ("b", wrong, True), ("c", right, None))
    ]
    found = {name: [s.name for s in members] for name, members in groups(scores).items()}
    assert found == {
        "all": ["a", "b", "c"],
        "with errors": ["b"],
        "without errors": ["a"],
        "errors unknown": ["c"],
    }
    totals = total("plain", scores)
    assert totals.f1 == pytest.approx(2 / 3)
    assert totals.mean_delay_frames == 4.0
    assert math.isnan(total("plain", scores[1:2]).mean_delay_frames)
    assert steps_total(scores)[0].tp_count == 2


def test_json_has_no_nan() -> None:
    score = score_recording("plain", [GroundTruthStep(10, 0)], [], name="a")
    text = json.dumps(as_json("plain", [score], {0: "first"}), allow_nan=False)
    content = json.loads(text)
    assert content["totals"]["all"]["mean_delay_frames"] is None
    assert content["steps"][0]["title"] == "first"
    assert content["recordings"]["a"]["by_step"]["0"]["fn"] == 1


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one recording"):
        total("plain", [])
