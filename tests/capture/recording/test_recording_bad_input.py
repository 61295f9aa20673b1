"""Files that are cut off, damaged, foreign or hostile: one line, no hang, bounded memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.data_stream import RecordBuilder
from mcap.records import Channel, Chunk, Metadata, Schema
from mcap.writer import MCAP0_MAGIC, CompressionType, Writer

from keystep_capture.errors import DataError
from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.health import check
from keystep_capture.recording.repair import repair

INFO = Metadata(name="keystep.recording", metadata={"format_version": "1", "session": "s"})


def read(path: Path, *, skip_damage: bool = False) -> list[tuple[Any, bytes]]:
    """Header and payload of all packets, and every note decoded."""
    with Recording(path) as recording:
        for _ in recording.notes(skip_damage=skip_damage):
            pass
        packets = recording.packets(skip_damage=skip_damage)
        return [(packet.header, packet.payload) for packet in packets]


def record_bytes(record: Any) -> bytes:
    builder = RecordBuilder()
    record.write(builder)
    return bytes(builder.end())


def forged(path: Path, *records: Any) -> Path:
    """A file of the given records behind a recording's metadata, without an index."""
    parts = [r if isinstance(r, bytes) else record_bytes(r) for r in (INFO, *records)]
    path.write_bytes(MCAP0_MAGIC + b"".join(parts))
    return path


def chunk_of(data: bytes, *, compression: str = "", size: int | None = None, crc: int = 0) -> Chunk:
    return Chunk(
        compression=compression,
        data=data,
        message_end_time=9,
        message_start_time=0,
        uncompressed_crc=crc,
        uncompressed_size=len(data) if size is None else size,
    )


def message_bytes(channel: int, data: bytes, time_ns: int = 5) -> bytes:
    return struct.pack("<BQHIQQ", 5, 22 + len(data), channel, 0, time_ns, time_ns) + data


@pytest.fixture
def part(recorded: Path) -> Path:
    return recorded / "part-000.mcap"


# -- cut off and damaged ---------------------------------------------------------------------------


def test_a_file_cut_off_anywhere_is_read_up_to_there(part: Path, tools: Any) -> None:
    whole, sent = part.read_bytes(), list(tools.session_packets())
    counts = []
    for share in (0.02, 0.3, 0.6, 0.8, 0.97, 0.999):
        part.write_bytes(whole[: int(len(whole) * share)])
        with Recording(part) as recording:
            assert not recording.finished
            assert len(recording.damage) == 1
            assert str(part) in str(recording.damage[0])
            assert "at byte" in str(recording.damage[0])
        packets = read(part)
        assert packets == sent[: len(packets)]
        counts.append(len(packets))
    assert counts == sorted(counts)
    assert counts[-1] == len(sent)  # its index was cut off, nothing else


def test_a_flipped_bit_in_a_chunk_costs_that_chunk_only(part: Path, tools: Any) -> None:
    data = bytearray(part.read_bytes())
    with Recording(part) as recording:
        offset = recording.parts[0].chunk_offset(1)
        kept = len(list(recording.packets())) - sum(
            recording.parts[0].channels[m.channel_id].topic.endswith("/packet")
            for m in recording.parts[0].messages(1)
        )
    data[offset + 5000] ^= 0x10
    part.write_bytes(data)
    with pytest.raises(DataError, match=rf"part-000.mcap: at byte {offset}: the chunk's checksum"):
        read(part)
    assert len(read(part, skip_damage=True)) == kept


def test_a_damaged_index_is_made_good_by_reading_the_file(part: Path, tools: Any) -> None:
    data = bytearray(part.read_bytes())
    data[-200] ^= 0x01
    part.write_bytes(data)
    with Recording(part) as recording:
        assert not recording.finished
        assert "index's checksum is wrong" in str(recording.damage[0])
    assert read(part) == list(tools.session_packets())


