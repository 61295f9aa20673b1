"""Data sets' files as feature folders: small files in the published layouts, and damaged ones."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError
from keystep_models.cli import register
from keystep_models.steps.datasets.convert import convert
from keystep_models.steps.datasets.labelled import Stretch, label_frames
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    read_folder,
    read_keystep_names,
    write_video,
)

app = typer.Typer()
register(app)


def keystep(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return result.output


def features(folder: Path, *names: str, count: int = 60, rate_hz: float = 10.0) -> Path:
    """Simulated features that tell thirds of a video apart."""
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        rows = 5 * np.eye(3, 8)[np.arange(count) * 3 // count] + rng.normal(size=(count, 8))
        cue = CueFeatures(features=rows.astype("f4"), valid=np.ones(count, bool))
        times = np.round(np.arange(count) * 1e9 / rate_hz).astype(np.int64)
        video = VideoFeatures(name=name, rate_hz=rate_hz, times_ns=times, cues={"appearance": cue})
        write_video(folder, video)
    return folder


stretches = st.lists(
    st.tuples(
        st.integers(1, 5), st.floats(0, 12, allow_nan=False), st.floats(0, 5, allow_nan=False)
    ),
    max_size=6,
)


@given(drawn=stretches, rate_hz=st.sampled_from([1.0, 10.0, 12.0, 29.97, 30.0]))
def test_labels_are_those_of_egoprocels_rule(drawn: Any, rate_hz: float) -> None:
    count = round(10 * rate_hz)
    expected = np.zeros(count, int)
    rounded = [(n, round(a, 3), round(a + d, 3)) for n, a, d in drawn]
    for number, start, end in rounded:
        for frame in range(count):
            if np.floor(start * rate_hz) <= frame <= np.floor(end * rate_hz):
                expected[frame] = number
    times = np.round(np.arange(count) * 1e9 / rate_hz) / 1e9
    each = [Stretch(keystep=n, start_s=a, end_s=b) for n, a, b in rounded]
    np.testing.assert_array_equal(label_frames(times, rate_hz, each), expected)


def test_egoprocel_annotations_become_labels_beside_features(tmp_path: Path) -> None:
    source = tmp_path / "EPIC-Tents"
    (source / "person").mkdir(parents=True)
    (source / "01.tent.gopro.egoprocel.ann.csv").write_text('1.0,2.0,"2. lay out, the tent"\n')
    (source / "person" / "02.tent.gopro.csv").write_text("0.5,1.5,1 open bag\n3,4.5,4 peg\n")
    (source / "person" / "03.csv").write_text("")
    out = features(tmp_path / "out", "01.tent.gopro", "02.tent.gopro")
    made = convert("egoprocel", source, out)
    assert made.video_count == 2
    assert "03" in made.notes[0]
    one, two = read_folder(out)
    assert np.flatnonzero(one.labels == 2).tolist() == list(range(10, 21))
    assert np.bincount(two.labels).tolist() == [60 - 11 - 16, 11, 0, 0, 16]
    assert read_keystep_names(out) == ["open bag", "lay out, the tent", "key step 3", "peg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.0,2.0\n", "line 1: expected 3 values, got 2"),
        ("1.0,x,1 a\n", "expected a number, got 'x'"),
        ("1.0,nan,1 a\n", "expected a number, got 'nan'"),
        ("2.0,1.0,1 a\n", "start <= end"),
        ("1.0,2.0,open bag\n", "expected a key step's number"),
        ("1.0,2.0,0 a\n", "key step from 1 on"),
        ("\xff\xfe", "expected"),
    ],
)
def test_annotations_that_are_not_as_documented_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    out = features(tmp_path / "out", "a")
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        convert("egoprocel", tmp_path, out)
    assert read_folder(out)[0].labels is None


def test_videos_without_an_annotation_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("0,1,1 a\n")
    out = features(tmp_path / "out", "a", "b")
    with pytest.raises(DataError, match="1 of 2 videos have no annotation, the first: b"):
        convert("egoprocel", tmp_path / "csv", out)
    with pytest.raises(DataError, match=r"video\.json"):
        convert("egoprocel", tmp_path / "csv", tmp_path / "csv")
    with pytest.raises(DataError, match="expected annotations"):
        convert("egoprocel", tmp_path / "out" / "a", out)


def write_procel(folder: Path, **changes: Any) -> Path:
    folder.mkdir()

    def cells(values: list[Any]) -> Any:
        found = np.empty((len(values), 1), object)
        for place, value in enumerate(values):
            found[place, 0] = value
        return found

    content = {
        "grammar": cells(["lift hood", "clamp red"]),
        "key_steps_time": cells(
            [
                cells([np.array([[0.0, 1.0], [4.0, 5.0]]), np.array([[2.0, 3.0]])]),
                cells([np.zeros((0, 0)), np.array([[1.0, 2.0]])]),
            ]
        ),
    }
    scipy.io.savemat(folder / "data.mat", content | changes)
    (folder / "readme.txt").write_text("https://x/1\tcar_0001\t0\t9\nhttps://x/2\tcar_0002\t0\t9\n")
    return folder


def test_procels_matlab_file_becomes_labels(tmp_path: Path) -> None:
    source = write_procel(tmp_path / "jump_car")
    out = features(tmp_path / "out", "car_0001", "car_0002")
    convert("procel", source, out)
    one, two = read_folder(out)
    assert np.bincount(one.labels).tolist() == [60 - 33, 22, 11]
    assert np.flatnonzero(two.labels == 2).tolist() == list(range(10, 21))
    assert read_keystep_names(out) == ["lift hood", "clamp red"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data.mat").unlink(), "there is none"),
        (lambda f: (f / "data.mat").write_bytes(b"MATLAB 5.0" + b"\x00" * 300), "no MATLAB file"),
        (lambda f: (f / "readme.txt").write_text("u\tcar_0001\n"), "2 videos, readme.txt has 1"),
        (lambda f: (f / "readme.txt").write_text("u car_0001\nu car_0002\n"), "with tabs"),
        (lambda f: scipy.io.savemat(f / "data.mat", {"grammar": 1}), "variable key_steps_time"),
        (
            lambda f: scipy.io.savemat(
                f / "data.mat", {"grammar": np.zeros(5 << 20)}, do_compression=True
            ),
            "unpacks to more than",
        ),
        (
            lambda f: scipy.io.savemat(
                f / "data.mat", {"grammar": np.zeros((2, 1)), "key_steps_time": np.zeros((2, 1))}
            ),
            "a text for each key step",
        ),
    ],
)
def test_procel_files_that_are_not_as_documented_are_refused(
    tmp_path: Path, spoil: Any, message: str
) -> None:
    source = write_procel(tmp_path / "jump_car")
    spoil(source)
    with pytest.raises(DataError, match=message):
        convert("procel", source, features(tmp_path / "out", "car_0001", "car_0002"))


TASKS = "23521\nMake Jello\nhttps://x\n3\nboil water,pour powder,stir\n\n7\nTwo\nhttps://y\n1\na\n"


def write_crosstask(folder: Path) -> Path:
    annotations = folder / "crosstask_release" / "annotations"
    annotations.mkdir(parents=True)
    (folder / "crosstask_release" / "tasks_primary.txt").write_text(TASKS)
    (annotations / "23521_-a_b.csv").write_text("1,0.5,3.2\n3,5.0,8.9\n")
    (annotations / "23521_c.csv").write_text("2,1,2\n")
    (annotations / "7_d.csv").write_text("1,1,2\n")
    return folder


def test_crosstasks_features_become_a_folder_for_each_task(tmp_path: Path) -> None:
    source = write_crosstask(tmp_path / "crosstask")
    (source / "crosstask_features").mkdir()
    rows = np.random.default_rng(0).normal(size=(12, 3200))
    rows[4, 3100] = np.nan
    np.save(source / "crosstask_features" / "-a_b.npy", rows)
    np.save(source / "crosstask_features" / "d.npy", rows[:5])
    made = convert("crosstask", source, tmp_path / "out")
    assert [folder.name for folder in made.folders] == ["23521", "7"]
    assert made.notes == ("task 23521: 1 videos have no features: c.npy, ...",)
    [video] = read_folder(tmp_path / "out" / "23521")
    assert video.name == "23521_-a_b"
    assert {name: cue.size for name, cue in video.cues.items()} == {
        "i3d": 1024, "resnet152": 2048, "audio": 128,
    }  # fmt: skip
    np.testing.assert_allclose(video.cues["resnet152"].features, rows[:, 1024:3072], rtol=1e-6)
    assert np.flatnonzero(~video.cues["audio"].valid).tolist() == [4]
    assert video.cues["i3d"].valid.all()
    assert video.labels.tolist() == [1, 1, 1, 1, 0, 3, 3, 3, 3, 0, 0, 0]
    assert read_keystep_names(tmp_path / "out" / "23521") == ["boil water", "pour powder", "stir"]


def test_crosstasks_labels_go_beside_features_of_ones_own(tmp_path: Path) -> None:
    source = write_crosstask(tmp_path / "crosstask")
    with pytest.raises(DataError, match="no task's folder with features"):
        convert("crosstask", source, tmp_path / "out")
    features(tmp_path / "out" / "7", "7_d")
    made = convert("crosstask", source, tmp_path / "out")
    assert made.video_count == 1
    assert np.flatnonzero(read_folder(tmp_path / "out" / "7")[0].labels).tolist() == [
        *range(10, 21)
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "crosstask_release" / "tasks_primary.txt").write_text("1\na\nb\n2\nc\n"),
            "2",
        ),
        (
            lambda f: (f / "crosstask_release" / "tasks_primary.txt").write_text("one\n"),
            "five lines",
        ),
        (lambda f: (f / "crosstask_release" / "tasks_primary.txt").write_text(""), "no task"),
        (lambda f: (f / "crosstask_release" / "tasks_primary.txt").unlink(), "cannot read"),
        (lambda f: (f / "crosstask_release/annotations/7_d.csv").write_text("2,1,2"), "7 has 1"),
        (lambda f: (f / "crosstask_release/annotations/7_d.csv").unlink(), "there are none"),
        (lambda f: np.save(f / "crosstask_features/d.npy", np.zeros((5, 64))), "3200"),
        (lambda f: (f / "crosstask_features/d.npy").write_bytes(b"x"), "NumPy can read"),
    ],
)
def test_crosstask_files_that_are_not_as_documented_are_refused(
    tmp_path: Path, spoil: Any, message: str
) -> None:
    source = write_crosstask(tmp_path / "crosstask")
    (source / "crosstask_features").mkdir()
    for name in ("-a_b", "c", "d"):
        np.save(source / "crosstask_features" / f"{name}.npy", np.zeros((5, 3200), "f4"))
    spoil(source)
    with pytest.raises(DataError, match=message):
        convert("crosstask", source, tmp_path / "out")


def write_meccano(folder: Path, frames: int = 30) -> tuple[Path, Any, Any]:
    """Two annotated videos and one that is not, as the authors' loader reads them."""
    looks = np.random.default_rng(0).normal(size=(3 * frames, 9)).astype("f4")
    looks[:, 8] = np.arange(3 * frames)
    flow = np.random.default_rng(1).normal(size=(3 * (frames - 1), 4)).astype("f4")
    places, pairs = {}, {}
    for video in (3, 4, 5):
        for frame in range(1, frames + 1):
            places[f"RGB_frames/{video:04d}/{frame:05d}.jpg"] = np.int64(len(places))
            if frame > 1:
                pairs[f"RGB_frames/{video:04d}/pair_{frame:05d}.jpg"] = len(pairs)
    rgb = folder / "features" / "resnet50_features"
    raft = folder / "features" / "raft_motion_features"
    for path in (rgb, raft, folder / "annotations"):
        path.mkdir(parents=True)
    looks.tofile(rgb / f"meccano_conv5c_{len(looks)}_9.dat")
    (rgb / f"meccano_conv5c_{len(looks)}_9.pkl").write_bytes(pickle.dumps(places))
    np.save(raft / "raft_motion_features.npy", flow)
    (raft / "raft_motion_features.pkl").write_bytes(pickle.dumps(pairs))
    (folder / "annotations" / "0003.csv").write_text('0.5,1.0,"1 frame"\n')
    (folder / "annotations" / "0004.csv").write_text('0.0,0.2,"2 wheel"\n')
    return folder, looks, flow


