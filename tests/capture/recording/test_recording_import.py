"""Other formats become recordings, and recordings other formats; what is lost is said."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.frame import PictureType

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.importers.frame_folder import IndustRealImporter, MeccanoImporter
from keystep_capture.importers.video_file import VideoFileImporter
from keystep_capture.recording import Recording
from keystep_capture.recording.export import export_csv, export_mp4
from keystep_capture.recording.health import check
from keystep_capture.recording.importing import Imported, run_import
from keystep_capture.recording.notes import LabelNote
from keystep_capture.recording.pictures import read_frames
from keystep_capture.samples import find_sample

ROOT = Path(__file__).parents[3]


def packets_of(folder: Path) -> list[tuple[Any, bytes]]:
    with Recording(folder) as recording:
        return [(packet.header, packet.payload) for packet in recording.packets()]


def times_of(folder: Path) -> list[int]:
    return [header.device_time_ns for header, _ in packets_of(folder)]


# -- video -----------------------------------------------------------------------------------------


@pytest.fixture
def plain_mp4(tmp_path: Path, tools: Any) -> Path:
    """A video without B frames, as an export writes it, without the times beside it."""
    with Recording(tools.record(tmp_path / "made", tools.coffee_packets()[:90])) as recording:
        export_mp4(recording, tmp_path / "plain.mp4")
    (tmp_path / "plain.times.json").unlink()
    return tmp_path / "plain.mp4"


def test_video_without_b_frames_is_not_encoded_again(
    plain_mp4: Path, tmp_path: Path, tools: Any
) -> None:
    plan = VideoFileImporter().plan(plain_mp4)
    assert plan.streams == {"rgb": "320x240, h264 as it is"}
    assert "every sensor but rgb" in plan.absent
    run_import(VideoFileImporter(), plain_mp4, tmp_path / "r")
    imported = packets_of(tmp_path / "r")
    assert [h.keyframe for h, _ in imported] == [n % 15 == 0 for n in range(90)]
    assert {header.encoding for header, _ in imported} == {"h264"}
    moments = [(1, header.device_time_ns) for header, _ in imported]
    pictures = [frame.to_ndarray() for _, frame in read_frames([tmp_path / "r"], moments)]
    with av.open(str(plain_mp4)) as container:
        bare = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(pictures) == len(bare) == 90
    assert all((ours == theirs).all() for ours, theirs in zip(pictures, bare, strict=True))


def test_video_with_b_frames_is_stored_as_jpeg_and_said(tmp_path: Path) -> None:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    plan = VideoFileImporter().plan(path)
    assert "since it has B frames" in plan.streams["rgb"]
    assert any("encoded again" in line for line in plan.absent)
    result = run_import(VideoFileImporter(), path, tmp_path / "r")
    assert result.written_count == plan.packet_count == 287
    times = times_of(tmp_path / "r")
    assert times == [round(n * 1001 / 30000 * 1e9) for n in range(287)]
    with Recording(tmp_path / "r") as recording:
        assert "B frames" in recording.info.absent
        assert recording.info.clock == "none"
    assert check(tmp_path / "r").lanes[0].starts_with_keyframe is None


@pytest.mark.parametrize("name", ["x.avi", "x.mkv"])
def test_other_codecs_and_containers_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        track = out.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = np.full((48, 64, 3), number * 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pict_type = PictureType.NONE
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    run_import(VideoFileImporter(), path, tmp_path / "r")
    headers = [header for header, _ in packets_of(tmp_path / "r")]
    assert len(headers) == 10
    assert {(h.encoding, h.width, h.height) for h in headers} == {("jpeg", 64, 48)}


def test_a_bare_stream_without_times_is_put_at_its_rate(
    plain_mp4: Path, tmp_path: Path, tools: Any
) -> None:
    bare = tmp_path / "x.h264"
    bare.write_bytes(b"".join(payload for _, payload in tools.coffee_packets()[:90]))
    plan = VideoFileImporter().plan(bare)
    assert "since it gives no times to some packets" in plan.streams["rgb"]
    assert "times: the file has none, picture n is put at n / 30 Hz" in plan.absent
    run_import(VideoFileImporter(), bare, tmp_path / "r")
    assert times_of(tmp_path / "r") == [n * 33_333_333 for n in range(90)]


def test_a_video_that_breaks_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(DataError, match=r"cut\.mp4: the video breaks: Invalid data found"):
        run_import(VideoFileImporter(), tmp_path / "cut.mp4", tmp_path / "r")


@pytest.mark.parametrize("content", [b"", b"RIFF" * 9, b"\0\0\0\x18ftypisom" + bytes(90)])
def test_what_is_no_video_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mp4: expected a video file: Invalid data") as caught:
        VideoFileImporter().plan(tmp_path / "x.mp4")
    assert "\n" not in str(caught.value)


def test_export_and_import_keep_video_and_times_exactly(tmp_path: Path, tools: Any) -> None:
    sent = []
    for header, payload in tools.coffee_packets()[:60]:
        fields = {"keyframe": header.keyframe, "width": 320, "height": 240}
        time_ns = header.device_time_ns + header.sequence**2 * 7 + 3  # no whole microseconds
        sent.append((tools.packet("rgb", header.sequence, time_ns, **fields), payload))
    with Recording(tools.record(tmp_path / "a", sent)) as recording:
        assert export_mp4(recording, tmp_path / "v.mp4") == 60
        with pytest.raises(ConfigError, match="exists already"):
            export_mp4(recording, tmp_path / "v.mp4")
    run_import(VideoFileImporter(), tmp_path / "v.mp4", tmp_path / "b")
    assert times_of(tmp_path / "b") == [header.device_time_ns for header, _ in sent]
    pictures = [
        [
            frame.to_ndarray()
            for _, frame in read_frames([tmp_path / name], [(1, h.device_time_ns) for h, _ in sent])
        ]
        for name in ("a", "b")
    ]
    assert len(pictures[0]) == 60
    assert all((a == b).all() for a, b in zip(*pictures, strict=True))
    (tmp_path / "v.times.json").unlink()
    run_import(VideoFileImporter(), tmp_path / "v.mp4", tmp_path / "c")
    ours = np.array([header.device_time_ns for header, _ in sent])
    assert np.abs(np.array(times_of(tmp_path / "c")) - (ours - ours[0])).max() <= 500  # MP4's


# -- data sets -------------------------------------------------------------------------------------


def jpeg(number: int) -> bytes:
    picture = np.full((72, 128, 3), number * 9 % 256, np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1].tobytes())


@pytest.fixture
def industreal(tmp_path: Path) -> Path:
    """A folder as IndustReal publishes it, with made-up numbers."""
    folder = tmp_path / "03_assy_0_1"
    (folder / "rgb").mkdir(parents=True)
    for number in range(20):
        (folder / "rgb" / f"{number:06d}.jpg").write_bytes(jpeg(number))
    poses = [f"{n:06d}.jpg,0,-0.707,-0.707,0.1,1.6,{n / 100},0,0.707,-0.707" for n in range(20)]
    (folder / "pose.csv").write_text("\n".join(poses))
    (folder / "gaze.csv").write_text("\n".join(f"{n:06d}.jpg,640,{n}" for n in range(20)))
    hands = ",".join("0" for _ in range(104))
    (folder / "hands.csv").write_text("\n".join(f"{n:06d}.jpg,{hands}" for n in range(20)))
    (folder / "PSR_labels.csv").write_text("000012.jpg,3,Install front chassis\n")
    return folder


def test_industreal_gives_pictures_head_and_labels(industreal: Path, tmp_path: Path) -> None:
    plan = IndustRealImporter().plan(industreal)
    assert plan.packet_count == 20 + 20 + 20 + 20 + 1
    result = run_import(IndustRealImporter(), industreal, tmp_path / "r")
    assert result.written_count == plan.packet_count
    with Recording(tmp_path / "r") as recording:
        rgb = list(recording.packets(("rgb",)))
        heads = list(recording.packets(("head",)))
        labels = [e.note for e in recording.notes("label") if isinstance(e.note, LabelNote)]
        assert "gaze: only the pixel" in recording.info.absent
        assert {lane.stream for lane in recording.lanes} == {"rgb", "head"}
    assert [packet.payload for packet in rgb] == [jpeg(number) for number in range(20)]
    assert [packet.header.device_time_ns for packet in rgb] == [n * 10**8 for n in range(20)]
    assert rgb[3].header.frame_idx == 3
    pose = np.frombuffer(heads[5].payload, "<f4").reshape(4, 4)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(-pose[:3, 2], [0, -(0.5**0.5), -(0.5**0.5)], atol=1e-3)
    np.testing.assert_allclose(pose[:3, 3], [0.1, 1.6, 0.05], atol=1e-6)
    np.testing.assert_allclose(pose[:3, 0], [1, 0, 0], atol=1e-6)
    (step,) = [label for label in labels if label.source == "PSR_labels.csv"]
    assert (step.frame_idx, step.values, step.texts) == (12, [3.0], ["Install front chassis"])
    assert len([label for label in labels if label.source == "gaze.csv"]) == 20


def test_meccano_labels_are_kept_as_published(tmp_path: Path) -> None:
    folder = tmp_path / "0011"
    folder.mkdir()
    (folder / "PSR_labels.csv").write_text("00427.jpg,0,Install left fork\n00500.jpg,3,Screw\n")
    plan = MeccanoImporter().plan(folder)
    assert "rgb: no pictures are in the folder" in plan.absent
    run_import(MeccanoImporter(), folder, tmp_path / "r")
    with Recording(tmp_path / "r") as recording:
        labels = [entry.note for entry in recording.notes("label")]
        assert list(recording.packets()) == []
    assert isinstance(labels[0], LabelNote)
    assert labels[0].device_time_ns == round(427 / 12 * 1e9)
    assert [label.texts for label in labels] == [["Install left fork"], ["Screw"]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("pose.csv", "000001.jpg,1,2,3", r"pose.csv: line 1: expected 9 numbers"),
        ("pose.csv", "a\nb,1", r"pose.csv: line 2: expected a frame's name"),
        ("pose.csv", "000001.jpg" + ",nan" * 9, r"pose.csv: line 1: expected 9 numbers"),
        ("gaze.csv", "1.jpg," + "1" * 2**21, r"gaze.csv: line 1: has 1048576 characters or more"),
        ("gaze.csv", "1.jpg" + ",1" * 5000, r"gaze.csv: line 1: .*at most 4096 fields"),
        ("PSR_labels.csv", "\xff\xfe\0", r"PSR_labels.csv: "),
        ("rgb/000003.jpg", "no picture", r"000003.jpg: at byte 10: expected a JPEG"),
        ("rgb/000003.jpg", "", r"000003.jpg: a picture of 0 bytes"),
    ],
)
def test_damaged_data_sets_are_told_in_a_line(
    industreal: Path, tmp_path: Path, file: str, content: str, said: str
) -> None:
    (industreal / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=said) as caught:
        run_import(IndustRealImporter(), industreal, tmp_path / "r")
    assert "\n" not in str(caught.value)


# -- resuming --------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for Ctrl-C."""


