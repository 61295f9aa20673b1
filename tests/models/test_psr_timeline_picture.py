from pathlib import Path

import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_models.measures.psr import GroundTruthStep, ReportedStep
from keystep_models.psr.logic import Detection
from keystep_models.psr.timeline_picture import (
    Image,
    Timeline,
    draw_timeline,
    write_picture,
)

GREEN, RED = (70, 140, 40), (40, 40, 215)


def timeline(*reported: ReportedStep, detections: list[list[Detection]] | None = None) -> Timeline:
    return Timeline(
        title="a recording",
        truth=[GroundTruthStep(30, 3), GroundTruthStep(30, 6)],
        reported=reported,
        frame_count=100,
        titles={3: "Install front chassis"},
        detections=detections,
    )


def count(image: Image, colour: tuple[int, int, int]) -> int:
    return int(np.all(image == colour, axis=-1).sum())


def test_pairs_are_green_and_all_others_red() -> None:
    right = draw_timeline(timeline(ReportedStep(35, 3), ReportedStep(36, 6)))
    wrong = draw_timeline(timeline(ReportedStep(35, 9)))
    assert count(right, GREEN) > 0
    assert count(right, RED) == 0
    assert count(wrong, GREEN) == 0
    assert count(wrong, RED) > 0


def test_each_class_has_a_colour_of_its_own_and_height_by_confidence() -> None:
    seen = [[Detection(1, 1.0)]] * 40 + [[]] * 20 + [[Detection(13, 0.5)]] * 40
    bare = draw_timeline(timeline())
    image = draw_timeline(timeline(detections=seen))
    assert image.shape[0] > bare.shape[0]
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    by_area = [tuple(map(int, colours[k])) for k in np.argsort(counts)[::-1][1:3]]
    surer, other = (count(image, colour) for colour in by_area)  # type: ignore[arg-type]
    assert surer == pytest.approx(2 * other, rel=0.15)


def test_many_steps_of_one_frame_stack_their_labels() -> None:
    few = draw_timeline(timeline(ReportedStep(35, 3)))
    many = draw_timeline(timeline(*(ReportedStep(35, step_id) for step_id in range(12))))
    assert many.shape[0] > few.shape[0] + 200


def test_an_empty_recording_draws() -> None:
    empty = Timeline(title="Ü", truth=[], reported=[], frame_count=1, titles={})
    assert draw_timeline(empty).shape[1] == 1800


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the picture"):
        write_picture(tmp_path / "missing" / "a.png", timeline())
