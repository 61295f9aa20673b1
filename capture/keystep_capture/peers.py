"""What the server's end of the wire knows of its peers, and what it asks of their owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol

from keystep_capture import wire
from keystep_capture.clock import ClockEstimator, ClockReading, chain
from keystep_capture.streams import StreamSpec

Buffer = bytes | memoryview


@dataclass(slots=True, eq=False)
class Lane:
    """One stream of one session and epoch, as one peer sends it.

    `received_sequence` was taken; up to `acknowledged_sequence` a restarted server lacks nothing.
    """

    spec: StreamSpec
    epoch: int
    received_sequence: int = -1
    acknowledged_sequence: int = -1
    peer: Peer | None = None
    accepted: int = 0
    refused: int = 0
    consumed: int = 0
    granted: int = 0
    taken_before: int = 0
    lost: int = 0
    byte_count: int = 0
    newest_device_time_ns: int | None = None
    debt: int = 0  # packets of the lanes before that are still to be consumed
    successor: Lane | None = None

    @property
    def taken_count(self) -> int:
        """Packets of the stream that were taken in this session, on whatever connection."""
        return self.taken_before + self.accepted - self.refused

    def handed_over(self, *, epoch: int) -> Lane:
        """The lane for a new peer that goes on with this stream; this one takes no more.

        Counts go on; the sequence does so within an epoch only.
        """
        self.peer = None
        same = epoch == self.epoch
        self.successor = Lane(
            spec=self.spec,
            epoch=epoch,
            received_sequence=self.received_sequence if same else -1,
            acknowledged_sequence=self.acknowledged_sequence if same else -1,
            taken_before=self.taken_count,
            lost=self.lost,
            byte_count=self.byte_count,
            newest_device_time_ns=self.newest_device_time_ns if same else None,
            debt=self.accepted - self.consumed + self.debt,
        )
        return self.successor

    @property
    def credit_limit(self) -> int:
        """Packets that may be sent in all, so that at most a window of them waits."""
        return self.consumed + self.spec.window_packets - self.debt


@dataclass(slots=True, kw_only=True)
class Admission:
    """What a handler answers to a hello: the session, its epoch and a lane per stream."""

    session_id: str
    epoch: int
    lanes: dict[str, Lane]


@dataclass(slots=True, eq=False, kw_only=True)
class Peer:
    """A connection that said hello; `user` is its ZAP user, None where no keys are asked for."""

    routing_id: bytes
    user: str | None
    fd: int
    hello: wire.Hello
    session_id: str
    epoch: int
    lanes: dict[str, Lane]
    heard_ns: int
    clock: ClockEstimator = field(default_factory=ClockEstimator)
    device_clock: wire.DeviceClock | None = None
    sender_dropped: dict[str, int] = field(default_factory=dict)
    next_request_id: int = 0
    answered_request_id: int = 0
    finished: bool = False
    active: bool = False
    large_payloads: bool = False
    picture_under_way: bool = False
    refused_ns: dict[tuple[bytes, str], int] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def device_reading(self, now_ns: int) -> ClockReading | None:
        """The device's clock read on ours, over both hops; None until both were measured."""
        bridge, device = self.clock.reading(now_ns), self.bridge_reading()
        if bridge is None or device is None:
            return None
        return chain(bridge, device)

    def bridge_reading(self) -> ClockReading | None:
        """The device's clock read on the bridge's; None until the bridge has told."""
        told = self.device_clock
        if told is None:
            return None
        return ClockReading(
            remote_ns=told.device_time_ns,
            local_ns=told.bridge_time_ns,
            uncertainty_ns=told.uncertainty_ns,
            rate=told.rate,
        )


class Handler(Protocol):
    """Who owns the sessions (the server's ingest)."""

    def admit(self, hello: wire.Hello) -> Awaitable[Admission]:
        """Answer a hello; raise a KeystepError to refuse it."""

    def on_joined(self, peer: Peer) -> None:
        """A peer was welcomed."""

    def on_packet(self, peer: Peer, lane: Lane, header: wire.PacketHeader, payload: Buffer) -> bool:
        """Take a checked packet; True if it is consumed already, else `consumed` follows."""

    def on_guidance_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        """A peer took a revision of the guidance."""

    def on_command(self, peer: Peer, command: wire.Command) -> None:
        """The wearer asks for something; a `command_result` follows."""

    def picture(self, peer: Peer, picture: str) -> tuple[wire.PictureEncoding, bytes] | None:
        """A picture that a peer asks for: its encoding and bytes; None: it cannot have it."""

    def on_finished(self, peer: Peer, finished: wire.Finished) -> None:
        """A peer has sent all it has."""

    def on_left(self, peer: Peer) -> None:
        """A peer is gone or silent; the session goes on waiting."""
