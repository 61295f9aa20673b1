"""Real video as PV H.264 through a whole server: features, key steps and their pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.onnx_model import OnnxModel
from keystep_server.features import APPEARANCE, read_ticks

MAX_MEAN_DIFFERENCE = 2.0  # of 255: what two JPEG encodings of quality 90 and more leave
# Cosine: the engine may batch, and ONNX Runtime's sums depend on the batch in the last digits.
SAME_EMBEDDING = 0.99999
CLIP = Path("data/video/egocentric_bike_repair.mp4")


async def play(live: Any, device: str, packets: list[Any], **options: Any) -> Any:
    """Stream a video losslessly and close its session; its source."""
    options = {"replay": True, "kind": "expert", **options}
    sender = await live.join(device, "rgb", **options)
    await live.send(sender, "rgb", packets)
    await sender.finish(close=True)
    return sender


async def key_steps(live: Any, sender: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await live.get(f"/sessions/{sender.session}/key-steps"))[
        "key_steps"
    ]
    return found


def without_ids(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in step.items() if k not in ("id", "exemplar", "clip_url")} for step in steps
    ]


def decode_all(packets: list[Any]) -> dict[int, av.VideoFrame]:
    """Every picture by its device time, from a decoder of the test's own."""
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet["payload"]))]
    frames += decoder.decode(None)
    times = [packet["device_time_ns"] for packet in packets]
    return dict(zip(times, frames, strict=True))


async def picture_of(live: Any, step: dict[str, Any], width: int) -> NDArray[np.uint8]:
    answer = await live.rest.get(step["exemplar"]["url"], params={"width": width})
    assert answer.headers["content-type"] == "image/jpeg"
    image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


async def test_video_gives_features_at_ten_hertz_and_key_steps_with_the_right_pictures(
    live: Any, coffee: Any
) -> None:
    sender = await play(live, "hl2", coffee)
    stats = await live.stats(sender)
    assert stats["decoded_frames"] == stats["streams"]["rgb"]["packets"] == len(coffee)
    duration_s = (coffee[-1]["device_time_ns"] - coffee[0]["device_time_ns"]) / 1e9
    assert stats["ticks"] == stats["appearance_features"] == int(duration_s * 10) + 1
    assert (stats["dropped"], stats["features_left_out"], stats["late"]["rgb"]) == ({}, {}, 0)
    steps = await key_steps(live, sender)
    assert len(steps) >= 2
    frames = decode_all(coffee)
    for step in steps:
        frame = frames[int(step["exemplar_device_time_ns"])].to_ndarray(format="bgr24")
        assert (step["exemplar"]["width"], step["exemplar"]["height"]) == (640, 360)
        served = await picture_of(live, step, 320)
        wanted = cv2.resize(frame, (320, 180), interpolation=cv2.INTER_AREA)
        assert np.abs(served.astype(int) - wanted).mean() < MAX_MEAN_DIFFERENCE


async def test_extracted_key_steps_are_in_order_and_say_where_they_come_from(
    live: Any, coffee: Any
) -> None:
    sender = await play(live, "hl2", coffee)
    steps = await key_steps(live, sender)
    assert [step["position"] for step in steps] == list(range(len(steps)))
    exemplars = [step["exemplar_s"] for step in steps]
    assert exemplars == sorted(exemplars)
    for step in steps:
        assert (step["source"], step["status"], step["step_id"]) == ("extracted", "proposed", None)
        assert 0 <= step["start_s"] <= step["exemplar_s"] <= step["end_s"] < 9.7
        assert step["provenance"]["method"] == "steps-algorithm-1"
        assert step["provenance"]["model"] == "appearance-efficientnet-lite0"


async def test_same_video_gives_the_same_key_steps_again(live: Any, coffee: Any) -> None:
    first = await play(live, "first", coffee)
    second = await play(live, "second", coffee)
    assert without_ids(await key_steps(live, first)) == without_ids(await key_steps(live, second))


async def test_stored_embeddings_are_those_of_the_committed_model(
    tmp_path: Path, live: Any, coffee: Any
) -> None:
    sender = await play(live, "hl2", coffee)
    ticks = read_ticks(tmp_path / "sessions" / sender.session / "ticks.rows")
    assert np.all(ticks["cues"] & APPEARANCE)
    model, preprocessing = OnnxModel.load(appearance_manifest_path()), AppearancePreprocessing()
    frames = decode_all(coffee)
    for tick in ticks[::20]:
        rows = np.empty((1, CROP, CROP, 3), np.uint8)
        preprocessing.from_video_frame(frames[int(tick["device_time_ns"])], rows[0])
        wanted, stored = model.run(rows)[0], tick["appearance"]
        cosine = wanted @ stored / np.linalg.norm(wanted) / np.linalg.norm(stored)
        assert cosine > SAME_EMBEDDING


