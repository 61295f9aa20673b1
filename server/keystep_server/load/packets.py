"""What a simulated headset sends, made once and stored, so that sending it costs little.

The video is the bundled real sample, encoded as hl2ss does; poses, hands and depth are simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import msgspec
import numpy as np

from keystep_capture.errors import DataError
from keystep_capture.samples import find_sample
from keystep_capture.streams import HAND_JOINT_VALUES, HAND_JOINTS, STREAMS

SIZE = (640, 360)
RATE_HZ = 30
SPATIAL_RATE_HZ = 60
FRAME_COUNT = 240
GROUP_FRAMES = 15
"""A key frame each half second, as the bridge asks for."""
DEPTH_SIZE, DEPTH_RATE_HZ = (320, 288), 5
_NS = 1_000_000_000


class StoredPacket(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One packet; `offset_ns` counts from the recording's start."""

    stream: str
    offset_ns: int
    payload: bytes
    encoding: str
    keyframe: bool = False
    width: int | None = None
    height: int | None = None


class StoredPackets(msgspec.Struct, frozen=True, kw_only=True):
    """A headset's packets in order of time; played round and round."""

    duration_ns: int
    packets: list[StoredPacket]

    def of(self, stream: str) -> list[StoredPacket]:
        """The packets of one stream, in order."""
        return [packet for packet in self.packets if packet.stream == stream]

    def endless(self) -> Iterator[tuple[int, StoredPacket]]:
        """Offset from the start, ns, and packet: round and round."""
        start_ns = 0
        while True:
            for packet in self.packets:
                yield start_ns + packet.offset_ns, packet
            start_ns += self.duration_ns

    def write(self, path: Path) -> None:
        """Store them in a file."""
        path.write_bytes(msgspec.msgpack.encode(self))

    @classmethod
    def read(cls, path: Path) -> StoredPackets:
        """Read what `write` wrote.

        Raises:
            DataError: The file is missing or not of this form.
        """
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f"{path.name} holds no stored packets: {error}") from error


def make_packets(frame_count: int = FRAME_COUNT) -> StoredPackets:
    """Encode the real video sample and simulate the other streams beside it.

    Raises:
        DataError: This installation of PyAV cannot encode H.264.
    """
    found = [*_video(frame_count), *_spatial_input(frame_count * SPATIAL_RATE_HZ // RATE_HZ)]
    if "depth" in STREAMS:
        found += _depth(frame_count * DEPTH_RATE_HZ // RATE_HZ)
    return StoredPackets(
        duration_ns=frame_count * _NS // RATE_HZ,
        packets=sorted(found, key=lambda packet: packet.offset_ns),
    )


def _video(frame_count: int) -> Iterator[StoredPacket]:
    encoder = _encoder()
    for number, frame in enumerate(islice(_pictures(), frame_count)):
        frame.pts, frame.time_base = number, encoder.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        (packet,) = encoder.encode(frame)
        yield StoredPacket(
            stream="rgb",
            offset_ns=number * _NS // RATE_HZ,
            payload=bytes(packet),
            encoding="h264",
            keyframe=bool(packet.is_keyframe),
            width=SIZE[0],
            height=SIZE[1],
        )


def _encoder() -> av.VideoCodecContext:
    try:
        encoder = av.VideoCodecContext.create("libx264", "w")
    except ValueError as error:  # an LGPL build of FFmpeg
        raise DataError(f"the load's video needs PyAV with libx264: {error}") from None
    encoder.width, encoder.height = SIZE
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, RATE_HZ), Fraction(RATE_HZ)
    encoder.bit_rate = SIZE[0] * SIZE[1] * RATE_HZ * 12 // 75  # hl2ss's own choice
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = GROUP_FRAMES, 0, 1
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": "aud=1:repeat-headers=1:scenecut=0",
    }
    return encoder


def _pictures() -> Iterator[av.VideoFrame]:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    while True:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                yield frame.reformat(width=SIZE[0], height=SIZE[1], format="yuv420p")


def _spatial_input(sample_count: int) -> Iterator[StoredPacket]:
    """Head, gaze and hands of a headset that sways slowly; simulated."""
    rng = np.random.default_rng(1)
    hands = rng.normal(size=(2, HAND_JOINTS, HAND_JOINT_VALUES)).astype("<f4")
    for number in range(sample_count):
        sway_m = 0.05 * np.sin(2 * np.pi * number / sample_count)
        head = np.eye(4, dtype="<f4")
        head[0, 3] = sway_m
        gaze = np.array([[sway_m, 0, 0], [0, 0, -1]], "<f4")
        offset_ns = number * _NS // SPATIAL_RATE_HZ
        for stream, value, encoding in (
            ("head", head, "pose_f32"),
            ("gaze", gaze, "ray_f32"),
            ("hands", hands + np.float32(sway_m), "joints_f32"),
        ):
            yield StoredPacket(
                stream=stream, offset_ns=offset_ns, payload=value.tobytes(), encoding=encoding
            )


def _depth(image_count: int) -> Iterator[StoredPacket]:
    """Long-throw depth, mm, of a slanted wall that comes and goes; simulated."""
    rng = np.random.default_rng(2)
    width, height = DEPTH_SIZE
    wall_mm = np.linspace(900, 2400, width)[None] + rng.normal(0, 6, (height, width))
    for number in range(image_count):
        image = (wall_mm + 100 * np.sin(2 * np.pi * number / image_count)).astype(np.uint16)
        _, encoded = cv2.imencode(".png", image)
        yield StoredPacket(
            stream="depth",
            offset_ns=number * _NS // DEPTH_RATE_HZ,
            payload=encoded.tobytes(),
            encoding="png16",
            width=width,
            height=height,
        )
