"""Numbering, credit, dropping and keeping, against a plain list of what went out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keystep_capture.errors import WireError
from keystep_capture.outbox import MAX_KEPT_PACKETS, Outbox, Pending
from keystep_capture.outboxes import Outboxes

S = 1_000_000_000


def video(*, keyframe: bool = False) -> Pending:
    return Pending(device_time_ns=0, payload=b"v", encoding="h264", keyframe=keyframe)


def gaze() -> Pending:
    return Pending(device_time_ns=0, payload=b"g" * 24, encoding="ray_f32", keyframe=False)


def pose() -> Pending:
    return Pending(device_time_ns=0, payload=b"h" * 64, encoding="pose_f32", keyframe=False)


def sent_sequences(box: Outbox) -> list[int]:
    """Take out all that may go now; its numbers."""
    sequences = []
    while (ready := box.next_ready()) is not None:
        sequences.append(ready.sequence)
    return sequences


def gaze_box(*, offered: int, granted: int = 0) -> Outbox:
    box = Outbox("gaze")
    box.welcome(granted, -1)
    for _ in range(offered):
        assert box.offer(gaze(), 0)
    return box


# -- newest ------------------------------------------------------------------------------------


class NewestMachine(RuleBasedStateMachine):
    """A video stream under any order of offers, credit, failed sends, ageing and outages."""

    @initialize()
    def start(self) -> None:
        self.box = Outbox("rgb")
        self.now_ns = 0
        self.granted = 0
        self.sent_now = 0
        self.offered = 0
        self.went_out: list[Pending] = []

    @rule(keyframe=st.booleans())
    def offer(self, keyframe: bool) -> None:
        pending = video(keyframe=keyframe)
        dropped = self.box.dropped_count
        had_room = self.box.has_room()
        taken = self.box.offer(pending, self.now_ns)
        assert pending.sequence == self.offered
        self.offered += 1
        assert taken == (self.box.dropped_count == dropped)
        assert had_room or not taken
        assert taken or not keyframe or not had_room

    @rule()
    def pump(self) -> None:
        while (ready := self.box.next_ready()) is not None:
            self.went_out.append(ready)
            self.sent_now += 1

    @precondition(lambda self: not self.box.is_empty)
    @rule()
    def fail_to_send(self) -> None:
        ready = self.box.next_ready()
        if ready is not None:
            self.box.put_back(ready)

    @rule(more=st.integers(1, 5))
    def credit(self, more: int) -> None:
        self.granted += more
        self.box.grant(self.granted, len(self.went_out) - 1)

    @rule()
    def lose_the_connection(self) -> None:
        self.box.disconnect()
        self.granted = self.sent_now = 0

    @rule(granted=st.integers(0, 5))
    def reconnect(self, granted: int) -> None:
        self.granted, self.sent_now = granted, 0
        self.box.welcome(granted, -1)

    @rule(seconds=st.integers(1, 3))
    def grow_old(self, seconds: int) -> None:
        self.now_ns += seconds * S
        self.box.expire(self.now_ns)

    @invariant()
    def never_more_is_sent_than_granted(self) -> None:
        assert self.sent_now <= self.granted

    @invariant()
    def after_a_loss_comes_a_key_frame(self) -> None:
        for before, after in itertools.pairwise(self.went_out):
            assert after.sequence == before.sequence + 1 or after.keyframe

    @invariant()
    def every_packet_is_accounted_for(self) -> None:
        waiting = self.offered - len(self.went_out) - self.box.dropped_count
        assert waiting == (0 if self.box.is_empty else 1)
        assert self.box.sent_count == len(self.went_out)
        assert self.box.last_sequence == self.offered - 1


TestNewest = NewestMachine.TestCase


def test_a_group_of_pictures_without_credit_is_dropped_to_its_end() -> None:
    box = Outbox("rgb")
    box.welcome(2, -1)
    taken = []
    for position in range(9):
        if position == 4:
            box.grant(100, 1)  # in the middle of the first group: its rest stays useless
        taken.append(box.offer(video(keyframe=position in (0, 6)), 0))
        box.next_ready()
    assert taken == [True, True, False, False, False, False, True, True, True]
    assert box.dropped_count == 4


def test_a_picture_that_depends_on_nothing_needs_no_key_frame() -> None:
    box = Outbox("rgb")
    jpeg = [
        Pending(device_time_ns=0, payload=b"j", encoding="jpeg", keyframe=False) for _ in range(2)
    ]
    assert not box.offer(jpeg[0], 0)
    box.welcome(1, -1)
    assert box.offer(jpeg[1], 0)
    assert jpeg[1].sequence == 1


def test_a_replay_keeps_video_until_it_is_acknowledged() -> None:
    box = Outbox("rgb", lossless=True)
    box.welcome(2, -1)
    for position in range(5):
        assert box.offer(video(keyframe=position == 0), 0)
    assert sent_sequences(box) == [0, 1]
    box.disconnect()
    box.welcome(9, 0)
    assert sent_sequences(box) == [1, 2, 3, 4]
    assert box.dropped_count == 0


# -- all ---------------------------------------------------------------------------------------


class AllMachine(RuleBasedStateMachine):
    """A kept stream over outages: what the server lacks arrives, once, in order."""

    @initialize()
    def start(self) -> None:
        self.box = Outbox("gaze")
        self.offered = 0
        self.received: list[int] = []
        self.in_flight: list[int] = []
        self.granted = 0
        self.sent_now = 0

    @rule(count=st.integers(1, 6))
    def offer(self, count: int) -> None:
        for _ in range(count):
            assert self.box.offer(gaze(), 0)
        self.offered += count

    @rule()
    def pump(self) -> None:
        sequences = sent_sequences(self.box)
        self.sent_now += len(sequences)
        self.in_flight += sequences

    @rule()
    def fail_to_send(self) -> None:
        ready = self.box.next_ready()
        if ready is not None:
            self.box.put_back(ready)

    @rule(count=st.integers(0, 4))
    def arrive(self, count: int) -> None:
        self.received += self.in_flight[:count]
        del self.in_flight[:count]

    @rule(more=st.integers(0, 5))
    def credit(self, more: int) -> None:
        if self.granted:
            self.granted += more
            self.box.grant(self.granted, self.received[-1] if self.received else -1)

    @rule()
    def lose_the_connection(self) -> None:
        self.box.disconnect()
        self.in_flight.clear()
        self.granted = self.sent_now = 0

    @rule(granted=st.integers(1, 8))
    def reconnect(self, granted: int) -> None:
        self.in_flight.clear()
        self.granted, self.sent_now = granted, 0
        self.box.welcome(granted, self.received[-1] if self.received else -1)

    @invariant()
    def never_more_is_sent_than_granted(self) -> None:
        assert self.sent_now <= self.granted

    @invariant()
    def nothing_is_lost_doubled_or_swapped(self) -> None:
        assert self.received == list(range(len(self.received)))
        assert self.box.dropped_count == 0

    def teardown(self) -> None:
        if not hasattr(self, "box"):
            return
        self.reconnect(self.offered + 1)
        self.pump()
        self.arrive(self.offered)
        assert self.received == list(range(self.offered))


TestAll = AllMachine.TestCase


@given(acknowledged=st.integers(-1, 9), granted=st.integers(0, 12))
def test_a_welcome_sends_again_what_was_not_acknowledged(acknowledged: int, granted: int) -> None:
    box = gaze_box(offered=10, granted=10)
    assert sent_sequences(box) == list(range(10))
    box.disconnect()
    assert sent_sequences(box) == []
    box.welcome(granted, acknowledged)
    assert sent_sequences(box) == list(range(acknowledged + 1, 10))[:granted]


def test_packets_wait_no_longer_than_the_age_limit() -> None:
    box = gaze_box(offered=0)
    for second in range(15):
        box.offer(gaze(), second * S)
    box.expire(14 * S)
    assert box.dropped_count == 4
    box.grant(100, -1)
    assert sent_sequences(box) == list(range(4, 15))


def test_what_is_sent_again_is_under_the_age_limit_too() -> None:
    box = gaze_box(offered=3, granted=3)
    assert sent_sequences(box) == [0, 1, 2]
    box.expire(60 * S)
    assert box.dropped_count == 0  # sent: nothing says that it was lost
    box.welcome(10, 1)
    box.expire(60 * S)
    assert box.dropped_count == 1
    assert sent_sequences(box) == []


def test_a_server_that_stays_away_costs_bounded_memory() -> None:
    box = gaze_box(offered=MAX_KEPT_PACKETS + 5)
    assert box.dropped_count == 5
    box.welcome(MAX_KEPT_PACKETS + 5, -1)
    assert sent_sequences(box) == list(range(5, MAX_KEPT_PACKETS + 5))


# -- what is written down ------------------------------------------------------------------------


@given(received=st.integers(-1, 9), behind=st.integers(0, 10), restored=st.booleans())
def test_what_was_received_but_not_written_down_is_kept_for_a_killed_server(
    received: int, behind: int, restored: bool
) -> None:
    acknowledged = max(-1, received - behind)
    box = gaze_box(offered=10, granted=10)
    assert sent_sequences(box) == list(range(10))
    box.welcome(10, received, acknowledged)  # the same server: it lacks what came after
    assert sent_sequences(box) == list(range(received + 1, 10))
    if restored:  # another process: it has what was written down
        box.welcome(10, acknowledged, acknowledged)
        assert sent_sequences(box) == list(range(acknowledged + 1, 10))
    box.grant(20, 9)
    assert box.is_acknowledged


def test_a_replay_waits_for_acknowledgement_rather_than_lose_what_it_may_have_to_send_again() -> (
    None
):
    box = Outbox("rgb", lossless=True)
    box.welcome(2 * MAX_KEPT_PACKETS, -1)
    while box.has_room():
        assert box.offer(video(keyframe=True), 0)
        assert box.next_ready() is not None
    assert box.sent_count == MAX_KEPT_PACKETS
    box.grant(2 * MAX_KEPT_PACKETS, 99)
    assert box.has_room()
    assert box.dropped_count == 0


def test_a_replay_waits_when_it_keeps_too_many_bytes() -> None:
    box = Outbox("rgb", lossless=True)
    box.welcome(500, -1)
    picture = bytes(4 * 1024 * 1024)
    while box.has_room():
        box.offer(Pending(device_time_ns=0, payload=picture, encoding="h264", keyframe=True), 0)
        box.next_ready()
    assert box.sent_count == 64  # 256 MiB
    box.grant(500, 0)
    assert box.has_room()


def offered(boxes: Outboxes, streams: str) -> None:
    for name in streams:
        boxes.offer("gaze" if name == "g" else "rgb", gaze() if name == "g" else video(), 0)


@given(streams=st.text("gr", min_size=1, max_size=30), granted=st.integers(0, 20))
def test_a_replay_sends_again_in_the_order_of_all_its_streams(streams: str, granted: int) -> None:
    boxes = Outboxes(("rgb", "gaze"), replay=True)
    offered(boxes, streams)
    for box in boxes:
        box.welcome(granted, -1)
    went: list[str] = []
    boxes.send(lambda stream, _: went.append(stream[0]) is None)
    assert streams.startswith("".join(went))  # "rgb" and "gaze" begin with r and g
    left = streams[len(went) :]
    assert not left or streams[: len(went)].count(left[0]) == granted
    assert boxes.has_room("gaze") == (not left and streams.count("g") < granted)


def test_a_stream_without_credit_does_not_keep_the_others_waiting() -> None:
    boxes = Outboxes(("head", "gaze"), replay=False)
    for name in ("head", "gaze", "gaze"):
        boxes.offer(name, gaze() if name == "gaze" else pose(), 0)
    boxes["gaze"].welcome(5, -1)
    went: list[str] = []
    boxes.send(lambda stream, _: went.append(stream) is None)
    assert went == ["gaze", "gaze"]


def test_a_packet_that_cannot_be_sent_is_the_next_one_again() -> None:
    boxes = Outboxes(("gaze",), replay=True)
    offered(boxes, "ggg")
    boxes["gaze"].welcome(9, -1)
    tried: list[int] = []
    boxes.send(lambda _, pending: tried.append(pending.sequence) is None and len(tried) < 2)
    boxes.send(lambda _, pending: tried.append(pending.sequence) is None)
    assert tried == [0, 1, 1, 2]


# -- numbering ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [video, gaze])
def test_a_new_epoch_counts_anew_and_counts_what_it_leaves_behind(make: type) -> None:
    box = Outbox("rgb" if make is video else "gaze")
    box.welcome(2, -1)
    for _ in range(4):
        pending = make()
        pending.keyframe = True
        box.offer(pending, 0)
        box.next_ready()
    box.start_epoch()
    assert box.last_sequence == -1
    assert box.is_empty
    assert box.dropped_count == (2 if make is video else 4)


def test_what_was_offered_before_the_first_welcome_belongs_to_the_first_epoch() -> None:
    box = gaze_box(offered=3)
    box.start_epoch(keep_offered=True)
    box.welcome(5, -1)
    assert sent_sequences(box) == [0, 1, 2]


def test_a_sender_that_takes_a_stream_over_goes_on_after_the_last_received() -> None:
    box = Outbox("gaze")
    box.welcome(5, 41)
    pending = gaze()
    box.offer(pending, 0)
    assert pending.sequence == 42


def test_a_stale_credit_takes_nothing_back() -> None:
    box = gaze_box(offered=8, granted=4)
    box.grant(6, -1)
    box.grant(2, -1)
    assert sent_sequences(box) == [0, 1, 2, 3, 4, 5]


def test_a_payload_too_large_for_its_stream_is_refused_before_it_is_numbered() -> None:
    box = Outbox("gaze")
    too_large = Pending(device_time_ns=0, payload=bytes(25), encoding="ray_f32", keyframe=False)
    with pytest.raises(WireError, match="25 bytes, at most 24"):
        box.offer(too_large, 0)
    assert box.last_sequence == -1
