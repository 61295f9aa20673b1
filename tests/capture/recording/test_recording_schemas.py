"""Recordings conform to MCAP and to Foxglove's published schemas, judged by their own packages."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader

from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter, part_paths
from keystep_capture.recording.foxglove import MESSAGES
from keystep_capture.recording.schemas import own_schema_names, schema_of
from keystep_capture.streams import STREAMS


def published(name: str) -> Any:
    """The message class of a schema in Foxglove's package."""
    short = name.removeprefix("foxglove.")
    return getattr(import_module(f"foxglove_schemas_protobuf.{short}_pb2"), short)


def read_all(part: Path) -> list[tuple[Any, Any, Any]]:
    """Every message of a file as the mcap package reads it, checksums verified."""
    with part.open("rb") as file:
        return list(make_reader(file, validate_crcs=True).iter_messages(log_time_order=False))


@pytest.fixture
def messages(recorded: Path) -> list[tuple[Any, Any, Any]]:
    return read_all(recorded / "part-000.mcap")


def test_the_mcap_package_reads_the_file_and_its_checksums(recorded: Path, tools: Any) -> None:
    part = recorded / "part-000.mcap"
    records = [m for _, channel, m in read_all(part) if channel.topic.endswith("/packet")]
    assert len(records) == len(tools.session_packets())
    assert [m.sequence for m in records] == list(range(len(records)))
    with part.open("rb") as file:
        list(StreamReader(file, validate_crcs=True).records)
        file.seek(0)
        summary = make_reader(file).get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == len(read_all(part))
    assert summary.statistics.message_start_time == 10**12
    assert len(summary.chunk_indexes) == summary.statistics.chunk_count > 1
    assert len(summary.metadata_indexes) == 2  # at the beginning, and behind the first chunk


def test_the_index_finds_the_same_messages_as_a_reading_of_the_whole_file(recorded: Path) -> None:
    part = recorded / "part-000.mcap"
    start, end = 10**12 + 10**9, 10**12 + 2 * 10**9
    with part.open("rb") as file:
        found = list(
            make_reader(file).iter_messages(
                "/epoch_1/gaze/packet", starting_at=start, ending_before=end
            )
        )
    whole = [
        message
        for _, channel, message in read_all(part)
        if channel.topic == "/epoch_1/gaze/packet" and start <= message.log_time < end
    ]
    assert [message for _, _, message in found] == whole


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_written_schema_is_the_published_one(name: str) -> None:
    encoding, data = schema_of(name)
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(data).file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    written = pool.FindMessageTypeByName(name)  # type: ignore[no-untyped-call]
    ours, theirs = DescriptorProto(), DescriptorProto()
    written.CopyToProto(ours)
    published(name).DESCRIPTOR.CopyToProto(theirs)
    assert encoding == "protobuf"
    assert ours == theirs


def test_every_protobuf_message_is_one_of_its_published_schema(
    messages: list[tuple[Any, Any, Any]],
) -> None:
    seen = set()
    for schema, channel, message in messages:
        if channel.message_encoding == "protobuf":
            decoded = published(schema.name).FromString(message.data)
            assert decoded.IsInitialized()
            unknown = decoded.SerializeToString(deterministic=True)
            assert len(unknown) == len(message.data)  # nothing but the schema's own fields
            seen.add((channel.topic, schema.name))
    assert seen == {
        ("/epoch_1/rgb/video", "foxglove.CompressedVideo"),
        ("/epoch_1/rgb/calibration", "foxglove.CameraCalibration"),
        ("/epoch_1/rgb/pose", "foxglove.FrameTransform"),
        ("/epoch_1/head/pose", "foxglove.FrameTransform"),
        ("/epoch_1/hands/joints", "foxglove.PointCloud"),
        ("/epoch_1/hands/palms", "foxglove.FrameTransforms"),
    }


def test_video_is_annex_b_in_foxgloves_name_for_it(messages: list[tuple[Any, Any, Any]]) -> None:
    videos = [
        published(schema.name).FromString(message.data)
        for schema, channel, message in messages
        if channel.topic == "/epoch_1/rgb/video"
    ]
    assert {video.format for video in videos} == {"h264"}
    assert all(video.data.startswith((b"\0\0\0\x01", b"\0\0\x01")) for video in videos)
    assert videos[0].timestamp.ToNanoseconds() == 10**12
    assert videos[0].frame_id == "epoch_1/rgb"


