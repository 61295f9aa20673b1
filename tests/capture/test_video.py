"""Key frames and decoding of both codecs that a headset speaks, with real encoders."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import VideoError
from keystep_capture.video import GapFilter, PacketDecoder, is_keyframe

ENCODERS = {
    "h264": ("libx264", "x264-params", "aud=1:repeat-headers=1:scenecut=0"),
    "hevc": ("libx265", "x265-params", "log-level=none:repeat-headers=1:scenecut=0"),
}
GROUP, COUNT = 5, 15


def encoded(codec: str) -> list[tuple[bytes, int]]:
    """Pictures of growing brightness as access units, and the brightness of each."""
    name, option, value = ENCODERS[codec]
    encoder = av.VideoCodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(30), Fraction(1, 30)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = GROUP, 0, 1
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", option: value}
    units = []
    for number in range(COUNT):
        planes = np.full((144, 128), 128, np.uint8)
        planes[:96] = 30 + 12 * number
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = number, encoder.time_base
        (packet,) = encoder.encode(frame)
        units.append((bytes(packet), 30 + 12 * number))
    return units


@pytest.mark.parametrize("codec", ENCODERS)
def test_key_frames_are_told_by_their_bytes_and_each_packet_gives_its_picture(codec: str) -> None:
    units = encoded(codec)
    keys = [number for number, (unit, _) in enumerate(units) if is_keyframe(unit, codec)]
    assert keys == list(range(0, COUNT, GROUP))
    decoder = PacketDecoder(codec)
    for unit, brightness in units:
        frame = decoder.decode(unit)
        luma = np.frombuffer(memoryview(frame.planes[0]), np.uint8)
        assert abs(luma.mean() - brightness) < 4


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("lost", [2, 4, 5, 7])
def test_after_a_loss_only_right_pictures_are_given_out(codec: str, lost: int) -> None:
    decoder, gaps = PacketDecoder(codec), GapFilter()
    shown = []
    for sequence, (unit, brightness) in enumerate(encoded(codec)):
        if sequence == lost or not gaps.admit(sequence, keyframe=is_keyframe(unit, codec)):
            continue
        frame = decoder.decode(unit)
        luma = np.frombuffer(memoryview(frame.planes[0]), np.uint8)
        assert abs(luma.mean() - brightness) < 4
        shown.append(sequence)
    group_end = (lost // GROUP + 1) * GROUP
    assert shown == [*range(lost), *range(group_end, COUNT)]


@pytest.mark.parametrize("codec", ENCODERS)
def test_bytes_that_are_no_picture_are_refused_and_a_key_frame_mends_it(codec: str) -> None:
    (key, brightness), *_ = encoded(codec)
    decoder = PacketDecoder(codec)
    with pytest.raises(VideoError):
        decoder.decode(b"\x00\x00\x01\x65" + bytes(range(200)))
    frame = decoder.decode(key)
    assert abs(np.frombuffer(memoryview(frame.planes[0]), np.uint8).mean() - brightness) < 4


def test_the_reference_packets_say_rightly_whether_they_are_key_frames() -> None:
    path = Path(__file__).parents[1] / "golden" / "wire" / "messages.json"
    video = [
        golden
        for golden in json.loads(path.read_text(encoding="utf-8"))
        if golden["fields"].get("encoding") in ENCODERS
    ]
    assert {golden["fields"]["encoding"] for golden in video} == set(ENCODERS)
    for golden in video:
        unit = bytes.fromhex(golden["payload_hex"])
        is_key = is_keyframe(unit, golden["fields"]["encoding"])
        assert is_key is golden["fields"].get("keyframe", False)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_key_frame_or_not(data: bytes) -> None:
    for codec in ENCODERS:
        assert is_keyframe(data, codec) in (True, False)
    assert is_keyframe(data, "jpeg")


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(VideoError, match=r"'vp9' is unknown; known: .*hevc"):
        PacketDecoder("vp9")