class Interrupting(IndustRealImporter):
    """Stops after some packets, as a killed process would."""

    def __init__(self, after: int) -> None:
        self._after = after

    def read(self, path: Path) -> Iterator[Imported]:
        for number, item in enumerate(super().read(path)):
            if number == self._after:
                raise Interrupted
            yield item


@pytest.mark.parametrize("after", [0, 1, 33, 80])
def test_an_interrupted_import_goes_on_where_it_was(
    industreal: Path, tmp_path: Path, after: int
) -> None:
    whole = run_import(IndustRealImporter(), industreal, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_import(Interrupting(after), industreal, tmp_path / "r")
    told: list[tuple[int, int | None]] = []
    result = run_import(
        IndustRealImporter(), industreal, tmp_path / "r", on_progress=lambda *of: told.append(of)
    )
    assert (result.resumed_count, result.written_count) == (after, whole.written_count - after)
    assert packets_of(tmp_path / "r") == packets_of(tmp_path / "whole")
    assert told[-1] == (81, 81)
    with pytest.raises(ConfigError, match="holds the whole import already"):
        run_import(IndustRealImporter(), industreal, tmp_path / "r")


def test_an_import_does_not_go_on_in_another_source_s_folder(
    industreal: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run_import(Interrupting(5), industreal, tmp_path / "r")
    (industreal / "PSR_labels.csv").write_text("000012.jpg,3,Install\n")
    with pytest.raises(ConfigError, match="or an interrupted import of"):
        run_import(IndustRealImporter(), industreal, tmp_path / "r")


# -- CSV and commands ------------------------------------------------------------------------------


def test_csv_holds_times_and_numbers_exactly(recorded: Path, tmp_path: Path, tools: Any) -> None:
    with Recording(recorded) as recording:
        counts = export_csv(recording, tmp_path / "csv")
    assert counts == {"gaze.csv": 300, "head.csv": 300, "hands.csv": 300, "detections.csv": 50}
    with (tmp_path / "csv" / "gaze.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    sent = tools.sensor_packets("gaze", 300)
    assert [int(row[0]) for row in rows] == [header.device_time_ns for header, _ in sent]
    values = np.array([[float(text) for text in row[6:]] for row in rows], "<f4")
    assert [row.tobytes() for row in values] == [payload for _, payload in sent]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of pyproject.toml, as an installed package would offer them."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path / "site" / "keystep_here-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: keystep-here\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in points["keystep.importers"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[keystep.importers]", *lines]))
    paths = [str(tmp_path / "site"), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))


def keystep(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keystep_capture.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("installed")
def test_importers_are_found_by_entry_point(industreal: Path, tmp_path: Path) -> None:
    listed = keystep("import", "list")
    assert re.findall(r"^(\w+) ", listed.stdout, re.M) == [
        "hl2ss",
        "industreal",
        "meccano",
        "video",
    ]
    dry = keystep("import", "industreal", industreal, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "absent: hands: only pixels are published" in dry.stdout
    done = keystep("import", "industreal", industreal, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "81 packets and labels" in done.stdout
    unknown = keystep("import", "vhs", industreal, "--out", tmp_path / "s")
    assert unknown.returncode == 2
    assert "no importer 'vhs'; known: hl2ss, industreal, meccano, video" in unknown.stderr


def test_export_writes_mp4_or_csv(recorded: Path, tmp_path: Path) -> None:
    told = keystep("recording", "export", recorded, "--mp4", tmp_path / "v.mp4")
    assert told.returncode == 0, told.stderr
    times = json.loads((tmp_path / "v.times.json").read_text())
    assert len(times["device_times_ns"]) == 150
    assert keystep("recording", "export", recorded, "--csv", tmp_path / "c").returncode == 0
    wrong = keystep("recording", "export", recorded)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    none = keystep("recording", "export", recorded, "--mp4", tmp_path / "w.mp4", "--stream", "gaze")
    assert none.returncode == 1
    assert "has no video of 'gaze'" in none.stderr
