"""The queue never waits for the disk: it leaves out what the policies allow, and says so."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from keystep_capture.recording import Recording, RecordingInfo, RecordingQueue, RecordingWriter
from keystep_capture.recording.notes import SessionNote


class SlowWriter(RecordingWriter):
    """A writer whose disk waits for the test."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, RecordingInfo(session="s"), **options)
        self.may_write = threading.Event()
        self.error: OSError | None = None

    def write_packet(self, *values: Any, **named: Any) -> None:
        self.may_write.wait(30)
        if self.error is not None:
            raise self.error
        super().write_packet(*values, **named)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowWriter]:
    writer = SlowWriter(tmp_path / "r")
    yield writer
    writer.may_write.set()


def packets_of(folder: Path, stream: str) -> list[int]:
    with Recording(folder) as recording:
        return [packet.header.sequence for packet in recording.packets((stream,))]


def test_what_is_offered_is_recorded_in_order(tmp_path: Path, tools: Any) -> None:
    queue = RecordingQueue(RecordingWriter(tmp_path / "r", RecordingInfo(session="s")))
    sent = list(tools.session_packets())
    assert all(queue.offer(header, payload, receive_time_ns=5) for header, payload in sent)
    assert queue.offer_note(SessionNote(event="closed"), device_time_ns=5)
    assert queue.close()
    with Recording(tmp_path / "r") as recording:
        assert [(p.header, p.payload) for p in recording.packets()] == sent
        assert [note.kind for note in recording.notes()] == ["session"]
    assert queue.state().dropped == {}
    assert queue.state().written_count == len(sent)