def test_a_calibration_is_written_when_it_changes(tmp_path: Path, tools: Any) -> None:
    packets = []
    for number in range(30):
        header, payload = tools.coffee_packets()[number]
        focal = 500.0 if number < 20 else 510.5
        fields = {"intrinsics": (focal, focal, 160.0, 120.0), "width": 320, "height": 240}
        header = tools.packet("rgb", number, header.device_time_ns, **fields)
        packets.append((header, payload))
    tools.record(tmp_path, packets)
    found = [
        published(schema.name).FromString(message.data)
        for schema, channel, message in read_all(tmp_path / "part-000.mcap")
        if channel.topic == "/epoch_1/rgb/calibration"
    ]
    assert [list(one.K)[:6] for one in found] == [
        [500.0, 0, 160.0, 0, 500.0, 120.0],
        [510.5, 0, 160.0, 0, 510.5, 120.0],
    ]
    assert [list(one.P)[:4] for one in found] == [[500.0, 0, 160.0, 0], [510.5, 0, 160.0, 0]]
    assert (found[0].width, found[0].height, len(found[0].R)) == (320, 240, 9)


def test_a_pose_is_the_same_turn_and_place(tmp_path: Path, tools: Any) -> None:
    generator = np.random.default_rng(3)
    poses = []
    for _ in range(50):
        turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, generator.normal(size=3)
        poses.append(pose)
    packets = [
        (tools.packet("head", n, n), pose.astype("<f4").tobytes()) for n, pose in enumerate(poses)
    ]
    tools.record(tmp_path, packets)
    found = [
        published(schema.name).FromString(message.data)
        for schema, channel, message in read_all(tmp_path / "part-000.mcap")
        if channel.topic == "/epoch_1/head/pose"
    ]
    for pose, one in zip(poses, found, strict=True):
        q = one.rotation
        assert math.isclose(q.x**2 + q.y**2 + q.z**2 + q.w**2, 1.0, rel_tol=1e-9)
        np.testing.assert_allclose(turn_of(q.x, q.y, q.z, q.w), pose[:3, :3], atol=1e-6)
        place = (one.translation.x, one.translation.y, one.translation.z)
        np.testing.assert_allclose(place, pose[:3, 3], atol=1e-6)
        assert (one.parent_frame_id, one.child_frame_id) == ("epoch_1/world", "epoch_1/head")


def turn_of(x: float, y: float, z: float, w: float) -> Any:
    """The rotation matrix of a unit quaternion."""
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]


