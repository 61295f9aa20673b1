"""What a sender holds of one stream: numbering, credit, dropping and keeping, without any I/O.

`newest` streams hold nothing: a packet without credit is dropped, and with it the rest of its group
of pictures. `all` streams keep packets until the server has written down what became of them, up to
an age and a count; so does every stream of a replay, which loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from keystep_capture.errors import WireError
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PROTOCOL, Intrinsics, PacketHeader

MAX_KEPT_PACKETS = 8192
MAX_KEPT_BYTES = 256 * 1024 * 1024
"""A replay waits when so much is kept; other sources drop the oldest."""


class Pending(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """A packet on its way; `sequence` is given when it is offered, `order` counts over all streams.

    A replay's packet brings its `sequence` along.

    A Struct, since one is made for every packet, in a fifth of a plain class's time.
    """

    device_time_ns: int
    payload: bytes | bytearray | memoryview
    encoding: str
    keyframe: bool
    width: int | None = None
    height: int | None = None
    intrinsics: Intrinsics | None = None
    pose: list[float] | None = None
    valid: int = -1
    frame_idx: int | None = None
    depth_unit_m: float | None = None
    upright_turns: int = 0
    calibrates: str | None = None
    rig_from_sensor: list[float] | None = None
    sequence: int = -1
    offered_ns: int = 0
    order: int = 0
    is_spooled: bool = False  # it is on the disk, too

    def header(self, *, session: str, epoch: int, stream: str, send_time_ns: int) -> PacketHeader:
        """Its header on the wire."""
        return PacketHeader(
            protocol=PROTOCOL,
            session=session,
            epoch=epoch,
            stream=stream,
            sequence=self.sequence,
            device_time_ns=self.device_time_ns,
            send_time_ns=send_time_ns,
            encoding=self.encoding,
            keyframe=self.keyframe,
            width=self.width,
            height=self.height,
            intrinsics=self.intrinsics,
            pose=self.pose,
            valid=self.valid,
            frame_idx=self.frame_idx,
            depth_unit_m=self.depth_unit_m,
            upright_turns=self.upright_turns,
            calibrates=self.calibrates,
            rig_from_sensor=self.rig_from_sensor,
        )


class Outbox:
    """One stream's packets between a source and the socket."""

    def __init__(self, stream: str, *, lossless: bool = False) -> None:
        """Start an empty box.

        Args:
            stream: A stream of the table.
            lossless: Keep packets until they are acknowledged, whatever the stream's policy.
        """
        self.spec = STREAMS[stream]
        self._lossless = lossless
        self._keeps = lossless or self.spec.policy == "all"
        self.kept_bytes = 0
        self._waiting: deque[Pending] = deque()
        self._unacknowledged: deque[Pending] = deque()
        self._next_sequence = 0
        self._granted = 0
        self._sent_since_welcome = 0
        self._skipping_group = False
        self.received_sequence = -1
        self.acknowledged_sequence = -1
        self.dropped_count = 0
        self.sent_count = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._waiting

    @property
    def last_sequence(self) -> int:
        """The last number given out, -1 for none."""
        return self._next_sequence - 1

    @property
    def is_acknowledged(self) -> bool:
        """Whether nothing is held any more, for sending or for sending again."""
        return not self._waiting and not self._unacknowledged

    @property
    def next_order(self) -> int | None:
        """`order` of the next packet to send; None where nothing waits."""
        return self._waiting[0].order if self._waiting else None

    def has_room(self) -> bool:
        """Whether a packet offered now would go out at once; a replay's must also find a place."""
        return (
            not self._waiting
            and self._sent_since_welcome < self._granted
            and not (self._lossless and self.is_full)
        )

    @property
    def is_full(self) -> bool:
        """Whether it keeps as much as it may."""
        kept_packets = len(self._waiting) + len(self._unacknowledged)
        return kept_packets >= MAX_KEPT_PACKETS or self.kept_bytes >= MAX_KEPT_BYTES

    @property
    def waiting(self) -> Sequence[Pending]:
        """What waits to be sent, in order."""
        return self._waiting

    @property
    def unacknowledged(self) -> Sequence[Pending]:
        """What was sent and is kept for sending again, in order."""
        return self._unacknowledged

    def offer(self, pending: Pending, now_ns: int) -> bool:
        """Number a packet and take it, or drop it as the policy says.

        A packet that has a number already (a replay's) keeps it, so that its gaps are sent, too.

        Returns:
            Whether it was taken.

        Raises:
            WireError: The payload is larger than its encoding allows; it would cut the connection.
                Or its number was given out before.
        """
        self._next_sequence = self.number(pending, self._next_sequence)
        pending.offered_ns = now_ns
        if self._keeps:
            if self.is_full:
                self._drop_oldest()
            self._waiting.append(pending)
            self.kept_bytes += len(pending.payload)
            return True
        if self.is_useless(pending) or not self.has_room():
            self.drop()
            return False
        self.begin_group()
        self._waiting.append(pending)
        return True

    def number(self, pending: Pending, next_sequence: int) -> int:
        """Give a packet this number, unless it has one; the next one.

        Raises:
            WireError: As `offer`.
        """
        encoding = self.spec.encodings[pending.encoding]
        if len(pending.payload) > encoding.max_bytes:
            raise WireError(
                f"{self.spec.name} payload has {len(pending.payload)} bytes, "
                f"at most {encoding.max_bytes} are allowed",
                "payload_size",
            )
        if pending.sequence < 0:
            pending.sequence = next_sequence
        elif pending.sequence < next_sequence:
            raise WireError(
                f"{self.spec.name} packet has number {pending.sequence}, "
                f"expected {next_sequence} or more",
                "sequence_backwards",
            )
        return pending.sequence + 1

    def is_useless(self, pending: Pending) -> bool:
        """Whether a picture depends on one that was dropped."""
        depends = self.spec.encodings[pending.encoding].video and not pending.keyframe
        return self._skipping_group and depends

    def begin_group(self) -> None:
        """Take pictures again: nothing that they depend on was dropped."""
        self._skipping_group = False

    def drop(self) -> None:
        """Count a packet that finds no place; the rest of its group of pictures is useless."""
        self._skipping_group = True
        self.dropped_count += 1

    def next_ready(self) -> Pending | None:
        """Take out the next packet for which there is credit; None: nothing to send now."""
        if not self._waiting or self._sent_since_welcome >= self._granted:
            return None
        pending = self._waiting.popleft()
        self._sent_since_welcome += 1
        self.sent_count += 1
        if self._keeps:
            self._unacknowledged.append(pending)
        return pending

    def put_back(self, pending: Pending) -> None:
        """Undo the last `next_ready`: the socket did not take the packet."""
        self._waiting.appendleft(pending)
        self._sent_since_welcome -= 1
        self.sent_count -= 1
        if self._keeps:
            self._unacknowledged.pop()

    def grant(
        self, granted: int, acknowledged_sequence: int, received_sequence: int | None = None
    ) -> None:
        """Take credit and an acknowledgement from the server.

        Args:
            granted: Credit.
            acknowledged_sequence: As for `welcome`.
            received_sequence: As for `welcome`; given, what the server has refused is let go of.
        """
        self._granted = max(self._granted, granted)
        self._acknowledge(acknowledged_sequence)
        if received_sequence is None:
            return
        self.received_sequence = max(self.received_sequence, received_sequence)
        if self._granted - self.spec.window_packets < self._sent_since_welcome:
            return  # not all that was sent has been looked at
        kept = self._unacknowledged
        while kept and kept[-1].sequence > self.received_sequence:
            self.kept_bytes -= len(kept.pop().payload)
            self.dropped_count += 1

    def welcome(
        self, granted: int, received_sequence: int, acknowledged_sequence: int | None = None
    ) -> None:
        """Begin a connection: what the server did not get goes out again, in order.

        Args:
            granted: Credit.
            received_sequence: What the server has taken.
            acknowledged_sequence: What it has written down, so that it need not be kept here;
                None: all that it has taken.
        """
        self._sent_since_welcome = 0
        self._granted = granted
        if acknowledged_sequence is None:
            acknowledged_sequence = received_sequence
        self._acknowledge(acknowledged_sequence)
        self.received_sequence = received_sequence
        kept = self._unacknowledged
        while kept and kept[-1].sequence > received_sequence:
            self._waiting.appendleft(kept.pop())
        self._next_sequence = max(self._next_sequence, received_sequence + 1)

    def hold(self, pending: Pending) -> None:
        """Keep a packet that the server has taken and not yet written down."""
        self._unacknowledged.append(pending)
        self.kept_bytes += len(pending.payload)

    def disconnect(self) -> None:
        """The connection is gone: no credit until the next welcome."""
        self._granted = self._sent_since_welcome = 0

    def start_epoch(self, *, keep_offered: bool = False) -> None:
        """Begin to count anew; packets of the old epoch cannot be placed in the new one.

        Args:
            keep_offered: The first epoch begins: what was offered before belongs to it.
        """
        if keep_offered:
            return
        self.dropped_count += len(self._waiting) + len(self._unacknowledged)
        self._waiting.clear()
        self._unacknowledged.clear()
        self.kept_bytes = 0
        self._next_sequence = 0
        self._skipping_group = False
        self.received_sequence = self.acknowledged_sequence = -1

    def expire(self, now_ns: int) -> None:
        """Drop what waits for longer than the stream's age limit."""
        limit_ns = self.spec.max_age_s * 1e9
        while self._waiting and now_ns - self._waiting[0].offered_ns > limit_ns:
            self._let_go(self._waiting)
            self.dropped_count += 1
            self._skipping_group = True

    def _drop_oldest(self) -> None:
        self._let_go(self._unacknowledged or self._waiting)
        self.dropped_count += 1

    def _acknowledge(self, acknowledged_sequence: int) -> None:
        self.acknowledged_sequence = acknowledged_sequence
        kept = self._unacknowledged
        while kept and kept[0].sequence <= acknowledged_sequence:
            self.kept_bytes -= len(kept.popleft().payload)

    def _let_go(self, packets: deque[Pending]) -> None:
        pending = packets.popleft()
        if self._keeps:
            self.kept_bytes -= len(pending.payload)