async def test_after_a_lost_packet_nothing_is_decoded_before_the_next_key_frame(
    tmp_path: Path, live: Any, raw: Any, coffee: Any, tools: Any
) -> None:
    packets = tools.encode_h264(list(decode_all(coffee[:30]).values()), gop=10)
    await raw.join("hl2", "rgb", replay=True)
    for sequence, packet in enumerate(packets):
        if sequence != 14:
            await raw.send("rgb", sequence, packet)
    stats = await live.worked_off(raw, "rgb", 29)
    assert stats["streams"]["rgb"]["lost"] == 1
    assert stats["dropped"] == {"rgb/before_keyframe": 20 - 15}
    assert stats["decoded_frames"] == 30 - 6
    await raw.finish()
    ticks = read_ticks(tmp_path / "sessions" / raw.session / "ticks.rows")
    unseen = {packet["device_time_ns"] for packet in packets[14:20]}
    assert len(ticks) >= 9
    assert not unseen & set(ticks["device_time_ns"].tolist())


async def test_last_frames_of_a_silent_video_are_worked_off_too(live: Any, coffee: Any) -> None:
    sender = await live.join("hl2", "rgb", replay=True, kind="expert")
    await live.send(sender, "rgb", coffee[:6])  # the last two lie behind the last tick
    stats = await live.worked_off(sender, "rgb", 6)
    assert (stats["decoded_frames"], stats["live"]) == (6, True)


async def test_a_tick_is_written_when_its_features_are_there_though_nothing_follows(
    live: Any, coffee: Any
) -> None:
    sender = await live.join("hl2", "rgb", "head", "gaze", "hands", replay=True, kind="expert")
    await live.send(sender, "rgb", coffee[:1])
    for stream, encoding, size in (
        ("head", "pose_f32", 64),
        ("gaze", "ray_f32", 24),
        ("hands", "joints_f32", 1872),
    ):
        packet = {"device_time_ns": 0, "payload": bytes(size), "encoding": encoding}
        await live.send(sender, stream, [packet])
    await live.until_stats(sender, lambda stats: stats["ticks"] == 1)
    stretches = (await live.get(f"/sessions/{sender.session}/latencies"))["stretches"]
    (written_ms,) = stretches["arrival_to_written"]["newest_ms"]
    (feature_ms,) = stretches["arrival_to_feature"]["newest_ms"]
    assert stretches["arrival_to_written"]["count"] == 1
    assert written_ms >= feature_ms > 0


async def test_session_of_two_epochs_has_one_timeline_and_pictures_of_both(
    live: Any, coffee: Any
) -> None:
    sender = await live.join("hl2", "rgb", replay=True, kind="expert")
    await live.send(sender, "rgb", coffee[:120])
    await live.worked_off(sender, "rgb", 120)
    sender.restart("headset-restarted")
    await live.send(sender, "rgb", coffee[150:270])  # a clock that began anew would do as well
    await sender.finish(close=True)
    stats = await live.stats(sender)
    assert stats["streams"]["rgb"]["epoch"] == 2
    assert stats["decoded_frames"] == stats["streams"]["rgb"]["packets"] == 240
    steps = await key_steps(live, sender)
    assert steps[0]["start_s"] < 4
    assert steps[-1]["end_s"] > 10
    assert all(step["exemplar"] is not None for step in steps)


async def test_longer_egocentric_clip_streams_whole(live: Any, tools: Any) -> None:
    packets = tools.encode_h264(tools.pictures(shared_file(CLIP), (360, 360)))
    sender = await play(live, "hl2", packets)
    stats = await live.stats(sender)
    assert stats["decoded_frames"] == len(packets) == 900
    assert stats["appearance_features"] == 300
    steps = await key_steps(live, sender)
    assert len(steps) >= 4  # a person names eight steps in it
    assert all(step["exemplar"]["width"] == 360 for step in steps)


def shared_file(relative: Path) -> Path:
    """A file of the reference data that may not be shipped."""
    root = Path(os.environ.get("KEYSTEP_TEST_SHARED", Path(__file__).parents[3] / "shared"))
    if not (root / relative).is_file():
        pytest.skip(f"{relative} is not in {root}: it has no licence to be shipped with")
    return root / relative


async def test_recording_that_a_crash_left_empty_costs_its_own_pictures_only(
    tools: Any, tmp_path: Path, coffee: Any
) -> None:
    options = {"replay": True, "kind": "expert", "instance": "one"}
    async with tools.live_server(tmp_path) as live:
        first = await live.join("hl2", "rgb", **options)
        await live.send(first, "rgb", coffee[:60])
        await live.worked_off(first, "rgb", 60)
    (part,) = tmp_path.glob("sessions/*/recording/part-000.mcap")
    assert part.stat().st_size > 10_000
    part.write_bytes(b"")
    async with tools.live_server(tmp_path) as live:
        again = await live.join("hl2", "rgb", **options)
        assert again.session == first.session
        await live.send(again, "rgb", coffee[60:])
        await again.finish(close=True)
        steps = await key_steps(live, again)
    assert len(steps) >= 2
    assert any(step["exemplar"] is None for step in steps)
    assert any(step["exemplar"] is not None for step in steps)
