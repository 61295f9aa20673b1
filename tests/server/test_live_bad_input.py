"""Bad input to a whole server: counted where it belongs, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from keystep_capture import wire
from keystep_capture.errors import ConfigError, ModelError
from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_models.cues.appearance_cue import appearance_manifest_path

SAMPLE = find_sample("industreal-03")
TRUTH = load_truth(SAMPLE)
GARBAGE = random.Random(0).randbytes(5000)


@pytest.fixture
async def bystander(live: Any, tools: Any) -> AsyncIterator[None]:
    """Another session that streams a real recording meanwhile and must give its very steps."""
    assert SAMPLE.detections_path is not None
    frames = load_detection_rows(SAMPLE.detections_path, frame_count=TRUTH.frame_count)
    options = {"replay": True, "procedure": f"industreal-{TRUTH.procedure}", "method": "b3"}
    sender = await live.join("bystander", "detections", **options)
    packets = tools.detection_packets(frames)
    await live.send(sender, "detections", packets[:1000])  # some steps before, some after
    yield
    await live.send(sender, "detections", packets[1000:])
    await sender.finish(close=True)
    assert await live.steps(sender) == [(step.frame, step.id) for step in TRUTH.expected_b3]
    stats = await live.stats(sender)
    assert (stats["dropped"], stats["refused"], stats["last_error"]) == ({}, {}, None)


@pytest.fixture
def clip(tools: Any) -> list[Any]:
    """Thirty frames of the real video, a key frame every ten."""
    return list(tools.encode_h264(real_pictures(tools, 30, (640, 360)), gop=10))


def real_pictures(tools: Any, count: int, size: tuple[int, int]) -> list[av.VideoFrame]:
    path = find_sample("pour-coffee").video_path
    return [frame for frame, _ in zip(tools.pictures(path, size), range(count), strict=False)]


def jpeg_packets(tools: Any, count: int) -> list[dict[str, Any]]:
    return [
        jpeg_packet(number, cv2.imencode(".jpg", frame.to_ndarray(format="bgr24"))[1].tobytes())
        for number, frame in enumerate(real_pictures(tools, count, (640, 360)))
    ]


def jpeg_packet(number: int, payload: bytes) -> dict[str, Any]:
    return {
        "device_time_ns": number * 33_333_333,
        "payload": payload,
        "encoding": "jpeg",
        "width": 640,
        "height": 360,
    }


async def send_and_close(live: Any, packets: list[Any], stream: str = "rgb") -> dict[str, Any]:
    """Stream packets of one source to a session of its own; its counters when all is done."""
    sender = await live.join("wrongdoer", stream, replay=True, kind="expert")
    await live.send(sender, stream, packets)
    await sender.finish(close=True)
    stats: dict[str, Any] = await live.stats(sender)
    assert stats["last_error"] is None
    return stats


def damaged(packets: list[Any], number: int, payload: bytes) -> list[Any]:
    changed = {**packets[number], "payload": payload}
    return [*packets[:number], changed, *packets[number + 1 :]]


# -- video -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("number", [10, 14])
async def test_garbage_costs_the_video_up_to_the_next_key_frame(
    live: Any, clip: Any, number: int
) -> None:
    stats = await send_and_close(live, damaged(clip, number, GARBAGE))
    waited = 20 - number - 1
    assert stats["dropped"] == {"rgb/before_keyframe": waited, "rgb/undecodable": 1}
    assert stats["decoded_frames"] == 30 - 1 - waited


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
async def test_cut_off_packet_is_no_picture(live: Any, clip: Any, fraction: float) -> None:
    whole = clip[14]["payload"]
    stats = await send_and_close(live, damaged(clip, 14, whole[: int(len(whole) * fraction)]))
    assert stats["dropped"] == {"rgb/before_keyframe": 5, "rgb/undecodable": 1}


async def test_session_of_garbage_alone_closes_without_key_steps(live: Any) -> None:
    packet = {"device_time_ns": 0, "payload": GARBAGE, "encoding": "h264", "keyframe": True}
    stats = await send_and_close(live, [packet] * 50)
    assert stats["dropped"] == {"rgb/undecodable": 50}
    assert (stats["ticks"], stats["decoded_frames"]) == (0, 0)


@pytest.mark.usefixtures("bystander")
async def test_size_may_change_at_a_key_frame(live: Any, tools: Any, clip: Any) -> None:
    small = tools.encode_h264(real_pictures(tools, 30, (320, 240)), gop=10, first_frame=30)
    stats = await send_and_close(live, clip + small)
    assert (stats["dropped"], stats["size_changes"], stats["decoded_frames"]) == ({}, 1, 60)
    assert stats["appearance_features"] == 20


async def test_header_that_lies_about_the_size_is_not_believed(live: Any, clip: Any) -> None:
    lies = [{**packet, "width": 1920, "height": 1080} for packet in clip[10:20]]
    stats = await send_and_close(live, clip[:10] + lies + clip[20:])
    assert stats["dropped"] == {"rgb/size_mismatch": 10}
    assert stats["decoded_frames"] == 30
    # 10 Hz over one second without its middle third, behind which the grid begins anew
    assert stats["appearance_features"] == 8


async def test_jpeg_stream_gives_features(live: Any, tools: Any) -> None:
    stats = await send_and_close(live, jpeg_packets(tools, 30))
    assert (stats["dropped"], stats["decoded_frames"]) == ({}, 30)
    assert stats["appearance_features"] == 10


async def test_encoding_may_change_within_a_session(live: Any, tools: Any, clip: Any) -> None:
    later = [
        {**packet, "device_time_ns": packet["device_time_ns"] + 10**9}
        for packet in jpeg_packets(tools, 30)
    ]
    sender = await live.join("d", "rgb", replay=True, kind="expert")
    await live.send(sender, "rgb", clip + later)
    await sender.finish(close=True)
    assert (await live.stats(sender))["appearance_features"] == 20
    steps = (await live.get(f"/sessions/{sender.session}/key-steps"))["key_steps"]
    assert all(step["exemplar"] is not None for step in steps)


@pytest.mark.usefixtures("bystander")
async def test_jpeg_that_says_it_is_huge_is_refused_before_memory_is_taken(
    live: Any, tools: Any
) -> None:
    good = jpeg_packets(tools, 2)
    huge = bytearray(good[0]["payload"])
    frame_header = huge.index(b"\xff\xc0")
    huge[frame_header + 5 : frame_header + 9] = b"\xff\xdc\xff\xdc"  # 65500 x 65500
    cut = good[1]["payload"][: len(good[1]["payload"]) // 2]
    packets = [good[0], jpeg_packet(3, bytes(huge)), jpeg_packet(6, cut), jpeg_packet(9, GARBAGE)]
    stats = await send_and_close(live, [*packets, {**good[1], "device_time_ns": 10**9}])
    assert stats["dropped"] == {"rgb/undecodable": 3}
    assert (stats["decoded_frames"], stats["appearance_features"]) == (2, 2)


async def test_unusual_jpegs_are_read_or_counted(live: Any, tools: Any) -> None:
    frame = real_pictures(tools, 1, (640, 360))[0].to_ndarray(format="bgr24")
    grey = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))[1].tobytes()
    thin = cv2.imencode(".jpg", np.zeros((16, 1600, 3), np.uint8))[1].tobytes()
    stats = await send_and_close(
        live, [jpeg_packet(0, grey), {**jpeg_packet(9, thin), "width": 1600, "height": 16}]
    )
    assert stats["appearance_features"] == 1
    assert stats["dropped"] == {"rgb/unusable_size": 1}


# -- numbers -----------------------------------------------------------------------------------


def detections(tools: Any, *frames: list[tuple[float, ...]]) -> Any:
    return tools.detection_packets(frames)


BOX = (100.0, 100.0, 50.0, 50.0)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("method", ["b3", "tracker"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((1, float("nan"), *BOX), "not_finite"),
        ((1, 0.9, float("inf"), *BOX[1:]), "not_finite"),
        ((99, 0.9, *BOX), "unusable"),
        ((-1, 0.9, *BOX), "unusable"),
        ((1e300, 0.9, *BOX), "unusable"),
        ((1.5, 0.9, *BOX), "unusable"),
        ((1, 1.5, *BOX), "unusable"),
    ],
)
async def test_detections_that_cannot_be_are_counted(
    live: Any, tools: Any, row: tuple[float, ...], reason: str, method: str
) -> None:
    packets = detections(tools, [(1, 0.9, *BOX)], [row], [(1, 0.9, *BOX)])
    guided = {"procedure": "industreal-assy", "method": method, "replay": True}
    sender = await live.join("wrongdoer", "detections", **guided)
    await live.send(sender, "detections", packets)
    await sender.finish(close=True)
    stats = await live.stats(sender)
    assert stats["dropped"] == {f"detections/{reason}": 1}
    assert (stats["streams"]["detections"]["packets"], stats["last_error"]) == (3, None)


async def test_absurd_box_changes_no_step_since_none_reads_it(live: Any, tools: Any) -> None:
    assert SAMPLE.detections_path is not None
    frames = load_detection_rows(SAMPLE.detections_path, frame_count=TRUTH.frame_count)
    absurd = [[(row[0], row[1], -1e308, 1e308, -5.0, 0.0) for row in rows] for rows in frames]
    guided = {"procedure": "industreal-assy", "method": "b3", "replay": True}
    sender = await live.join("d", "detections", **guided)
    await live.send(sender, "detections", tools.detection_packets(absurd))
    await sender.finish(close=True)
    assert await live.steps(sender) == [(step.frame, step.id) for step in TRUTH.expected_b3]


@pytest.mark.usefixtures("bystander")
async def test_thousands_of_detections_in_a_packet_are_refused(
    live: Any, raw: Any, tools: Any
) -> None:
    many, one = detections(tools, [(1, 0.9, *BOX)] * 3000, [(1, 0.9, *BOX)])
    await raw.join("wrongdoer", "detections")
    await raw.send("detections", 0, many)
    assert (await raw.hear(wire.Refused)).reason == "payload_size"
    await raw.send("detections", 1, one)
    stats = await live.worked_off(raw, "detections", 1)
    assert stats["refused"] == {"payload_size": 1}
    assert stats["streams"]["detections"]["lost"] == 1
    await raw.finish()
    async with asyncio.timeout(20):
        while 'reason="payload_size",stream="any"} 1.0' not in await metrics(live):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def metrics(live: Any) -> str:
    return str((await live.rest.get("/metrics")).text)


@pytest.mark.usefixtures("bystander")
async def test_poses_that_are_not_finite_are_missing_from_their_ticks(live: Any) -> None:
    good, bad = np.eye(4, dtype="<f4"), np.full((4, 4), np.nan, "<f4")
    packets = [
        {"device_time_ns": n * 10**8, "payload": pose.tobytes(), "encoding": "pose_f32"}
        for n, pose in enumerate([good, bad, good])
    ]
    stats = await send_and_close(live, packets, "head")
    assert stats["dropped"] == {"head/not_finite": 1}
    assert stats["ticks"] == 2


# -- models and ports --------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a copy of the committed model, to be spoilt."""
    shutil.copytree(appearance_manifest_path().parent, tmp_path / "bundle" / "appearance")
    return tmp_path / "bundle"


