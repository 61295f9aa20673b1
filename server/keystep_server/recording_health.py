"""A closed recording's verdict, made on request and kept beside its exports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from keystep_capture.recording.health import Health, Verdict, check

FILE: Final = "health.json"
MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_LINES: Final = 100


class StoredLane(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one stream of one epoch."""

    stream: str
    epoch: int
    packets: int
    rate_hz: float | None
    lost: int
    longest_gap_s: float
    stalls: int


class StoredHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict and what it rests on; it holds for files of that many bytes together."""

    size_bytes: int
    verdict: Verdict
    reasons: list[str]
    packets: int
    dropped: dict[str, int]
    damage: list[str]
    streams: list[StoredLane]


def judge(recording: Path, exports: Path, size_bytes: int) -> StoredHealth:
    """The verdict of a recording that nobody writes any more; read once, then kept.

    Args:
        recording: Its folder of parts.
        exports: The folder that the verdict is kept in.
        size_bytes: Of all parts.

    Raises:
        DataError: No part of it can be read.
        OSError: The disk.
    """
    kept = kept_verdict(exports, size_bytes)
    if kept is not None:
        return kept
    found = _stored(check(recording), recording, size_bytes)
    unfinished = exports / f"unfinished-{FILE}"
    unfinished.write_bytes(msgspec.json.encode(found))
    os.replace(unfinished, exports / FILE)
    return found


def kept_verdict(exports: Path, size_bytes: int) -> StoredHealth | None:
    """The verdict that is kept; None where there is none of files of that size."""
    try:
        with (exports / FILE).open("rb") as file:
            found = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=StoredHealth)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):  # made again when it is asked for
        return None
    return found if found.size_bytes == size_bytes else None


def _stored(health: Health, recording: Path, size_bytes: int) -> StoredHealth:
    folder = f"{recording}{os.sep}"  # where the server keeps its files is nobody's business
    lanes = [
        StoredLane(
            stream=lane.stream,
            epoch=lane.epoch,
            packets=lane.packet_count,
            rate_hz=lane.rate_hz,
            lost=lane.lost_count,
            longest_gap_s=lane.longest_gap_s,
            stalls=lane.stall_count,
        )
        for lane in health.lanes
    ]
    return StoredHealth(
        size_bytes=size_bytes,
        verdict=health.verdict,
        reasons=[reason.replace(folder, "") for reason in health.reasons[:_MAX_LINES]],
        packets=health.packet_count,
        dropped=health.dropped,
        damage=[damage.replace(folder, "") for damage in health.damage[:_MAX_LINES]],
        streams=lanes,
    )
