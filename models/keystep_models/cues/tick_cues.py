"""A tick's cues that need no network: the same rows from a recording and from a live session.

`steps/cue_extraction.py` and the server both make a session's rows with this class, tick after
tick, so that what was learned from a recording fits what is seen live.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.cues import gaze_crop, motion_cue, sensor_cues
from keystep_models.cues.gaze_crop import GazePoint, PictureView, cut_around
from keystep_models.cues.motion_cue import MotionCue
from keystep_models.cues.sensor_cues import GazeCue, HeadCue, gaze_stack, hand_in_head
from keystep_models.cues.tick_timeline import TickPlace, TickTimeline

Row = NDArray[np.float32]

CUE_SIZES: Final[Mapping[str, int]] = {
    "motion": motion_cue.SIZE,
    "gaze": sensor_cues.GAZE_SIZE,
    "gaze_stack": sensor_cues.STACK_SIZE,
    "head": sensor_cues.HEAD_SIZE,
    "left_hand": sensor_cues.HAND_SIZE,
    "right_hand": sensor_cues.HAND_SIZE,
}
"""Values of each cue that is made here."""
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TickInput:
    """What there is of a tick.

    Attributes:
        epoch: Device times are comparable within one epoch only.
        device_time_ns: Of the tick.
        small: Its picture, uint8 (96, 160), of `MotionPreprocessing`; None without one, or where
            motion is no cue.
        samples: Sensors' values by stream; absent or None where missing.
        view: Its picture for what is around the gaze point; None without one or its camera's pose
            and intrinsics, or where that is no cue.
    """

    epoch: int
    device_time_ns: int
    small: NDArray[np.uint8] | None
    samples: Mapping[str, NDArray[np.floating] | None]
    view: PictureView | None = None


class TickCues:
    """Makes one session's rows."""

    def __init__(self, cues: Collection[str], rate_hz: float) -> None:
        """Start before the first tick.

        Args:
            cues: Of `CUE_SIZES`, and "gaze_appearance", whose pictures are cut out here; others
                are not looked at.
            rate_hz: Ticks a second.
        """
        self.cues = tuple(cue for cue in CUE_SIZES if cue in cues)
        self.timeline = TickTimeline(rate_hz)
        self.cuts_at_gaze = gaze_crop.CUE in cues
        self._motion, self._gaze, self._head = MotionCue(), GazeCue(), HeadCue()
        self._gaze_point = GazePoint(rate_hz)
        self.crop: NDArray[np.uint8] | None = None
        """What is around the gaze point in the last tick's picture, uint8 (224, 224, 3), RGB;
        None where it has none."""

    def take(
        self, tick: TickInput, *, describe: bool = True
    ) -> tuple[TickPlace, dict[str, Row | None]]:
        """Place a tick and make its rows.

        Args:
            tick: The next one.
            describe: False where its motion is known already: only what the next tick needs.

        Returns:
            Its place, and cue to float32 (D,); None where the cue is missing.
        """
        place = self.timeline.place(tick.epoch, tick.device_time_ns)
        if not (self.cues or self.cuts_at_gaze):
            return place, {}
        if place.starts_epoch:
            self._head.restart()
        if not place.follows:
            self._motion.forget()
            self._gaze_point.forget()
        self.crop = self._cut(tick) if self.cuts_at_gaze else None
        rows = self._sensor_rows(tick)
        if "motion" in self.cues:
            rows["motion"] = self._see_motion(tick.small, describe=describe)
        return place, {cue: _finite(rows[cue]) for cue in self.cues}

    def _cut(self, tick: TickInput) -> NDArray[np.uint8] | None:
        point = self._gaze_point.see(tick.samples.get("gaze"))
        return None if point is None or tick.view is None else cut_around(tick.view, point)

    def _see_motion(self, small: NDArray[np.uint8] | None, *, describe: bool) -> Row | None:
        if small is None:
            self._motion.forget()
            return None
        return self._motion.see(small, describe=describe)

    def _sensor_rows(self, tick: TickInput) -> dict[str, Row | None]:
        samples = tick.samples
        pose, hands = samples.get("head"), samples.get("hands")
        rows: dict[str, Row | None] = {
            "gaze": self._gaze.see(samples.get("gaze"), pose),
            "head": self._head.see(pose, tick.device_time_ns / _NS),
        }
        # These keep nothing of a tick. Where they are no cues, a checkpoint keeps no samples of
        # them either: what comes back after a restart is empty.
        if "gaze_stack" in self.cues:
            rows["gaze_stack"] = gaze_stack(samples.get("gaze_stack"), pose)
        for side, cue in enumerate(("left_hand", "right_hand")):
            if cue in self.cues:
                rows[cue] = hand_in_head(hands, pose, side)
        return rows

    # -- snapshots -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly; 21 KB."""
        before = self._motion.before
        return {
            "timeline": self.timeline.snapshot(),
            "picture": None if before is None else base64.b64encode(before.tobytes()).decode(),
            "gaze": self._gaze.snapshot(),
            "gaze_point": self._gaze_point.snapshot(),
            "head": self._head.snapshot(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same rate.

        Raises:
            DataError: It is malformed; nothing has changed then.
        """
        timeline = TickTimeline(self.timeline.rate_hz)
        gaze, head = GazeCue(), HeadCue()
        point = GazePoint(self.timeline.rate_hz)
        try:
            timeline.restore(snapshot["timeline"])
            before = _picture(snapshot["picture"])
            gaze.restore(snapshot["gaze"])
            point.restore(snapshot.get("gaze_point", ()))  # older ones have none
            head.restore(snapshot["head"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise DataError(f"no state of a session's cues: {error}") from error
        self.timeline, self._gaze, self._head = timeline, gaze, head
        self._motion.before, self._gaze_point = before, point


def _picture(text: str | None) -> NDArray[np.uint8] | None:
    if text is None:
        return None
    pixels = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    return pixels.reshape(motion_cue.HEIGHT, motion_cue.WIDTH)


def _finite(row: Row | None) -> Row | None:
    """A row with a value that is not finite is missing."""
    return row if row is not None and np.isfinite(row).all() else None
