"""What stands of a session's reports, and which steps are done by it."""

import json

import pytest

from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.procedure import StepKind, builtin_procedure
from keystep_server.standing import MAX_REPORTS, StandingReports

MAINTENANCE = builtin_procedure("industreal-main")
INSTALLED, WRONG, REMOVED = 15, 16, 17  # of component 5, which is to be removed and put back
KIND: dict[int, StepKind] = {INSTALLED: "completed", WRONG: "incorrect", REMOVED: "removed"}


def report(frame_idx: int, step_id: int) -> StepCompletion:
    return StepCompletion(frame_idx, step_id, 0.9, step_id // 3, KIND[step_id % 3 + INSTALLED])


def standing(*step_ids: int) -> StandingReports:
    reports = StandingReports(procedure=MAINTENANCE)
    for number, step_id in enumerate(step_ids):
        reports.add(report(number, step_id), f"event-{number}")
    return reports


@pytest.mark.parametrize(
    ("step_ids", "done"),
    [
        ([], set()),
        ([REMOVED], {REMOVED}),
        ([REMOVED, INSTALLED], {REMOVED, INSTALLED}),
        ([REMOVED, INSTALLED, REMOVED], {REMOVED}),
        ([REMOVED, INSTALLED, WRONG], {REMOVED}),
        ([REMOVED, WRONG], {REMOVED}),
    ],
)
def test_done_is_what_no_later_report_undoes(step_ids: list[int], done: set[int]) -> None:
    assert standing(*step_ids).done == done


def test_a_report_taken_back_brings_back_what_it_undid() -> None:
    reports = standing(REMOVED, INSTALLED, REMOVED)
    assert reports.take_back(report(2, REMOVED)) == "event-2"
    assert reports.take_back(report(2, REMOVED)) is None
    assert reports.done == {REMOVED, INSTALLED}


def test_reports_survive_a_restart() -> None:
    reports, restored = standing(REMOVED, INSTALLED), StandingReports(procedure=MAINTENANCE)
    restored.restore(json.loads(json.dumps(reports.snapshot())))
    assert list(restored) == list(reports)
    assert restored.take_back(report(1, INSTALLED)) == "event-1"
    for malformed in ([[1]], [7], None, [["a"] * 3]):
        with pytest.raises((TypeError, ValueError)):
            restored.restore(malformed)  # type: ignore[arg-type]
    assert list(restored) == [report(0, REMOVED)]


def test_a_long_session_keeps_the_newest_reports() -> None:
    reports = standing(*[REMOVED, INSTALLED] * MAX_REPORTS)
    assert len(list(reports)) == MAX_REPORTS
    assert reports.done == {REMOVED, INSTALLED}
