"""Recordings that are whole as files and hostile in what they hold, through all that uses them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError, KeystepError
from keystep_capture.recording import Recording
from keystep_capture.recording.export import export_csv, export_mp4
from keystep_capture.recording.health import check
from keystep_capture.recording.health_picture import write_health_picture
from keystep_capture.recording.pictures import read_frames, read_ticks
from keystep_capture.streams import STREAMS

SIZE = {"width": 320, "height": 240}
LATEST = 2**62 - 9  # a packet is sent a little later than it is captured
NOISE = np.random.default_rng(1).bytes(3000)


def claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than it has."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def rgb(tools: Any, *payloads: bytes, encoding: str = "h264", **fields: Any) -> list[Any]:
    fields = {"keyframe": True, "encoding": encoding, **SIZE, **fields}
    return [
        (tools.packet("rgb", number, 10**12 + number * 33_000_000, **fields), payload)
        for number, payload in enumerate(payloads)
    ]


def sensors_at(tools: Any, times: list[int]) -> list[Any]:
    return [
        (tools.packet(stream, number, time_ns), bytes(size))
        for number, time_ns in enumerate(times)
        for stream, size in (("head", 64), ("gaze", 24))
    ]


def many_epochs(tools: Any) -> list[Any]:
    """More streams and epochs than a picture has rows for."""
    packets = []
    for epoch in range(1, 40):
        for stream in STREAMS:
            encoding = next(
                (one for one in STREAMS[stream].encodings.values() if one.numeric), None
            )
            if encoding is None or not encoding.row_bytes:
                continue
            fields = {"epoch": epoch, "encoding": encoding.name, "width": 1, "height": 1}
            header = tools.packet(stream, 0, epoch, **fields)
            packets.append((header, bytes(encoding.row_bytes)))
        packets.append((tools.packet("rgb", 0, epoch, epoch=epoch, keyframe=True), NOISE))
    return packets


def changing(tools: Any) -> list[Any]:
    """Another size, then another encoding, in the middle."""
    coffee = [payload for _, payload in tools.coffee_packets()[:15]]
    return rgb(tools, *coffee[:8]) + [
        (tools.packet("rgb", 8 + n, 10**12 + n + 8 * 33_000_000, **fields), payload)
        for n, (payload, fields) in enumerate(
            [
                (coffee[0], {"keyframe": True, "width": 16, "height": 16}),
                (claiming(16, 16), {"encoding": "jpeg", **SIZE}),
                (coffee[0], {"encoding": "hevc", "keyframe": True, **SIZE}),
            ]
        )
    ]


CONTENTS: dict[str, Callable[[Any], list[Any]]] = {
    "video that is noise": lambda tools: rgb(tools, NOISE, NOISE),
    "start codes and nothing else": lambda tools: rgb(tools, b"\0\0\1" * 900),
    "a key frame that is none": lambda tools: rgb(tools, tools.coffee_packets()[3][1]),
    "pictures cut off": lambda tools: rgb(tools, *(p[:40] for _, p in tools.coffee_packets()[:9])),
    "HEVC that is H.264": lambda tools: rgb(tools, tools.coffee_packets()[0][1], encoding="hevc"),
    "JPEG that is noise": lambda tools: rgb(tools, NOISE, encoding="jpeg"),
    "JPEG of four gigapixels": lambda tools: rgb(tools, claiming(65500, 65500), encoding="jpeg"),
    "times that go back": lambda tools: sensors_at(tools, [*range(10**12, 0, -(10**10))]),
    "times of three centuries": lambda tools: sensors_at(tools, [0, LATEST, 5, LATEST - 1]),
    "all at one time": lambda tools: sensors_at(tools, [7] * 300),
    "video at one time": lambda tools: [
        (tools.packet("rgb", n, 10**12, keyframe=n == 0, **SIZE), payload)
        for n, (_, payload) in enumerate(tools.coffee_packets()[:20])
    ],
    "video that goes back": lambda tools: [
        (tools.packet("rgb", n, 10**12 - n, keyframe=n == 0, **SIZE), payload)
        for n, (_, payload) in enumerate(tools.coffee_packets()[:20])
    ],
    "more epochs than fit a picture": many_epochs,
    "video that changes": changing,
    "only sensors without ticks": lambda tools: tools.sensor_packets("accelerometer", 3),
}


def use_all(folder: Path, out: Path) -> list[str]:
    """Everything that reads a recording; what was refused, and how."""
    said = []
    out.mkdir(exist_ok=True)

    def ticks() -> None:
        with Recording(folder) as recording:
            for epoch in recording.epochs[:3]:
                for leading in ("rgb", "head"):
                    list(read_ticks(recording, epoch=epoch, leading=leading, skip_damage=True))

    def frames() -> None:
        with Recording(folder) as recording:
            wanted = [(p.header.epoch, p.header.device_time_ns) for p in recording.packets()]
        list(read_frames([folder], wanted[:50]))

    def mp4() -> None:
        with Recording(folder) as recording:
            export_mp4(recording, out / "video.mp4")

    def csv() -> None:
        with Recording(folder) as recording:
            export_csv(recording, out / "csv")

    def picture() -> None:
        write_health_picture(out / "health.png", check(folder))

    for use in (ticks, frames, mp4, csv, picture):
        try:
            use()
        except KeystepError as error:
            said.append(f"{use.__name__}: {error}")
    return said


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_what_a_recording_holds_breaks_nothing_that_uses_it(
    tmp_path: Path, tools: Any, name: str
) -> None:
    folder = tools.record(tmp_path / "r", CONTENTS[name](tools))
    said = use_all(folder, tmp_path / "out")
    assert not any("\n" in text for text in said), said
    assert {text.partition(":")[0] for text in said} <= {"mp4"}
    assert (tmp_path / "out" / "health.png").stat().st_size > 1000
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"csv", "health.png", "video.mp4", "video.times.json"}
    assert ("video.mp4" in left) == ("video.times.json" in left) == (not said)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    times=st.lists(st.integers(0, LATEST), min_size=1, max_size=30),
    payloads=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6),
    encoding=st.sampled_from(("h264", "hevc", "jpeg")),
)
def test_no_times_or_pictures_give_more_than_an_error(
    times: list[int], payloads: list[bytes], encoding: str, tmp_path_factory: Any, tools: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    packets = sensors_at(tools, times) + rgb(tools, *payloads, encoding=encoding)
    said = use_all(tools.record(folder / "r", packets), folder / "out")
    assert not any("\n" in text for text in said), said


def test_a_video_that_cannot_be_exported_leaves_no_file(tmp_path: Path, tools: Any) -> None:
    folder = tools.record(tmp_path / "r", rgb(tools, NOISE))
    with Recording(folder) as recording, pytest.raises(DataError, match="rgb"):
        export_mp4(recording, tmp_path / "v.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
