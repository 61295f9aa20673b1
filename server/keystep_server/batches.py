"""What goes into a session's pipeline and what comes out: packets, and what they led to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from keystep_capture.peers import Buffer, Lane
from keystep_capture.wire import PacketHeader
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.recogniser import FrameReport, Retraction
from keystep_server.storage import Branch


@dataclass(frozen=True, slots=True)
class Item:
    """A checked packet as it came."""

    lane: Lane
    header: PacketHeader
    payload: Buffer
    received_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Evidence that was looked at: a packet of detections, or a tick.

    Attributes:
        stream: Whose packet it was, or which leads the ticks.
        frame_idx: The packet's or tick's own number; None where it has none.
        device_time_ns: When it was captured.
        epoch: In which that time is comparable.
        received_ns: When its newest packet came, by the server's clock.
        branch: Which part of the models looked.
    """

    stream: str
    frame_idx: int | None
    device_time_ns: int
    epoch: int
    received_ns: int
    branch: Branch


@dataclass(frozen=True, slots=True)
class Change:
    """A step reported or taken back, with what it was seen in."""

    change: StepCompletion | Retraction
    seen: Sighting


@dataclass(slots=True)
class Outcome:
    """What a batch of packets led to; `newest`: the last evidence that was looked at."""

    changes: list[Change] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    newest: Sighting | None = None

    def add(self, report: FrameReport, seen: Sighting) -> None:
        """Take what some evidence led to."""
        by_clips = [
            made
            for made in report.branches.get("temporal", ())
            if made not in report.branches.get("detector", ())
        ]
        clips = replace(seen, branch=Branch.SPATIO_TEMPORAL) if by_clips else seen
        self.changes += [
            Change(made, clips if made in by_clips else seen) for made in report.changes
        ]
        self.newest = seen


@dataclass(frozen=True, slots=True)
class FeatureTiming:
    """When a frame was captured (device), came in, had its features and had its tick written, ns.

    All but the first by the server's clock.
    """

    device_time_ns: int
    received_ns: int
    done_ns: int
    written_ns: int
