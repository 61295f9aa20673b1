"""Clips as evidence for the tracker."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.clip_evidence import ClipEvidence, TrackerWithClips
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import Procedure, builtin_procedure
from keystep_models.psr.tracker_model import builtin_tracker_model

ASSEMBLY: Procedure = builtin_procedure("industreal-assy")
C = ASSEMBLY.component_count
BEGINS = [[Detection(1, 0.9)]] * 10  # simulated: the base is there
NO_CHANGE = ClipPrediction.of([0.0] * C)


def change_of(component_idx: int) -> ClipPrediction:
    return ClipPrediction.of([0.95 * (idx == component_idx) for idx in range(C)])


def tracker() -> TrackerWithClips:
    return TrackerWithClips(ASSEMBLY, builtin_tracker_model("industreal"), window_frames=65)


def follow(recogniser: TrackerWithClips, frames: list[Any], start: int = 0) -> list[Any]:
    found = []
    for frame_idx, (seen, clip) in enumerate(frames, start=start):
        found += recogniser.step(frame_idx, seen, clip).changes
    return found


def test_a_change_speaks_for_what_was_not_there_and_no_change_against_it() -> None:
    evidence = ClipEvidence((0, 1), window_frames=5)
    seen = evidence.log_likelihoods(3, ClipPrediction.of([0.99, 0.99]))
    unseen = evidence.log_likelihoods(3, ClipPrediction.of([0.01, 0.01]))
    incorrect, absent, correct = 0, 1, 2
    assert seen[correct, 0] > seen[absent, 0] == seen[incorrect, 0]
    assert seen[absent, 1] > seen[correct, 1]
    assert unseen[correct, 0] < unseen[absent, 0]
    gain = seen[correct, 0] - seen[absent, 0]
    assert gain > 3 * (unseen[absent, 0] - unseen[correct, 0]) > 0


def test_a_change_is_told_from_the_belief_at_the_clips_first_frame() -> None:
    evidence = ClipEvidence((0,), window_frames=17)
    chances = {
        "absent": np.array([[0.0], [1.0], [0.0]]),
        "correct": np.array([[0.0], [0.0], [1.0]]),
    }
    found = []
    for frame_idx in range(100):
        found.append(evidence.log_likelihoods(frame_idx, ClipPrediction.of([0.9])))
        evidence.note(frame_idx, chances["absent" if frame_idx < 50 else "correct"])
    within, after = found[60], found[99]
    assert within[2, 0] > within[1, 0]  # it came within the clip
    assert after[2, 0] < after[1, 0]  # it was there before: a change takes it out


def test_hidden_steps_are_seen_by_clips_and_not_without_them() -> None:
    steps = follow(tracker(), [*((seen, NO_CHANGE) for seen in BEGINS), *[([], change_of(1))] * 60])
    assert 1 in [step.component_idx for step in steps]
    assert follow(tracker(), [(seen, None) for seen in [*BEGINS, *[[]] * 60]]) == []
    assert follow(tracker(), [(seen, NO_CHANGE) for seen in [*BEGINS, *[[]] * 400]]) == []


def test_it_goes_on_from_a_snapshot() -> None:
    frames = [*((seen, NO_CHANGE) for seen in BEGINS), *[([], change_of(1))] * 60]
    whole = tracker()
    expected = follow(whole, frames)
    first, second = tracker(), tracker()
    found = follow(first, frames[:30])
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert found + follow(second, frames[30:], start=30) == expected
    assert second.snapshot() == whole.snapshot()


@pytest.mark.parametrize("key", ["window_frames", "before", "noted", "weight"])
def test_a_malformed_snapshot_changes_nothing(key: str) -> None:
    recogniser = tracker()
    before = recogniser.snapshot()
    broken = json.loads(json.dumps(before))
    broken["clips"][key] = "x"
    with pytest.raises(DataError):
        recogniser.restore(broken)
    assert recogniser.snapshot() == before


@pytest.mark.parametrize("options", [{"window_frames": 0}, {"weight": 0.0}, {"weight": 1.5}])
def test_settings_out_of_range_are_a_config_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClipEvidence((0,), **options)