def test_hands_are_points_with_named_fields_and_palms(
    messages: list[tuple[Any, Any, Any]], tools: Any
) -> None:
    _, payload = next(one for one in tools.session_packets() if one[0].stream == "hands")
    joints = np.frombuffer(payload, "<f4").reshape(2, 26, 9)
    by_topic = {channel.topic: (schema, message) for schema, channel, message in messages[::-1]}
    schema, message = by_topic["/epoch_1/hands/joints"]
    cloud = published(schema.name).FromString(message.data)
    points = np.frombuffer(cloud.data, "<f4").reshape(-1, cloud.point_stride // 4)
    columns = [field.offset // 4 for field in cloud.fields if field.name in ("x", "y", "z")]
    np.testing.assert_array_equal(points[:, columns], joints[..., 4:7].reshape(-1, 3))
    schema, message = by_topic["/epoch_1/hands/palms"]
    left, right = published(schema.name).FromString(message.data).transforms
    assert (left.child_frame_id, right.child_frame_id) == (
        "epoch_1/left_hand",
        "epoch_1/right_hand",
    )
    assert left.translation.x == joints[0, 0, 4]
    assert right.rotation.w == joints[1, 0, 3]


@pytest.mark.parametrize("values", [math.nan, math.inf, 0.0])
def test_a_pose_that_is_none_gives_no_transform(tmp_path: Path, tools: Any, values: float) -> None:
    payload = np.full(16, values, "<f4").tobytes()
    if values == 0.0:
        payload = np.diag([-1.0, -1.0, -1.0, 1.0]).astype("<f4").tobytes()  # a mirror, no turn
    tools.record(tmp_path, [(tools.packet("head", 0, 5), payload)])
    topics = {channel.topic for _, channel, _ in read_all(tmp_path / "part-000.mcap")}
    assert "/epoch_1/head/packet" in topics
    with Recording(tmp_path) as recording:
        assert next(recording.packets()).payload == payload
    if values != 0.0:
        assert topics == {"/epoch_1/head/packet"}


@pytest.mark.parametrize("name", sorted(own_schema_names()))
def test_our_schemas_are_json_schemas_of_an_object(name: str) -> None:
    encoding, data = schema_of(name)
    schema = json.loads(data)
    assert encoding == "jsonschema"
    assert schema["type"] == "object"
    assert schema["properties"]


def test_our_messages_have_no_field_but_those_of_their_schema(
    messages: list[tuple[Any, Any, Any]],
) -> None:
    for schema, _, message in messages:
        if schema.encoding == "jsonschema":
            described = json.loads(schema.data)
            record = json.loads(message.data)
            assert record.keys() <= described["properties"].keys()
            header = described["$defs"]["PacketHeader"]["properties"]
            assert record["header"].keys() <= header.keys()


def test_every_channel_and_schema_is_documented(recorded: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "recordings.md").read_text(encoding="utf-8")
    for _, channel, _ in read_all(part_paths(recorded)[0]):
        _, _, stream, what = channel.topic.split("/")
        topics = {f"`/epoch_<n>/{name}/{what}`" for name in (stream, "<stream>")}
        assert any(topic in page for topic in topics), topics
    assert all(f"`{name}`" in page for name in (*own_schema_names(), *MESSAGES))


@pytest.mark.parametrize(
    ("stream", "encoding"), [(s.name, e) for s in STREAMS.values() for e in s.encodings]
)
def test_every_encoding_of_the_table_is_stored_as_documented(
    tmp_path: Path, tools: Any, stream: str, encoding: str
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "recordings.md").read_text(encoding="utf-8")
    spec = STREAMS[stream].encodings[encoding]
    payload = bytes(spec.row_bytes * max(spec.min_rows, 1) if spec.max_rows else 0)
    size = {"width": 16, "height": 16} if encoding == "u16" else {}
    header = tools.packet(stream, 0, 5, encoding=encoding, keyframe=True, **size)
    tools.record(tmp_path, [(header, payload)])
    written = read_all(tmp_path / "part-000.mcap")
    carriers = [
        (schema, message) for schema, c, message in written if c.metadata["role"] == "carrier"
    ]
    line = next(line for line in page.splitlines() if f"`{encoding}`" in line)
    for schema, message in carriers:
        decoded = published(schema.name).FromString(message.data)
        assert decoded.data == payload
        assert f"`{schema.name}`" in line
        if hasattr(decoded, "format"):
            assert f"`{decoded.format}`" in line
    assert bool(carriers) == ("carrier of" in line)
    with Recording(tmp_path) as recording:
        (packet,) = recording.packets()
    assert (packet.header, packet.payload) == (header, payload)


def test_metadata_says_where_a_recording_comes_from(tmp_path: Path, tools: Any) -> None:
    info = RecordingInfo(session="s1", device="hl2", kind="expert", task="bike", procedure="p")
    writer = RecordingWriter(tmp_path, info, clock=lambda: 7, utc_clock=lambda: 9)
    writer.write_packet(tools.packet("gaze", 0, 5), bytes(24))
    writer.close()
    with (tmp_path / "part-000.mcap").open("rb") as file:
        metadata, repeated = make_reader(file).iter_metadata()
    assert metadata == repeated
    assert metadata.name == "keystep.recording"
    assert metadata.metadata["task"] == "bike"
    with Recording(tmp_path) as recording:
        assert (recording.info.kind, recording.info.utc_ns) == ("expert", "9")
        assert recording.info.clock_ns == "7"
