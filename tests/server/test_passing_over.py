"""Frames that need no decoding: those between a tick and a key frame, and old ones before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keystep_capture.peers import Lane
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PROTOCOL, PacketHeader
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_models.onnx_model import OnnxModel
from keystep_server.batches import Item, Outcome
from keystep_server.inference import LocalEngine, model_key
from keystep_server.load.packets import GROUP_FRAMES, make_packets
from keystep_server.pipeline import LATE_NS, SessionPipeline
from keystep_server.recorder import SessionRecorder
from keystep_server.storage import Session, SessionKind, SessionState

SESSION = Session(
    id="one",
    device_id="hl2",
    kind=SessionKind.GUIDED,
    state=SessionState.OPEN,
    task=None,
    procedure=None,
    replay=False,
    time_scale=1.0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Frames:
    """The real video sample, and a clock that only the test turns."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._lane = Lane(spec=STREAMS["rgb"], epoch=1)
        self._packets = make_packets(3 * GROUP_FRAMES).of("rgb")

    def __getitem__(self, numbers: slice) -> list[Item]:
        return [self.item(n) for n in range(numbers.start, numbers.stop)]

    def item(self, number: int, **changed: Any) -> Item:
        packet = self._packets[number]
        fields: dict[str, Any] = {
            "protocol": PROTOCOL,
            "session": "one",
            "epoch": 1,
            "stream": "rgb",
            "sequence": number,
            "device_time_ns": packet.offset_ns,
            "send_time_ns": 0,
            "encoding": packet.encoding,
            "keyframe": packet.keyframe,
            "width": packet.width,
            "height": packet.height,
            **changed,
        }
        return Item(self._lane, PacketHeader(**fields), packet.payload, self.now_ns)


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames()


@pytest.fixture
def pipeline_of(frames: Frames, tmp_path: Path) -> Iterator[Callable[..., SessionPipeline]]:
    frames.now_ns = 0
    model = OnnxModel.load(appearance_manifest_path(), providers=["CPUExecutionProvider"])
    made = []
    with LocalEngine({model_key(model): model}) as engine:

        def make(*, lossless: bool = False) -> SessionPipeline:
            made.append(
                SessionPipeline(
                    session_id="one",
                    folder=tmp_path,
                    engine=engine,
                    appearance_model=model_key(model),
                    lossless=lossless,
                    rate_hz=10.0,
                    logic=None,
                    recorder=SessionRecorder(
                        tmp_path, SESSION, everything=False, clock=lambda: frames.now_ns
                    ),
                    clock=lambda: frames.now_ns,
                )
            )
            return made[-1]

        yield make
        for pipeline in made:
            pipeline.finish(Outcome())
            pipeline.close()


def test_frames_between_the_last_tick_and_a_key_frame_are_not_decoded(
    frames: Frames, pipeline_of: Callable[..., SessionPipeline]
) -> None:
    pipeline = pipeline_of()
    pipeline.process(frames[0:13])
    pipeline.process(frames[13:16])  # 12 and 15 make ticks, 15 is a key frame
    pipeline.process(frames[16:19])
    pipeline.finish(Outcome())
    assert (pipeline.decoded_count, pipeline.passed_over_count) == (17, 2)
    assert pipeline.ticks.row_count == 7
    assert pipeline.left_out["late"] == 0


def test_late_frames_before_a_key_frame_are_passed_over_with_their_ticks(
    frames: Frames, pipeline_of: Callable[..., SessionPipeline]
) -> None:
    pipeline = pipeline_of()
    pipeline.process(frames[0:16])
    late = frames[16:30]
    frames.now_ns += LATE_NS + 1
    pipeline.process([*late, *frames[30:33]])
    pipeline.finish(Outcome())
    assert (pipeline.decoded_count, pipeline.passed_over_count) == (16 + 3, 14)
    assert pipeline.left_out["late"] == 4  # 18, 21, 24 and 27
    assert pipeline.ticks.row_count == 11  # a tick without features is still a tick


def test_a_replay_is_decoded_whole_and_so_is_a_group_with_a_false_key_frame(
    frames: Frames, pipeline_of: Callable[..., SessionPipeline]
) -> None:
    for pipeline, last in (
        (pipeline_of(lossless=True), frames.item(15)),
        (pipeline_of(), frames.item(14, keyframe=True)),
    ):
        pipeline.process(frames[0:13])
        pipeline.process([*frames[13 : last.header.sequence], last])
        assert pipeline.passed_over_count == 0
        assert pipeline.decoded_count == last.header.sequence + 1
