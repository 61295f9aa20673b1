"""The spool's files: what was appended comes back, in order and once, past whatever happened."""

from __future__ import annotations

import resource
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keystep_capture.errors import StateError
from keystep_capture.source import Life
from keystep_capture.spool import OVERHEAD_BYTES, UNSENT_FOLDER, Spool
from keystep_capture.spool_file import PACKET_MARK, RECORD
from keystep_capture.streams import MAX_PAYLOAD_BYTES
from keystep_capture.wire import PROTOCOL, PacketHeader

LIFE = Life(instance="i1", session="ses-1", streams=("rgb", "gaze"))
S = 1_000_000_000
NOTE_BYTES = 100
"""A segment's description of itself takes less."""


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def header(stream: str, sequence: int, **fields: object) -> PacketHeader:
    encoding = {"rgb": "h264", "gaze": "ray_f32"}[stream]
    return PacketHeader(
        protocol=PROTOCOL,
        session="",
        epoch=0,
        stream=stream,
        sequence=sequence,
        device_time_ns=sequence,
        send_time_ns=0,
        encoding=encoding,
        **fields,  # type: ignore[arg-type]
    )


def ray(number: int) -> bytes:
    return struct.pack("<6f", number, 0, 0, 0, 0, 1)


def fill(spool: Spool, count: int, *, life: Life = LIFE, first: int = 0, size: int = 200) -> int:
    """Append gaze and pictures by turns, `count` of each; how many were taken."""
    taken = 0
    for k in range(first, first + count):
        taken += spool.append(life, header("gaze", k), ray(k))
        taken += spool.append(life, header("rgb", k, keyframe=k % 9 == 0), bytes([k % 251]) * size)
    return taken


def drained(spool: Spool) -> list[tuple[str, int, bytes]]:
    found = []
    while (instance := spool.next_instance) is not None:
        while packet := spool.read(instance):
            found.append((packet.header.stream, packet.header.sequence, packet.payload))
    return found


def expected(first: int, last: int, size: int = 200) -> list[tuple[str, int, bytes]]:
    return [
        packet
        for k in range(first, last)
        for packet in (("gaze", k, ray(k)), ("rgb", k, bytes([k % 251]) * size))
    ]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


