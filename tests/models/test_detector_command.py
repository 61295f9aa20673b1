"""`keystep psr detect`: a recording's detections, resumed where they were stopped."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib.resources import files

import av
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError
from keystep_models.cli import register
from keystep_models.detector.classes import ClassMap
from keystep_models.detector.detection_file import write_detections
from keystep_models.detector.recorded_pictures import at_rate, open_pictures
from keystep_models.psr.detections import DetectionLimits, read_detections
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.procedure_files import load_procedure

_COUNT = 24


@pytest.fixture
def video(tmp_path):
    """A bright square that goes to the right, two pixels a frame, at 20 Hz; none in frame 5."""
    path = tmp_path / "moving.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(20))
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(_COUNT):
            image = np.zeros((180, 320, 3), np.uint8)
            if number != 5:
                image[60:120, 40 + 2 * number : 100 + 2 * number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def finder(box_finder):
    return box_finder((192, 320), states=["10000000000"])


def test_every_frame_has_its_place(video, finder, tmp_path):
    out = tmp_path / "d.csv"
    counts = write_detections(open_pictures(video), finder, out, rate_hz=None)
    frames = read_detections(out, limits=DetectionLimits(class_count=1, image_size=(320, 180)))
    assert (counts.pictures, counts.with_detections, counts.lost) == (_COUNT, _COUNT - 1, 0)
    assert [len(found) for found in frames] == [int(n != 5) for n in range(_COUNT)]
    centres = [frame[0].box[0] for frame in frames if frame]
    expected = [70 + 2 * n for n in range(_COUNT) if n != 5]
    np.testing.assert_allclose(centres, expected, atol=1.0)  # what the codec does to edges


def test_half_the_rate_looks_at_every_second_frame(video, finder, tmp_path):
    out = tmp_path / "d.csv"
    write_detections(open_pictures(video), finder, out, rate_hz=10.0)
    centres = [frame[0].box[0] for frame in read_detections(out) if frame]
    np.testing.assert_allclose(centres, [70 + 4 * n for n in range(_COUNT // 2)], atol=1.0)


def test_a_rate_follows_jittering_stamps_and_a_restart():
    times = [0, 99, 201, 290, 400, 2000, 2050, 2100, 5, 50, 104]
    found = at_rate(((n, t * 1_000_000, None) for n, t in enumerate(times)), 10.0)
    assert [(n, t // 1_000_000) for n, t, _ in found] == list(
        enumerate([0, 99, 201, 290, 400, 2000, 2100, 5, 104])
    )


@pytest.mark.parametrize("cut", [40, 300, 700])
def test_a_stopped_run_goes_on_to_the_same_file(video, finder, tmp_path, cut):
    whole, out = tmp_path / "whole.csv", tmp_path / "d.csv"
    write_detections(open_pictures(video), finder, whole, rate_hz=None)

    class StopError(Exception):
        pass

    seen = []
    detect = finder.detect

    def stopping(frame):
        seen.append(frame)
        if len(seen) == 20:
            raise StopError
        return detect(frame)

    finder.detect = stopping
    with pytest.raises(StopError):
        write_detections(open_pictures(video), finder, out, rate_hz=None)
    assert not out.exists()
    partial = tmp_path / "d.csv.partial"
    partial.write_bytes(partial.read_bytes()[:cut])  # a kill leaves any number of bytes
    seen.clear()
    seen.extend([None] * 100)
    counts = write_detections(open_pictures(video), finder, out, rate_hz=None)
    assert out.read_bytes() == whole.read_bytes()
    assert counts.with_detections == _COUNT - 1
    assert len(seen) - 100 < _COUNT or cut == 40
    assert sorted(path.name for path in tmp_path.glob("d.csv*")) == ["d.csv"]


def test_what_another_choice_left_is_not_taken(video, finder, tmp_path):
    out = tmp_path / "d.csv"
    (tmp_path / "d.csv.partial").write_text("clip,framenr\nmoving,7,\nmoving,8,\n")
    (tmp_path / "d.csv.partial.json").write_text(json.dumps({"rate_hz": 3}))
    write_detections(open_pictures(video), finder, out, rate_hz=None)
    assert len(read_detections(out)) == _COUNT


def test_classes_are_written_as_the_procedures(video, finder, tmp_path):
    procedure = builtin_procedure("industreal-assy")
    out = tmp_path / "d.csv"
    class_map = ClassMap.of(finder.spec, procedure)
    write_detections(open_pictures(video), finder, out, class_map=class_map)
    found = {d.class_id for frame in read_detections(out) for d in frame}
    assert found == {procedure.states.index((1,) + (0,) * 10)}


def test_bad_choices_are_told(video, finder, tmp_path):
    pictures = open_pictures(video)
    with pytest.raises(ConfigError, match=r"ending in \.csv"):
        write_detections(pictures, finder, tmp_path / "d.json")
    with pytest.raises(ConfigError, match="-1"):
        write_detections(pictures, finder, tmp_path / "d.csv", rate_hz=-1.0)
    with pytest.raises(DataError, match="no such recording"):
        open_pictures(tmp_path / "nothing")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match=r"broken\.mp4"):
        write_detections(open_pictures(broken), finder, tmp_path / "d.csv")


def test_the_command_writes_detections_and_states(video, finder, tmp_path):
    folder = next(tmp_path.glob("finder*"))
    out, states = tmp_path / "out" / "d.csv", tmp_path / "states.json"
    arguments = ["psr", "detect", str(video), "--detector", str(folder), "--out", str(out)]
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, [*arguments, "--states-out", str(states)])
    assert done.exit_code == 0, done.output
    assert "12 pictures, 12 with detections" in done.output.replace("\n", " ")
    assert json.loads(states.read_text()) == ["10000000000"]
    assert len(read_detections(out)) == 12


def test_a_procedure_is_written_with_its_detector(box_finder, tmp_path):
    detector = box_finder((64, 64), states=["10000000000"])
    info = files("keystep_models.psr") / "data" / "procedure_info_IndustReal.json"
    steps = json.loads(info.read_text())
    steps[0]["description"] = "Install something else"  # not IndustReal's: it has no states
    (tmp_path / "info.json").write_text(json.dumps(steps))
    app = typer.Typer()
    register(app)
    out = tmp_path / "p.json"
    folder = next(tmp_path.glob("finder*"))
    arguments = ["procedure", "convert", str(tmp_path / "info.json"), "--task", "assy"]
    options = ["--out", str(out), "--detector", str(folder), "--name", "mine"]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    procedure = load_procedure(str(out))
    assert (procedure.name, procedure.detector) == ("mine", detector.id)
    assert procedure.states == ((1,) + (0,) * 10,)
    built_in = ["procedure", "convert", "industreal-main", *options]
    done = CliRunner().invoke(app, built_in)
    assert done.exit_code == 0, done.output
    assert len(load_procedure(str(out)).states) == 24
