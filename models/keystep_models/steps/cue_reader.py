"""Makes a recording's cues tick by tick; rows go to files as they come (see `partial_rows`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.cues import gaze_crop
from keystep_models.cues.depth_cue import depth_picture
from keystep_models.cues.gaze_crop import PictureView, ViewMaker
from keystep_models.cues.motion_cue import MotionPreprocessing
from keystep_models.cues.picture_model import PictureCue
from keystep_models.cues.tick_cues import CUE_SIZES, TickCues, TickInput
from keystep_models.cues.tick_timeline import TickPlace
from keystep_models.onnx_model import OnnxModel
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures
from keystep_models.steps.partial_rows import PartialRows
from keystep_models.steps.recording_source import Moment, RecordingSource

_FLUSH_TICKS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A recording's ticks, T of them, those that stand for gaps included.

    Attributes:
        times_ns: On the timeline, int64 (T,).
        epochs: Where each epoch lies on the timeline: epoch, device_time_ns, time_ns.
        notes: What is amiss with the recording, and its gaps.
        cues: Rows of each cue, also of one that is missing everywhere.
    """

    times_ns: NDArray[np.int64]
    epochs: list[dict[str, int]]
    notes: tuple[str, ...]
    cues: Mapping[str, CueFeatures]

    @classmethod
    def of(cls, video: VideoFeatures) -> Reading:
        """The ticks of a video that was read before, without its cues."""
        return cls(
            times_ns=video.times_ns,
            epochs=list(video.recording["epochs"]),
            notes=(),
            cues={},
        )


class CueReader:
    """Takes a recording's ticks one after the other, from the first; known rows are passed over."""

    def __init__(
        self,
        cues: Collection[str],
        models: Mapping[str, OnnxModel],
        rate_hz: float,
        partial: PartialRows,
    ) -> None:
        """Start before the first tick.

        Args:
            cues: Made of a tick: of `CUE_SIZES`, or named in `models`.
            models: The model of each cue that has one.
            rate_hz: Ticks a second.
            partial: Where the cues' rows go, and what an earlier call left of them.
        """
        self._cues = tuple(cues)
        self._partial = partial
        self._pictures = {cue: PictureCue(model) for cue, model in models.items() if cue in cues}
        self._ticks = TickCues(self._cues, rate_hz)
        self._small, self._views = MotionPreprocessing(), ViewMaker()
        self._times: list[int] = []  # on the timeline, ns
        self._origins: list[dict[str, int]] = []
        self._gaps: list[str] = []
        self._done = partial.begin(self._sizes())

    @property
    def count(self) -> int:
        """Ticks so far, those that stand for gaps included."""
        return len(self._times)

    def _sizes(self) -> dict[str, int]:
        sizes = {**CUE_SIZES, **{cue: made.size for cue, made in self._pictures.items()}}
        return {cue: sizes[cue] for cue in self._cues}

    def take(self, moment: Moment) -> None:
        """Add a tick, and missing ones before it where time jumped."""
        sees_motion = "motion" in self._cues
        picture = moment.picture if sees_motion else None
        place, rows = self._ticks.take(
            TickInput(
                epoch=moment.epoch,
                device_time_ns=moment.device_time_ns,
                small=None if picture is None else self._small.from_video_frame(picture),
                samples=moment.samples,
                view=self._view(moment),
            ),
            # Behind a gap there is no motion in any case.
            describe=sees_motion and self.count >= self._done["motion"],
        )
        self._place(moment, place)
        for cue in self._cues:
            if place.index < self._done[cue]:
                if cue in self._pictures and cue not in ("depth", gaze_crop.CUE):
                    self._pictures[cue].remember(moment.picture)
            elif cue in self._pictures:
                seen = self._picture(cue, moment)
                self._append_all(cue, self._pictures[cue].take(seen))
            else:
                self._partial.append(cue, rows.get(cue))
        if place.index % _FLUSH_TICKS == 0:
            self._partial.flush()

    def _append_all(self, cue: str, rows: Sequence[NDArray[np.float32] | None]) -> None:
        for row in rows:
            self._partial.append(cue, row)

    def _picture(self, cue: str, moment: Moment) -> VideoFrame | NDArray[np.uint8] | None:
        """What a cue's model looks at in the tick that was placed last."""
        if cue == gaze_crop.CUE:
            return self._ticks.crop
        return self._depth(moment) if cue == "depth" else moment.picture

    def _view(self, moment: Moment) -> PictureView | None:
        if not self._ticks.cuts_at_gaze or moment.picture is None:
            return None
        return self._views.view(moment.picture, moment.intrinsics, moment.pose)

    def _depth(self, moment: Moment) -> VideoFrame | None:
        images = (moment.samples.get(stream) for stream in ("depth", "depth_ahat"))
        return depth_picture(next((image for image in images if image is not None), None))

    def _place(self, moment: Moment, place: TickPlace) -> None:
        """Note where a tick lies, after ticks that lack every cue where time jumped."""
        for time_ns in place.missing_ns:
            self._times.append(time_ns)
            for cue in self._cues:
                if len(self._times) <= self._done[cue]:
                    continue
                if cue in self._pictures:
                    self._append_all(cue, self._pictures[cue].take(None))
                else:
                    self._partial.append(cue, None)
        if place.note:
            self._gaps.append(place.note)
        if place.starts_epoch:
            self._origins.append(
                {
                    "epoch": moment.epoch,
                    "device_time_ns": moment.device_time_ns,
                    "time_ns": place.time_ns,
                }
            )
        if not place.follows:
            for made in self._pictures.values():  # the next picture does not follow the last one
                made.forget()
        self._times.append(place.time_ns)

    def finish(self, source: RecordingSource) -> Reading:
        """Everything that was read.

        Raises:
            DataError: There was no tick.
        """
        if not self._times:
            raise DataError(f"{source.name}: the recording has no tick")
        for cue, made in self._pictures.items():
            self._append_all(cue, made.finish())
        return Reading(
            times_ns=np.array(self._times, np.int64),
            epochs=self._origins,
            notes=(*source.warnings, *self._gaps),
            cues={cue: self._partial.read(cue) for cue in self._cues},
        )
