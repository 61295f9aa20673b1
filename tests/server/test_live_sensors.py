"""Every sensor's stream at a whole server: taken, checked, counted, and depth in the ticks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from keystep_capture.payloads import encode_png16
from keystep_capture.samples import find_sample
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.device_streams import DEVICE_STREAMS
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import Faults, SimulatedHeadset
from keystep_hololens.simulator.encoder import EncoderSettings, PictureEncoder
from keystep_server.features import APPEARANCE, DEPTH, read_ticks

S, MS = 1_000_000_000, 1_000_000
ALL_BUT_AHAT = tuple(name for name in DEVICE_STREAMS if not name.startswith("depth_ahat"))
PLANE = encode_png16(np.arange(320 * 288, dtype=np.uint16).reshape(288, 320))


def depth_packet(device_time_ns: int, **changes: Any) -> dict[str, Any]:
    packet = {
        "device_time_ns": device_time_ns,
        "payload": PLANE,
        "encoding": "png16",
        "width": 320,
        "height": 288,
        "depth_unit_m": 0.001,
    }
    return packet | changes


@asynccontextmanager
async def headset_at(live: Any, *streams: str, **options: Any) -> AsyncIterator[Any]:
    """A whole simulated headset and a bridge that carries these streams to a server."""
    codec = options.pop("video_codec", "h264")
    sample = find_sample("pour-coffee")
    async with SimulatedHeadset.of_sample(
        sample, whole=True, microphone=True, loop=True, **options
    ) as headset:
        config = BridgeConfig(
            host="127.0.0.1",
            base_port=headset.base_port,
            server=live.server.wire_endpoint,
            streams=streams,
            video_codec=codec,
        )
        bridge = Bridge(config)
        running = asyncio.create_task(bridge.run())
        try:
            yield bridge.sender, headset
        finally:
            bridge.stop()
            await running


async def test_every_sensor_of_a_headset_is_taken_checked_and_counted(
    live: Any, tools: Any
) -> None:
    async with headset_at(live, *ALL_BUT_AHAT) as (sender, _):
        await tools.eventually(lambda: sender.state == "open")
        for stream in ALL_BUT_AHAT:
            stats = await live.worked_off(sender, stream, 4)
        stats = await live.worked_off(sender, "depth", 8)
    assert set(stats["streams"]) == {*ALL_BUT_AHAT, "calibration"}
    assert stats["refused"] == {}
    undone = {name for name in stats["dropped"] if not name.endswith("/before_keyframe")}
    assert undone == set()
    tracking = [f"vlc_{side}" for side in ("left_front", "left_left", "right_front", "right_right")]
    assert stats["calibrated"] == sorted(["depth", "accelerometer", "gyroscope", *tracking])
    cues = stats["tick_cues"]
    assert min(cues[name] for name in ("appearance", "head", "gaze", "hands", "depth")) > 0
    assert all(lane["lost"] == lane["dropped_by_sender"] for lane in stats["streams"].values())
    assert (await live.close_session(sender))["state"] == "closed"


async def test_ahat_depth_and_hevc_video_are_taken_together(live: Any, tools: Any) -> None:
    streams = ("rgb", "head", "depth_ahat", "depth_ahat_ab")
    async with headset_at(live, *streams, video_codec="hevc") as (sender, headset):
        await tools.eventually(lambda: sender.state == "open")
        for stream in streams:
            stats = await live.worked_off(sender, stream, 15)
        headset.set_faults(Faults(ahat_rate_hz=5.0))
        ticks = stats["ticks"]
        while stats["ticks"] < ticks + 10:
            stats = await live.stats(sender)
            await asyncio.sleep(0.05)
    assert stats["decoded_frames"] >= 15
    assert stats["tick_cues"]["appearance"] > 0
    assert stats["tick_cues"]["depth"] > 0
    assert stats["refused"] == {}


@pytest.mark.parametrize("rate_hz", [5.0, 1.0])
async def test_depth_at_any_rate_stalls_no_tick_and_is_missing_where_it_is_old(
    live: Any, coffee: list[Any], tmp_path: Path, rate_hz: float
) -> None:
    sender = await live.join("hl2", "rgb", "depth", replay=True, kind="expert")
    depth_ns = [round(n * S / rate_hz) for n in range(int(6 * rate_hz))]
    arrivals = [("rgb", packet) for packet in coffee[:180]]
    arrivals += [("depth", depth_packet(at_ns)) for at_ns in depth_ns]
    for stream, packet in sorted(arrivals, key=lambda arrival: arrival[1]["device_time_ns"]):
        await live.send(sender, stream, [packet])
    await live.worked_off(sender, "rgb", 180)
    stats = await live.worked_off(sender, "depth", len(depth_ns))
    await sender.finish(close=True)
    (path,) = tmp_path.rglob("ticks.rows")
    ticks = read_ticks(path)
    assert len(ticks) == 60
    assert ((ticks["cues"] & APPEARANCE) != 0).all()
    for tick in ticks:
        age_ns = min(tick["device_time_ns"] - at for at in depth_ns if at <= tick["device_time_ns"])
        assert bool(tick["cues"] & DEPTH) == (age_ns <= 400 * MS)
    assert stats["streams"]["depth"]["packets"] == len(depth_ns)


async def test_depth_alone_makes_no_tick(live: Any, tools: Any) -> None:
    sender = await live.join("hl2", "depth", kind="expert")
    await live.send(sender, "depth", [depth_packet(n * S // 5) for n in range(5)])
    stats = await live.worked_off(sender, "depth", 5)
    assert (stats["ticks"], stats["dropped"]) == (0, {})
    await sender.finish(close=True)


@pytest.mark.parametrize(
    ("stream", "packet", "reason"),
    [
        ("depth", depth_packet(0, width=321), "size_mismatch"),
        ("depth", depth_packet(0, width=None), "size_mismatch"),
        ("depth", depth_packet(0, payload=b"GIF89a"), "undecodable"),
        ("depth_ab", depth_packet(0, encoding="u16", payload=bytes(100)), "size_mismatch"),
        (
            "gyroscope",
            {
                "device_time_ns": 0,
                "encoding": "samples_f32",
                "payload": np.full(5, np.inf, "<f4").tobytes(),
            },
            "not_finite",
        ),
        (
            "calibration",
            {"device_time_ns": 0, "encoding": "none", "payload": b"", "calibrates": "lidar"},
            "unknown_stream",
        ),
    ],
)
async def test_a_sensors_bad_packet_is_counted_and_the_next_one_taken(
    live: Any, stream: str, packet: dict[str, Any], reason: str
) -> None:
    sender = await live.join("hl2", stream, "head", kind="expert")
    await live.send(sender, stream, [packet])
    pose = np.eye(4, dtype="<f4").tobytes()
    head = {"device_time_ns": 0, "payload": pose, "encoding": "pose_f32"}
    await live.send(sender, "head", [head])
    await live.worked_off(sender, "head", 1)
    stats = await live.worked_off(sender, stream, 1)
    assert stats["dropped"] == {f"{stream}/{reason}": 1}
    assert stats["last_error"] is None


def hevc_packets(count: int) -> list[dict[str, Any]]:
    """The sample's first pictures as PV's HEVC, groups of 10."""
    settings = EncoderSettings(
        profile=VideoProfile.HEVC_MAIN,
        width=640,
        height=360,
        frame_rate_hz=Fraction(30),
        bitrate_bps=1_000_000,
        gop_size=10,
    )
    encoder = PictureEncoder(settings)
    path = find_sample("pour-coffee").video_path
    assert path is not None
    with av.open(path) as container:
        pictures = [
            frame for _, frame in zip(range(count), container.decode(video=0), strict=False)
        ]
    return [
        {
            "device_time_ns": number * S // 30,
            "payload": encoder.encode(picture.reformat(width=640, height=360, format="yuv420p")),
            "encoding": "hevc",
            "keyframe": number % 10 == 0,
            "width": 640,
            "height": 360,
        }
        for number, picture in enumerate(pictures)
    ]


async def test_a_broken_group_of_hevc_pictures_is_left_out_up_to_the_next_key_frame(
    live: Any, raw: Any
) -> None:
    await raw.join("hl2", "rgb", replay=True)
    lost = 13
    for sequence, packet in enumerate(hevc_packets(30)):
        if sequence != lost:
            await raw.send("rgb", sequence, packet)
    while True:
        stats = (await live.get(f"/sessions/{raw.session}/stats"))["stats"]
        lane = stats["streams"].get("rgb", {})
        if lane.get("packets") == 29 and not lane["waiting"]:
            break
        await asyncio.sleep(0.02)
    assert stats["dropped"] == {"rgb/before_keyframe": 6}  # 14 to 19
    assert stats["decoded_frames"] == 23
    assert lane["lost"] == 1


async def test_video_that_comes_after_head_ticks_takes_them_on_without_going_back_in_time(
    live: Any, coffee: list[Any], tmp_path: Path
) -> None:
    sender = await live.join("hl2", "rgb", "head", replay=True, kind="expert")
    pose = np.eye(4, dtype="<f4").tobytes()
    heads = [
        {"device_time_ns": n * S // 60, "payload": pose, "encoding": "pose_f32"} for n in range(60)
    ]
    await live.send(sender, "head", heads)
    await live.worked_off(sender, "head", 60)
    await live.send(sender, "rgb", coffee[15:75])  # captured from half a second on
    await live.worked_off(sender, "rgb", 60)
    await live.close_session(sender)
    (path,) = tmp_path.rglob("ticks.rows")
    times_ns = read_ticks(path)["device_time_ns"]
    assert (np.diff(times_ns) > 90 * MS).all()
    assert len(times_ns) == 25


async def test_a_dead_depth_port_and_stalled_eyes_hinder_no_tick(live: Any, tools: Any) -> None:
    faults = Faults(
        silent=True, ports=frozenset({Port.RM_DEPTH_LONGTHROW, Port.EXTENDED_EYE_TRACKER})
    )
    streams = ("rgb", "head", "depth", "eye_tracking")
    async with headset_at(live, *streams, faults=faults) as (sender, _):
        await tools.eventually(lambda: sender.state == "open")
        stats = await live.worked_off(sender, "rgb", 60)
        assert "packets" in stats["streams"]["depth"]
    assert stats["streams"]["depth"]["packets"] == stats["streams"]["eye_tracking"]["packets"] == 0
    assert stats["ticks"] >= 15
    assert stats["tick_cues"]["depth"] == 0
    assert stats["tick_cues"]["head"] > 0
