"""Recordings: a session's packets and notes in MCAP parts, and what reads, checks and mends them.

`RecordingWriter` and `RecordingQueue` write, `Recording` reads; docs/recordings.md is the format.
"""

from keystep_capture.recording.entries import RecordedNote, RecordedPacket
from keystep_capture.recording.info import RecordingInfo
from keystep_capture.recording.queue import QueueMark, RecordingQueue
from keystep_capture.recording.reader import Recording
from keystep_capture.recording.writer import Position, RecordingWriter, part_paths, take_back

__all__ = [
    "Position",
    "QueueMark",
    "RecordedNote",
    "RecordedPacket",
    "Recording",
    "RecordingInfo",
    "RecordingQueue",
    "RecordingWriter",
    "part_paths",
    "take_back",
]
