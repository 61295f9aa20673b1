"""All streams of one source, and the order in which their packets were offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from keystep_capture.outbox import Outbox, Pending
from keystep_capture.source import Life
from keystep_capture.wire import Credit, Refused, Welcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What waits at a source for its server.

    Attributes:
        byte_count: How much.
        duration_ns: From the oldest to the newest of it, in device time.
        in_spool: Whether some of it waits on the disk.
    """

    byte_count: int
    duration_ns: int
    in_spool: bool = False


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

    def __iter__(self) -> Iterator[Outbox]:
        return iter(self._boxes.values())

    def offer(self, stream: str, pending: Pending, now_ns: int) -> bool:
        """As `Outbox.offer`."""
        self._offered_count += 1
        pending.order = self._offered_count
        return self._boxes[stream].offer(pending, now_ns)

    def hold(self, stream: str, pending: Pending) -> None:
        """As `Outbox.hold`."""
        self._offered_count += 1
        pending.order = self._offered_count
        self._boxes[stream].hold(pending)

    def has_room(self, stream: str) -> bool:
        """As `Outbox.has_room`; in a replay, nothing of another stream may wait either."""
        box = self._boxes[stream]
        return box.has_room() and not (self._replay and self._others_wait(box))

    def _others_wait(self, box: Outbox) -> bool:
        for other in self._boxes.values():  # plain, since it is asked for each packet
            if other is not box and other.next_order is not None:
                return True
        return False

    # -- the connection --------------------------------------------------------------------------

    def welcome(self, welcome: Welcome, *, epoch: int) -> None:
        """Begin a connection; what the server lacks goes out again.

        Args:
            welcome: What the server says.
            epoch: The epoch before; -1: what was offered belongs to the one that begins.
        """
        if welcome.epoch != epoch:
            for box in self:
                box.start_epoch(keep_offered=epoch == -1)
        for name, grant in welcome.streams.items():
            if (known := self._boxes.get(name)) is not None:
                known.welcome(grant.granted, grant.received_sequence, grant.acknowledged_sequence)

    def grant(self, credit: Credit) -> None:
        """Take credit and an acknowledgement."""
        box, acknowledged = self._boxes.get(credit.stream), credit.acknowledged_sequence
        if box is not None:
            box.grant(
                credit.granted, credit.received_sequence if acknowledged is None else acknowledged
            )

    def disconnect(self) -> None:
        """The connection is gone: no credit until the next welcome."""
        for box in self:
            box.disconnect()

    def restart(self, life: Life) -> bool:
        """Begin a new epoch; False: not yet, what was offered before goes first."""
        for box in self:
            box.start_epoch()
        return True

    def next_life(self, say_finished: Callable[[], None]) -> Life | None:
        """The source's next life, if all of the one before was taken; it is at hand then.

        Args:
            say_finished: Tells the server that all of the present one was sent.
        """
        return None

    def set_aside(self, refused: Refused) -> Life | None:
        """The next life, if the present one was refused for good and is an earlier run's."""
        return None

    def end(self, *, is_all_sent: bool) -> None:
        """The session was closed; what was offered after all had been sent is not wanted."""

    def close(self) -> None:
        """Let go of files."""

    def expire(self, now_ns: int) -> None:
        """Drop what waits for too long; in a replay nothing."""
        if not self._replay:
            for box in self:
                box.expire(now_ns)

    # -- sending ---------------------------------------------------------------------------------

    @property
    def are_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return all(box.is_empty for box in self)

    @property
    def are_current(self) -> bool:
        """Whether what is sent now is of the source's present life."""
        return True

    def behind(self) -> Behind:
        """How much waits to be sent."""
        waiting = [box.waiting for box in self if box.waiting]
        first = min((packets[0].device_time_ns for packets in waiting), default=0)
        last = max((packets[-1].device_time_ns for packets in waiting), default=0)
        return Behind(
            byte_count=sum(len(pending.payload) for packets in waiting for pending in packets),
            duration_ns=max(0, last - first),
        )

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
