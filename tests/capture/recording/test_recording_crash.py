"""A writer that is killed or whose disk fails loses at most its last second."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.recording import (
    Position,
    Recording,
    RecordingInfo,
    RecordingWriter,
    part_paths,
    take_back,
)
from keystep_capture.recording.repair import repair

WRITING = """
import sys
from pathlib import Path
from keystep_capture import wire
from keystep_capture.recording import RecordingInfo, RecordingWriter
writer = RecordingWriter(Path(sys.argv[1]), RecordingInfo(session="s"))
for number in range(10**9):
    header = wire.PacketHeader(
        protocol="1.0", session="s", epoch=1, stream="gaze", sequence=number,
        device_time_ns=number, send_time_ns=0, encoding="ray_f32",
    )
    writer.write_packet(header, number.to_bytes(4, "little") * 6)
    if number % 50 == 0:
        writer.flush()
        print(number, flush=True)
"""


def killed_after(folder: Path, flushes: int) -> int:
    """Let a process record and kill it after so many flushes; the last packet that it flushed."""
    command = [sys.executable, "-c", WRITING, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(flushes)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    return int([line for line in lines if line.endswith("\n")][-1])


@pytest.mark.parametrize("flushes", [1, 2, 7, 31])
def test_a_killed_writer_has_lost_nothing_that_was_flushed(tmp_path: Path, flushes: int) -> None:
    flushed = killed_after(tmp_path / "r", flushes)
    with Recording(tmp_path / "r") as recording:
        assert not recording.finished
        read = [packet.header.sequence for packet in recording.packets()]
    assert read == list(range(len(read)))
    assert read[-1] >= flushed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_killed_writers_have_lost_nothing_that_was_flushed(tmp_path: Path) -> None:
    pick = random.Random(5)
    for number in range(100):
        folder = tmp_path / str(number)
        flushed = killed_after(folder, pick.randint(1, 200))
        with Recording(folder) as recording:
            read = [packet.header.sequence for packet in recording.packets()]
        assert read == list(range(len(read)))
        assert read[-1] >= flushed


def test_a_killed_recording_is_closed_by_a_repair(tmp_path: Path) -> None:
    killed_after(tmp_path / "r", 20)
    (part,) = part_paths(tmp_path / "r")
    before = part.read_bytes()
    (done,) = repair(tmp_path / "r", tmp_path / "new")
    assert part.read_bytes() == before
    assert done.damage[0].path == part
    with Recording(tmp_path / "r") as broken, Recording(tmp_path / "new") as mended:
        assert mended.finished
        assert not mended.damage
        assert list(mended.packets()) == list(broken.packets())
        assert mended.info == broken.info


def test_a_repair_leaves_out_what_is_damaged(recorded: Path, tmp_path: Path, tools: Any) -> None:
    part = recorded / "part-000.mcap"
    data = bytearray(part.read_bytes())
    with Recording(part) as recording:
        data[recording.parts[0].chunk_offset(0) + 500] ^= 1
        kept = list(recording.packets())[-1]
    part.write_bytes(data)
    (done,) = repair(part, tmp_path / "new.mcap")
    assert "checksum" in done.damage[0].reason
    with Recording(tmp_path / "new.mcap") as mended:
        packets = list(mended.packets())
    assert 0 < len(packets) < len(tools.session_packets())
    assert packets[-1].header == kept.header


def test_a_repair_never_overwrites(recorded: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.mcap"
    target.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        repair(recorded, target)
    assert target.read_bytes() == b"mine"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that takes no more than this of a file: writing fails as on a full one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_until_it_fails(writer: RecordingWriter, packets: list[Any]) -> None:
    for header, payload in packets:
        writer.write_packet(header, payload)


def test_a_disk_that_is_full_ends_the_part_and_the_next_begins_another(
    tmp_path: Path, tools: Any
) -> None:
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"), chunk_bytes=10_000)
    sent = tools.sensor_packets("gaze", 300)
    for header, payload in sent[:100]:
        writer.write_packet(header, payload)
    writer.flush()
    (part,) = part_paths(tmp_path)
    with (
        files_no_larger_than(part.stat().st_size + 15_000),
        pytest.raises(OSError, match="File too large"),
    ):
        write_until_it_fails(writer, sent[100:200])
    assert 0 < writer.lost["gaze"] < 100
    for header, payload in sent[200:]:
        writer.write_packet(header, payload)
    writer.close()
    assert len(part_paths(tmp_path)) == 2
    with Recording(tmp_path) as recording:
        read = [packet.header.sequence for packet in recording.packets()]
    assert read[:100] == list(range(100))
    assert read[-100:] == list(range(200, 300))
    (first, _) = repair(tmp_path, tmp_path / "new")
    assert "record" in first.damage[0].reason


def test_a_disk_without_any_room_is_not_littered(tmp_path: Path, tools: Any) -> None:
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
    header, payload = tools.sensor_packets("gaze", 1)[0]
    for _ in range(3):
        with files_no_larger_than(10), pytest.raises(OSError, match="File too large"):
            writer.write_packet(header, payload)
    assert list(tmp_path.iterdir()) == []
    writer.write_packet(header, payload)
    writer.close()
    assert [path.name for path in part_paths(tmp_path)] == ["part-000.mcap"]


def test_a_recording_can_be_taken_back_to_where_it_was_flushed(tmp_path: Path, tools: Any) -> None:
    sent = tools.sensor_packets("gaze", 90)
    positions = []
    for some in (sent[:30], sent[30:60]):
        writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
        for header, payload in some[:20]:
            writer.write_packet(header, payload)
        positions.append(writer.flush())
        writer.sync()
        for header, payload in some[20:]:
            writer.write_packet(header, payload)
        writer.close()
    take_back(tmp_path, positions[1])
    tools.record(tmp_path, sent[50:])
    with Recording(tmp_path) as recording:
        assert [packet.header.sequence for packet in recording.packets()] == list(range(90))
    take_back(tmp_path, positions[0])
    with Recording(tmp_path) as recording:
        assert [packet.header.sequence for packet in recording.packets()] == list(range(20))
    with pytest.raises(DataError, match="expected the name of a part"):
        take_back(tmp_path, Position(part="../x", size_bytes=0))
    take_back(tmp_path, None)
    assert part_paths(tmp_path) == []


def test_a_second_passes_between_flushes(tmp_path: Path, tools: Any) -> None:
    now_ns = 0
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"), clock=lambda: now_ns)
    counts = []
    for number, (header, payload) in enumerate(tools.sensor_packets("gaze", 240)):
        now_ns = round(number * 1e9 / 60)
        writer.write_packet(header, payload)
        if number % 60 == 1:
            with Recording(tmp_path) as recording:
                counts.append(len(list(recording.packets())))
    assert counts == [0, 61, 121, 181]
    writer.close()
