"""What health says of recordings whose faults are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.health import Health, check
from keystep_capture.recording.health_picture import draw_health, write_health_picture
from keystep_capture.recording.notes import ClockNote, DropNote


def lane(health: Health, stream: str, epoch: int = 1) -> Any:
    return next(one for one in health.lanes if (one.stream, one.epoch) == (stream, epoch))


def test_a_whole_recording_is_good(recorded: Path, tools: Any) -> None:
    health = check(recorded)
    assert (health.verdict, health.reasons) == ("good", ())
    assert health.packet_count == len(tools.session_packets())
    assert lane(health, "rgb").keyframe_spacing_s == pytest.approx(0.5, abs=1e-6)
    assert lane(health, "gaze").rate_hz == pytest.approx(60.0, rel=1e-6)
    assert health.ticks[0].complete_share == 1.0
    assert health.unchecked_chunk_count == 0


def test_losses_gaps_and_stalls_are_counted(tmp_path: Path, tools: Any) -> None:
    sent = tools.sensor_packets("gaze", 600)
    kept = sent[:100] + sent[103:200] + sent[350:]  # 3 lost; 150 lost in 2.5 s
    health = check(tools.record(tmp_path, kept))
    gaze = lane(health, "gaze")
    assert (gaze.lost_count, gaze.gap_count, gaze.stall_count) == (153, 2, 1)
    assert gaze.longest_gap_s == pytest.approx(151 / 60)
    assert health.verdict == "usable"
    assert "gaze lost 153 packets (25.5%)" in health.reasons
    assert "gaze stalled 1 times, up to 2.5 s" in health.reasons


def test_a_stream_that_falls_silent_for_good_is_told(tmp_path: Path, tools: Any) -> None:
    gaze, head = tools.sensor_packets("gaze", 1800), tools.sensor_packets("head", 1800)
    hands = tools.sensor_packets("hands", 1800)[600:]  # ten of thirty seconds later
    constants = tools.packet("calibration", 0, 10**12, encoding="none", calibrates="depth")
    sent = [*gaze[:300], *head, *hands, (constants, b"")]
    sent.sort(key=lambda one: one[0].device_time_ns)
    health = check(tools.record(tmp_path, sent))
    told = [reason for reason in health.reasons if "ticks" not in reason]
    assert told == [
        "gaze ends 25 s before the last stream",
        "hands begins 10 s after the first stream",
    ]
    assert health.verdict == "usable"


def test_packets_out_of_order_and_repeated_are_counted(tmp_path: Path, tools: Any) -> None:
    sent = tools.sensor_packets("gaze", 100)
    sent[10], sent[11] = sent[11], sent[10]
    health = check(tools.record(tmp_path, [*sent, sent[50]]))
    gaze = lane(health, "gaze")
    assert gaze.reordered_count == 2  # the exchanged one, and the one sent twice
    assert gaze.repeated_count == 2


def test_jitter_is_how_far_intervals_are_from_the_usual_one(tmp_path: Path, tools: Any) -> None:
    generator = np.random.default_rng(1)
    moved = []
    for header, payload in tools.sensor_packets("gaze", 2000):
        time_ns = header.device_time_ns + round(generator.normal(0, 1e6))
        moved.append((tools.packet("gaze", header.sequence, time_ns), payload))
    jitter_ms = lane(check(tools.record(tmp_path, moved)), "gaze").jitter_ms
    # An interval has the spread of two times, sqrt(2) ms; 95 % are within 1.96 times that.
    assert jitter_ms == pytest.approx(2**0.5 * 1.96, rel=0.1)


@pytest.mark.parametrize("drift_ppm", [-50.0, 0.0, 30.0, 400.0])
@pytest.mark.parametrize("measured", [True, False])
def test_offset_and_drift_of_the_clocks_are_found(
    tmp_path: Path, tools: Any, drift_ppm: float, measured: bool
) -> None:
    generator = np.random.default_rng(2)
    offset_ns = -7_000_000_000_0
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
    for header, payload in tools.sensor_packets("gaze", 6000):
        time_ns = header.device_time_ns
        local_ns = time_ns + offset_ns + round((time_ns - 10**12) * drift_ppm * 1e-6)
        queueing_ns = round(generator.exponential(20e6))
        writer.write_packet(header, payload, receive_time_ns=local_ns + queueing_ns)
        if measured and header.sequence % 60 == 0:
            note = ClockNote(
                remote="device",
                local="server",
                epoch=1,
                remote_time_ns=time_ns,
                local_time_ns=local_ns,
                uncertainty_ns=800_000,
            )
            writer.write_note(note, device_time_ns=time_ns)
    writer.close()
    health = check(tmp_path)
    (clock,) = health.clocks
    assert clock.source == ("measured" if measured else "arrivals")
    assert clock.drift_ppm == pytest.approx(drift_ppm, abs=0.1 if measured else 20)
    assert clock.offset_ns == pytest.approx(offset_ns, abs=1e3 if measured else 5e6)
    assert any("clocks drift" in reason for reason in health.reasons) == (drift_ppm == 400.0)


def test_the_share_of_ticks_with_every_cue_is_told(tmp_path: Path, tools: Any) -> None:
    rgb = list(tools.coffee_packets()[:240])  # eight seconds
    gaze = tools.sensor_packets("gaze", 240)  # the first four of them
    sent = sorted([*rgb, *gaze], key=lambda one: one[0].device_time_ns)
    (ticks,) = check(tools.record(tmp_path, sent)).ticks
    assert (ticks.leading, ticks.tick_count) == ("rgb", 80)
    assert ticks.cue_shares["rgb"] == 1.0
    assert ticks.complete_share == pytest.approx(0.5, abs=0.02)


def test_a_sensor_that_had_nothing_is_no_cue(tmp_path: Path, tools: Any) -> None:
    sent = []
    for header, payload in tools.session_packets():
        if header.stream == "hands":
            header = tools.packet("hands", header.sequence, header.device_time_ns, valid=0)
            payload = b""
        sent.append((header, payload))
    health = check(tools.record(tmp_path, sent))
    assert health.ticks[0].cue_shares["hands"] == 0.0
    assert lane(health, "hands").empty_count == 300


def test_video_without_a_key_frame_is_poor(tmp_path: Path, tools: Any) -> None:
    without = [one for one in tools.coffee_packets()[:60] if not one[0].keyframe]
    health = check(tools.record(tmp_path, without))
    assert health.verdict == "poor"
    assert health.reasons[0] == "rgb has no key frame: its video cannot be decoded"


def test_jpeg_needs_no_key_frame_and_depth_may_slow_down(tmp_path: Path, tools: Any) -> None:
    sent = [(tools.packet("rgb", n, n * 10**9 // 30, encoding="jpeg"), b"jpeg") for n in range(300)]
    size = {"width": 4, "height": 4, "encoding": "u16"}
    sent += [(tools.packet("depth", n, n * 10**9, **size), bytes(32)) for n in range(10)]
    sent.append((tools.packet("calibration", 0, 0, encoding="none", calibrates="depth"), b""))
    sent.sort(key=lambda one: one[0].device_time_ns)
    health = check(tools.record(tmp_path, sent))
    assert lane(health, "rgb").starts_with_keyframe is None
    assert lane(health, "depth").stall_count == 0
    assert health.ticks[0].cue_shares.keys() == {"rgb", "depth"}
    assert [reason for reason in health.reasons if "ticks" not in reason] == []


def test_rare_key_frames_and_a_late_first_one_are_told(tmp_path: Path, tools: Any) -> None:
    sent = []
    for header, payload in tools.coffee_packets()[5:200]:
        keyframe = header.keyframe and header.sequence in (15, 180)
        fields = {"keyframe": keyframe}
        sent.append(
            (tools.packet("rgb", header.sequence, header.device_time_ns, **fields), payload)
        )
    reasons = check(tools.record(tmp_path, sent)).reasons
    assert "rgb has 5.5 s between key frames" in reasons
    assert "rgb begins without a key frame: its first pictures are lost" in reasons


def test_what_the_recorder_left_out_is_told(tmp_path: Path, tools: Any) -> None:
    writer = RecordingWriter(tmp_path, RecordingInfo(session="s"))
    for header, payload in tools.sensor_packets("gaze", 10):
        writer.write_packet(header, payload)
    writer.write_note(DropNote(dropped={"rgb": 4}, reason="disk"), device_time_ns=5)
    writer.write_note(DropNote(dropped={"rgb": 3, "gaze": 1}, reason="disk"), device_time_ns=5)
    writer.close()
    health = check(tmp_path)
    assert health.dropped == {"rgb": 7, "gaze": 1}
    assert "left out while it was recorded: gaze 1, rgb 7" in health.reasons


def test_a_damaged_chunk_is_poor_and_an_unclosed_file_usable(recorded: Path) -> None:
    part = recorded / "part-000.mcap"
    data = bytearray(part.read_bytes())
    part.write_bytes(data[:-100])
    unclosed = check(recorded)
    assert (unclosed.verdict, unclosed.finished) == ("usable", False)
    assert "it was not closed" in unclosed.reasons[0]
    with Recording(part) as recording:
        data[recording.parts[0].chunk_offset(1) + 5000] ^= 1
    part.write_bytes(data)
    damaged = check(recorded)
    assert damaged.verdict == "poor"
    assert "1 damaged chunks" in damaged.reasons[0]


def test_the_picture_shows_losses_in_red(tmp_path: Path, tools: Any) -> None:
    sent = tools.sensor_packets("gaze", 600)
    whole = draw_health(check(tools.record(tmp_path / "a", sent)))
    holed = draw_health(check(tools.record(tmp_path / "b", sent[:200] + sent[400:])))
    assert whole.shape[1:] == (1600, 3)
    red = (40, 40, 215)
    assert not (whole[60:] == red).all(axis=2).any()
    columns = np.flatnonzero((holed[70:110, :1440] == red).all(axis=2).any(axis=0))
    width = 1600 - 190 - 150
    assert columns.min() == pytest.approx(190 + width / 3, abs=15)
    assert columns.max() == pytest.approx(190 + width * 2 / 3, abs=15)


def test_a_picture_of_epochs_and_of_nothing_can_be_drawn(tmp_path: Path, tools: Any) -> None:
    first, second = tools.sensor_packets("gaze", 100), tools.sensor_packets("gaze", 50)
    again = [(tools.packet("gaze", h.sequence, h.device_time_ns, epoch=2), p) for h, p in second]
    health = check(tools.record(tmp_path / "r", [*first, *again]))
    assert [(one.epoch, one.packet_count) for one in health.lanes] == [(1, 100), (2, 50)]
    path = tmp_path / "health.png"
    write_health_picture(path, health)
    assert cv2.imread(str(path)) is not None
    with pytest.raises(DataError, match="cannot write the picture"):
        write_health_picture(tmp_path / "none" / "health.png", health)
    writer = RecordingWriter(tmp_path / "empty", RecordingInfo(session="s"))
    writer.write_note(DropNote(dropped={}, reason=""), device_time_ns=0)
    writer.close()
    nothing = check(tmp_path / "empty")
    assert nothing.reasons == ("it holds no packet",)
    assert draw_health(nothing).size
    assert json.dumps(nothing.dropped) == "{}"
