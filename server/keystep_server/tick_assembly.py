"""A session's samples, brought together into ticks: which stream leads, and epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable

from keystep_capture.align import AlignerState, Tick, TickAligner
from keystep_capture.errors import DataError
from keystep_server.checkpoint import AlignerFields, aligner_state
from keystep_server.tick_frames import decode_sample

LEADING = ("rgb", "detections", "head", "gaze", "hands")
"""The first of these that a session has leads its ticks."""
OTHERS = ("gaze", "head", "hands", "depth", "depth_ahat")


class TickAssembly:
    """Makes ticks of samples, in the order in which those come."""

    def __init__(
        self, rate_hz: float, keep: Callable[[Tick, int], None], *, only_pictures_lead: bool
    ) -> None:
        """Start without samples.

        Args:
            rate_hz: Ticks a second.
            keep: Given each tick that is complete, and its epoch.
            only_pictures_lead: No tick is made without a picture, as in a recording that has them.
        """
        self._rate_hz = rate_hz
        self._keep = keep
        self._only_pictures_lead = only_pictures_lead
        self._aligner: TickAligner | None = None
        self._newest_tick: tuple[int, int] | None = None  # epoch and device time, ns
        self.leading: str | None = None
        self.epoch = 0

    @property
    def aligner(self) -> TickAligner | None:
        """The present one; None before the first sample."""
        return self._aligner

    @property
    def late_counts(self) -> dict[str, int]:
        """Packets that came too late for their tick, per stream."""
        return dict(self._aligner.late_counts) if self._aligner else {}

    def aligner_for(self, stream: str, epoch: int) -> TickAligner:
        """The present aligner; a better leading stream or its new epoch starts another."""
        if self._only_pictures_lead and stream != "rgb":
            if self._aligner is not None:
                return self._aligner
            stream = "rgb"
        better = self.leading is None or LEADING.index(stream) < LEADING.index(self.leading)
        restarted = stream == self.leading and epoch != self.epoch
        if self._aligner is None or better or restarted:
            old, same_epoch = self._aligner, epoch == self.epoch
            if old is not None:
                self._take(old.flush())
            self.leading, self.epoch = stream, epoch
            newest = self._newest_tick
            self._aligner = TickAligner(
                leading=stream,
                others=OTHERS,
                rate_hz=self._rate_hz,
                previous_tick_ns=newest[1] if newest and newest[0] == epoch else None,
            )
            if old is not None and same_epoch:
                self._aligner.go_on_from(old.state())
        return self._aligner

    def lead(self, stream: str, epoch: int, device_time_ns: int, value: object) -> None:
        """Take a sample of a stream that may lead ticks."""
        aligner = self.aligner_for(stream, epoch)
        if epoch == self.epoch:  # another epoch's times cannot be placed among these
            self._take(aligner.push(stream, device_time_ns, value))

    def join(self, stream: str, epoch: int, device_time_ns: int, value: object) -> None:
        """Take a sample of a stream that leads none."""
        if self._aligner is not None and epoch == self.epoch:
            self._take(self._aligner.push(stream, device_time_ns, value))

    def flush(self) -> None:
        """Give out the ticks that are not complete: nothing more will come."""
        if self._aligner is not None:
            self._take(self._aligner.flush())

    def state(self) -> tuple[AlignerState, int] | None:
        """What is held now, and its epoch; None before the first sample."""
        return None if self._aligner is None else (self._aligner.state(), self.epoch)

    def restore(self, fields: AlignerFields) -> None:
        """Go on from a state that was written down.

        Raises:
            DataError: It is malformed.
        """
        try:
            aligner = TickAligner(leading=fields.leading, others=OTHERS, rate_hz=self._rate_hz)
            aligner.go_on_from(aligner_state(fields, decode_sample))
        except (ValueError, TypeError) as error:
            raise DataError(f"samples that ticks wait for cannot be read: {error}") from error
        self._aligner, self.leading, self.epoch = aligner, fields.leading, fields.epoch

    def _take(self, ticks: list[Tick]) -> None:
        for tick in ticks:
            self._keep(tick, self.epoch)
        if ticks:
            self._newest_tick = self.epoch, ticks[-1].device_time_ns