def test_the_authors_meccano_features_become_a_feature_folder(tmp_path: Path) -> None:
    source, looks, flow = write_meccano(tmp_path / "Meccano")
    printed = keystep("features", "convert", "meccano-steps", source, "--out", tmp_path / "out")
    assert "2 videos with labels" in printed
    one, two = read_folder(tmp_path / "out")
    assert (one.name, two.name, two.rate_hz) == ("0003", "0004", 12.0)
    np.testing.assert_array_equal(two.cues["appearance"].features, looks[30:60, :8])
    np.testing.assert_array_equal(two.cues["motion"].features[:29], flow[29:58])
    assert np.flatnonzero(~two.cues["motion"].valid).tolist() == [29]
    assert np.flatnonzero(one.labels == 1).tolist() == list(range(6, 13))
    assert read_keystep_names(tmp_path / "out") == ["frame", "wheel"]


class Call:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def _pkl(folder: Path) -> Path:
    [path] = (folder / "features" / "resnet50_features").glob("*.pkl")
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: _pkl(f).write_bytes(pickle.dumps(Call())), "no plain value"),
        (lambda f: _pkl(f).write_bytes(b"\x80\x05"), "no mapping"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps([1])), "expected a mapping"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps({})), "names no picture"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps({"0003/00001.jpg": 0})), "FOLDER/VIDEO/FRAME"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps({"a/0003/1.jpg": 90})), "row 90 of 90"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps({"a/0003/2.jpg": 1})), "not numbered 1 to 1"),
        (lambda f: _pkl(f).write_bytes(pickle.dumps({"a/\u00b2/1.jpg": 0})), "FOLDER/VIDEO/FRAME"),
        (
            lambda f: _pkl(f).write_bytes(pickle.dumps({f"a/{'9' * 5000}/1.jpg": 0})),
            "FOLDER/VIDEO/FRAME",
        ),
        (lambda f: _pkl(f).write_bytes(pickle.dumps(np.float64(1))), "expected whole numbers"),
        (lambda f: _pkl(f).unlink(), "there is none"),
        (lambda f: _pkl(f).with_suffix(".dat").write_bytes(b"\x00" * 99), "90 x 9 float32"),
        (lambda f: _pkl(f).with_suffix(".dat").unlink(), "found 0"),
        (lambda f: (f / "annotations" / "0009.csv").write_text("0,1,1 a\n"), "no features"),
        (lambda f: (f / "annotations" / "\u00b2.csv").write_text("0,1,1 a\n"), "no features"),
        (
            lambda f: (f / "features/raft_motion_features/raft_motion_features.npy").unlink(),
            "NumPy",
        ),
    ],
)
def test_meccano_files_that_are_not_as_documented_are_refused_and_run_no_code(
    tmp_path: Path, spoil: Any, message: str, capsys: Any
) -> None:
    source, _, _ = write_meccano(tmp_path / "Meccano")
    spoil(source)
    with pytest.raises(DataError, match=message):
        convert("meccano-steps", source, tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out


SWELLING = {
    # A value that is remembered under a number for which the C unpickler makes a table of 12 GiB.
    "table": b"\x80\x04Nr" + (3 << 28).to_bytes(4, "little") + b".",
    # NumPy's scalar of a type of 4 GB.
    "scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    + b"X\x0b\x00\x00\x00V4000000000\x85R\x85R.",
}


@pytest.mark.parametrize("content", SWELLING.values(), ids=SWELLING)
def test_a_small_pickle_does_not_fill_the_memory(tmp_path: Path, content: bytes) -> None:
    source, _, _ = write_meccano(tmp_path / "Meccano")
    _pkl(source).write_bytes(content)
    arguments = ["features", "convert", "meccano-steps", str(source), "--out", str(tmp_path / "o")]
    run = (
        "import resource, sys; from keystep_capture.cli import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        f"sys.argv[1:] = {arguments!r}; main()"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pictures to rows" in done.stderr
    assert "memory" not in done.stderr.lower()


def test_numpys_whole_numbers_are_read_whatever_their_type(tmp_path: Path) -> None:
    source, looks, _ = write_meccano(tmp_path / "Meccano")
    types = (np.int32, np.dtype(">i8").type, np.uint16, int)
    places = pickle.loads(_pkl(source).read_bytes())
    mixed = {key: types[n % 4](row) for n, (key, row) in enumerate(places.items())}
    for protocol in (0, 2, 4, 5):
        _pkl(source).write_bytes(pickle.dumps(mixed, protocol=protocol))
        convert("meccano-steps", source, tmp_path / f"out{protocol}")
        _, two = read_folder(tmp_path / f"out{protocol}")
        np.testing.assert_array_equal(two.cues["appearance"].features, looks[30:60, :8])


def test_simulated_sessions_label_their_features(tmp_path: Path) -> None:
    head = "step_id,title,first_frame,last_frame,start_s,end_s\n"
    for name, rows in (("person_000", "9,Install,0,9,0.0,1.0\n0,Begin,20,30,2.0,3.0\n"),
                       ("person_001", "3,Other,0,9,0.5,0.9\n")):  # fmt: skip
        (tmp_path / "sim" / name).mkdir(parents=True)
        (tmp_path / "sim" / name / "segments.csv").write_text(head + rows)
    out = features(tmp_path / "out", "person_000", "person_001")
    keystep("features", "convert", "simulated", tmp_path / "sim", "--out", out)
    one, two = read_folder(out)
    assert read_keystep_names(out) == ["Begin", "Other", "Install"]
    assert np.flatnonzero(one.labels == 3).tolist() == list(range(11))
    assert np.flatnonzero(one.labels == 1).tolist() == list(range(20, 31))
    assert np.flatnonzero(two.labels).tolist() == list(range(5, 10))
    (tmp_path / "sim" / "person_001" / "segments.csv").write_text("step_id,title\n1,a\n")
    with pytest.raises(DataError, match="a column start_s"):
        convert("simulated", tmp_path / "sim", out)


def test_unknown_kinds_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are meccano-steps, egoprocel"):
        convert("youtube", tmp_path, tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        convert("procel", tmp_path / "none", tmp_path)


def test_evaluation_averages_over_tasks_and_pools_where_the_data_set_does(tmp_path: Path) -> None:
    source = write_crosstask(tmp_path / "crosstask")
    out = tmp_path / "out"
    features(out / "23521", "23521_-a_b", "23521_c")
    features(out / "7", "7_d")
    convert("crosstask", source, out)
    rows: dict[str, Any] = {}
    for name, folder, more in (
        ("all", out, ()), ("one", out / "23521", ()), ("two", out / "7", ()),
        ("per", out, ("--per-keystep", "--no-background")),
    ):  # fmt: skip
        path = tmp_path / f"{name}.json"
        keystep(
            *("evaluate", "ksl", "--features", folder, "-k", 3, "--dataset", "crosstask"),
            *(*more, "--json", path),
        )
        rows[name] = json.loads(path.read_text())
    assert rows["all"]["settings"]["overall"]
    assert not rows["per"]["settings"]["overall"]
    values = {
        name: {row["name"]: row["values"]["f1"] for row in rows[name]["rows"]} for name in rows
    }
    for row in ("random", "uniform", "raw features"):
        mean = (values["one"][row] + values["two"][row]) / 2
        assert values["all"][row] == pytest.approx(mean)
    keystep("evaluate", "tau", "--features", out / "23521")
    with pytest.raises(DataError, match=r"video\.json"):
        keystep("evaluate", "ksl", "--features", source)
