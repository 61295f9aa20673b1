"""A session that is guided by its ticks: cues made of each, looked at in order, kept on disk.

A tick is described when it is complete (its motion and sensors), looked at when its embedding is
there, then written. After a restart the encoders see the newest rows again, and ticks that were
written but not looked at are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from keystep_capture.align import Tick
from keystep_capture.errors import DataError, KeystepError
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.cues.gaze_crop import PictureView
from keystep_models.cues.tick_cues import CUE_SIZES, TickCues, TickInput
from keystep_models.detector.detecting_recogniser import DETECTIONS
from keystep_models.psr.recogniser import CueTick, FrameReport, TickRecogniser
from keystep_models.storm.clip_recogniser import CLIP
from keystep_server.checkpoint import FollowingState
from keystep_server.cue_rows import CueRows
from keystep_server.features import APPEARANCE, EMBEDDING_SIZE, read_ticks
from keystep_server.storage import Branch

FILE = "cues.rows"
LIVE_CUES = frozenset(
    {"appearance", GAZE_APPEARANCE, "motion", "gaze", "head", "left_hand", "right_hand"}
)
"""The cues that a live session's ticks have."""
_OF_PICTURES = frozenset({"appearance", GAZE_APPEARANCE, "motion"})
_MAX_TROUBLES = 3  # told in the log; all are counted

log = structlog.get_logger(__name__)


class TickFollowing:
    """One session's ticks and the recogniser they drive; used by one thread at a time."""

    def __init__(self, recogniser: TickRecogniser, folder: Path, rate_hz: float) -> None:
        """Open the session's file of cues.

        Args:
            recogniser: At the session's start.
            folder: The session's.
            rate_hz: Ticks a second.
        """
        self.recogniser = recogniser
        self._cues = TickCues(recogniser.cues, rate_hz)
        sizes = {cue: CUE_SIZES[cue] for cue in self._cues.cues}
        sizes |= recogniser.model_cues
        if self.wants_view:
            sizes[GAZE_APPEARANCE] = EMBEDDING_SIZE
        self._folder = folder
        self._rows = CueRows(folder / FILE, sizes)
        self.failed_count = 0

    @property
    def wants_motion(self) -> bool:
        """Whether motion is one of its cues."""
        return "motion" in self._cues.cues

    @property
    def wants_view(self) -> bool:
        """Whether what is around the gaze point is one of its cues."""
        return self._cues.cuts_at_gaze

    @property
    def wants_hands(self) -> bool:
        """Whether a hand is one of its cues."""
        return not {"left_hand", "right_hand"}.isdisjoint(self._cues.cues)

    @property
    def needs_pictures(self) -> bool:
        """Whether ticks are worth nothing without pictures."""
        return bool(self.recogniser.model_cues) or not _OF_PICTURES.isdisjoint(self.recogniser.cues)

    @property
    def branch(self) -> Branch:
        """Which part of the models looks."""
        if DETECTIONS in self.recogniser.cues:
            return Branch.ASSEMBLY_STATE
        if CLIP in self.recogniser.cues:
            return Branch.SPATIO_TEMPORAL
        return Branch.KEY_STEP_FILTER

    def describe(
        self,
        tick: Tick,
        epoch: int,
        small: npt.NDArray[np.uint8] | None,
        view: PictureView | None = None,
    ) -> tuple[CueTick, npt.NDArray[np.uint8] | None]:
        """Make a tick's cues, all that need no network; ticks come in order.

        Returns:
            The tick, and what is around the gaze point, uint8 (224, 224, 3), for the appearance
            model; None where that is no cue or not to be had.
        """
        place, rows = self._cues.take(
            TickInput(
                epoch=epoch,
                device_time_ns=tick.device_time_ns,
                small=small,
                samples={name: _array(sample) for name, sample in tick.samples.items()},
                view=view,
            )
        )
        return CueTick(index=place.index, rows=rows), self._cues.crop

    def look(
        self, tick: CueTick, embedding: npt.NDArray[np.float32] | None, *, paused: bool
    ) -> FrameReport | None:
        """Have the recogniser take a tick; None where it could not, or the session is paused."""
        whole = CueTick(index=tick.index, rows={**tick.rows, "appearance": embedding})
        try:
            if paused:
                self.recogniser.remember(whole)
                return None
            return self.recogniser.step_tick(whole)
        except KeystepError as error:  # guidance goes on with the next
            self.failed_count += 1
            if self.failed_count <= _MAX_TROUBLES:
                log.error("a tick was not looked at", folder=self._folder.name, error=str(error))
            return None

    def append(self, row: int, tick: CueTick) -> None:
        """Write a tick's cues as this row, unless it was before the disk refused the rest of it.

        Raises:
            OSError: The disk did not take it.
        """
        if self._rows.row_count < row:
            self._rows.resize(row)
        if self._rows.row_count == row:
            self._rows.append(tick)

    def flush(self) -> None:
        """Hand what was appended to the operating system."""
        self._rows.flush()

    def sync(self) -> None:
        """Wait until what was flushed is on the disk."""
        self._rows.sync()

    def close(self) -> None:
        """Close the file, and give back what the recogniser holds."""
        self.recogniser.close()
        self._rows.close()

    # -- resume ----------------------------------------------------------------------------------

    def state(self, looked_at: int) -> FollowingState:
        """What to write down; `looked_at` rows were looked at."""
        return FollowingState(looked_at=looked_at, cues=self._cues.snapshot())

    def restore(
        self, state: FollowingState, row_count: int, *, paused: bool
    ) -> Iterator[tuple[np.void, int, FrameReport]]:
        """Go on from a state; the recogniser has been restored.

        Args:
            state: As `state` gave it.
            row_count: Rows that the session's ticks have.
            paused: Whether the session is.

        Yields:
            For ticks that were written but not looked at: the row in `ticks.rows`, its number on
            the timeline, and what it led to.

        Raises:
            DataError: The state is malformed, or does not fit the files.
        """
        if not state.looked_at <= row_count <= self._rows.row_count:
            raise DataError(
                f"{FILE} has {self._rows.row_count} rows, expected {row_count}, of which"
                f" {state.looked_at} were looked at"
            )
        self._cues.restore(state.cues)
        self._rows.resize(row_count)
        first = max(0, state.looked_at - self.recogniser.memory_ticks)
        stored = read_ticks(self._folder / "ticks.rows")
        for place, tick in enumerate(self._rows.read(first, row_count), start=first):
            row = stored[place]
            embedding = np.array(row["appearance"]) if row["cues"] & APPEARANCE else None
            report = self.look(tick, embedding, paused=paused or place < state.looked_at)
            if report is not None:
                yield row, tick.index, report


def _array(sample: Any) -> npt.NDArray[np.floating] | None:
    value = None if sample is None else sample.value
    return value if isinstance(value, np.ndarray) else None
