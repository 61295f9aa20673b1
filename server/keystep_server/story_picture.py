"""The story in one picture: the expert's key steps above, the novice's session below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from keystep_capture.errors import DataError
from keystep_models.measures.psr import GroundTruthStep
from keystep_models.psr.timeline_picture import Timeline, draw_timeline

_MARGIN_FRAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A novice's session.

    Attributes:
        titles: Of the steps by id.
        truth: Frames at which steps are done by the labels, with the step's id.
        reported: Frames of the reports that stood at the end, with the step's id.
    """

    titles: Mapping[int, str]
    truth: Sequence[tuple[int, int]]
    reported: Sequence[tuple[int, int]]


def draw_story(path: Path, sheet_path: Path, told: Told) -> None:
    """Write the picture.

    Args:
        path: A PNG file.
        sheet_path: The expert's contact sheet.
        told: The novice's session.

    Raises:
        DataError: The sheet cannot be read, or the picture not be written.
    """
    sheet = cv2.imread(str(sheet_path))
    if sheet is None:
        raise DataError(f"{sheet_path}: no picture")
    frames = [frame for frame, _ in (*told.truth, *told.reported)]
    timeline = Timeline(
        title="A novice's session, guided (simulated; frames at 10 Hz)",
        truth=[GroundTruthStep(frame, step_id) for frame, step_id in sorted(told.truth)],
        reported=[GroundTruthStep(frame, step_id) for frame, step_id in sorted(told.reported)],
        frame_count=max(frames, default=0) + _MARGIN_FRAMES,
        titles=told.titles,
    )
    below = draw_timeline(timeline)
    width = below.shape[1]
    height = round(sheet.shape[0] * width / sheet.shape[1])
    above = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)
    whole: npt.NDArray[np.uint8] = np.concatenate([np.asarray(above, np.uint8), below])
    if not cv2.imwrite(str(path), whole):
        raise DataError(f"cannot write the picture {path}")
