"""Packets that a recording holds twice: a killed server had written more than it had acknowledged.

What was not acknowledged is sent again after a restart, and stands in a further part once more.
"""

from __future__ import annotations

from bisect import bisect_right

from keystep_capture.recording.entries import RecordedPacket

MAX_RANGES = 1_000_000
"""Runs of numbers without a gap that are remembered, over all streams; of later ones, none."""


class SeenPackets:
    """Tells packets that were read before by epoch, stream and sequence number."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[list[int], list[int]]] = {}
        self._range_count = 0

    def is_new(self, packet: RecordedPacket) -> bool:
        """Whether this packet was not asked about before; it was then."""
        header = packet.header
        lane = (header.epoch, header.stream)
        starts, ends = self._seen.setdefault(lane, ([], []))  # ends are no more in the run
        number = header.sequence
        idx = bisect_right(starts, number)  # the run before it is idx - 1
        if idx and number < ends[idx - 1]:
            return False
        if idx and number == ends[idx - 1]:
            ends[idx - 1] = number + 1
            if idx < len(starts) and starts[idx] == number + 1:
                ends[idx - 1] = ends[idx]
                del starts[idx], ends[idx]
                self._range_count -= 1
        elif idx < len(starts) and starts[idx] == number + 1:
            starts[idx] = number
        elif self._range_count < MAX_RANGES:
            starts.insert(idx, number)
            ends.insert(idx, number + 1)
            self._range_count += 1
        return True


class NothingSeen(SeenPackets):
    """Takes every packet for new: one part holds none twice."""

    def is_new(self, packet: RecordedPacket) -> bool:
        """True."""
        return True