async def test_server_runs_with_a_bundle_of_its_own(
    tools: Any, tmp_path: Path, bundle: Path
) -> None:
    async with tools.live_server(tmp_path / "data", bundle_dir=bundle) as live:
        assert (await live.rest.get("/readyz")).status_code == 200


@pytest.mark.parametrize("spoilt", ["missing", "no_manifest", "corrupt", "cut", "shapes"])
async def test_model_that_is_not_as_its_manifest_says_stops_the_start(
    tools: Any, tmp_path: Path, bundle: Path, spoilt: str
) -> None:
    manifest = bundle / "appearance" / "manifest.json"
    model = manifest.parent / json.loads(manifest.read_text())["file"]
    content = model.read_bytes()
    if spoilt == "missing":
        model.unlink()
    elif spoilt == "no_manifest":
        manifest.unlink()
    elif spoilt == "corrupt":
        model.write_bytes(content[:1000] + bytes(100) + content[1100:])
    elif spoilt == "cut":
        model.write_bytes(content[: len(content) // 2])
    else:
        manifest.write_text(manifest.read_text().replace("1280", "1281"))
    with pytest.raises(ModelError):
        async with tools.live_server(tmp_path / "data", bundle_dir=bundle):
            pytest.fail("started with a spoilt model")


@pytest.mark.parametrize("taken", ["rest", "wire", "publish"])
async def test_port_in_use_stops_the_start_and_leaves_nothing_open(
    tools: Any, live: Any, tmp_path: Path, taken: str
) -> None:
    server = live.server
    settings: dict[str, Any] = {
        "rest": {"rest_port": int(server.rest_url.rpartition(":")[2])},
        "wire": {"wire_bind": server.wire_endpoint},
        "publish": {"publish_bind": server.publish_endpoint},
    }[taken]
    free = {"rest_port": free_port(), "wire_bind": endpoint(), "publish_bind": endpoint()}
    with pytest.raises(ConfigError, match=r"in use|uses it"):
        async with tools.live_server(tmp_path / "other", **{**free, **settings}):
            pytest.fail("started on a port that is taken")
    async with tools.live_server(tmp_path / "other", **free) as second:
        assert (await second.rest.get("/readyz")).status_code == 200
    assert (await live.rest.get("/readyz")).status_code == 200


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"
