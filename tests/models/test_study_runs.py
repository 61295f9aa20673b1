"""The compared methods: which there are, and the bounds that fusions are shown beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection
from keystep_models.psr.methods import MethodOptions, find_method
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.recogniser import run_recording
from keystep_models.psr.tracker_model import TrackerModel
from keystep_models.storm.study_runs import BRANCH_1, bound_clips, study_methods

PROCEDURE = builtin_procedure("industreal-assy")


def test_branch_1_comes_first_and_bounds_are_told_apart() -> None:
    methods = study_methods(6.0)
    assert methods[0].key == BRANCH_1
    learnt = [method.key for method in methods if not method.is_bound]
    assert learnt == ["b3", "b3_low", "temporal", "shared", "soft", "tracker", "tracker_clips"]
    assert [m.key for m in methods if m.sees_clips and not m.is_bound] == [*learnt[2:5], learnt[6]]
    fitted = [method.key for method in study_methods(6.0, TrackerModel())]
    assert fitted[:9] == [*learnt, "tracker_fitted", "tracker_clips_fitted"]
    assert methods[1].title == "branch 1 with the fusions' threshold (6)"


def test_a_branch_2_that_is_always_right_shows_what_changed_within_the_clip() -> None:
    states = np.zeros((9, 2), np.int8)
    states[2:, 0], states[5:7, 1], states[7:, 1] = 1, -1, 1
    clips = bound_clips(states, 4, silent=False)
    assert [clip.predicted for clip in clips] == [
        *[(False, False)] * 2, *[(True, False)] * 3, *[(False, False)] * 2, *[(False, True)] * 2,
    ]  # fmt: skip
    assert clips[2].confidences == (1.0, 0.0)
    assert not any(any(clip.predicted) for clip in bound_clips(states, 4, silent=True))


def steps_seen(fusion: str, clips: Sequence[ClipPrediction | None]) -> int:
    """Steps told of a session in which the fullest state is seen, surely, in every frame."""
    states = [(idx, state) for idx, state in enumerate(PROCEDURE.states) if state is not None]
    class_id, _ = max(states, key=lambda each: sum(each[1]))
    options = MethodOptions(threshold=6.0, fusion="soft" if fusion == "soft" else "shared")
    method = find_method("storm").make(PROCEDURE, options)
    seen = [[Detection(class_id, 1.0)] for _ in clips]
    return len(run_recording(method, seen, clips).steps)


@pytest.mark.parametrize("fusion", ["shared", "soft"])
def test_the_shared_fusion_tells_nothing_while_branch_2_sees_no_change(fusion: str) -> None:
    """Branch 2 decays the common sum that branch 1 has just added to: it stays at 4 or below."""
    states = np.zeros((60, PROCEDURE.component_count), np.int8)
    silent = steps_seen(fusion, bound_clips(states, 129, silent=True))
    without = steps_seen(fusion, [None] * 60)  # no clip at all: nothing is decayed for it
    assert without > 5
    assert silent == (0 if fusion == "shared" else without)
