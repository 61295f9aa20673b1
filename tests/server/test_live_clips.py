"""Sessions whose procedure pins a storm bundle: clips alone, or fused with a detector's states."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import stripe_clips
import stripe_detector as stripes
from keystep_capture.sender import Sender, Source
from keystep_models.detector.classes import ClassMap
from keystep_models.detector.detecting_recogniser import DETECTIONS, DETECTIONS_SIZE
from keystep_models.detector.detector import Detector
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.methods import LIVE_CLIP_METHODS, choose_live_method
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.procedure_document import of_procedure, write_document
from keystep_models.psr.recogniser import CueTick
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.clip_predictions import predict_clips
from keystep_models.storm.clip_recogniser import clip_options
from keystep_models.storm.clip_sampling import SessionTicks
from keystep_models.storm.inputs import SessionInputs
from keystep_server.cue_rows import CueRows
from keystep_server.tick_following import FILE

GAP_AFTER, GAP_TICKS = 40, 15  # frames are missing in the recording with a gap


@dataclass(frozen=True)
class Scene:
    """A recording as packets, and what there is to see in it."""

    packets: list[dict[str, Any]]
    frames: Sequence[Any]
    features: NDArray[np.float32]

    def with_gap(self) -> list[dict[str, Any]]:
        """The same, with a pause in the middle."""
        wait_ns = GAP_TICKS * 100_000_000
        late = [
            {**each, "device_time_ns": each["device_time_ns"] + wait_ns}
            for each in self.packets[GAP_AFTER:]
        ]
        return [*self.packets[:GAP_AFTER], *late]


@pytest.fixture(scope="module")
def scene(tools: Any) -> Scene:
    packets = tools.encode_h264(stripes.scene(), rate_hz=10.0, gop=10)
    frames = stripe_clips.decoded(packets)
    return Scene(packets, frames, stripe_clips.features_of(frames))


def publish(
    data_dir: Path, scene: Scene, *, detector: bool = True
) -> tuple[Procedure, StormBundle]:
    """Put detector, bundle and procedure where a server looks for them."""
    procedure = stripes.publish(data_dir)
    bundle = stripe_clips.make_bundle(data_dir / "storm" / "mine", procedure, scene.features)
    procedure = replace(procedure, storm=bundle.id)
    if not detector:
        procedure = replace(procedure, detector=None)
    write_document(of_procedure(procedure), data_dir / "procedures" / f"{stripes.NAME}.json")
    return procedure, bundle


def clips_of(data_dir: Path, sender: Sender, *, detects: bool = True) -> list[CueTick]:
    """A session's ticks as they were written."""
    sizes = {"embedding": stripe_clips.STRIPES, "clip": 3}
    if detects:
        sizes[DETECTIONS] = DETECTIONS_SIZE
    rows = CueRows(data_dir / "sessions" / str(sender.session) / FILE, sizes)
    ticks = rows.read(0, rows.row_count)
    rows.close()
    return ticks


def offline_clips(bundle: StormBundle, scene: Scene, indices: NDArray[np.int64]) -> Any:
    """The sigmoid values at each of a recording's ticks, from the whole of it."""
    count = int(indices[-1]) + 1
    features = np.zeros((count, scene.features.shape[1]), np.float32)
    features[indices] = scene.features
    valid = np.zeros(count, np.bool_)
    valid[indices] = True
    ticks = SessionTicks(
        name="scene",
        states=np.zeros((count, 3), np.int8),
        valid=valid,
        frames=np.arange(count),
        frame_count=count,
    )
    source = bundle.document.input_source
    inputs = SessionInputs(ticks=ticks, inputs=features, source=source)
    return predict_clips(bundle, inputs)[indices]


def offline_steps(
    data_dir: Path, procedure: Procedure, bundle: StormBundle, scene: Scene, method: str
) -> list[tuple[int, int]]:
    """(frame, step), as `psr detect`, `psr clips` and `psr run` have them."""
    detector = Detector.load(data_dir / "detectors" / "mine")
    class_map = ClassMap.of(detector.spec, procedure)
    clips = offline_clips(bundle, scene, np.arange(len(scene.frames)))
    _, recogniser = choose_live_method(method, procedure, clip_options=clip_options(bundle))
    found = []
    for number, (frame, values) in enumerate(zip(scene.frames, clips.tolist(), strict=True)):
        seen = class_map.apply(detector.detect(frame))
        report = recogniser.step(number, seen, ClipPrediction.of(values))
        found += [(step.frame_idx, step.step_id) for step in report.steps]
    return found


@pytest.mark.timeout(180)
async def test_live_steps_are_those_of_the_methods_over_the_recording(
    tools: Any, tmp_path: Path, scene: Scene
) -> None:
    procedure, bundle = publish(tmp_path, scene)
    async with tools.live_server(tmp_path) as live:

        async def run(method: str | None) -> tuple[str, list[tuple[int, int]], set[str]]:
            body = {"device_id": f"hl2-{method}", "kind": "guided", "procedure": stripes.NAME}
            asked = {} if method is None else {"method": method}
            opened = await live.rest.post(
                "/api/v1/sessions", json={**body, **asked, "replay": True}
            )
            assert opened.status_code == 201, opened.text
            sender = await live.join(f"hl2-{method}", "rgb")
            await live.send(sender, "rgb", scene.packets)
            closed = await live.close_session(sender)
            listed = await live.get(f"/sessions/{sender.session}/events?limit=1000")
            events = [(e["frame_idx"], e["step_id"]) for e in listed["events"]]
            return closed["method"], events, {e["branch"] for e in listed["events"]}

        asked = [None, *(name for name in LIVE_CLIP_METHODS if name != "storm")]
        found = await asyncio.gather(*(run(method) for method in asked))
    for method, (came, events, branches) in zip(asked, found, strict=True):
        assert came == (method or "storm")
        expected = offline_steps(tmp_path, procedure, bundle, scene, came)
        assert events == expected
        assert {3, 6} <= {step for _, step in events}, came
        if came == "temporal":
            assert branches == {"spatio_temporal"}
        if came == "tracker-clips":
            assert branches == {"assembly_state"}


