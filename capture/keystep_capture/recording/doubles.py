"""What a recording holds twice: a killed server had written more than it had acknowledged.

Packets that were not acknowledged are sent again after a restart and stand in a further part once
more; so do the ticks and step events that are found in them again.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, TypeAlias

from keystep_capture.recording.entries import RecordedNote, RecordedPacket
from keystep_capture.recording.notes import Note, StepEventNote, TickNote

MAX_RANGES: Final = 200_000
"""Runs of numbers without a gap that are remembered, over all streams; of later ones, none."""
MAX_NOTES: Final = 500_000
"""Ticks and step events that are remembered, 14 hours of them; of later ones, none."""

_NoteKey: TypeAlias = tuple[int, int] | tuple[str, bool]


class SeenEntries:
    """Tells what was read before.

    Packets are told by epoch, stream and sequence number, ticks by epoch and device time, step
    events by their id and whether they are taken back. Other notes are always new.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[int, str], tuple[list[int], list[int]]] = {}
        self._run_count = 0
        self._notes: set[_NoteKey] = set()

    def is_new(self, entry: RecordedPacket | RecordedNote) -> bool:
        """Whether this was not asked about before; it was then."""
        if isinstance(entry, RecordedPacket):
            return self._is_new_packet(entry)
        key = _key_of(entry.note)
        if key is None:
            return True
        if key in self._notes:
            return False
        if len(self._notes) < MAX_NOTES:
            self._notes.add(key)
        return True

    def _is_new_packet(self, packet: RecordedPacket) -> bool:
        header = packet.header
        lane = (header.epoch, header.stream)
        starts, ends = self._runs.setdefault(lane, ([], []))  # ends are no more in the run
        number = header.sequence
        idx = bisect_right(starts, number)  # the run before it is idx - 1
        if idx and number < ends[idx - 1]:
            return False
        if idx and number == ends[idx - 1]:
            ends[idx - 1] = number + 1
            if idx < len(starts) and starts[idx] == number + 1:
                ends[idx - 1] = ends[idx]
                del starts[idx], ends[idx]
                self._run_count -= 1
        elif idx < len(starts) and starts[idx] == number + 1:
            starts[idx] = number
        elif self._run_count < MAX_RANGES:
            starts.insert(idx, number)
            ends.insert(idx, number + 1)
            self._run_count += 1
        return True


class NothingSeen(SeenEntries):
    """Takes everything for new: one part holds nothing twice."""

    def is_new(self, entry: RecordedPacket | RecordedNote) -> bool:
        """True."""
        return True


def _key_of(note: Note) -> _NoteKey | None:
    """What a note is told by; None where it may come twice."""
    if isinstance(note, TickNote):
        return note.epoch, note.device_time_ns
    if isinstance(note, StepEventNote):
        return note.id, note.retracted
    return None
