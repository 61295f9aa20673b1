"""What a restarted server was sent again stands in two parts and is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.recording import RecordedPacket, Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.doubles import SeenEntries
from keystep_capture.recording.export import export_csv
from keystep_capture.recording.notes import Note, SessionNote, StepEventNote, TickNote
from keystep_capture.wire import PROTOCOL, PacketHeader


def write(folder: Path, packets: list[Any]) -> None:
    writer = RecordingWriter(folder, RecordingInfo(session="s"))
    for header, payload in packets:
        writer.write_packet(header, payload)
    writer.close()


def test_packets_that_came_again_are_read_once_in_every_order(tmp_path: Path, tools: Any) -> None:
    sent = list(tools.session_packets())
    write(tmp_path, sent[: len(sent) // 2 + 40])
    write(tmp_path, sent[len(sent) // 2 :])
    with Recording(tmp_path) as recording:
        assert [(p.header, p.payload) for p in recording.packets()] == sent
        assert len(list(recording.entries())) == len(sent)
        for stream in ("rgb", "gaze"):
            times = [
                p.header.device_time_ns for p in recording.packets((stream,), order="device_time")
            ]
            assert times == [h.device_time_ns for h, _ in sent if h.stream == stream]


def test_numbers_begin_anew_with_an_epoch(tmp_path: Path, tools: Any) -> None:
    first = tools.sensor_packets("gaze", 20)
    second = [(msgspec.structs.replace(header, epoch=2), payload) for header, payload in first]
    write(tmp_path, first)
    write(tmp_path, second)
    with Recording(tmp_path) as recording:
        assert len(list(recording.packets())) == 40


def tick(epoch: int, time_ns: int) -> TickNote:
    return TickNote(epoch=epoch, index=0, device_time_ns=time_ns, cues=["rgb"])


def step(name: str, *, retracted: bool = False) -> StepEventNote:
    return StepEventNote(
        id=name, kind="completed", step_id=1, device_time_ns=7, retracted=retracted
    )


def write_notes(folder: Path, notes: list[Note]) -> None:
    writer = RecordingWriter(folder, RecordingInfo(session="s"))
    for note in notes:
        writer.write_note(note, device_time_ns=7)
    writer.close()


def test_ticks_and_step_events_that_were_found_again_are_read_once(tmp_path: Path) -> None:
    first = [tick(1, 5), step("a"), tick(1, 6), step("a", retracted=True), step("b")]
    again = [tick(1, 6), step("a", retracted=True), step("b")]
    later = [tick(1, 7), tick(2, 5), step("c")]
    write_notes(tmp_path / "r", first)
    write_notes(tmp_path / "r", again)
    write_notes(tmp_path / "r", [*again, *later])
    with Recording(tmp_path / "r") as recording:
        assert [entry.note for entry in recording.notes()] == [*first, *later]
        assert [entry.note for entry in recording.entries()] == [*first, *later]  # type: ignore[union-attr]
        ticks = [entry.note for entry in recording.notes("tick")]
        assert ticks == [one for one in [*first, *later] if isinstance(one, TickNote)]
        rows = export_csv(recording, tmp_path / "csv")
    assert rows == {"note_tick.csv": 4, "note_step_event.csv": 4}


def test_what_happened_twice_is_read_twice(tmp_path: Path) -> None:
    for _ in range(2):
        write_notes(tmp_path, [SessionNote(event="joined")])
    with Recording(tmp_path) as recording:
        assert len(list(recording.notes("session"))) == 2


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 40)), max_size=200))
def test_a_packet_is_new_when_its_number_did_not_come_before(numbers: Any) -> None:
    seen, known = SeenEntries(), set()
    for epoch, sequence in numbers:
        header = PacketHeader(
            protocol=PROTOCOL,
            session="s",
            epoch=epoch,
            stream="gaze",
            sequence=sequence,
            device_time_ns=0,
            send_time_ns=0,
            encoding="ray_f32",
        )
        packet = RecordedPacket(
            header=header, payload=b"", receive_time_ns=0, part_idx=0, arrival=0
        )
        assert seen.is_new(packet) == ((epoch, sequence) not in known)
        known.add((epoch, sequence))
