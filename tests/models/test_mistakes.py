"""Parts put in wrongly: what the worker was told of them, on hand-made sessions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keystep_capture.errors import ShapeError
from keystep_models.measures.mistakes import (
    Change,
    Mistake,
    MistakeOutcome,
    count,
    find_mistakes,
    judge,
    told_done,
)
from keystep_models.measures.mistakes_report import as_document, as_markdown, mistake_row
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.procedure import StepKind
from keystep_models.psr.recogniser import Retraction

# Component 0 is right from frame 10; 1 is wrong from 20, away from 40, right from 50.
STATES = np.zeros((100, 2), np.int8)
STATES[10:, 0] = 1
STATES[20:40, 1] = -1
STATES[50:, 1] = 1


def report(frame_idx: int, component_idx: int, kind: StepKind = "completed") -> StepCompletion:
    return StepCompletion(frame_idx, 3 * component_idx, 1.0, component_idx, kind)


def outcome(*changes: Change) -> MistakeOutcome:
    (mistake,) = find_mistakes(STATES)
    return judge(mistake, STATES, told_done(changes, (0, 0), len(STATES)))


def test_a_mistake_lasts_until_the_part_is_taken_off_and_is_repaired_when_it_is_right() -> None:
    assert find_mistakes(STATES) == [
        Mistake(component_idx=1, start_idx=20, end_idx=40, repair_idx=50)
    ]


def test_a_mistake_made_again_is_two_and_one_never_repaired_has_no_repair() -> None:
    states = np.array([[0, -1, -1, 0, -1, 1, 1, -1]], np.int8).T
    assert [(m.start_idx, m.end_idx, m.repair_idx) for m in find_mistakes(states)] == [
        (1, 3, None), (4, 5, 5), (7, 8, None),
    ]  # fmt: skip
    with pytest.raises(ShapeError, match="frames, components"):
        find_mistakes(states[:, 0])


def test_a_method_that_waits_for_the_repair_calls_nothing_wrongly() -> None:
    found = outcome(report(12, 0), report(53, 1))
    assert (found.called_idx, found.wrong_frames, found.repair_delay_frames) == (None, 0, 3)


def test_a_wrong_part_called_completed_is_right_again_once_it_is_repaired() -> None:
    found = outcome(report(25, 1))
    assert (found.called_idx, found.wrong_frames, found.is_right_again) == (25, 25, True)
    assert found.repair_delay_frames == 0  # it counted as done all along


def test_taking_a_report_back_ends_it_earlier_and_so_does_a_report_of_the_mistake() -> None:
    done = report(25, 1)
    taken_back = outcome(done, Retraction(done, 31, 0.9), report(58, 1))
    assert (taken_back.wrong_frames, taken_back.repair_delay_frames) == (6, 8)
    assert outcome(report(25, 1), report(33, 1, "incorrect")).wrong_frames == 8


def test_a_report_from_before_the_mistake_counts_from_its_first_frame() -> None:
    found = outcome(report(15, 1), report(45, 1, "removed"))
    assert (found.called_idx, found.wrong_frames) == (20, 25)
    assert found.repair_delay_frames is None  # told as removed, and never as put right


def test_guidance_that_stays_wrong_lasts_to_the_end() -> None:
    states = STATES.copy()
    states[20:, 1] = -1
    (mistake,) = find_mistakes(states)
    found = judge(mistake, states, told_done([report(30, 1)], (0, 0), 100))
    assert (found.wrong_frames, found.is_right_again) == (70, False)
    assert found.repair_delay_frames is None


def test_a_retracted_report_leaves_what_stood_before_it() -> None:
    removed = report(5, 0, "removed")
    told = told_done([report(2, 0), removed, Retraction(removed, 8, 0.9)], (0, 1), 10)
    assert told[:, 0].tolist() == [False] * 2 + [True] * 3 + [False] * 3 + [True] * 2
    assert told[:, 1].all()  # there from the start, and never reported


def test_counts_leave_out_what_did_not_happen() -> None:
    never, early = outcome(report(53, 1)), outcome(report(25, 1))
    counts = count([never, early])
    assert (counts.called_share, counts.mean_wrong_frames) == (0.5, 25.0)
    assert (counts.repairs_told_share, counts.mean_repair_delay_frames) == (1.0, 1.5)
    assert math.isnan(count([]).called_share)
    assert math.isnan(count([never]).mean_wrong_frames)


def test_a_row_has_errors_over_seeds_and_people_and_counts_of_all() -> None:
    never, early = outcome(report(53, 1)), outcome(report(25, 1))
    row = mistake_row("m", "the method", [[[never], [early]], [[early], [early]]], 10.0)
    share = row.figures["called_share"]
    assert share.mean == pytest.approx(0.75)
    assert share.seed_error == pytest.approx(0.25)
    assert share.person_error == pytest.approx(0.25)  # 0.5 for one person, 1 for the other
    (told,) = as_document([row], {})["rows"]
    assert (told["mistakes"], told["called_completed"], told["wrong_s"]["mean"]) == (4, 3, 2.5)
    assert "| the method | 0.75 ± 0.25 ± 0.25 | 2.5 ± 0.0 ± 0.0 | 0 of 3 |" in as_markdown(
        [row], "h"
    )
