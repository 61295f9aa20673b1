"""Sessions whose procedure pins a detector: it looks at the frames of ticks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stripe_detector as stripes
from keystep_capture.errors import ShapeError
from keystep_capture.sender import Sender, Source
from keystep_capture.video import PacketDecoder
from keystep_models.detector.batched_detector import MAX_ROWS, BatchedDetector
from keystep_models.detector.classes import ClassMap
from keystep_models.detector.detecting_recogniser import pack, unpack
from keystep_models.detector.detector import Detector
from keystep_models.psr.logic import Detection
from keystep_models.psr.methods import METHODS, MethodOptions
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.procedure_document import of_procedure, write_document
from keystep_models.psr.recogniser import run_recording
from keystep_server.inference import LocalEngine


@pytest.fixture
def packets(tools: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = tools.encode_h264(stripes.scene(), rate_hz=10.0, gop=10)
    return made


def offline(data_dir: Path, procedure: Procedure, packets: list[dict[str, Any]]) -> Any:
    """(frame, step) and box's middle of each frame, as `psr detect` and `psr run` have them."""
    detector = Detector.load(data_dir / "detectors" / "mine")
    class_map = ClassMap.of(detector.spec, procedure)
    decoder = PacketDecoder("h264")
    frames = [class_map.apply(detector.detect(decoder.decode(p["payload"]))) for p in packets]
    run = run_recording(
        METHODS["b3"].make(procedure, MethodOptions()), frames, [None] * len(frames)
    )
    return [(step.frame_idx, step.step_id) for step in run.steps]


@pytest.mark.parametrize("free_batch", [False, True])
async def test_live_steps_are_those_of_the_detector_over_the_recording(
    tools: Any, tmp_path: Path, packets: list[dict[str, Any]], free_batch: bool
) -> None:
    procedure = stripes.publish(tmp_path, free_batch=free_batch)
    expected = offline(tmp_path, procedure, packets)
    assert [step for _, step in expected] == [0, 3, 6]
    async with tools.live_server(tmp_path) as live:
        sender = await live.join("hl2", "rgb", replay=True, procedure=stripes.NAME)
        await live.send(sender, "rgb", packets)
        closed = await live.close_session(sender)
        listed = await live.get(f"/sessions/{sender.session}/events?limit=1000")
    assert closed["method"] == "b3"
    assert [(e["frame_idx"], e["step_id"]) for e in listed["events"]] == expected
    assert {e["branch"] for e in listed["events"]} == {"assembly_state"}


async def test_two_sessions_share_a_detector(
    tools: Any, tmp_path: Path, packets: list[dict[str, Any]]
) -> None:
    expected = offline(tmp_path, stripes.publish(tmp_path), packets)
    async with tools.live_server(tmp_path) as live:

        async def run(device: str) -> list[tuple[int, int]]:
            sender = await live.join(device, "rgb", replay=True, procedure=stripes.NAME)
            await live.send(sender, "rgb", packets)
            await live.close_session(sender)
            found: list[tuple[int, int]] = await live.steps(sender)
            return found

        assert await asyncio.gather(run("hl2-a"), run("hl2-b")) == [expected, expected]


@pytest.mark.timeout(300)  # three servers are started
async def test_a_killed_server_goes_on_with_the_same_steps_and_detections(
    make_server: Any, tmp_path: Path, packets: list[dict[str, Any]]
) -> None:
    async def run(name: str, kill_at: tuple[int, ...]) -> tuple[list[Any], bytes]:
        stripes.publish(tmp_path / name)
        server = await make_server(name)
        source = Source(
            device="hl2", client="test", streams=("rgb",), procedure=stripes.NAME, replay=True
        )
        sender = Sender(source, server=server.wire, instance="one")
        link = asyncio.create_task(sender.run())
        for number, packet in enumerate(packets):
            if number in kill_at:
                await server.kill()
                await server.start()
            await sender.room("rgb")
            assert sender.offer("rgb", **packet)
        await sender.finish(close=True, timeout_s=90)
        await link
        listed = await server.get(f"/sessions/{sender.session}/events?limit=1000")
        keys = ("ordinal", "step_id", "frame_idx", "device_time_ns", "confidence", "branch")
        folder = tmp_path / name / "sessions" / str(sender.session)
        rows = (folder / "cues.rows").read_bytes()
        return [tuple(event[key] for key in keys) for event in listed["events"]], rows

    calm = await run("calm", ())
    assert len(calm[0]) == 3
    assert await run("killed", (31, 62)) == calm


async def test_a_detector_that_is_missing_or_does_not_fit_is_refused(
    tools: Any, tmp_path: Path
) -> None:
    fitting = stripes.publish(tmp_path)
    no_class = replace(fitting, states=(None, (1, 1, 1), (1, 1, 0), (0, 0, 1)))
    no_states = replace(fitting, states=())
    missing = replace(fitting, detector="0" * 64)
    malformed = replace(fitting, detector="mine")
    body = {"device_id": "hl2", "kind": "guided", "procedure": stripes.NAME}
    async with tools.live_server(tmp_path) as live:
        for procedure, status, words in (
            (no_class, 422, "the class '100'"),
            (no_states, 422, "detector_states"),
            (missing, 404, "copy its folder into detectors/"),
            (malformed, 422, "64 hex digits"),
            (fitting, 201, ""),
        ):
            document = of_procedure(procedure)
            write_document(document, tmp_path / "procedures" / f"{stripes.NAME}.json")
            answer = await live.rest.post("/api/v1/sessions", json=body)
            assert (answer.status_code, words in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("free_batch", [False, True])
def test_the_engine_runs_a_detector_as_any_model(tmp_path: Path, free_batch: bool) -> None:
    stripes.make_detector(tmp_path / "one", free_batch=free_batch)
    detector = Detector.load(tmp_path / "one")
    frames = list(stripes.scene())[::20]
    prepared = [detector.prepare(frame) for frame in frames]
    with LocalEngine(max_batch=4) as engine:
        key = engine.add_model(BatchedDetector(detector))
        together = engine.submit(key, "a", np.concatenate([rows for rows, _ in prepared][:4]))
        found = [*together.result(), engine.submit(key, "b", prepared[4][0]).result()[0]]
    for rows, (_, placement), frame in zip(found, prepared, frames, strict=True):
        seen = detector.to_detections(rows[rows[:, -1] >= 0], placement)
        expected = detector.detect(frame)
        assert [each.class_id for each in seen] == [each.class_id for each in expected]
        for one, other in zip(seen, expected, strict=True):
            assert one.confidence == pytest.approx(other.confidence, abs=1e-6)
            assert one.box == pytest.approx(other.box, abs=1e-3)


_FLOATS = st.floats(-1e4, 1e4, width=32)


@given(
    seen=st.lists(
        st.builds(
            Detection,
            st.integers(0, 9999),
            st.floats(0, 1, width=32),
            st.tuples(_FLOATS, _FLOATS, _FLOATS, _FLOATS),
        ),
        max_size=MAX_ROWS + 3,
    )
)
def test_a_row_holds_a_frames_detections(seen: list[Detection]) -> None:
    assert unpack(pack(seen)) == seen[:MAX_ROWS]
    with pytest.raises(ShapeError, match="120 values"):
        unpack(pack(seen)[:-1])