def test_many_threads_may_offer(tmp_path: Path, tools: Any) -> None:
    queue = RecordingQueue(RecordingWriter(tmp_path / "r", RecordingInfo(session="s")))

    def offer(stream: str) -> None:
        for header, payload in tools.sensor_packets(stream, 200):
            queue.offer(header, payload)

    threads = [threading.Thread(target=offer, args=(n,)) for n in ("gaze", "head", "hands")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.close()
    for stream in ("gaze", "head", "hands"):
        assert packets_of(tmp_path / "r", stream) == list(range(200))


def test_a_slow_disk_costs_whole_groups_of_pictures(
    slow: SlowWriter, tmp_path: Path, tools: Any
) -> None:
    queue = RecordingQueue(slow, limit_bytes=400_000)
    for header, payload in tools.session_packets():
        queue.offer(header, payload)
    state = queue.state()
    assert state.queued_bytes <= 400_000
    assert state.dropped["rgb"] > 0
    slow.may_write.set()
    assert queue.drain()
    for header, payload in tools.coffee_packets()[150:]:
        queue.offer(header, payload)
    assert queue.close()
    kept = packets_of(tmp_path / "r", "rgb")
    keyframes = {h.sequence for h, _ in tools.coffee_packets() if h.keyframe}
    begins = [b for a, b in itertools.pairwise(kept) if b != a + 1]
    assert begins
    assert set(begins) <= keyframes  # after a gap the video goes on with a key frame


def test_the_last_quarter_of_the_queue_is_for_streams_that_are_kept(
    slow: SlowWriter, tools: Any
) -> None:
    queue = RecordingQueue(slow, limit_bytes=100_000)
    video = tools.coffee_packets()
    while queue.offer(*video[0]):
        pass
    assert queue.state().queued_bytes <= 75_000
    assert queue.offer(*tools.sensor_packets("gaze", 1)[0])
    slow.may_write.set()
    assert queue.close()


def test_the_recording_itself_says_what_it_lacks(
    slow: SlowWriter, tmp_path: Path, tools: Any
) -> None:
    queue = RecordingQueue(slow, limit_bytes=20_000)
    for header, payload in tools.sensor_packets("gaze", 50):
        queue.offer(header, payload)
    dropped = queue.state().dropped["gaze"]
    assert dropped > 0
    slow.may_write.set()
    assert queue.close()
    with Recording(tmp_path / "r") as recording:
        said = [entry.note for entry in recording.notes("drop")]
    assert sum(note.dropped["gaze"] for note in said) == dropped  # type: ignore[union-attr]


def test_a_failing_disk_is_told_and_tried_again(
    slow: SlowWriter, tmp_path: Path, tools: Any
) -> None:
    now_ns = 0
    queue = RecordingQueue(slow, clock=lambda: now_ns)
    sent = tools.sensor_packets("gaze", 30)
    slow.error = OSError(28, "No space left on device")
    slow.may_write.set()
    for header, payload in sent[:10]:
        queue.offer(header, payload)
    assert queue.drain()
    assert "No space left" in str(queue.state().disk_error)
    assert queue.state().dropped == {"gaze": 10}
    slow.error = None
    queue.offer(*sent[10])
    assert queue.drain()
    assert queue.state().dropped == {"gaze": 11}  # not yet: it would fail again and again
    now_ns = 3_000_000_000
    for header, payload in sent[20:]:
        queue.offer(header, payload)
    assert queue.close()
    assert queue.state().disk_error is None
    assert packets_of(tmp_path / "r", "gaze") == list(range(20, 30))


def test_a_disk_that_fails_again_and_again_is_tried_ever_more_seldom(
    slow: SlowWriter, tools: Any
) -> None:
    now_ns = 0
    queue = RecordingQueue(slow, clock=lambda: now_ns)
    slow.may_write.set()
    taken_ns = []
    for header, payload in tools.sensor_packets("gaze", 300):  # a second apart; every write fails
        slow.error = None  # after it was let in once
        before = queue.state().written_count
        queue.offer(header, payload)
        assert queue.drain()
        if queue.state().written_count > before:
            taken_ns.append(now_ns)
            slow.error = OSError(28, "No space left on device")
            queue.offer(header, payload)
            assert queue.drain()
        now_ns += 1_000_000_000
    slow.error = None
    assert queue.close()
    waits_s = [(b - a) // 1_000_000_000 for a, b in pairwise(taken_ns)]
    assert waits_s[:6] == [2, 4, 8, 16, 32, 64]
    assert set(waits_s[6:]) == {64}


def test_a_closed_queue_takes_nothing(tmp_path: Path, tools: Any) -> None:
    queue = RecordingQueue(RecordingWriter(tmp_path / "r", RecordingInfo(session="s")))
    assert queue.close()
    assert not queue.offer(*tools.sensor_packets("gaze", 1)[0])
    assert not queue.offer_note(SessionNote(event="late"), device_time_ns=0)
    assert queue.state().dropped == {"gaze": 1, "notes": 1}


def test_a_mark_is_reached_when_all_before_it_can_be_read(tmp_path: Path, tools: Any) -> None:
    queue = RecordingQueue(RecordingWriter(tmp_path / "r", RecordingInfo(session="s")))
    for header, payload in tools.sensor_packets("gaze", 30):
        queue.offer(header, payload)
    mark = queue.mark()
    called = threading.Event()
    mark.when_reached(called.set)
    assert mark.wait(30)
    assert called.wait(30)
    assert mark.position is not None
    assert mark.position.size_bytes == (tmp_path / "r" / mark.position.part).stat().st_size
    assert packets_of(tmp_path / "r", "gaze") == list(range(30))  # before it is closed
    assert queue.close()
    assert queue.mark().is_reached


def test_a_mark_waits_for_a_slow_disk_and_not_for_a_failed_one(
    slow: SlowWriter, tools: Any
) -> None:
    queue = RecordingQueue(slow)
    queue.offer(*tools.sensor_packets("gaze", 1)[0])
    mark = queue.mark()
    assert not mark.is_reached
    slow.error = OSError(28, "No space left on device")
    slow.may_write.set()
    assert mark.wait(30)
    assert mark.position is None
    assert queue.state().dropped == {"gaze": 1}
    assert queue.close()
