"""Settings of the tracker for weak detectors: orders from labels alone, the wider draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from keystep_models.detector.detector import Detector
from keystep_models.detector.shipped import shipped_manifests
from keystep_models.measures.psr import GroundTruthStep
from keystep_models.psr.fit_tracker import (
    BOX,
    WEAK_BOX,
    FitRecording,
    draw_settings,
    fit,
    tune,
    worth,
)
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.tracker_model import TrackerModel, load_tracker_model

PROCEDURE = builtin_procedure("industreal-assy")


def recording(*steps: tuple[int, int], frames: int = 0) -> FitRecording:
    """Steps as (frame, id); the first state of all is seen in every frame."""
    return FitRecording(
        name="x",
        procedure=PROCEDURE,
        frames=[[Detection(1, 0.9)]] * frames,
        truth=[GroundTruthStep(*step) for step in steps],
    )


def test_orders_are_counted_in_recordings_without_detections_too() -> None:
    own, further = recording((5, 3), (9, 6), frames=20), recording((2, 6), (4, 9))
    assert fit([own]).order_counts == ((3, 6, 1),)
    assert fit([own], orders=[further]).order_counts == ((3, 6, 1), (6, 9, 1))
    assert fit([own], orders=[further]).confusions == fit([own]).confusions


def test_draws_stay_in_their_box_and_are_the_same_every_time() -> None:
    for weak, box in ((False, BOX), (True, WEAK_BOX)):
        drawn = draw_settings(TrackerModel(), 5, weak=weak)
        assert drawn == draw_settings(TrackerModel(), 5, weak=weak)
        for model in drawn:
            for name, (low, high) in box.items():
                assert low <= getattr(model, name) <= high


def test_a_model_that_tells_nothing_is_worth_nothing() -> None:
    silent = [recording((5, 3), frames=20)]
    assert worth(silent, TrackerModel(), weak=True) == 0.0
    assert worth(silent, TrackerModel()) == 0.0
    assert tune(silent, TrackerModel(), 2, weak=True) in draw_settings(TrackerModel(), 2, weak=True)


@pytest.mark.parametrize("path", shipped_manifests(), ids=lambda path: path.parent.name)
def test_settings_that_ship_with_a_detector_count_its_classes(path: Path) -> None:
    model = load_tracker_model(path.parent / "tracker.json")
    classes = len(Detector.load(path).spec.states)
    assert {class_id for *pair, _ in model.confusions for class_id in pair} <= set(range(classes))
    assert model.order_counts
