"""The outboxes of a source that loses nothing: what does not fit into memory waits on the disk.

Every packet goes to the server in the order in which it was offered, oldest first, and is kept
until it was acknowledged. While the server takes them they only pass through memory. When it is
away, or slow, all that is held is written to the spool and what follows goes there; it is read back
a few megabytes ahead of the socket. Packets of before a restart, of the program's or the headset's,
go first, in the epoch they belong to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

import structlog

from keystep_capture.outbox import MAX_KEPT_BYTES, Pending
from keystep_capture.outboxes import Behind, Outboxes
from keystep_capture.source import Life
from keystep_capture.spool import Spool
from keystep_capture.spool_file import SpooledPacket
from keystep_capture.streams import STREAMS
from keystep_capture.wire import Credit, Refused, Welcome

AHEAD_PACKETS = 512
"""So many packets wait in memory while there is a disk for them; with those that are not
acknowledged, and without a disk, `MAX_KEPT_BYTES` at most."""

_ENDED = frozenset({"session_closed", "hello_refused"})

log = structlog.get_logger(__name__)


class SpoolingOutboxes(Outboxes):
    """All streams of one source, and its spool."""

    def __init__(self, life: Life, spool: Spool) -> None:
        """Begin with what an earlier run has left.

        Args:
            life: The source's present life.
            spool: Where packets wait.
        """
        left = [replace(each, streams=each.streams or life.streams) for each in spool.lives]
        self._lives = deque([*left, life])
        streams = dict.fromkeys(name for each in self._lives for name in each.streams)
        super().__init__((name for name in streams if name in STREAMS), replay=True)
        self._spool = spool
        self._left_count = len(left)  # lives of an earlier run
        self._next_numbers: Counter[str] = Counter()
        self._is_offered = False  # anything, in the present life
        self._not_granted: frozenset[str] = frozenset()
        self._is_welcome = self._is_finished_said = False
        if self._left_count:
            log.info(
                "an earlier run's packets are sent first",
                mb=round(spool.unread_bytes / 1e6, 1),
                session=self.life.session,
            )

    @property
    def life(self) -> Life:
        """Whose packets are sent now."""
        return self._lives[0]

    @property
    def are_current(self) -> bool:
        """As `Outboxes.are_current`."""
        return len(self._lives) == 1

    # -- offering --------------------------------------------------------------------------------

    def offer(self, stream: str, pending: Pending, now_ns: int) -> bool:
        """Number a packet and keep it, in memory or on the disk; False: neither has room."""
        box = self._boxes[stream]
        self._next_numbers[stream] = box.number(pending, self._next_numbers[stream])
        self._is_offered = True
        is_wanted = not (box.is_useless(pending) or (stream in self._not_granted))
        if not (is_wanted and self._keep(stream, pending)):
            box.drop()
            return False
        box.begin_group()
        return True

    def _keep(self, stream: str, pending: Pending) -> bool:
        """Keep a packet in memory if its turn is soon, else on the disk if that works."""
        fits = self.are_current and not self._spool.has_unread and self._fits(pending)
        is_near = fits and self._waiting_count < AHEAD_PACKETS
        if is_near and self._is_welcome:
            return self._take(stream, pending)
        if self._spill() and self._write(stream, pending, is_held=is_near):
            return self._take(stream, pending) if is_near else True
        return self._take(stream, pending) if fits else False

    def _fits(self, pending: Pending | None = None) -> bool:
        """Whether memory may take a packet more."""
        held_bytes = 0 if pending is None else len(pending.payload)
        for box in self:
            if box.is_full:
                return False
            held_bytes += box.kept_bytes
        return held_bytes <= MAX_KEPT_BYTES

    @property
    def _waiting_count(self) -> int:
        return sum(len(box.waiting) for box in self)

    def _take(self, stream: str, pending: Pending) -> bool:
        return super().offer(stream, pending, 0)

    def _write(self, stream: str, pending: Pending, *, is_held: bool) -> bool:
        life = self._lives[-1]
        header = pending.header(session=life.session or "", epoch=0, stream=stream, send_time_ns=0)
        pending.is_spooled = self._spool.append(life, header, pending.payload, is_held=is_held)
        return pending.is_spooled

    def _spill(self) -> bool:
        """Write what is held in memory only, in order; False where the disk does not take it."""
        if not self.are_current or self._spool.has_unread:
            return True  # what is held was read from there
        if not self._spool.may_append:
            return False
        held = [
            (pending.order, name, pending)
            for name, box in self._boxes.items()
            for pending in (*box.unacknowledged, *box.waiting)
            if not pending.is_spooled
        ]
        held.sort(key=lambda found: found[0])
        return all(self._write(name, pending, is_held=True) for _, name, pending in held)

    # -- the connection --------------------------------------------------------------------------

    def welcome(self, welcome: Welcome, *, epoch: int) -> None:
        """Begin a connection; what the server lacks goes out again, whatever its epoch."""
        self._is_welcome, self._is_finished_said = True, False
        self._lives[0] = replace(self.life, session=welcome.session)
        self._not_granted = frozenset(self.life.streams) & self._boxes.keys()
        self._not_granted -= welcome.streams.keys()
        for name, grant in welcome.streams.items():
            if (box := self._boxes.get(name)) is None:
                continue
            box.welcome(grant.granted, grant.received_sequence, grant.acknowledged_sequence)
            if self.are_current:
                following = grant.received_sequence + 1
                self._next_numbers[name] = max(self._next_numbers[name], following)
        for name in self._not_granted:
            self._boxes[name].start_epoch()  # what waits there would never be sent
        self._release()

    def grant(self, credit: Credit) -> None:
        """Take credit and an acknowledgement, and let go of what the server has refused."""
        box, acknowledged = self._boxes.get(credit.stream), credit.acknowledged_sequence
        if box is None:
            return
        if acknowledged is None:
            acknowledged = credit.received_sequence
        box.grant(credit.granted, acknowledged, credit.received_sequence)
        self._release()

    def _release(self) -> None:
        first = {}
        for name, box in self._boxes.items():
            if held := box.unacknowledged or box.waiting:
                first[name] = held[0].sequence
        self._spool.release(self.life.instance, first)

    def disconnect(self) -> None:
        """The connection is gone: what is held goes to the disk, for a next run if need be."""
        self._is_welcome = False
        super().disconnect()
        self._spill()

    def expire(self, now_ns: int) -> None:
        """Nothing is too old."""

    # -- lives -----------------------------------------------------------------------------------

    def restart(self, life: Life) -> bool:
        """Begin a new life; False: all that was offered before goes to the server first."""
        self._next_numbers.clear()
        for box in self:
            box.begin_group()
        if not (self.are_current or self._is_offered):
            self._lives.pop()
        self._is_offered = False
        if not self.are_acknowledged and (self._spill() or not self.are_current):
            self._lives.append(life)
            return False
        self._begin(life)
        return super().restart(life)

    def next_life(self, say_finished: Callable[[], None]) -> Life | None:
        """As `Outboxes.next_life`."""
        if self.are_current or not self._is_welcome or not self._is_sent:
            return None
        if not self._is_finished_said:
            self._is_finished_said = True
            say_finished()  # then the server acknowledges all of it
        return self._begin_next() if super().are_acknowledged else None

    def set_aside(self, refused: Refused) -> Life | None:
        """As `Outboxes.set_aside`."""
        if not self._left_count or refused.reason not in _ENDED:
            return None
        size_bytes = self._spool.set_aside(self.life.instance)
        log.error(
            "an earlier run's packets are not wanted and were set aside",
            session=self.life.session,
            mb=round(size_bytes / 1e6, 1),
            folder=str(self._spool.folder),
            reason=refused.message,
        )
        return self._begin_next()

    def _begin_next(self) -> Life:
        self._left_count = max(0, self._left_count - 1)
        for box in self:
            box.start_epoch()
        self._begin(self._lives[1])
        self._lives.popleft()
        return self.life

    def _begin(self, life: Life) -> None:
        """Send this life's packets from now on, and none of the one before."""
        self._spool.discard(self.life.instance)
        self._lives[0] = life
        self._not_granted, self._is_finished_said = frozenset(), False

    def end(self, *, is_all_sent: bool) -> None:
        """As `Outboxes.end`; what had not been sent by then stays on the disk."""
        if is_all_sent:
            for box in self:
                box.start_epoch()
            self._spool.discard(self.life.instance)
        elif not self.are_acknowledged:
            log.error(
                "the session was closed before all was sent",
                mb=round(self.behind().byte_count / 1e6, 1),
                folder=str(self._spool.folder),
            )

    def close(self) -> None:
        """Close the spool; what it holds is for the next run."""
        self._spool.close()

    # -- sending ---------------------------------------------------------------------------------

    @property
    def _is_sent(self) -> bool:
        """Whether all of the life that is sent now has gone out."""
        return super().are_empty and self._spool.next_instance != self.life.instance

    @property
    def are_empty(self) -> bool:
        """Whether nothing waits, in memory or on the disk."""
        return super().are_empty and not self._spool.has_unread and self.are_current

    @property
    def are_acknowledged(self) -> bool:
        """Whether nothing is held any more, in memory or on the disk."""
        return super().are_acknowledged and not self._spool.has_unread and self.are_current

    def behind(self) -> Behind:
        """How much waits, in memory and on the disk."""
        memory, spool = super().behind(), self._spool
        return Behind(
            byte_count=memory.byte_count + spool.unread_bytes,
            duration_ns=memory.duration_ns + spool.unread_ns,
            in_spool=spool.has_unread,
        )

    def send(self, transmit: Callable[[str, Pending], bool]) -> None:
        """Send what has credit, oldest first over all streams."""
        while True:
            self._read_ahead()
            super().send(transmit)
            if not super().are_empty or not self._may_read():
                return

    def send_of(self, stream: str, transmit: Callable[[str, Pending], bool]) -> None:
        """As `send`: none may overtake another."""
        self.send(transmit)

    def _may_read(self) -> bool:
        return (
            self._is_welcome
            and self._spool.next_instance == self.life.instance
            and self._waiting_count < AHEAD_PACKETS
            and self._fits()
        )

    def _read_ahead(self) -> None:
        while self._may_read() and (found := self._spool.read(self.life.instance)):
            self._take_up(found)

    def _take_up(self, found: SpooledPacket) -> None:
        """Place a packet that was read; the server may have taken it before."""
        header = found.header
        box = self._boxes.get(header.stream)
        if box is None:
            return  # it was not among the streams of its source, so no server would take it
        box.dropped_count += found.lost_count
        if header.sequence <= box.acknowledged_sequence:
            return
        if header.stream in self._not_granted:
            box.dropped_count += 1
        elif header.sequence <= box.received_sequence:
            self.hold(header.stream, _pending(found))
        elif header.sequence <= box.last_sequence:
            box.dropped_count += 1  # the file lies
        else:
            self._take(header.stream, _pending(found))


def _pending(found: SpooledPacket) -> Pending:
    header = found.header
    return Pending(
        device_time_ns=header.device_time_ns,
        payload=found.payload,
        encoding=header.encoding,
        keyframe=header.keyframe,
        width=header.width,
        height=header.height,
        intrinsics=header.intrinsics,
        pose=header.pose,
        valid=header.valid,
        frame_idx=header.frame_idx,
        depth_unit_m=header.depth_unit_m,
        upright_turns=header.upright_turns,
        calibrates=header.calibrates,
        rig_from_sensor=header.rig_from_sensor,
        sequence=header.sequence,
        is_spooled=True,
    )
