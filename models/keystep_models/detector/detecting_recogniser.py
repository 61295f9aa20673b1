"""A method that is driven by detections, driven by ticks: each tick's row holds what was seen.

A tick's row "detections" stands for a frame of the `detections` stream: without detections it is a
frame in which nothing was seen, without the row there was no frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError
from keystep_models.detector.batched_detector import MAX_ROWS, ROW_VALUES
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.procedure import ComponentState
from keystep_models.psr.recogniser import CueTick, FrameReport, Recogniser, TickRecogniser

DETECTIONS: Final = "detections"
"""The cue's name."""

DETECTIONS_SIZE: Final = MAX_ROWS * ROW_VALUES


def pack(detections: Sequence[Detection]) -> NDArray[np.float32]:
    """The first 20 detections as a row: class, confidence, box of each; class -1 where no more."""
    rows = np.zeros((MAX_ROWS, ROW_VALUES), np.float32)
    rows[:, 0] = -1
    for row, each in zip(rows, detections, strict=False):
        row[:] = each.class_id, each.confidence, *(each.box or (0.0, 0.0, 0.0, 0.0))
    return rows.reshape(-1)


def unpack(row: NDArray[np.float32]) -> list[Detection]:
    """What `pack` made a row of.

    Raises:
        ShapeError: It has another size.
    """
    if row.shape != (DETECTIONS_SIZE,):
        raise ShapeError(f"expected {DETECTIONS_SIZE} values of detections, got {row.shape}")
    return [
        Detection(int(values[0]), values[1], (values[2], values[3], values[4], values[5]))
        for values in row.reshape(MAX_ROWS, ROW_VALUES).tolist()
        if values[0] >= 0
    ]


class DetectingRecogniser(TickRecogniser):
    """Any `Recogniser` of detections, with a detector of the session's own before it."""

    def __init__(self, inner: Recogniser) -> None:
        """Take a recogniser at the start of its session."""
        super().__init__(inner.method, inner.procedure)
        self.note = inner.note
        self._inner = inner

    @property
    def cues(self) -> tuple[str, ...]:
        """Detections only."""
        return (DETECTIONS,)

    @property
    def model_cues(self) -> Mapping[str, int]:
        """Detections only."""
        return {DETECTIONS: DETECTIONS_SIZE}

    @property
    def memory_ticks(self) -> int:
        """None: a snapshot has all of it."""
        return 0

    @property
    def state(self) -> ComponentState:
        """The recogniser's."""
        return self._inner.state

    @property
    def can_see(self) -> bool:
        """The recogniser's."""
        return self._inner.can_see

    def step_tick(self, tick: CueTick) -> FrameReport:
        """Take the next tick; as `TickRecogniser.step_tick`."""
        row = tick.rows.get(DETECTIONS)
        if row is None:
            return FrameReport()
        return self._inner.step(tick.index, unpack(row))

    def remember(self, tick: CueTick) -> None:
        """Nothing: detections of a paused session are not looked at."""

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done; as `Follower.declare`."""
        return self._inner.declare(step_id)

    def snapshot(self) -> Mapping[str, Any]:
        """The recogniser's."""
        return self._inner.snapshot()

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; as `Follower.restore`."""
        self._inner.restore(snapshot)
