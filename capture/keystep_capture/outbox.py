"""What a sender holds of one stream: numbering, credit, dropping and keeping, without any I/O.

`newest` streams hold nothing: a packet without credit is dropped, and with it the rest of its group
of pictures. `all` streams keep packets until the server has written down what became of them, up to
an age and a count; so does every stream of a replay, which loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from keystep_capture.errors import WireError
from keystep_capture.streams import STREAMS
from keystep_capture.wire import Intrinsics

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
        self._kept_bytes = 0
        self._waiting: deque[Pending] = deque()
        self._unacknowledged: deque[Pending] = deque()
        self._next_sequence = 0
        self._granted = 0
        self._sent_since_welcome = 0
        self._skipping_group = False
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
            and not (self._lossless and self._is_full)
        )

    @property
    def _is_full(self) -> bool:
        kept_packets = len(self._waiting) + len(self._unacknowledged)
        return kept_packets >= MAX_KEPT_PACKETS or self._kept_bytes >= MAX_KEPT_BYTES

    def offer(self, pending: Pending, now_ns: int) -> bool:
        """Number a packet and take it, or drop it as the policy says.

        A packet that has a number already (a replay's) keeps it, so that its gaps are sent, too.

        Returns:
            Whether it was taken.

        Raises:
            WireError: The payload is larger than its encoding allows; it would cut the connection.
                Or its number was given out before.
        """
        encoding = self.spec.encodings[pending.encoding]
        if len(pending.payload) > encoding.max_bytes:
            raise WireError(
                f"{self.spec.name} payload has {len(pending.payload)} bytes, "
                f"at most {encoding.max_bytes} are allowed",
                "payload_size",
            )
        if pending.sequence < 0:
            pending.sequence = self._next_sequence
        elif pending.sequence < self._next_sequence:
            raise WireError(
                f"{self.spec.name} packet has number {pending.sequence}, "
                f"expected {self._next_sequence} or more",
                "sequence_backwards",
            )
        pending.offered_ns = now_ns
        self._next_sequence = pending.sequence + 1
        if self._keeps:
            if self._is_full:
                self._drop_oldest()
            self._waiting.append(pending)
            self._kept_bytes += len(pending.payload)
            return True
        depends = encoding.video and not pending.keyframe
        if (self._skipping_group and depends) or not self.has_room():
            self._skipping_group = True
            self.dropped_count += 1
            return False
        self._skipping_group = False
        self._waiting.append(pending)
        return True

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

    def grant(self, granted: int, acknowledged_sequence: int) -> None:
        """Take credit and an acknowledgement from the server."""
        self._granted = max(self._granted, granted)
        self._acknowledge(acknowledged_sequence)

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
        kept = self._unacknowledged
        while kept and kept[-1].sequence > received_sequence:
            self._waiting.appendleft(kept.pop())
        self._next_sequence = max(self._next_sequence, received_sequence + 1)

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
        self._kept_bytes = 0
        self._next_sequence = 0
        self._skipping_group = False

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
        kept = self._unacknowledged
        while kept and kept[0].sequence <= acknowledged_sequence:
            self._kept_bytes -= len(kept.popleft().payload)

    def _let_go(self, packets: deque[Pending]) -> None:
        pending = packets.popleft()
        if self._keeps:
            self._kept_bytes -= len(pending.payload)


class Outboxes:
    """All streams of one source, and the order in which their packets were offered."""

    def __init__(self, streams: Iterable[str], *, replay: bool) -> None:
        """Start empty boxes.

        Args:
            streams: Streams of the table.
            replay: Lossless: every packet is kept, and none overtakes another.
        """
        self._replay = replay
        self._boxes = {name: Outbox(name, lossless=replay) for name in streams}
        self._offered_count = 0

    def __getitem__(self, stream: str) -> Outbox:
        return self._boxes[stream]

    def get(self, stream: str) -> Outbox | None:
        """A stream's box; None where the source does not have it."""
        return self._boxes.get(stream)

    def __iter__(self) -> Iterator[Outbox]:
        return iter(self._boxes.values())

    def offer(self, stream: str, pending: Pending, now_ns: int) -> bool:
        """As `Outbox.offer`."""
        self._offered_count += 1
        pending.order = self._offered_count
        return self._boxes[stream].offer(pending, now_ns)

    def has_room(self, stream: str) -> bool:
        """As `Outbox.has_room`; in a replay, nothing of another stream may wait either."""
        box = self._boxes[stream]
        return box.has_room() and not (self._replay and self._others_wait(box))

    def _others_wait(self, box: Outbox) -> bool:
        for other in self._boxes.values():  # plain, since it is asked for each packet
            if other is not box and other.next_order is not None:
                return True
        return False

    @property
    def are_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return all(box.is_empty for box in self)

    @property
    def are_acknowledged(self) -> bool:
        """Whether nothing is held any more."""
        return all(box.is_acknowledged for box in self)

    def send(self, transmit: Callable[[str, Pending], bool]) -> None:
        """Send what waits and has credit, in the order in which it was offered.

        A stream without credit does not keep the others waiting, but in a replay: there the order
        of arrival decides what the streams' packets are joined with.

        Args:
            transmit: Sends one packet; False where it could not, which ends this.
        """
        held_up: set[str] = set()
        while True:
            waiting = [
                (order, name)
                for name, box in self._boxes.items()
                if (order := box.next_order) is not None and name not in held_up
            ]
            if not waiting:
                return
            _, stream = min(waiting)
            ready = self._boxes[stream].next_ready()
            if ready is None:
                if self._replay:
                    return
                held_up.add(stream)
            elif not transmit(stream, ready):
                self._boxes[stream].put_back(ready)
                return

    def send_of(self, stream: str, transmit: Callable[[str, Pending], bool]) -> None:
        """Send what waits of one stream; of all where none may overtake another."""
        box = self._boxes[stream]
        if self._replay and self._others_wait(box):
            self.send(transmit)
            return
        while (ready := box.next_ready()) is not None:
            if not transmit(stream, ready):
                box.put_back(ready)
                return

    def counts(self, of: Callable[[Outbox], int]) -> dict[str, int]:
        """A number of each box, by stream."""
        return {name: of(box) for name, box in self._boxes.items()}