async def test_clips_are_those_of_the_whole_recording_through_a_gap(
    tools: Any, tmp_path: Path, scene: Scene
) -> None:
    _, bundle = publish(tmp_path, scene, detector=False)
    indices = np.arange(len(scene.frames))
    indices[GAP_AFTER:] += GAP_TICKS
    async with tools.live_server(tmp_path) as live:
        sender = await live.join("hl2", "rgb", replay=True, procedure=stripes.NAME)
        await live.send(sender, "rgb", scene.with_gap())
        closed = await live.close_session(sender)
    assert closed["method"] == "temporal"
    ticks = clips_of(tmp_path, sender, detects=False)
    assert [tick.index for tick in ticks] == indices.tolist()
    expected = offline_clips(bundle, scene, indices)
    came = np.stack([tick.rows["clip"] for tick in ticks])
    np.testing.assert_allclose(came, expected, atol=1e-4, rtol=0)


async def test_a_session_that_outruns_the_models_has_the_clips_of_what_was_embedded(
    tools: Any, tmp_path: Path, scene: Scene
) -> None:
    _, bundle = publish(tmp_path, scene, detector=False)
    async with tools.live_server(tmp_path) as live:

        async def run(device: str) -> list[CueTick]:
            sender = await live.join(device, "rgb", procedure=stripes.NAME)
            await live.send(sender, "rgb", scene.packets)
            await live.close_session(sender)
            return clips_of(tmp_path, sender, detects=False)

        for ticks in await asyncio.gather(run("hl2-a"), run("hl2-b")):
            assert ticks
            indices = np.array([tick.index for tick in ticks if "embedding" in tick.rows])
            seen = replace(scene, features=scene.features[indices])
            came = np.stack([tick.rows["clip"] for tick in ticks if "clip" in tick.rows])
            np.testing.assert_allclose(
                came, offline_clips(bundle, seen, indices), atol=1e-4, rtol=0
            )


@pytest.mark.timeout(300)
async def test_a_killed_server_goes_on_with_the_same_steps_and_clips(
    tools: Any, make_server: Any, tmp_path: Path, scene: Scene
) -> None:
    def events_of(listed: dict[str, Any]) -> list[Any]:
        keys = ("ordinal", "step_id", "frame_idx", "device_time_ns", "confidence", "branch")
        return [tuple(event[key] for key in keys) for event in listed["events"]]

    publish(tmp_path / "calm", scene)
    async with tools.live_server(tmp_path / "calm") as live:
        sender = await live.join("hl2", "rgb", replay=True, procedure=stripes.NAME)
        await live.send(sender, "rgb", scene.packets)
        await live.close_session(sender)
        path = f"/sessions/{sender.session}/events?limit=1000"
        calm = events_of(await live.get(path)), clips_of(tmp_path / "calm", sender)
    assert len(calm[0]) >= 2
    publish(tmp_path / "killed", scene)
    server = await make_server("killed")
    source = Source(
        device="hl2", client="test", streams=("rgb",), procedure=stripes.NAME, replay=True
    )
    sender = Sender(source, server=server.wire, instance="one")
    link = asyncio.create_task(sender.run())
    for number, packet in enumerate(scene.packets):
        if number == 63:
            await server.kill()
            await server.start()
        await sender.room("rgb")
        assert sender.offer("rgb", **packet)
    await sender.finish(close=True, timeout_s=90)
    await link
    found = events_of(await server.get(f"/sessions/{sender.session}/events?limit=1000"))
    assert found == calm[0]
    ticks = clips_of(tmp_path / "killed", sender)
    assert [tick.index for tick in ticks] == [tick.index for tick in calm[1]]
    for one, other in zip(ticks, calm[1], strict=True):
        np.testing.assert_allclose(one.rows["clip"], other.rows["clip"], atol=1e-4, rtol=0)


async def test_what_does_not_go_together_is_refused_when_a_session_is_opened(
    tools: Any, tmp_path: Path, scene: Scene
) -> None:
    fitting, _ = publish(tmp_path, scene)
    alone = replace(fitting, detector=None)
    foreign = tuple(replace(step, id=step.id + 1) for step in fitting.steps)
    body = {"device_id": "hl2", "kind": "guided", "procedure": stripes.NAME}
    async with tools.live_server(tmp_path) as live:
        for procedure, method, status, words in (
            (replace(fitting, storm="0" * 64), None, 404, "copy its folder into storm/"),
            (replace(fitting, storm="mine"), None, 422, "64 hex digits"),
            (replace(fitting, steps=foreign), None, 422, "they are not of the same work"),
            (replace(fitting, storm=None), "storm", 422, "pins a storm bundle"),
            (alone, "storm-soft", 422, "pins no detector"),
            (alone, "temporal", 201, ""),
        ):
            document = of_procedure(procedure)
            write_document(document, tmp_path / "procedures" / f"{stripes.NAME}.json")
            asked = {} if method is None else {"method": method}
            answer = await live.rest.post("/api/v1/sessions", json={**body, **asked})
            assert (answer.status_code, words in answer.text) == (status, True), answer.text
            if status != 201:
                assert answer.headers["content-type"] == "application/problem+json"
