"""What is recorded is read back exactly: headers, payloads, notes, order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture import wire
from keystep_capture.errors import StateError, WireError
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter, part_paths
from keystep_capture.recording import notes as kinds
from keystep_capture.recording.schemas import PacketEncoder, decode_packet
from keystep_capture.streams import STREAMS

finite = st.floats(-1e6, 1e6)
times = st.integers(0, 2**62)


@st.composite
def packets(draw: st.DrawFn) -> tuple[wire.PacketHeader, bytes]:
    """Any packet that docs/wire.md allows, small."""
    spec = STREAMS[draw(st.sampled_from(sorted(STREAMS)))]
    encoding = spec.encodings[draw(st.sampled_from(sorted(spec.encodings)))]
    valid = draw(st.integers(-1, 3))
    rows = draw(st.integers(encoding.min_rows, min(encoding.max_rows, encoding.min_rows + 3)))
    size = 0 if valid == 0 else rows * encoding.row_bytes
    seed = draw(st.integers(0, 2**32 - 1))
    payload = np.random.default_rng(seed).bytes(size) if draw(st.booleans()) else bytes(size)
    header = wire.PacketHeader(
        protocol=draw(st.sampled_from(("1.0", "1.7"))),
        session=draw(st.text(max_size=16)),
        epoch=draw(st.integers(0, 9)),
        stream=spec.name,
        sequence=draw(times),
        device_time_ns=draw(times),
        send_time_ns=draw(st.integers(-(2**62), 2**62)),
        encoding=encoding.name,
        keyframe=draw(st.booleans()),
        width=draw(st.none() | st.integers(1, 16384)),
        height=draw(st.none() | st.integers(1, 16384)),
        intrinsics=draw(st.none() | st.tuples(finite, finite, finite, finite)),
        pose=draw(st.none() | st.lists(finite, min_size=16, max_size=16)),
        valid=valid,
        frame_idx=draw(st.none() | times),
        depth_unit_m=draw(st.none() | st.floats(1e-6, 1.0)),
        upright_turns=draw(st.integers(0, 3)),
        calibrates=draw(st.none() | st.text(max_size=8)),
        rig_from_sensor=draw(st.none() | st.lists(finite, min_size=16, max_size=16)),
    )
    return header, payload


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(packet=packets())
def test_a_packet_is_decoded_as_it_was_encoded(packet: tuple[wire.PacketHeader, bytes]) -> None:
    header, payload = packet
    messages = PacketEncoder().encode(header, payload)
    record = b"".join(messages[-1].parts)
    carriers = [m for m in messages if m.channel.metadata["role"] == "carrier"]
    carried = payload if carriers else None
    assert len(carriers) <= 1
    assert decode_packet(record, carried) == (header, payload)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(given=st.lists(packets(), max_size=20), chunk_bytes=st.sampled_from((1, 2000, 1 << 20)))
def test_any_packets_come_back_from_the_file_in_their_order(
    given: list[tuple[wire.PacketHeader, bytes]],
    chunk_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    writer = RecordingWriter(folder, RecordingInfo(session="s"), chunk_bytes=chunk_bytes)
    for number, (header, payload) in enumerate(given):
        writer.write_packet(header, payload, receive_time_ns=number)
    writer.close()
    if not given:
        assert part_paths(folder) == []
        return
    with Recording(folder) as recording:
        read = list(recording.packets())
    assert [(one.header, one.payload) for one in read] == given
    assert [one.receive_time_ns for one in read] == list(range(len(given)))


def test_a_session_comes_back_whole(recorded: Path, tools: Any) -> None:
    with Recording(recorded) as recording:
        read = [(packet.header, packet.payload) for packet in recording.packets()]
        assert recording.finished
        assert recording.damage == []
        assert recording.info.session == "ses_1"
    assert read == list(tools.session_packets())


def test_packets_come_by_device_time_when_asked(tmp_path: Path, tools: Any) -> None:
    sent = list(tools.session_packets())
    late = sent[:400:2] + sent[1:400:2] + sent[400:]  # half of them arrive late
    folder = tools.record(tmp_path, late, chunk_bytes=20_000)
    with Recording(folder) as recording:
        read = [p.header.device_time_ns for p in recording.packets(order="device_time")]
    assert read == sorted(header.device_time_ns for header, _ in sent)


def test_epochs_are_read_one_after_the_other_by_device_time(tmp_path: Path, tools: Any) -> None:
    first = [(tools.packet("gaze", n, 1000 + n), bytes(24)) for n in range(3)]
    second = [(tools.packet("gaze", n, 500 + n, epoch=2), bytes(24)) for n in range(3)]
    folder = tools.record(tmp_path, first + second)
    with Recording(folder) as recording:
        assert recording.epochs == (1, 2)
        read = [p.header.device_time_ns for p in recording.packets(order="device_time")]
        only = [p.header.device_time_ns for p in recording.packets(epoch=2)]
    assert read == [1000, 1001, 1002, 500, 501, 502]
    assert only == [500, 501, 502]


def test_a_window_gives_the_packets_in_it(recorded: Path, tools: Any) -> None:
    start_ns, end_ns = 10**12 + 2 * 10**9, 10**12 + 3 * 10**9
    with Recording(recorded) as recording:
        read = list(recording.packets(("hands",), start_ns=start_ns, end_ns=end_ns))
    wanted = [
        header
        for header, _ in tools.session_packets()
        if header.stream == "hands" and start_ns <= header.device_time_ns < end_ns
    ]
    assert [packet.header for packet in read] == wanted


def test_the_key_frame_before_a_moment_is_found(tmp_path: Path, tools: Any) -> None:
    folder = tools.record(tmp_path, tools.coffee_packets(), chunk_bytes=10_000)
    moment_ns = 10**12 + 5 * 10**9
    keys = [h.device_time_ns for h, _ in tools.coffee_packets() if h.keyframe]
    with Recording(folder) as recording:
        found = recording.keyframe_before("rgb", moment_ns, epoch=1)
        assert found == max(time_ns for time_ns in keys if time_ns <= moment_ns)
        assert recording.keyframe_before("rgb", keys[0] - 1, epoch=1) is None


def test_notes_come_back_beside_the_packets(tmp_path: Path, tools: Any) -> None:
    said = (
        kinds.StepEventNote(id="e1", kind="completed", step_id=3, device_time_ns=5, confidence=0.1),
        kinds.ClockNote(
            remote="device",
            local="server",
            epoch=1,
            remote_time_ns=5,
            local_time_ns=-3,
            uncertainty_ns=9,
            rate=1.00001,
        ),
        kinds.TickNote(
            epoch=1, index=0, device_time_ns=5, cues=["rgb"], features={"a": b"\0\1\2\3"}
        ),
        kinds.DropNote(dropped={"rgb": 2}, reason="disk"),
        kinds.SessionNote(event="joined", source="bridge", epoch=1),
        wire.Guidance(
            protocol="1.0",
            revision=1,
            severity="info",
            current_step=wire.StepName(id=1, title="Fit"),
            next_step=None,
            text="Fit the wheel",
            progress=(0, 3),
            device_time_ns=5,
        ),
        wire.GuidanceAck(protocol="1.0", revision=1, displayed_time_ns=7, displayed=True),
    )
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
    for note in said:
        writer.write_note(note, device_time_ns=5, receive_time_ns=6)
    writer.write_packet(tools.packet("gaze", 0, 5), bytes(24))
    writer.close()
    with Recording(tmp_path) as recording:
        assert tuple(entry.note for entry in recording.notes()) == said
        assert [entry.note for entry in recording.notes("drop")] == [said[3]]
        assert len(list(recording.entries())) == len(said) + 1


def test_a_resumed_recording_goes_on_in_a_further_part(tmp_path: Path, tools: Any) -> None:
    sent = list(tools.session_packets())
    for some in (sent[:300], sent[300:700], sent[700:]):
        tools.record(tmp_path, some)
    assert [path.name for path in part_paths(tmp_path)] == [
        "part-000.mcap",
        "part-001.mcap",
        "part-002.mcap",
    ]
    with Recording(tmp_path) as recording:
        assert [(p.header, p.payload) for p in recording.packets()] == sent


def test_a_part_that_is_full_is_followed_by_another(tmp_path: Path, tools: Any) -> None:
    sent = list(tools.session_packets())
    tools.record(tmp_path, sent, part_bytes=500_000, chunk_bytes=100_000)
    parts = part_paths(tmp_path)
    assert len(parts) > 2
    assert all(path.stat().st_size < 800_000 for path in parts)
    with Recording(tmp_path) as recording:
        assert [(p.header, p.payload) for p in recording.packets()] == sent


def test_a_packet_that_breaks_the_wire_is_not_recorded(tmp_path: Path, tools: Any) -> None:
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
    with pytest.raises(WireError, match="payload has 3 bytes"):
        writer.write_packet(tools.packet("gaze", 0, 5), b"abc")
    writer.write_packet(tools.packet("gaze", 0, 5), bytes(24))
    writer.close()
    with pytest.raises(StateError, match="is closed"):
        writer.write_packet(tools.packet("gaze", 1, 6), bytes(24))
    with Recording(tmp_path) as recording:
        assert len(list(recording.packets())) == 1
