"""`keystep psr` and `keystep procedure` as a user runs them, on real and simulated recordings."""

import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import typer
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError, KeystepError
from keystep_models.cli import register
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.procedure_document import of_procedure, write_document

GOLDEN = Path(__file__).parents[1] / "golden"
REAL_FOLDER = GOLDEN / "industreal"
EXPECTED = REAL_FOLDER / "expected.json"
REAL = json.loads(EXPECTED.read_text(encoding="utf-8"))
SIMULATED = json.loads((GOLDEN / "psr" / "recordings.json").read_text(encoding="utf-8"))
CLIPS = json.loads(gzip.decompress((GOLDEN / "psr" / "clips.json.gz").read_bytes()))
ONE = "10_assy_3_2"
HEADER = "clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n"

app = typer.Typer()
register(app)


def keystep(*args: object) -> str:
    """Run a command that must succeed; its output."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return result.output


def run_one(out: Path, *more: object, detections: Path | None = None) -> dict[str, Any]:
    source = detections or REAL_FOLDER / f"{ONE}_pred.csv.gz"
    keystep("psr", "run", "--procedure", "industreal", "--detections", source, "--out", out, *more)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def as_lists(steps: list[dict[str, Any]]) -> list[list[float]]:
    return [[step["frame"], step["id"], step["confidence"]] for step in steps]


@pytest.fixture(scope="module")
def b3_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps")
    printed = keystep(
        *("psr", "run", "--method", "b3", "--detections", REAL_FOLDER, "--procedure", "industreal"),
        *("--meta", EXPECTED, "--out", out),
    )
    assert "20 recordings" in printed
    return out


def test_b3_on_all_real_recordings_gives_the_published_steps(b3_steps: Path) -> None:
    for name, recording in REAL.items():
        steps = json.loads((b3_steps / f"{name}.json").read_text(encoding="utf-8"))["steps"]
        published = recording["expected"]["b3"]["steps"]
        assert as_lists(steps) == [[s["frame"], s["id"], s["conf"]] for s in published]


def test_the_published_b3_totals_are_reproduced(b3_steps: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    printed = keystep("psr", "score", "--truth", EXPECTED, "--steps", b3_steps, "--out", out)
    totals = json.loads(out.read_text(encoding="utf-8"))["totals"]["all"]
    shares = [round(totals[name], 3) for name in ("f1", "pos", "precision", "recall")]
    assert shares == [0.912, 0.784, 0.880, 0.985]
    assert (totals["median_delay_frames"], round(totals["mean_delay_frames"], 1)) == (7.0, 31.0)
    assert "all (20)" in printed
    assert "Install rear chassis" in printed


def test_industreals_manner_reproduces_its_measures(b3_steps: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    keystep(
        *("psr", "score", "--truth", EXPECTED, "--steps", b3_steps),
        *("--manner", "industreal", "--out", out),
    )
    recordings = json.loads(out.read_text(encoding="utf-8"))["recordings"]
    for name, came in recordings.items():
        published = REAL[name]["expected"]["b3"]["metrics"]
        assert came["f1"] == pytest.approx(published["f1"], abs=1e-9)
        assert came["pos"] == pytest.approx(published["pos"], abs=1e-9)
        assert came["mean_delay_frames"] == pytest.approx(published["avg_delay"], abs=1e-9)
        assert came["system_fp_count"] == published["system_FPs"]
        assert came["perception_fn_count"] == published["perception_FNs"]


def write_simulated(folder: Path, number: int) -> tuple[Path, Path]:
    stored, recording = CLIPS[number], SIMULATED[number]
    frames: list[Any] = [[[], []]] * stored["first_frame"]
    for values, predicted in zip(stored["thousandths"], stored["predicted"], strict=True):
        frames.append([[int(d) for d in predicted], [value / 1000 for value in values]])
    detections, clips = folder / "detections.json", folder / "clips.json"
    detections.write_text(json.dumps(recording["detections"]), encoding="utf-8")
    clips.write_text(json.dumps(frames), encoding="utf-8")
    return detections, clips


def test_storm_gives_the_published_steps_of_each_branch(tmp_path: Path) -> None:
    detections, clips = write_simulated(tmp_path, 0)
    steps = run_one(
        tmp_path / "steps.json",
        *("--method", "storm", "--clips", clips, "--task", "assy", "--branches"),
        detections=detections,
    )
    assert as_lists(steps["steps"]) == SIMULATED[0]["expected"]["storm"]["steps"]
    assert as_lists(steps["detector_steps"]) == CLIPS[0]["branch_steps"]["detector"]
    assert as_lists(steps["temporal_steps"]) == CLIPS[0]["branch_steps"]["temporal"]


def test_clips_alone_and_soft_fusion_run(tmp_path: Path) -> None:
    detections, clips = write_simulated(tmp_path, 0)
    out, common = tmp_path / "steps.json", ("--clips", clips, "--task", "assy")
    temporal = ("psr", "run", "--method", "temporal", "--procedure", "industreal", "--out", out)
    keystep(*temporal, *common)
    steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
    assert as_lists(steps) == SIMULATED[0]["expected"]["temporal_b3"]["steps"]
    soft = run_one(out, "--method", "storm", "--fusion", "soft", *common, detections=detections)
    assert 0 < len(soft["steps"]) <= 9


def test_settings_reach_the_method(tmp_path: Path) -> None:
    quick = run_one(tmp_path / "a.json", "--method", "b3", "--threshold", 2.0)
    usual = run_one(tmp_path / "b.json", "--method", "b3")
    assert quick["steps"][0]["frame"] < usual["steps"][0]["frame"]


def test_the_label_layout_goes_out_and_in(tmp_path: Path) -> None:
    out = tmp_path / f"{ONE}.csv"
    common = ("--detections", REAL_FOLDER / f"{ONE}_pred.csv.gz", "--out", out)
    keystep("psr", "run", "--method", "b3", "--procedure", "industreal", *common)
    first = REAL[ONE]["expected"]["b3"]["steps"][0]
    line = f"{first['frame']:05d}.jpg,3,Install front chassis"
    assert out.read_text(encoding="utf-8").splitlines()[0] == line
    printed = keystep("psr", "score", "--truth", EXPECTED, "--steps", out)
    assert f"{ONE}, one of 20 recordings" in printed
    assert "all (1)" in printed


def test_our_own_document_serves_as_procedure(tmp_path: Path) -> None:
    document, out = tmp_path / "procedure.json", tmp_path / "steps.json"
    write_document(of_procedure(builtin_procedure("industreal-assy")), document)
    source = REAL_FOLDER / f"{ONE}_pred.csv.gz"
    keystep(
        *("psr", "run", "--method", "b3", "--procedure", document),
        *("--detections", source, "--out", out),
    )
    published = REAL[ONE]["expected"]["b3"]["steps"]
    steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
    assert [step["id"] for step in steps] == [step["id"] for step in published]


def test_state_labels_score_apart_with_and_without_errors(b3_steps: Path, tmp_path: Path) -> None:
    out, states = tmp_path / "score.json", GOLDEN / "psr" / "industreal_states"
    printed = keystep(
        *("psr", "score", "--truth", states, "--steps", b3_steps),
        *("--allow-missing", "--out", out),
    )
    totals = json.loads(out.read_text(encoding="utf-8"))["totals"]
    assert {name: t["recording_count"] for name, t in totals.items()} == {
        "all": 3,
        "with_errors": 1,
        "without_errors": 2,
    }
    assert "left out: no truth in" in printed
    assert "08_assy_0_1" in printed


def test_pictures_show_every_recording(b3_steps: Path, tmp_path: Path) -> None:
    keystep(
        *("psr", "score", "--truth", EXPECTED, "--steps", b3_steps / f"{ONE}.json"),
        *("--picture", tmp_path / "one.png"),
        *("--detections", REAL_FOLDER / f"{ONE}_pred.csv.gz"),
    )
    image = cv2.imread(str(tmp_path / "one.png"))
    assert image is not None
    assert image.shape[1] == 1800
    states = GOLDEN / "psr" / "industreal_states"
    keystep(
        *("psr", "score", "--truth", states, "--steps", b3_steps, "--allow-missing"),
        *("--picture", tmp_path / "all", "--detections", REAL_FOLDER),
    )
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {"03_main_0_1.png", "10_main_3_4.png", "19_main_0_1.png"}


def test_a_recording_without_a_partner_is_an_error(b3_steps: Path, tmp_path: Path) -> None:
    (tmp_path / "03_assy_0_1.json").write_text('{"steps": []}', encoding="utf-8")
    (tmp_path / "extra.json").write_text('{"steps": []}', encoding="utf-8")
    score = ("psr", "score", "--truth", EXPECTED, "--steps")
    with pytest.raises(DataError, match=r"20 recordings without a partner: no steps in .*extra"):
        keystep(*score, tmp_path)
    assert keystep(*score, tmp_path, "--allow-missing").count("left out:") == 20
    with pytest.raises(ConfigError, match="expected --recording to be one of"):
        keystep(*score, tmp_path / "extra.json")


def test_steps_beyond_the_recordings_end_are_refused(tmp_path: Path) -> None:
    steps = tmp_path / f"{ONE}.json"
    steps.write_text('{"steps": [{"frame": 2597, "id": 3}]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"steps\[0\]: expected frames below 2597"):
        keystep("psr", "score", "--truth", EXPECTED, "--steps", steps)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,24,0.5,100,100,10,10", "line 2, bb_class: expected a class from 0 to 23, got '24'"),
        ("a,1,9,1.5,100,100,10,10", "line 2, bb_conf: .* from 0 to 1, got '1.5'"),
        ("a,1,9,nan,100,100,10,10", "line 2, bb_conf: .*got 'nan'"),
        ("a,1,9,0.5,1279,100,10,10", "line 2: expected a box inside the image of 1280x720"),
        ("a,1,9,0.5,100,100,-10,10", "line 2: expected a box inside"),
        ("a,3,9,0.5,9,9,9,9\na,2,9,0.5,9,9,9,9", "line 3: expected frame 3 or a later one"),
        ("a,3,9,0.5,9,9,9,9\na,3,9,0.5,9,9,9,9", "line 3: expected frame 3 once, got it repe"),
        ("a,3,9,0.5,9,9,9,9\na,3,9", "line 3: expected frame 3 once"),
        ("a,3,9,0.5,9,9,9,9\nb,4,9,0.5,9,9,9,9", "line 3: expected clip 'a' as before, got 'b'"),
        ("a,50,9", "line 2: expected frames below 50, got frame 50"),
    ],
)
def test_bad_detections_are_refused_on_one_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a_assy.csv"
    path.write_text(HEADER + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        run_one(tmp_path / "out.json", "--method", "b3", "--frames", 50, detections=path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_any_image_size_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "a_assy.csv"
    path.write_text(HEADER + "a,1,9,0.5,1500,900,10,10\n", encoding="utf-8")
    for size in ("1920x1080", "any"):
        common = ("--method", "b3", "--image-size", size)
        assert run_one(tmp_path / "out.json", *common, detections=path) == {"steps": []}
    with pytest.raises(ConfigError, match="--image-size is '9'"):
        run_one(tmp_path / "out.json", "--method", "b3", "--image-size", "9", detections=path)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([[[30, 0.5]]], "frame 0, class: expected a class from 0 to 23, got '30'"),
        ([[[3, 1.5]]], "frame 0, confidence: .*got '1.5'"),
        ([[], [[3]]], r"frame 1: expected \[class, confidence\], got \[3\]"),
        ({}, "expected a list per frame"),
    ],
)
def test_bad_json_detections_are_refused(tmp_path: Path, detections: Any, message: str) -> None:
    path = tmp_path / "a_assy.json"
    path.write_text(json.dumps(detections), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        run_one(tmp_path / "out.json", "--method", "b3", detections=path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "b9"), "no method 'b9'; there are b1, b2, b3, temporal, storm"),
        (("--method", "storm"), "needs --clips"),
        (("--method", "b3", "--task", "main", "--meta", "missing.json"), "cannot read ground tru"),
        (("--method", "b3", "--threshold", "0"), "expected a threshold above 0"),
        (("--method", "b3", "--decay", "nan"), "expected a decay from 0 to 1, got nan"),
        (("--method", "tracker", "--decay", "0.5"), "--decay is for --method b2, b3, temporal, st"),
        (("--method", "tracker", "--threshold", "nan"), "--threshold is for .*, not tracker"),
        (("--method", "b1", "--threshold", "3"), "--threshold is for .*, not b1"),
        (
            ("--method", "b3", "--window", "9"),
            "--window is for --method temporal, storm, tracker-clips, not b3",
        ),
        (("--method", "b3", "--weight", "0.5"), "--weight is for --method storm, not b3"),
        (("--method", "b3", "--fusion", "soft"), "--fusion is for --method storm, not b3"),
        (("--method", "b3", "--branches"), "--branches is for --method storm"),
    ],
)
def test_wrong_usage_says_what_is_expected(tmp_path: Path, args: Any, message: str) -> None:
    with pytest.raises(KeystepError, match=message):
        run_one(tmp_path / "out.json", *args)


@pytest.mark.parametrize("frames", [0, 99_999_999_999])
def test_a_recording_has_at_most_a_day_of_frames(frames: int, tmp_path: Path) -> None:
    source, out = REAL_FOLDER / f"{ONE}_pred.csv.gz", tmp_path / "o.json"
    args = ("--procedure", "industreal", "--detections", source, "--out", out)
    command = ["psr", "run", "--method", "b3", *map(str, args), "--frames", str(frames)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert not out.exists()


def test_a_procedure_without_detector_states_cannot_follow_detections(tmp_path: Path) -> None:
    document = tmp_path / "p.json"
    rows = {"keystep_procedure": 1, "name": "p", "task": "assy", "components": ["a"]}
    steps = [{"id": 0, "title": "t", "component": "a", "kind": "completed"}]
    document.write_text(json.dumps({**rows, "initial_state": [0], "steps": steps}), "utf-8")
    with pytest.raises(ConfigError, match="give --states"):
        keystep(
            *(
                "psr",
                "run",
                "--method",
                "b3",
                "--procedure",
                document,
                "--out",
                tmp_path / "o.json",
            ),
            *("--detections", REAL_FOLDER / f"{ONE}_pred.csv.gz"),
        )


def label_score(folder: Path, labels: str, steps: str, *more: str) -> Any:
    truth, reported = folder / "PSR_labels.csv", folder / "steps.json"
    truth.write_text(labels, encoding="utf-8")
    reported.write_text(steps, encoding="utf-8")
    args = ["psr", "score", "--truth", str(truth), "--steps", str(reported), *more]
    return CliRunner().invoke(app, args)


ONE_STEP = '{"steps": [{"frame": 2, "id": 9}]}'


def test_ground_truth_without_a_step_and_unchecked_ids_are_said(tmp_path: Path) -> None:
    known = ("--procedure", "industreal-assy")
    empty = label_score(tmp_path, "", ONE_STEP, *known)
    assert "PSR_labels.csv has no step of" in empty.stderr
    unchecked = label_score(tmp_path, "00001.jpg,999,x\n", ONE_STEP)
    assert unchecked.stderr == "Note: no --procedure is given, so step ids were not checked.\n"
    fine = label_score(tmp_path, "00001.jpg,9,x\n", ONE_STEP, *known)
    assert (fine.exit_code, fine.stderr) == (0, "")


def test_titles_reach_the_terminal_escaped(tmp_path: Path) -> None:
    result = label_score(tmp_path, "00001.jpg,9,[/bold] \x1b[31mred\n", ONE_STEP)
    assert result.exit_code == 0
    assert "[/bold] \\x1b[31mred" in result.stdout


@pytest.mark.parametrize(
    ("labels", "steps", "message"),
    [
        ("00001.jpg,999,x\n", ONE_STEP, "PSR_labels.csv, line 1: .*the unknown id 999"),
        ("00001.jpg,9,x\n", '{"steps": [{"frame": 2, "id": 999}]}', r"steps\[0\]: .*id 999"),
        ("00001.jpg,9,x\n", ONE_STEP.replace("9", '9, "confidence": true'), "got True"),
    ],
)
def test_step_ids_must_be_the_procedures(
    labels: str, steps: str, message: str, tmp_path: Path
) -> None:
    result = label_score(tmp_path, labels, steps, "--procedure", "industreal-assy")
    with pytest.raises(DataError, match=message):
        raise result.exception


def test_unknown_ids_in_expected_json_are_refused(b3_steps: Path, tmp_path: Path) -> None:
    content = {ONE: json.loads(json.dumps(REAL[ONE]))}
    content[ONE]["ground_truth_from_states"][1]["id"] = 1234
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"from_states\[1\]: .* the unknown id 1234"):
        keystep("psr", "score", "--truth", path, "--steps", b3_steps / f"{ONE}.json")


def test_check_lists_problems_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    keystep("procedure", "convert", "industreal-assy", "--out", path)
    assert "9 of them expected" in keystep("procedure", "check", path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["steps"][3]["requires"] = [6]
    content["steps"][6]["requires"] = [3, 99]
    path.write_text(json.dumps(content), encoding="utf-8")
    result = CliRunner().invoke(app, ["procedure", "check", str(path)])
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert [line.removeprefix(f"{path}: assy: ")[:40] for line in lines] == [
        "step 6 (Install front chassis pin): requ",
        "cycle: each of these steps requires the ",
    ]
    assert all(line.startswith(f"{path}: assy: ") for line in lines)
