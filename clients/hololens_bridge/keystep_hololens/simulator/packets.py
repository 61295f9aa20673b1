"""What a source hands to a port: packets with the device time at which they are due."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class TimedPacket(NamedTuple):
    """A framed packet, when it leaves the headset, and whether it needs none before it."""

    due_hns: int
    data: bytes
    key_frame: bool = True


class PacketStream(Protocol):
    """The packets of one connection, made one by one in a thread."""

    def next(self) -> TimedPacket | None:
        """Make the next packet, None at the end; may block."""

    def close(self) -> None:
        """Release files."""
