"""What clips say of components, as evidence for the tracker.

A clip says of each component how likely it changed between the clip's first and last frame. With
what was believed of it at the first frame that speaks for, or against, each of its present values.
Clips miss about every second change and seldom see one that is not there, so that a change that is
seen says much more than one that is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, check_detections
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.recogniser import FrameReport
from keystep_models.psr.temporal import WINDOW_FRAMES
from keystep_models.psr.tracker_model import TrackerModel
from keystep_models.psr.tracker_recogniser import TrackerRecogniser

Floats = NDArray[np.float64]

TRACKER_CLIPS: Final = "tracker-clips"
CLIP_WEIGHT: Final = 0.1
"""Neighbouring clips share nearly all their frames: one counts as a tenth of an independent one."""
SEEN_IF_CHANGED: Final = 0.5
SEEN_IF_NOT: Final = 0.03
"""How often a clip shows a change of a component that changed, and of one that did not."""
_EVERY: Final = 8  # frames from one remembered belief to the next


class ClipEvidence:
    """Turns clips into log-likelihoods of components' values; remembers one clip's length."""

    def __init__(
        self,
        initial_state: ComponentState,
        *,
        window_frames: int = WINDOW_FRAMES,
        weight: float = CLIP_WEIGHT,
    ) -> None:
        """Start a session.

        Args:
            initial_state: Believed before the first frame, length C.
            window_frames: Frames a clip spans, first and last included.
            weight: Of a clip's log-likelihood, above 0 to 1.

        Raises:
            ConfigError: `window_frames` or `weight` out of range.
        """
        if window_frames < 1 or not 0 < weight <= 1:
            raise ConfigError(
                "expected a window of 1 frame or more and a weight above 0 up to 1, got"
                f" {window_frames} and {weight}"
            )
        self.window_frames = window_frames
        self._weight = weight
        # Probability of each component being correctly there, before and at frames noted.
        self._before: Floats = np.array([value == 1 for value in initial_state], np.float64)
        self._noted: deque[tuple[int, Floats]] = deque()

    def log_likelihoods(self, frame_idx: int, clip: ClipPrediction) -> Floats:
        """Of a clip, if a component were incorrect, absent, correct at its end.

        Args:
            frame_idx: Of the clip's end.
            clip: Length C.

        Returns:
            Float64 (3, C), weighted; a wrong part counts as not there, as clips are labelled.
        """
        there = self._at(frame_idx - self.window_frames + 1)
        seen = np.array(clip.confidences, np.float64)
        if_changed = SEEN_IF_CHANGED * seen + (1 - SEEN_IF_CHANGED) * (1 - seen)
        if_not = SEEN_IF_NOT * seen + (1 - SEEN_IF_NOT) * (1 - seen)
        absent = there * if_changed + (1 - there) * if_not
        correct = there * if_not + (1 - there) * if_changed
        values: Floats = self._weight * np.log(np.stack([absent, absent, correct]))
        return values

    def note(self, frame_idx: int, chances: Floats) -> None:
        """Remember what is believed at a frame; frames come in order.

        Args:
            frame_idx: The frame.
            chances: As `Tracker.component_probabilities`, (3, C).
        """
        if self._noted and frame_idx - self._noted[-1][0] < _EVERY:
            return
        whole = chances.sum(axis=0)
        there = np.where(whole > 1e-9, chances[2] / np.maximum(whole, 1e-9), 0.5)
        self._noted.append((frame_idx, there))
        self._forget(frame_idx - self.window_frames + 1)

    def _at(self, frame_idx: int) -> Floats:
        found = self._before
        for noted_idx, there in self._noted:
            if noted_idx > frame_idx:
                break
            found = there
        return found

    def _forget(self, frame_idx: int) -> None:
        """Drop what only clips that ended before would look at."""
        while len(self._noted) > 1 and self._noted[1][0] <= frame_idx:
            self._before = self._noted.popleft()[1]

    def snapshot(self) -> dict[str, Any]:
        """Window and beliefs, as values that JSON holds exactly."""
        return {
            "window_frames": self.window_frames,
            "weight": self._weight,
            "before": self._before.tolist(),
            "noted": [[frame_idx, there.tolist()] for frame_idx, there in self._noted],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over a `snapshot`; DataError, and no change, when it is malformed."""
        try:
            if (snapshot["window_frames"], snapshot["weight"]) != (
                self.window_frames,
                self._weight,
            ):
                raise DataError(
                    f"expected beliefs within {self.window_frames} frames, got others within"
                    f" {snapshot['window_frames']}"
                )
            before = self._beliefs(snapshot["before"])
            noted = deque((int(idx), self._beliefs(there)) for idx, there in snapshot["noted"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"expected a snapshot of clips' evidence: {error}") from error
        self._before, self._noted = before, noted

    def _beliefs(self, values: Sequence[float]) -> Floats:
        found = np.array(values, np.float64)
        if found.shape != self._before.shape or not ((found >= 0) & (found <= 1)).all():
            raise DataError(f"expected {len(self._before)} probabilities, got {values!r}")
        return found


class TrackerWithClips(TrackerRecogniser):
    """The tracker, with clips as evidence beside the detections."""

    def __init__(
        self,
        procedure: Procedure,
        model: TrackerModel,
        *,
        window_frames: int = WINDOW_FRAMES,
        note: str = "",
    ) -> None:
        """Start a session; raises what `Tracker` and `ClipEvidence` raise."""
        super().__init__(procedure, model, note=note)
        self.method = TRACKER_CLIPS
        self._evidence = ClipEvidence(procedure.initial_state, window_frames=window_frames)

    def step(
        self,
        frame_idx: int,
        detections: Sequence[Detection],
        clip: ClipPrediction | None = None,
    ) -> FrameReport:
        """Take the next frame; as `Recogniser.step`."""
        check_detections(self.procedure, detections)
        if clip is not None:
            clip.check(self.procedure.component_count)
            # A clip without any change makes nothing sure that was not.
            self.tracker.add_evidence(
                self._evidence.log_likelihoods(frame_idx, clip), reports=any(clip.predicted)
            )
        report = super().step(frame_idx, detections)
        self._evidence.note(frame_idx, self.tracker.component_probabilities())
        return report

    def snapshot(self) -> Mapping[str, Any]:
        """Everything needed to go on from here."""
        return {"tracker": super().snapshot(), "clips": self._evidence.snapshot()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; as `Recogniser.restore`."""
        fresh = ClipEvidence(
            self.procedure.initial_state, window_frames=self._evidence.window_frames
        )
        try:
            fresh.restore(snapshot["clips"])
            super().restore(snapshot["tracker"])
        except (KeyError, TypeError) as error:
            raise DataError(f"expected a snapshot of {TRACKER_CLIPS}: {error}") from error
        self._evidence = fresh
