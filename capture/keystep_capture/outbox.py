"""What a sender holds of one stream: numbering, credit, dropping and keeping, without any I/O.

`newest` streams hold nothing: a packet without credit is dropped, and with it the rest of its group
of pictures. `all` streams keep packets until they are acknowledged, up to an age and a count; so
does every stream of a replay, which loses nothing.
"""

from __future__ import annotations

from collections import deque

import msgspec

from keystep_capture.errors import WireError
from keystep_capture.streams import STREAMS
from keystep_capture.wire import Intrinsics

MAX_KEPT_PACKETS = 8192


class Pending(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """A packet on its way; `sequence` is given when it is offered.

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


class Outbox:
    """One stream's packets between a source and the socket."""

    def __init__(self, stream: str, *, lossless: bool = False) -> None:
        """Start an empty box.

        Args:
            stream: A stream of the table.
            lossless: Keep packets until they are acknowledged, whatever the stream's policy.
        """
        self.spec = STREAMS[stream]
        self._keeps = lossless or self.spec.policy == "all"
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

    def has_room(self) -> bool:
        """Whether a packet offered now would go out at once."""
        return not self._waiting and self._sent_since_welcome < self._granted

    def offer(self, pending: Pending, now_ns: int) -> bool:
        """Number a packet and take it, or drop it as the policy says.

        Returns:
            Whether it was taken.

        Raises:
            WireError: The payload is larger than its encoding allows; it would cut the connection.
        """
        encoding = self.spec.encodings[pending.encoding]
        if len(pending.payload) > encoding.max_bytes:
            raise WireError(
                f"{self.spec.name} payload has {len(pending.payload)} bytes, "
                f"at most {encoding.max_bytes} are allowed",
                "payload_size",
            )
        pending.sequence = self._next_sequence
        pending.offered_ns = now_ns
        self._next_sequence += 1
        if self._keeps:
            self._waiting.append(pending)
            if len(self._waiting) + len(self._unacknowledged) > MAX_KEPT_PACKETS:
                self._drop_oldest()
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

    def grant(self, granted: int, received_sequence: int) -> None:
        """Take credit and an acknowledgement from the server."""
        self._granted = max(self._granted, granted)
        self._acknowledge(received_sequence)

    def welcome(self, granted: int, received_sequence: int) -> None:
        """Begin a connection: what the server did not get goes out again, in order."""
        self._sent_since_welcome = 0
        self._granted = granted
        self._acknowledge(received_sequence)
        self._waiting.extendleft(reversed(self._unacknowledged))
        self._unacknowledged.clear()
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
        self._next_sequence = 0
        self._skipping_group = False

    def expire(self, now_ns: int) -> None:
        """Drop what waits for longer than the stream's age limit."""
        limit_ns = self.spec.max_age_s * 1e9
        while self._waiting and now_ns - self._waiting[0].offered_ns > limit_ns:
            self._waiting.popleft()
            self.dropped_count += 1
            self._skipping_group = True

    def _drop_oldest(self) -> None:
        (self._unacknowledged or self._waiting).popleft()
        self.dropped_count += 1

    def _acknowledge(self, received_sequence: int) -> None:
        unacknowledged = self._unacknowledged
        while unacknowledged and unacknowledged[0].sequence <= received_sequence:
            unacknowledged.popleft()
