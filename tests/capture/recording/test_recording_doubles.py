"""What a restarted server was sent again stands in two parts and is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.recording import RecordedPacket, Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.doubles import SeenPackets
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


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 40)), max_size=200))
def test_a_packet_is_new_when_its_number_did_not_come_before(numbers: Any) -> None:
    seen, known = SeenPackets(), set()
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