BREAKS = {
    "a chunk's length": lambda chunks: (chunks[1] + 1, b"\xff"),
    "a chunk's length, a little": lambda chunks: (chunks[1] + 3, b"\x02"),
    "a chunk's kind": lambda chunks: (chunks[1], b"\x02"),
    "a whole block": lambda chunks: (chunks[1] - 100, bytes(4096)),
    "what describes all channels": lambda chunks: (chunks[0] - 500, bytes(500)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_file_without_index_is_read_on_behind_a_break(
    tmp_path: Path, tools: Any, name: str
) -> None:
    sent = tools.session_packets()
    part = tools.record(tmp_path / "r", sent, chunk_bytes=50_000) / "part-000.mcap"
    with Recording(part) as recording:
        (source,) = recording.parts
        chunks = [source.chunk_offset(idx) for idx in range(source.chunk_count)]
        second = source.chunk_times(1)
    data = bytearray(part.read_bytes()[:-1])  # as a killed process left it
    position, spoiled = BREAKS[name](chunks)
    data[position : position + len(spoiled)] = spoiled
    part.write_bytes(data)
    found = read(part, skip_damage=True)
    lost = [header.device_time_ns for header, _ in sent if (header, _) not in found]
    if "channels" in name:
        assert not lost
    else:
        assert second[0] <= min(lost) <= max(lost) <= second[1]
    with Recording(part) as recording:
        assert recording.damage
        assert {lane.stream for lane in recording.lanes} >= {"rgb", "gaze", "head", "hands"}
    repair(part, tmp_path / "new.mcap")
    assert read(tmp_path / "new.mcap") == found


@pytest.mark.parametrize("spoiled", [1, 8, 40, 4096])
@pytest.mark.parametrize("cut", [0, 1], ids=["closed", "killed"])
def test_a_file_whose_first_bytes_are_lost_is_read(
    tmp_path: Path, tools: Any, spoiled: int, cut: int
) -> None:
    sent = tools.session_packets()
    part = tools.record(tmp_path / "r", sent, chunk_bytes=50_000) / "part-000.mcap"
    data = bytearray(part.read_bytes())
    data[:spoiled] = bytes(spoiled)
    part.write_bytes(data[: len(data) - cut])
    with Recording(part) as recording:
        assert "at byte 0: expected an MCAP recording" in str(recording.damage[0])
        assert recording.info.session
    assert read(part) == list(sent)
    repair(part, tmp_path / "new.mcap")
    assert read(tmp_path / "new.mcap") == list(sent)


def test_an_empty_part_costs_itself_only(recorded: Path, tools: Any) -> None:
    (recorded / "part-001.mcap").write_bytes(b"")
    with Recording(recorded) as recording:
        assert "part-001.mcap: at byte 0: the file is empty" in str(recording.damage[0])
        assert len(list(recording.packets())) == len(tools.session_packets())


# -- renamed, empty, foreign -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty, expected an MCAP recording"),
        (b"\x89MCA", "at byte 0: expected an MCAP recording"),
        (b"\0\0\0\x20ftypisom" * 100, "at byte 0: expected an MCAP recording"),
        (MCAP0_MAGIC, "no recording of Keystep"),
        (MCAP0_MAGIC * 2, "no recording of Keystep"),
        (MCAP0_MAGIC + b"\xff" * 64, "no recording of Keystep"),
    ],
)
def test_what_is_no_recording_is_told_in_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        Recording(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_mcap_of_another_program_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.mcap"
    writer = Writer(str(path), compression=CompressionType.ZSTD)
    writer.start()
    channel = writer.register_channel(
        "/x", "json", writer.register_schema("X", "jsonschema", b"{}")
    )
    writer.add_message(channel, 5, b"{}", 5)
    writer.finish()
    with pytest.raises(DataError, match="an MCAP file, but no recording of Keystep"):
        Recording(path)


def test_a_newer_format_is_told(tmp_path: Path) -> None:
    newer = Metadata(name=INFO.name, metadata={"format_version": "2", "session": "s"})
    path = tmp_path / "x.mcap"
    path.write_bytes(MCAP0_MAGIC + record_bytes(newer))
    with pytest.raises(DataError, match="format version '2', this program reads version 1"):
        Recording(path)


def test_a_folder_without_parts_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a recording's parts, part-000.mcap"):
        Recording(tmp_path)


# -- hostile ---------------------------------------------------------------------------------------


def bomb(compress: Callable[[bytes], bytes], name: str) -> Chunk:
    return chunk_of(compress(bytes(1 << 28)), compression=name, size=1 << 28)


HOSTILE: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "record of 4 GB": (lambda: (struct.pack("<BQ", 6, 1 << 32),), "does not fit"),
    "record of 16 EB": (lambda: (struct.pack("<BQ", 6, 2**64 - 1),), "does not fit"),
    "chunk whose data is 4 GB": (
        lambda: (struct.pack("<BQQQQIIQ", 6, 40, 0, 9, 1 << 32, 0, 0, 1 << 32),),
        "expected 0 bytes in the chunk, it says 4294967296",
    ),
    "compression's name of 4 GB": (
        lambda: (struct.pack("<BQQQQIIQ", 6, 40, 0, 9, 5, 0, (1 << 32) - 1, 5),),
        "the compression's name has 4294967295 bytes",
    ),
    "zstd bomb": (lambda: (bomb(zstandard.compress, "zstd"),), "says that it unpacks to"),
    "lz4 bomb": (lambda: (bomb(lz4.frame.compress, "lz4"),), "says that it unpacks to"),
    "zstd bomb that lies": (
        lambda: (chunk_of(zstandard.compress(bytes(1 << 26)), compression="zstd", size=100),),
        "unpacks to 101 bytes or more",
    ),
    "lz4 bomb that lies": (
        lambda: (chunk_of(lz4.frame.compress(bytes(1 << 26)), compression="lz4", size=100),),
        "unpacks to 101 bytes or more",
    ),
    "noise as zstd": (
        lambda: (chunk_of(b"\x28\xb5\x2f\xfd" + b"\xee" * 99, compression="zstd", size=10),),
        "cannot be unpacked",
    ),
    "unknown compression": (
        lambda: (chunk_of(b"x", compression="brotli", size=1),),
        "compression b'brotli' is unknown",
    ),
    "message of 4 GB": (
        lambda: (chunk_of(struct.pack("<BQ", 5, 1 << 32) + bytes(30)),),
        "a record of 4294967296 bytes exceeds its chunk",
    ),
    "message of 3 bytes": (
        lambda: (chunk_of(struct.pack("<BQ", 5, 3) + b"abc"),),
        "a message record has only 3 bytes",
    ),
    "message of no channel": (
        lambda: (chunk_of(message_bytes(77, b"{}")),),
        "a message of channel 77, which is not described",
    ),
    "all the channels there can be": (
        lambda: tuple(
            Channel(
                id=n % 65535, topic="x" * (n % 9), message_encoding="", schema_id=0, metadata={}
            )
            for n in range(66_000)
        ),
        "more than 4096 channels",
    ),
    "text of 4 GB": (
        lambda: (struct.pack("<BQHHI", 4, 8, 1, 0, (1 << 32) - 1),),
        "a record cannot be read",
    ),
    "text that is not UTF-8": (
        lambda: (struct.pack("<BQHHI", 4, 10, 1, 0, 2) + b"\xff\xff",),
        "a record cannot be read",
    ),
    "schema of 2 MiB": (
        lambda: (Schema(id=1, data=bytes(2 << 20), encoding="", name=""),),
        "a schema or channel of",
    ),
    "chunk that ends before it begins": (
        lambda: (struct.pack("<BQQQQIIQ", 6, 40, 9, 5, 0, 0, 0, 0),),
        "lasts from 9 back to 5",
    ),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_told_in_a_line_with_its_byte(tmp_path: Path, name: str) -> None:
    records, said = HOSTILE[name]
    path = forged(tmp_path / "x.mcap", *records())
    with Recording(path) as recording:
        found = [str(damage) for damage in recording.damage]
        list(recording.entries(skip_damage=True))
        found = [str(damage) for damage in recording.damage]
    assert any(said in damage and f"{path}: at byte " in damage for damage in found), found
    assert not any("\n" in damage for damage in found)


PACKET_CHANNEL = Channel(
    id=1,
    topic="/epoch_1/gaze/packet",
    message_encoding="json",
    schema_id=0,
    metadata={"role": "packet", "stream": "gaze", "epoch": "1", "encoding": "ray_f32"},
)
GOOD_HEADER = (
    '{"type":"packet","protocol":"1.0","session":"s","epoch":1,"stream":"gaze","sequence":0,'
    '"device_time_ns":5,"send_time_ns":5,"encoding":"ray_f32"}'
)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("", "expected a keystep.Packet, got 0 bytes"),
        ("[" * 5000, "expected a keystep.Packet"),
        ("{}", "missing required field `header`"),
        (f'{{"header":{GOOD_HEADER}}}', "lacks the message that carries its payload"),
        (f'{{"header":{GOOD_HEADER},"values":[1,2]}}', "payload has 8 bytes"),
        (f'{{"header":{GOOD_HEADER},"values":[1e300,0,0,0,0,0]}}', "numbers do not fit <f4"),
        (f'{{"header":{GOOD_HEADER},"payload":"AAAA"}}', "payload has 3 bytes"),
        (f'{{"header":{GOOD_HEADER},"payload":"!!"}}', "expected a keystep.Packet"),
        (
            '{"header":%s,"payload":""}' % GOOD_HEADER.replace("ray_f32", "nope"),  # noqa: UP031
            "has no encoding 'nope'",
        ),
        (
            '{"header":%s,"values":[1,2,3,4,5,6]}'  # noqa: UP031
            % GOOD_HEADER.replace('"epoch":1', '"epoch":2'),
            "epoch 2 stands in the channel of gaze epoch 1",
        ),
        ('{"header":"' + "x" * (9 << 20) + '"}', "at most 8388608 can be read"),
    ],
)
def test_a_packet_that_is_none_is_told(tmp_path: Path, record: str, said: str) -> None:
    data = record_bytes(PACKET_CHANNEL) + message_bytes(1, record.encode())
    path = forged(tmp_path / "x.mcap", PACKET_CHANNEL, chunk_of(data, crc=zlib.crc32(data)))
    with pytest.raises(DataError, match=r"x.mcap: at byte \d+: ") as caught:
        read(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_lies_is_not_followed(part: Path) -> None:
    data = bytearray(part.read_bytes())
    start = struct.unpack_from("<Q", data, len(data) - 8 - 20)[0]
    data[-8 - 4 : -8] = bytes(4)  # no checksum, so that the lie is not found by it
    position = start
    while data[position] != 8:  # the first chunk's index
        position += 9 + struct.unpack_from("<Q", data, position + 1)[0]
    struct.pack_into("<Q", data, position + 9 + 16, 2**63)  # where the chunk is said to begin
    part.write_bytes(data)
    with Recording(part) as recording:
        assert "cannot be" in str(recording.damage[0])
        assert len(list(recording.packets())) > 0  # found by reading the file


def test_times_that_jump_about_are_read_in_both_orders(tmp_path: Path, tools: Any) -> None:
    times = [5, 2**62 - 9, 0, 7, 2**62 - 9, 3, 5]
    sent = [(tools.packet("gaze", n, time_ns), bytes(24)) for n, time_ns in enumerate(times)]
    tools.record(tmp_path, sent, chunk_bytes=1)
    with Recording(tmp_path) as recording:
        by_time = [p.header.device_time_ns for p in recording.packets(order="device_time")]
        assert [p.header.device_time_ns for p in recording.packets()] == times
    assert by_time == sorted(times)
    assert check(tmp_path).verdict in ("usable", "poor")


def test_chunks_that_overlap_without_end_are_refused_by_device_time(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystep_capture.recording.reader.MAX_HELD_BYTES", 100_000)
    sent = [(tools.packet("gaze", n, n % 2 * 10**15), bytes(24)) for n in range(500)]
    tools.record(tmp_path, sent, chunk_bytes=2000)
    with (
        Recording(tmp_path) as recording,
        pytest.raises(DataError, match="overlap in time; read in order of arrival"),
    ):
        list(recording.packets(order="device_time"))


# -- any bytes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Path:
    """A short recording with every kind of record, several chunks."""
    folder = tmp_path_factory.mktemp("small")
    sent = [
        one
        for stream in ("gaze", "head", "hands", "detections")
        for one in tools.sensor_packets(stream, 6)
    ]
    tools.record(folder, [*sent, *tools.coffee_packets()[:3]], chunk_bytes=6000)
    return part_paths(folder)[0]


mutations = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "insert", "repeat", "length")),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, how: list[tuple[str, float, int]]) -> bytes:
    changed = bytearray(data)
    for kind, share, value in how:
        if not changed:
            break
        at = int(share * len(changed))
        if kind == "flip":
            changed[at] ^= 1 << value % 8
        elif kind == "set":
            changed[at] = value
        elif kind == "cut":
            del changed[at : at + 1 + value]
        elif kind == "insert":
            changed[at:at] = bytes((value,)) * (1 + value)
        elif kind == "repeat":
            changed[at:at] = changed[at : at + 8 * value]
        else:
            changed[at : at + 8] = struct.pack("<Q", value << 8 * (value % 7))
    return bytes(changed)


