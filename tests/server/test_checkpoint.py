"""What a session writes down: read back as it was, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture import wire
from keystep_capture.errors import DataError
from keystep_capture.streams import STREAMS
from keystep_models.cues.gaze_crop import PictureView
from keystep_server.checkpoint import (
    AlignerFields,
    ArrayState,
    Checkpoint,
    FrameState,
    GuideState,
    LaneState,
    PipelineState,
    Place,
    SampleState,
    VideoState,
    read_checkpoint,
    set_aside,
    write_json,
)
from keystep_server.progress import MAX_GROUP_PACKETS, StreamProgress
from keystep_server.tick_frames import Frame, decode_sample, encode_sample

CHECKPOINT = Checkpoint(
    guide=GuideState(
        logic={"sums": {"3": 0.1 + 0.2}, "floor": -float("inf")},
        standing=[[7, 3, 0.5, 1, "completed", "id"]],
        revision=9,
        looking_at=3,
        said=("Take the base.", 4),
    ),
    first_device_time_ns=2**60,
    lanes={
        "rgb": LaneState(
            instance="i1",
            epoch=2,
            sequence=70,
            packets=68,
            lost=3,
            bytes=9000,
            resume=Place(sequence=59, packets=57, lost=3, bytes=8000),
        )
    },
    pipeline=PipelineState(
        row_count=12,
        feature_count=11,
        detection_count=40,
        aligner=AlignerFields(
            epoch=2,
            leading="rgb",
            index=12,
            next_due_ns=5,
            newest_ns={"gaze": 4},
            late_counts={"gaze": 0},
            waiting=[
                SampleState(
                    device_time_ns=1,
                    value=FrameState(
                        embedding=ArrayState.of(np.arange(3, dtype=np.float32)[None] / 3)
                    ),
                )
            ],
            held={"gaze": [SampleState(device_time_ns=4, value=None)]},
        ),
        video=VideoState(part="part-000.mcap", size_bytes=1234),
    ),
    commands=[("c1", True, "Done.")],
)


def test_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "tracker.json", CHECKPOINT)
    assert read_checkpoint(tmp_path / "tracker.json") == CHECKPOINT
    assert [path.name for path in tmp_path.iterdir()] == ["tracker.json"]


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), max_size=12),
    rows=st.sampled_from([1, 2, 3]),
)
def test_arrays_are_held_to_the_last_bit(values: list[float], rows: int) -> None:
    array = np.array(values * rows, "<f4").reshape(rows, -1)
    state = msgspec.convert(
        json.loads(json.dumps(msgspec.to_builtins(ArrayState.of(array)))), ArrayState
    )
    assert np.array_equal(state.array(), array)
    assert state.array().dtype == array.dtype


written = json.loads(json.dumps(msgspec.to_builtins(CHECKPOINT)))


@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(json.dumps(written)) - 1).map(
            lambda n: json.dumps(written)[:n].encode()
        ),
        st.sampled_from(sorted(written)).map(
            lambda key: json.dumps({k: v for k, v in written.items() if k != key}).encode()
        ),
        st.sampled_from(sorted(written)).map(
            lambda key: json.dumps(written | {key: {"no": "thing"}}).encode()
        ),
        st.sampled_from(["row_count", "feature_count", "detection_count"]).map(
            lambda key: json.dumps(written | {"pipeline": written["pipeline"] | {key: -5}}).encode()
        ),
        st.just(b"[" * 100_000),
    )
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("session") / "tracker.json"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_checkpoint(path)


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "tracker.json") is None


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tracker.json").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_checkpoint(tmp_path / "tracker.json")


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("folder_before", [False, True])
def test_what_is_set_aside_makes_room_whatever_was_set_aside_before(
    tmp_path: Path, folder: bool, folder_before: bool
) -> None:
    path = tmp_path / "tracker.json"
    for is_folder in (folder_before, folder):
        if is_folder:
            path.mkdir()
            (path / "within").touch()
        else:
            path.touch()
        assert set_aside(path).exists()
        assert not path.exists()


# -- each stream's place -----------------------------------------------------------------------


def header(sequence: int, *, stream: str = "rgb", keyframe: bool = False, epoch: int = 1) -> Any:
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session="s",
        epoch=epoch,
        stream=stream,
        sequence=sequence,
        device_time_ns=sequence,
        send_time_ns=0,
        encoding="h264" if stream == "rgb" else "ray_f32",
        keyframe=keyframe,
    )


def test_of_kept_video_nothing_after_the_last_key_frame_is_acknowledged() -> None:
    progress = StreamProgress(STREAMS["rgb"], kept_by_source=True)
    for sequence in (0, 1, 2, 5, 6, 7):
        progress.note(header(sequence, keyframe=sequence in (0, 5)), 10)
    assert progress.resume() == Place(sequence=2, packets=3, lost=0, bytes=30)
    assert progress.place == Place(sequence=7, packets=6, lost=2, bytes=60)
    assert progress.state("i", finished=True).resume is None


def test_live_video_and_all_else_are_acknowledged_as_they_are() -> None:
    for stream, kept in (("rgb", False), ("gaze", True)):
        progress = StreamProgress(STREAMS[stream], kept_by_source=kept)
        for sequence in range(5):
            progress.note(header(sequence, stream=stream, keyframe=sequence == 0), 24)
        assert progress.resume() is None


def test_a_group_of_pictures_too_long_to_keep_is_acknowledged() -> None:
    progress = StreamProgress(STREAMS["rgb"], kept_by_source=True)
    for sequence in range(MAX_GROUP_PACKETS):
        progress.note(header(sequence, keyframe=sequence == 0), 1)
    assert progress.resume() == Place()
    progress.note(header(MAX_GROUP_PACKETS), 1)
    assert progress.resume() is None


@given(kills=st.lists(st.integers(1, 40), max_size=4), group=st.integers(1, 12))
def test_packets_that_come_again_are_counted_once(kills: list[int], group: int) -> None:
    progress = StreamProgress(STREAMS["rgb"], kept_by_source=True)
    sequence, count = 0, 60
    for kill in [*kills, count]:
        end = min(count, sequence + kill)
        while sequence < end:
            progress.note(header(sequence, keyframe=sequence % group == 0), 7)
            sequence += 1
        state = progress.state("i", finished=False)
        progress = StreamProgress.from_state(STREAMS["rgb"], state, kept_by_source=True)
        sequence = (state.resume or state).sequence + 1
    while sequence < count:
        progress.note(header(sequence, keyframe=sequence % group == 0), 7)
        sequence += 1
    assert progress.place == Place(sequence=59, packets=60, lost=0, bytes=420)


def test_a_new_epoch_counts_its_sequence_anew_and_the_packets_on() -> None:
    progress = StreamProgress(STREAMS["gaze"], kept_by_source=True)
    for epoch in (1, 2):
        for sequence in range(3):
            progress.note(header(sequence, stream="gaze", epoch=epoch), 24)
    assert (progress.epoch, progress.place.sequence, progress.place.packets) == (2, 2, 6)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_picture_that_waits_for_its_tick_is_written_down_without_loss(
    height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    view = PictureView(
        pixels=rng.integers(0, 256, (height, width, 3), np.uint8),
        intrinsics=(250.1, 250.2, 159.5, 1 / 3),
        world_from_camera=rng.normal(size=(4, 4)),
    )
    written = json.dumps(
        msgspec.to_builtins(encode_sample("rgb", Frame(1, view=view), hands=False))
    )
    found = decode_sample(msgspec.convert(json.loads(written), FrameState))
    assert isinstance(found, Frame)
    assert found.view is not None
    assert found.view.intrinsics == view.intrinsics
    np.testing.assert_array_equal(found.view.pixels, view.pixels)
    np.testing.assert_array_equal(found.view.world_from_camera, view.world_from_camera)
