"""What the sensors say, on its way to the server; and how a restarted headset shows in it."""

from __future__ import annotations

from collections.abc import Callable

from keystep_capture.clock import Clock
from keystep_capture.errors import DeviceError, WireError
from keystep_capture.sender import Sender
from keystep_hololens.hl2ss import conventions
from keystep_hololens.wire_packets import Outgoing

CLOCK_JUMP_NS = 1_000_000_000
"""A headset's clock that is off by more than this from what it was is a restarted headset's."""
MAX_DEVICE_TIME_NS = 10 * 365 * 24 * 3600 * 1_000_000_000
"""No headset has been running for longer: such a time is of a connection out of step."""


class Uplink:
    """Puts packets of all sensors into one sender."""

    def __init__(
        self,
        sender: Sender,
        *,
        streams: frozenset[str],
        replay: bool,
        clock: Clock,
        on_restart: Callable[[], None],
    ) -> None:
        """Start.

        Args:
            sender: Where packets go.
            streams: Those to send; packets of others are left out.
            replay: Wait for credit, so that nothing is lost.
            clock: Monotonic clock, ns.
            on_restart: Told when the packets' times show that the headset was restarted; must call
                `begin_epoch`.
        """
        self.streams = streams
        self.heard_ns: int | None = None
        self._sender = sender
        self._replay = replay
        self._clock = clock
        self._on_restart = on_restart
        self._newest_device_ns: dict[str, int] = {}
        self._calibrated: set[str] = set()
        self._life = 0

    def open(self) -> Feed:
        """A feed for one connection to the headset."""
        return Feed(self, self._life)

    def begin_epoch(self) -> None:
        """The headset was restarted: feeds opened before are dead, constants are told anew."""
        self._newest_device_ns.clear()
        self._calibrated.clear()
        self._life += 1

    def wants(self, *streams: str) -> bool:
        """Whether any of these streams is to be sent."""
        return not self.streams.isdisjoint(streams)

    async def send(self, feed: Feed, timestamp_hns: int, packet: Outgoing) -> None:
        """Send a packet on a feed; see `Feed.send`."""
        stream = packet.stream
        if stream not in self.streams:
            return
        self.heard_ns = self._clock()
        if self._replay:
            await self._sender.room(stream)
        if feed.life != self._life:
            raise DeviceError("the headset was restarted; this connection is of before")
        device_time_ns = conventions.device_time_ns(timestamp_hns)
        if device_time_ns > MAX_DEVICE_TIME_NS:
            raise DeviceError(f"a packet of {stream} says it is of {device_time_ns} ns after boot")
        if packet.calibrates is None:  # constants come with the times of several sensors
            self._look_for_restart(feed, stream, device_time_ns)
        feed.sent_count += 1
        try:
            self._offer(device_time_ns, packet)
        except WireError as error:
            raise DeviceError(f"the headset sent what cannot be passed on: {error}") from error

    def _look_for_restart(self, feed: Feed, stream: str, device_time_ns: int) -> None:
        if device_time_ns < self._newest_device_ns.get(stream, 0) - CLOCK_JUMP_NS:
            self._on_restart()
            feed.life = self._life  # this packet showed it, so this connection is of after
        self._newest_device_ns[stream] = device_time_ns

    async def calibrate(self, feed: Feed, timestamp_hns: int, packet: Outgoing) -> None:
        """Send a sensor's constants, once an epoch."""
        assert packet.calibrates is not None
        if packet.calibrates not in self._calibrated:
            await self.send(feed, timestamp_hns, packet)
            self._calibrated.add(packet.calibrates)

    def _offer(self, device_time_ns: int, packet: Outgoing) -> None:
        self._sender.offer(
            packet.stream,
            device_time_ns,
            packet.payload,
            encoding=packet.encoding,
            keyframe=packet.keyframe,
            width=packet.width,
            height=packet.height,
            intrinsics=packet.intrinsics,
            pose=packet.pose,
            valid=packet.valid,
            depth_unit_m=packet.depth_unit_m,
            upright_turns=packet.upright_turns,
            calibrates=packet.calibrates,
            rig_from_sensor=packet.rig_from_sensor,
        )


class Feed:
    """One connection to the headset, within one of its lives."""

    def __init__(self, uplink: Uplink, life: int) -> None:
        """Made by `Uplink.open`."""
        self._uplink = uplink
        self.life = life
        self.sent_count = 0

    def wants(self, *streams: str) -> bool:
        """Whether any of these streams is to be sent."""
        return self._uplink.wants(*streams)

    async def send(self, timestamp_hns: int, packet: Outgoing) -> None:
        """Send a packet, if its stream is wanted; a replay waits for credit first.

        Raises:
            DeviceError: The headset was restarted since the connection was opened, or sent more
                than the stream allows.
            StateError: The session was closed.
            WireError: The server refused this source for good.
        """
        await self._uplink.send(self, timestamp_hns, packet)

    async def calibrate(self, timestamp_hns: int, packet: Outgoing) -> None:
        """Send a sensor's constants unless that was done in this epoch; raises as `send`."""
        await self._uplink.calibrate(self, timestamp_hns, packet)