def exercise(path: Path, scratch: Path) -> None:
    """Everything that reads a file; only our own errors may come out."""
    said = []
    for action in (
        lambda: read(path, skip_damage=True),
        lambda: read(path),
        lambda: check(path),
        lambda: repair(path, scratch / "repaired.mcap"),
    ):
        try:
            action()
        except DataError as error:
            said.append(str(error))
    assert all("\n" not in text and str(path) in text for text in said), said
    repaired = scratch / "repaired.mcap"
    if repaired.exists():
        with Recording(repaired) as recording:
            assert recording.finished
        repaired.unlink()


EXAMPLES = int(os.environ.get("KEYSTEP_FUZZ_EXAMPLES", "300"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(how=mutations)
def test_no_mutation_of_a_file_gives_more_than_an_error(
    how: list[tuple[str, float, int]], small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(mutate(small.read_bytes(), how))
    exercise(path, tmp_path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=400))
def test_no_bytes_after_the_metadata_give_more_than_an_error(data: bytes, tmp_path: Path) -> None:
    exercise(forged(tmp_path / "x.mcap", data), tmp_path)


LIMITED = """
import resource, sys
from pathlib import Path
from keystep_capture.errors import KeystepError
from keystep_capture.recording import Recording
from keystep_capture.recording.export import export_csv, export_mp4
from keystep_capture.recording.health import check
from keystep_capture.recording.health_picture import write_health_picture
from keystep_capture.recording.pictures import read_frames, read_ticks
from keystep_capture.recording.repair import repair
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def notes(path, recording): list(recording.notes(skip_damage=True))
def by_time(path, recording): list(recording.packets(order="device_time", skip_damage=True))
def key_frame(path, recording): recording.keyframe_before("rgb", 5, epoch=1)
def ticks(path, recording): list(read_ticks(recording, epoch=1, skip_damage=True))
def frames(path, recording): list(read_frames([path], [(1, 5)]))
def mp4(path, recording): export_mp4(recording, path.with_suffix(".mp4"))
def csv(path, recording): export_csv(recording, path.with_suffix(""))
def picture(path, recording): write_health_picture(path.with_suffix(".png"), check(path))
def mend(path, recording): repair(path, path.with_suffix(".repaired"))
for name in sys.argv[2:]:
    for use in (notes, by_time, key_frame, ticks, frames, mp4, csv, picture, mend):
        try:
            with Recording(Path(name)) as recording:
                use(Path(name), recording)
        except KeystepError as error:
            assert "\\n" not in str(error), error
print("alive")
"""


def test_hostile_files_are_used_for_everything_in_bounded_memory(tmp_path: Path) -> None:
    paths = []
    for number, (records, _) in enumerate(HOSTILE.values()):
        paths.append(str(forged(tmp_path / f"{number}.mcap", *records())))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(2 << 30), *paths],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("alive\n")
    assert "MemoryError" not in done.stderr
