"""What the wearer is told, from the component state alone."""

from __future__ import annotations

import pytest

from keystep_models.psr.methods import choose_live_method
from keystep_models.psr.procedure import builtin_procedure
from keystep_server.guidance import Guide


def guide_of(name: str, method: str = "b3") -> Guide:
    return Guide(logic=choose_live_method(method, builtin_procedure(name))[1])


def declare(guide: Guide, step_id: int) -> None:
    """The wearer says that a step is done."""
    guide.standing.add(guide.logic.declare(step_id), f"event of step {step_id}")


@pytest.mark.parametrize("method", ["b1", "b2", "b3", "tracker"])
@pytest.mark.parametrize("name", ["industreal-assy", "industreal-main"])
def test_doing_the_current_step_again_and_again_leads_to_the_end(name: str, method: str) -> None:
    guide = guide_of(name, method)
    step_count = len(guide.procedure.expected_steps)
    for done_count in range(step_count):
        told = guide.update(device_time_ns=done_count)
        assert told is not None
        assert told.progress == (done_count, step_count)
        step = guide.current_step
        assert step is not None
        declare(guide, step.id)
    told = guide.update(device_time_ns=step_count)
    assert told is not None
    assert (told.text, told.progress) == ("All steps are done.", (step_count, step_count))


def test_looking_ahead_changes_the_words_and_not_the_progress() -> None:
    guide = guide_of("industreal-assy")
    first = guide.update(device_time_ns=0)
    assert first is not None
    assert (first.current_step, first.next_step) != (None, None)
    after = guide.step_after(guide.shown_step)
    assert after is not None
    guide.looking_at = after.id
    looked = guide.update(device_time_ns=0)
    assert looked is not None
    assert looked.text == f"Later: {after.title}."
    assert looked.current_step == first.next_step
    assert looked.progress == first.progress
    assert looked.spoken_revision == looked.revision == 2


def test_the_same_words_keep_the_revision_that_first_said_them() -> None:
    guide = guide_of("industreal-assy")
    first = guide.update(device_time_ns=0)
    declare(guide, 9)  # out of order: the first step stays the current one
    second = guide.update(device_time_ns=1)
    assert first is not None
    assert second is not None
    assert (second.revision, second.spoken_revision) == (2, 1)
    assert second.spoken == first.spoken
    assert guide.update(device_time_ns=2) is None
