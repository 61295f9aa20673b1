"""A long recording is opened and sought through its index, and read in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.notes import SessionNote, TickNote
from keystep_capture.recording.source import McapSource

SECONDS = 3600


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Path:
    """An hour of four packets a second, a key frame each second; a chunk holds two seconds."""
    packets = []
    for number in range(4 * SECONDS):
        fields = {"keyframe": number % 4 == 0, "width": 64, "height": 64}
        header = tools.packet("rgb", number, number * 250_000_000, **fields)
        packets.append((header, bytes(200)))
    return Path(tools.record(tmp_path_factory.mktemp("hour"), packets, chunk_bytes=4000))


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks that were read, as the test goes on."""
    read: list[int] = []
    plain = McapSource.messages

    def counted(self: McapSource, idx: int) -> Any:
        read.append(idx)
        return plain(self, idx)

    monkeypatch.setattr(McapSource, "messages", counted)
    return read


def test_opening_reads_no_chunk(hour: Path, chunks_read: list[int]) -> None:
    with Recording(hour) as recording:
        assert recording.parts[0].chunk_count > 1000
        assert recording.device_span_ns == (0, (4 * SECONDS - 1) * 250_000_000)
        assert recording.lanes[0].stream == "rgb"
    assert chunks_read == []


@pytest.mark.parametrize("second", [0, 1234, 3599])
def test_seeking_reads_the_chunks_of_its_time(
    hour: Path, chunks_read: list[int], second: int
) -> None:
    time_ns = second * 10**9 + 600_000_000
    with Recording(hour) as recording:
        assert recording.keyframe_before("rgb", time_ns, epoch=1) == second * 10**9
        found = list(recording.packets(start_ns=time_ns, end_ns=time_ns + 10**9))
    assert len(found) == (4 if second < SECONDS - 1 else 1)
    assert len(chunks_read) <= 6


def test_what_is_rare_is_found_without_reading_all(tmp_path: Path, chunks_read: list[int]) -> None:
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"), chunk_bytes=1)
    for number in range(1000):
        tick = TickNote(epoch=1, index=number, device_time_ns=number, cues=[])
        writer.write_note(tick, device_time_ns=number)
        if number % 400 == 7:
            writer.write_note(SessionNote(event=str(number)), device_time_ns=number)
    writer.close()
    with Recording(tmp_path) as recording:
        events = [entry.note.event for entry in recording.notes("session")]  # type: ignore[union-attr]
        assert events == ["7", "407", "807"]
        assert len(chunks_read) == 3
        assert len(list(recording.notes())) == 1003


@pytest.mark.parametrize("order", ["arrival", "device_time"])
def test_reading_holds_a_few_chunks_at_a_time(tmp_path: Path, tools: Any, order: Any) -> None:
    payload = bytes(200_000)
    sent = [(tools.packet("rgb", n, n * 10**9, keyframe=True), payload) for n in range(300)]
    tools.record(tmp_path, sent)  # 60 MB in chunks of 1 MiB
    tracemalloc.start()
    with Recording(tmp_path) as recording:
        count = sum(1 for _ in recording.packets(order=order))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 300
    assert peak < 12_000_000
