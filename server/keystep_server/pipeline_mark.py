"""A moment of a session's pipeline, to be written down when what was on its way has come."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from keystep_capture.align import AlignerState
from keystep_server.checkpoint import FollowingState, PipelineState, aligner_fields
from keystep_server.recorder import RecordedMoment
from keystep_server.tick_frames import Frame, encode_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMark:
    """A moment between two packets.

    Attributes:
        row_count: Ticks that were written.
        feature_count: Of those, ticks with an appearance feature.
        detection_count: Packets of detections that were looked at.
        waiting: What leads the ticks whose rows were not written.
        aligned: The aligner and its epoch.
        recorded: Of the recording.
        following: Where a session that is guided by its ticks is.
        hands: Whether hands are a cue.
    """

    row_count: int
    feature_count: int
    detection_count: int
    waiting: tuple[Frame | None, ...]
    aligned: tuple[AlignerState, int] | None
    recorded: RecordedMoment
    following: FollowingState | None
    hands: bool

    @property
    def needed_rows(self) -> int:
        """Rows of ticks that must be on the disk first."""
        return self.row_count + len(self.waiting)

    @property
    def has_come(self) -> bool:
        """Whether all features that were on their way are there, or will never be."""
        leading = self.aligned[0].waiting if self.aligned else ()
        frames = (sample.value for sample in leading)
        return all(frame.is_done for frame in frames if isinstance(frame, Frame))

    def state(self) -> PipelineState:
        """What to write down; only when the features have come."""
        found = sum(frame is not None and frame.has_embedding for frame in self.waiting)
        aligner = None
        if self.aligned is not None:
            encode = functools.partial(encode_sample, hands=self.hands)
            aligner = aligner_fields(*self.aligned, encode)
        return PipelineState(
            row_count=self.needed_rows,
            feature_count=self.feature_count + found,
            detection_count=self.detection_count,
            aligner=aligner,
            video=self.recorded.state(),
            following=self.following,
        )