class SpoolMachine(RuleBasedStateMachine):
    """A spool against a list, over appending, reading, acknowledgement and killed processes."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.spool = self.opened()
        self.kept: list[int] = []  # appended and not acknowledged
        self.offered = self.read = 0

    def opened(self) -> Spool:
        return Spool(Path(self.folder.name), limit_bytes=40_000, segment_bytes=1_000)

    @rule(count=st.integers(1, 6), size=st.integers(1, 900))
    def append(self, count: int, size: int) -> None:
        for _ in range(count):
            picture = header("rgb", self.offered)
            if self.spool.append(LIFE, picture, bytes([self.offered % 251]) * size):
                self.kept.append(self.offered)
            self.offered += 1

    @rule(count=st.integers(1, 9))
    def read_some(self, count: int) -> None:
        for _ in range(count):
            packet = self.spool.read("i1")
            if packet is None:
                assert self.read == len(self.kept)
                return
            assert packet.header.sequence == self.kept[self.read]
            assert set(packet.payload) == {packet.header.sequence % 251}
            assert packet.lost_count == 0
            self.read += 1

    @precondition(lambda self: self.read)
    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        count = round(share * self.read)
        held = self.kept[count : self.read]
        self.spool.release("i1", {"rgb": held[0]} if held else {})
        del self.kept[:count]
        self.read -= count

    @rule()
    def kill(self) -> None:
        """A new process finds it; what lay in a file with an unacknowledged one comes again."""
        before, left = self.folder, self.spool
        self.folder = TemporaryDirectory()
        shutil.copytree(before.name, self.folder.name, dirs_exist_ok=True)
        left.close()  # after the copy, so that nothing it does is of any help
        before.cleanup()
        self.spool = self.opened()
        again = [sequence for _, sequence, _ in drained(self.spool)]
        assert again == sorted(set(again))
        assert again[len(again) - len(self.kept) :] == self.kept
        self.kept, self.read = again, len(again)

    @invariant()
    def the_limit_is_kept(self) -> None:
        on_disk = sum(path.stat().st_size for path in files(Path(self.folder.name)))
        assert on_disk == self.spool.size_bytes <= 40_000

    @invariant()
    def nothing_is_unread_when_all_was_read(self) -> None:
        assert self.spool.has_unread == (self.read < len(self.kept))

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=40, stateful_step_count=40)


def test_packets_of_two_lives_come_back_in_order_with_their_session(tmp_path: Path) -> None:
    second = Life(instance="i2", session=None, streams=("gaze",))
    first_run = Spool(tmp_path, segment_bytes=2_000)
    fill(first_run, 30)
    assert first_run.append(second, header("gaze", 0), ray(0))
    first_run.close()
    spool = Spool(tmp_path)
    assert spool.lives == [LIFE, second]
    assert spool.read("i2") is None  # it is not their turn
    assert drained(spool) == [*expected(0, 30), ("gaze", 0, ray(0))]
    spool.close()


def test_every_field_of_a_header_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    full = header(
        "rgb",
        7,
        keyframe=True,
        width=640,
        height=360,
        intrinsics=(500.0, 501.0, 320.0, 180.0),
        pose=[float(k) for k in range(16)],
        frame_idx=77,
        upright_turns=3,
    )
    spool.append(LIFE, full, memoryview(bytearray(b"unit")))
    packet = spool.read("i1")
    assert packet is not None
    assert (packet.header, packet.payload) == (full, b"unit")
    spool.close()


# -- damage --------------------------------------------------------------------------------------


@contextmanager
def spoiled(data: st.DataObject, *, count: int = 20) -> Iterator[tuple[Path, list[Path]]]:
    """A folder of some segments that a process has left."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        spool = Spool(folder, segment_bytes=2_000)
        fill(spool, count)
        spool.close()
        yield folder, files(folder)


@given(data=st.data())
def test_of_a_spoiled_spool_all_is_read_that_can_be_and_the_rest_is_counted(
    data: st.DataObject,
) -> None:
    with spoiled(data) as (folder, paths):
        path = data.draw(st.sampled_from(paths))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(1, 700))
        content[at : at + length] = bytes(b ^ 0xA5 for b in content[at : at + length])
        path.write_bytes(content)
        spool = Spool(folder)
        lost = {"rgb": 0, "gaze": 0}
        found = []
        while packet := spool.read("i1"):
            lost[packet.header.stream] += packet.lost_count
            found.append((packet.header.stream, packet.header.sequence, packet.payload))
        spool.close()
    whole = expected(0, 20)
    assert found == [packet for packet in whole if packet in found]  # none is false or swapped
    missing = [packet for packet in whole if packet not in found]
    assert len(missing) <= 2 + length // 60
    assert bool(spool.damaged_bytes)
    for stream in lost:
        last = max(sequence for name, sequence, _ in found if name == stream)
        before = [s for name, s, _ in missing if name == stream and s < last]
        if path == paths[0] and at < NOTE_BYTES:  # which were before is not known any more
            assert lost[stream] <= len(before)
        else:
            assert lost[stream] == len(before)


@given(data=st.data())
def test_a_file_that_ends_too_early_costs_its_end_only(data: st.DataObject) -> None:
    with spoiled(data) as (folder, paths):
        size = paths[-1].stat().st_size
        kept = data.draw(st.integers(0, size))
        paths[-1].write_bytes(paths[-1].read_bytes()[:kept])
        spool = Spool(folder)
        found = drained(spool)
        assert found == expected(0, 20)[: len(found)]
        behind_the_torn_one = expected(0, 20)[len(found) + 1 :]
        assert sum(len(payload) for *_, payload in behind_the_torn_one) <= size - kept
        assert spool.append(LIFE, header("gaze", 99), ray(99))
        assert drained(spool) == [("gaze", 99, ray(99))]
        spool.close()


