"""Real packets and recordings of them, as fixtures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from keystep_capture import wire
from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.samples import find_sample
from keystep_capture.streams import STREAMS

SESSION = "ses_1"
POSE = [1.0, 0.0, 0.0, 0.1, 0.0, 0.0, -1.0, 1.6, 0.0, 1.0, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0]


def packet(stream: str, sequence: int, time_ns: int, **fields: Any) -> wire.PacketHeader:
    """A header as a live session would have it."""
    encoding = next(iter(STREAMS[stream].encodings))
    defaults: dict[str, Any] = {"epoch": 1, "encoding": encoding, "send_time_ns": time_ns + 5}
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session=SESSION,
        stream=stream,
        sequence=sequence,
        device_time_ns=time_ns,
        **(defaults | fields),
    )


Packets = list[tuple[wire.PacketHeader, bytes]]


@functools.cache
def coffee_packets() -> tuple[tuple[wire.PacketHeader, bytes], ...]:
    """The bundled clip as a headset would encode it: no B frames, a key frame in 15."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "15", "bf": "0"}
    packets = []
    with av.open(str(find_sample("pour-coffee").video_path)) as container:
        for picture in container.decode(video=0):
            frame = picture.reformat(320, 240, "yuv420p")
            frame.pts, frame.pict_type = len(packets), PictureType.NONE
            (unit,) = encoder.encode(frame)
            fields: dict[str, Any] = {"keyframe": unit.is_keyframe, "width": 320, "height": 240}
            fields |= {"intrinsics": (500.0, 500.0, 160.0, 120.0), "pose": POSE}
            number = len(packets)
            header = packet("rgb", number, 10**12 + round(number * 1e9 / 30), **fields)
            packets.append((header, bytes(unit)))
    return tuple(packets)


def sensor_packets(stream: str, count: int, rate_hz: float = 60.0) -> Packets:
    """Packets of small sensors, each with other numbers."""
    generator = np.random.default_rng(sum(map(ord, stream)))
    packets = []
    for number in range(count):
        encoding = next(iter(STREAMS[stream].encodings.values()))
        size = encoding.row_bytes // np.dtype(encoding.numeric).itemsize
        values = generator.normal(size=size).astype(encoding.numeric)
        header = packet(stream, number, 10**12 + round(number * 1e9 / rate_hz))
        packets.append((header, values.tobytes()))
    return packets


@functools.cache
def session_packets() -> tuple[tuple[wire.PacketHeader, bytes], ...]:
    """Five streams of five seconds, in the order in which a bridge would send them."""
    streams = [list(coffee_packets()[:150])]
    streams += [sensor_packets(name, 300) for name in ("gaze", "head", "hands")]
    streams.append(sensor_packets("detections", 50, 10.0))
    return tuple(sorted(itertools.chain(*streams), key=lambda one: one[0].device_time_ns))


def record(
    folder: Path, packets: Iterable[tuple[wire.PacketHeader, bytes]], **options: Any
) -> Path:
    """Record packets into a folder, each 20 ms after its capture; the folder."""
    writer = RecordingWriter(folder, RecordingInfo(session=SESSION, device="hl2"), **options)
    for header, payload in packets:
        arrival_ns = header.device_time_ns - 9 * 10**11
        writer.write_packet(header, payload, receive_time_ns=arrival_ns + 20_000_000)
    writer.close()
    return folder


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What tests make packets and recordings with."""
    return SimpleNamespace(
        packet=packet,
        coffee_packets=coffee_packets,
        sensor_packets=sensor_packets,
        session_packets=session_packets,
        record=record,
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A recording of five streams and five seconds in one part."""
    return record(tmp_path / "recorded", session_packets())
