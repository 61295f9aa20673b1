"""Features and key steps of recordings as sessions leave them: simulated packets, real video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from keystep_capture import wire
from keystep_capture.errors import DataError
from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.samples.catalogue import find_sample
from keystep_capture.streams import STREAMS
from keystep_models.steps.cue_extraction import CueChoice, device_moments, extract_features
from keystep_models.steps.recording_source import open_recording

START_NS = 10**12
CUES = CueChoice(cues=("motion", "gaze", "head", "left_hand", "right_hand"))


def header(stream: str, number: int, time_ns: int, **fields: Any) -> wire.PacketHeader:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "send_time_ns": time_ns + 5,
        "encoding": next(iter(STREAMS[stream].encodings)),
    }
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session="ses_1",
        stream=stream,
        sequence=number,
        device_time_ns=time_ns,
        **(defaults | fields),
    )


def video(count: int = 90, **fields: Any) -> list[tuple[wire.PacketHeader, bytes]]:
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "15", "bf": "0"}
    packets = []
    with av.open(str(find_sample("pour-coffee").video_path)) as container:
        for number, picture in zip(range(count), container.decode(video=0), strict=False):
            frame = picture.reformat(320, 240, "yuv420p")
            frame.pts, frame.pict_type = number, PictureType.NONE
            (unit,) = encoder.encode(frame)
            about = header(
                "rgb", number, START_NS + round(number * 1e9 / 30),
                keyframe=unit.is_keyframe, width=320, height=240, **fields,
            )  # fmt: skip
            packets.append((about, bytes(unit)))
    return packets


def sensors(count: int = 180, **fields: Any) -> list[tuple[wire.PacketHeader, bytes]]:
    """Head at rest, gaze forward, the right hand seen and the left one not."""
    hands = np.zeros((2, 26, 9), "<f4")
    hands[1, :, 3], hands[1, :, 6] = 1.0, -0.5
    values = {
        "head": np.eye(4, dtype="<f4"),
        "gaze": np.array([[0, 0, 0], [0, 0, -1]], "<f4"),
        "hands": hands,
    }
    return [
        (header(stream, number, START_NS + round(number * 1e9 / 60), **fields), value.tobytes())
        for number in range(count)
        for stream, value in values.items()
    ]


def record(folder: Path, packets: list[tuple[wire.PacketHeader, bytes]], **options: Any) -> Path:
    writer = RecordingWriter(folder, RecordingInfo(session="ses_1", device="hl2"), **options)
    for about, payload in sorted(packets, key=lambda one: (one[0].epoch, one[0].device_time_ns)):
        writer.write_packet(about, payload, receive_time_ns=about.device_time_ns)
    writer.close()
    return folder


def test_a_session_gives_every_cue_that_its_sensors_had(tmp_path: Path) -> None:
    path = record(tmp_path / "session", video() + sensors())
    before = {part: part.read_bytes() for part in path.iterdir()}
    source = open_recording(path)
    found = extract_features(source, CUES, tmp_path / "features")
    assert found.frame_count == 30
    assert set(found.cues) == {"motion", "gaze", "head", "right_hand"}
    assert any("cue left_hand is missing everywhere" in note for note in found.notes)
    wanted = device_moments(found, [0, 20])
    assert [moment for moment, _ in source.pictures(wanted)] == wanted
    assert {part: part.read_bytes() for part in path.iterdir()} == before


def test_a_session_without_pictures_is_led_by_the_head(tmp_path: Path) -> None:
    path = record(tmp_path / "session", sensors())
    found = extract_features(open_recording(path), CUES, tmp_path / "features")
    assert found.frame_count == 30
    assert "motion" not in found.cues


def test_a_restart_of_the_device_is_a_gap(tmp_path: Path) -> None:
    packets = video(30) + video(30, epoch=2)
    path = record(tmp_path / "session", packets)
    found = extract_features(open_recording(path), CueChoice(cues=("motion",)), tmp_path / "out")
    assert any("the device restarted" in note for note in found.notes)
    assert {epoch for epoch, _ in device_moments(found, [0, found.frame_count - 1])} == {1, 2}


def test_a_recording_that_was_cut_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = record(tmp_path / "session", video() + sensors(), chunk_bytes=20_000)
    [part] = path.iterdir()
    part.write_bytes(part.read_bytes()[: part.stat().st_size * 2 // 3])
    found = extract_features(open_recording(path), CUES, tmp_path / "features")
    assert 5 < found.frame_count < 30
    assert "the recording was not closed" in found.notes


def test_a_folder_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a recording"):
        open_recording(tmp_path)


def test_pictures_and_times_that_make_no_sense_give_an_error_or_few_frames(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(2000)
    fields = {"keyframe": True, "width": 320, "height": 240}
    contents = {
        "noise": [(header("rgb", n, START_NS + n, **fields), noise) for n in range(20)],
        "jumps": [
            (header("head", n, time_ns), np.eye(4, dtype="<f4").tobytes())
            for n, time_ns in enumerate([2**62 - 9, 0, 5, 2**61])
        ],
        "empty hands": [(header("hands", n, n, valid=0), b"") for n in range(50)],
    }
    for name, packets in contents.items():
        path, frame_count, said = record(tmp_path / name, packets), 0, ""
        try:
            found = extract_features(open_recording(path), CUES, tmp_path / f"out {name}")
            frame_count = found.frame_count
        except DataError as error:
            said = str(error)
        assert (frame_count > 0) != bool(said), name
        assert "\n" not in said
        assert frame_count < 1000  # what is between two times is not filled up


def test_a_recording_of_hostile_bytes_is_refused_in_a_line(tmp_path: Path) -> None:
    path = record(tmp_path / "session", sensors(60))
    [part] = path.iterdir()
    whole = part.read_bytes()
    for content in (b"", b"\x89MCAP0\r\n", b"RIFF" * 99, whole[:8] + b"\x06" + b"\xff" * 999):
        part.write_bytes(content)
        with pytest.raises(DataError) as caught:
            extract_features(open_recording(path), CUES, tmp_path / "features")
        assert "\n" not in str(caught.value)


def depth_images(count: int = 15) -> list[tuple[wire.PacketHeader, bytes]]:
    """A plane half a metre away, a third of it not measured; the last images are all holes."""
    packets = []
    for number in range(count):
        image = np.full((36, 40), 500, "<u2")
        image[:, :13] = 0
        if number >= count - 3:
            image[:] = 0
        about = header(
            "depth", number, START_NS + round(number * 1e9 / 5),
            encoding="u16", width=40, height=36, depth_unit_m=0.001,
        )  # fmt: skip
        packets.append((about, image.tobytes()))
    return packets


def test_depth_becomes_a_picture_in_metres_and_is_missing_where_it_is_all_holes(
    tmp_path: Path,
) -> None:
    path = record(tmp_path / "session", video() + depth_images())
    moments = list(open_recording(path).moments(10.0))
    image = moments[4].samples["depth"]
    assert image is not None
    assert np.nanmax(image) == pytest.approx(0.5)
    assert np.isnan(image).mean() == pytest.approx(13 / 40)
    found = extract_features(open_recording(path), CueChoice(cues=("depth",)), tmp_path / "out")
    depth = found.cues["depth"]
    assert depth.features.shape == (30, 1280)
    assert depth.valid[1:20].all()
    assert not depth.valid[-4:].any()
    assert depth.source["extractor"] == "depth-picture"


def test_gaze_is_stacked_from_every_sample_not_from_the_ticks(tmp_path: Path) -> None:
    packets = video()
    for number in range(180):
        time_ns = START_NS + round(number * 1e9 / 60)
        ray = np.array([[0, 0, 0], [0.001 * number, 0, -1]], "<f4")
        packets.append((header("head", number, time_ns), np.eye(4, dtype="<f4").tobytes()))
        missing = number == 100
        content = b"" if missing else ray.tobytes()
        packets.append((header("gaze", number, time_ns, valid=0 if missing else -1), content))
    path = record(tmp_path / "session", packets)
    choice = CueChoice(cues=("gaze_stack", "head"))
    found = extract_features(open_recording(path), choice, tmp_path / "out").cues["gaze_stack"]
    assert found.size == 48
    assert np.flatnonzero(~found.valid).tolist() == [0, 1, 2]  # fewer than sixteen samples yet
    rows = found.features[17].reshape(16, 3)  # its newest sample is number 102
    np.testing.assert_allclose(rows[:13, 0], 0.001 * np.arange(87, 100), atol=1e-5)
    np.testing.assert_allclose(rows[13], (0.099, 0, 0), atol=1e-5)  # the one before stands for it
    np.testing.assert_allclose(rows[14:, 2], 1)


def test_sensors_that_cannot_be_read_are_missing_not_numbers(tmp_path: Path) -> None:
    packets = video() + sensors()
    broken = [
        (about, np.full(6, np.nan, "<f4").tobytes())
        if about.stream == "gaze" and 60 <= about.sequence < 90
        else (about, payload)
        for about, payload in packets
    ]
    path = record(tmp_path / "session", broken)
    choice = CueChoice(cues=("motion", "gaze", "gaze_stack"))
    found = extract_features(open_recording(path), choice, tmp_path / "out")
    for cue in ("gaze", "gaze_stack"):
        assert not found.cues[cue].valid[11:15].any()
        assert found.cues[cue].valid[-5:].all()
        assert np.isfinite(found.cues[cue].features).all()
