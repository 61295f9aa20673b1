"""What counts as right, by how much hands hide."""

from __future__ import annotations

import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_models.detector.frame_labels import FrameLabels
from keystep_models.measures.detector_report import confusion, join, score_frames, summarise
from keystep_models.psr.logic import Detection

_STATES = (None, (1, 0), (1, 1), None)
_BOX = (15.0, 15.0, 10.0, 10.0)  # centre and size: 10-20
_NOT = np.full(4, np.nan)
_LABELS = FrameLabels(
    states=np.array([[0, 0], [1, 0], [1, 0], [1, 1], [1, -1], [1, 1]], np.int8),
    boxes=np.array([_NOT, *[[10.0, 10.0, 20.0, 20.0]] * 4, [10.0, 10.0, 20.0, 30.0]]),
    hidden=np.array([np.nan, 0.0, 0.1, 0.6, 0.0, 0.8]),
)
_SEEN = [
    [Detection(1, 0.3, _BOX)],  # there is nothing
    [Detection(1, 0.95, _BOX)],
    [Detection(2, 0.55, _BOX)],  # wrong: one component more
    [],
    [Detection(1, 0.4, _BOX), Detection(3, 0.45, _BOX)],  # the surest: the error state, right
]


def test_shares_are_over_frames_with_an_assembly():
    frames = score_frames(_SEEN, _LABELS, _STATES)
    found = summarise(frames)
    assert (found["frames"], found["detected"], found["right"]) == (5, 0.6, 0.4)
    assert found["components"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["overlap"] == pytest.approx(1.0)
    assert found["false"] == 1.0
    rights = [part["right"] for part in found["by_hidden"]]
    assert rights == [1.0, 0.0, None, 0.0, 0.0]
    assert [part["frames"] for part in found["by_hidden"]] == [2, 1, 0, 1, 1]


def test_confidence_is_compared_with_the_share_right():
    frames = score_frames(_SEEN, _LABELS, _STATES)
    found = summarise(join([frames, frames]))
    assert found["frames"] == 10
    expected = (abs(0.95 - 1) + abs(0.55 - 0) + abs(0.45 - 1)) / 3
    assert found["calibration_error"] == pytest.approx(expected)


def test_confusion_counts_nothing_found_last():
    table = confusion(score_frames(_SEEN, _LABELS, _STATES), len(_STATES))
    assert table.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 2],
        [0, 0, 0, 1, 0],
    ]


def test_half_a_box_overlaps_half():
    seen = [[], [], [], [], [], [Detection(2, 0.5, _BOX)]]
    assert score_frames(seen, _LABELS, _STATES).overlap[5] == pytest.approx(0.5)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(DataError, match="at most 6 frames"):
        score_frames([[]] * 7, _LABELS, _STATES)
    with pytest.raises(DataError, match="2 components"):
        score_frames(_SEEN, _LABELS, (None, (1, 0, 0), None))
