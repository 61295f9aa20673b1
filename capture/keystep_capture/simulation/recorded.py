"""A simulated session as a recording: the same MCAP that the server writes of a real headset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.simulation.sensors import Packet
from keystep_capture.simulation.session import Session

# Simulated time begins here, so that a recording's bytes depend on the seed alone.
_UTC_NS = 1_767_225_600 * 1_000_000_000  # 2026-01-01


class _ArrivalClock:
    """Reads when the packet that is being written arrived, simulated ns."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def utc(self) -> int:
        return _UTC_NS + self.now_ns


def record(folder: Path, session: Session, packets: Iterable[Packet]) -> None:
    """Write a session's packets, in order of arrival, into the parts of a recording.

    Args:
        folder: Where the parts go.
        session: What they are of.
        packets: As `Session.packets` gives them.
    """
    spec, clock = session.spec, _ArrivalClock()
    info = RecordingInfo(
        session=spec.session,
        device=f"simulated-{session.person.name}",
        kind="expert" if session.person.expert else "guided",
        task=spec.task,
        source=f"simulated: seed {spec.seed}, profile {spec.profile}",
    )
    writer = RecordingWriter(folder, info, clock=clock, utc_clock=clock.utc)
    try:
        for packet in packets:
            clock.now_ns = packet.receive_time_ns
            writer.write_packet(
                packet.header, packet.payload, receive_time_ns=packet.receive_time_ns
            )
    finally:
        writer.close()