@given(junk=st.binary(max_size=2_000) | st.just(PACKET_MARK * 5_000))
def test_any_bytes_in_a_file_are_passed_over(junk: bytes) -> None:
    with TemporaryDirectory() as name:
        (Path(name) / "00000000-i1.spool").write_bytes(junk)
        (Path(name) / "notes.txt").write_bytes(junk)
        spool = Spool(Path(name))
        fill(spool, 2)
        assert drained(spool) == expected(0, 2)
        spool.release("i1", {})
        assert files(Path(name)) == []
        spool.close()


def test_a_length_that_lies_asks_for_no_memory(tmp_path: Path) -> None:
    lie = RECORD.pack(PACKET_MARK, 0, 0, 100, MAX_PAYLOAD_BYTES + 1)
    (tmp_path / "00000000-i1.spool").write_bytes(lie + bytes(500))
    spool = Spool(tmp_path)
    assert drained(spool) == []
    assert spool.damaged_bytes == len(lie) + 500
    spool.close()


# -- trouble -------------------------------------------------------------------------------------


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_at_its_limit_it_takes_no_more_until_there_is_room(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path, limit_bytes=30_000, segment_bytes=5_000, clock=clock)
    with structlog.testing.capture_logs() as logs:
        taken = fill(spool, 200)
    assert 20 < taken < 200
    assert [entry["reason"] for entry in logs] == ["its limit of 3e-05 GB is reached"]
    assert 30_000 - 200 - OVERHEAD_BYTES < spool.size_bytes <= 30_000
    drained(spool)
    spool.release("i1", {})
    clock.now_ns += S
    assert fill(spool, 5, first=200) == 10
    assert spool.error is None
    spool.close()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fails_is_told_of_once_and_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path, clock=clock)
    with structlog.testing.capture_logs() as logs:
        with file_size_limit(4_000):
            taken = fill(spool, 50)
            clock.now_ns += S
            assert fill(spool, 5, first=50) == 0
        clock.now_ns += 2 * S
        assert fill(spool, 3, first=60) == 6
    assert [entry["event"].partition(":")[0] for entry in logs] == [
        "the spool takes no packets",
        "the spool takes packets again",
    ]
    assert drained(spool) == [*expected(0, 50)[:taken], *expected(60, 63)]
    assert spool.damaged_bytes == 0
    spool.close()


def test_a_disk_that_takes_nothing_is_left_without_files(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path, clock=clock)
    for limit in (0, 40, 300):
        with file_size_limit(limit):
            assert fill(spool, 3, size=2_000) <= 1
        clock.now_ns += 3 * S
        drained(spool)
        spool.release("i1", {})
        assert files(tmp_path) == []
    spool.close()


def test_a_folder_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with structlog.testing.capture_logs() as logs:
        spool = Spool(tmp_path / "file" / "spool")
        assert fill(spool, 3) == 0
    assert [entry["reason"] for entry in logs] == ["Not a directory"]
    assert spool.error == "Not a directory"
    assert (spool.lives, spool.has_unread, spool.size_bytes) == ([], False, 0)
    spool.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(StateError, match="another process uses the spool"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_what_was_set_aside_counts_and_is_not_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=12_000)
    fill(spool, 20)
    size = spool.size_bytes
    assert spool.set_aside("i1") == size
    spool.close()
    spool = Spool(tmp_path, limit_bytes=12_000)
    assert (spool.lives, spool.size_bytes) == ([], size)
    assert [path.stat().st_size for path in (tmp_path / UNSENT_FOLDER).iterdir()] == [size]
    spool.close()
