"""`keystep psr run --method tracker`, and every method with the options as they are documented."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError
from keystep_models.cli import register
from keystep_models.psr.fit_tracker import read_recordings, track
from keystep_models.psr.tracker_model import (
    TrackerModel,
    builtin_tracker_model,
    save_tracker_model,
)

GOLDEN = Path(__file__).parents[1] / "golden"
REAL = GOLDEN / "industreal"
PUBLISHED = Path(__file__).parents[2] / (
    "models/keystep_models/psr/data/procedure_info_IndustReal.json"
)
HEADER = "clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n"
RETRACTING = "08_assy_0_1"  # takes a step back
MISTAKEN = "17_assy_1_5"  # has a step reported as incorrect

app = typer.Typer()
register(app)


def keystep(*args: object) -> str:
    """Run a command that must succeed; its output, errors included."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return result.output


def run(out: Path, *more: object, detections: Path, method: str = "tracker") -> dict[str, Any]:
    common = ("--method", method, "--detections", detections, "--out", out)
    keystep("psr", "run", *common, *more)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def real(name: str) -> Path:
    return REAL / f"{name}_pred.csv.gz"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps")
    keystep(
        *("psr", "run", "--method", "tracker", "--detections", REAL, "--procedure", "industreal"),
        *("--meta", REAL / "expected.json", "--out", out),
    )
    return out


def test_a_folder_gives_what_stood_at_the_end_of_each_recording(tracked: Path) -> None:
    model = builtin_tracker_model("industreal")
    for recording in read_recordings(REAL, REAL):
        written = json.loads((tracked / f"{recording.name}.json").read_text(encoding="utf-8"))
        events = track(recording, model)
        gone = {event.retracts for event in events}
        reports = [event for event in events if event.retracts is None]
        lists: dict[str, list[Any]] = {"steps": [], "incorrect_steps": [], "retracted_steps": []}
        for event in reports:
            name = "incorrect_steps" if event.kind == "incorrect" else "steps"
            lists["retracted_steps" if event.id in gone else name].append(
                {"frame": event.frame_idx, "id": event.step_id, "confidence": event.confidence}
            )
        assert written == {k: v for k, v in lists.items() if v or k == "steps"}, recording.name
    assert json.loads((tracked / f"{RETRACTING}.json").read_text())["retracted_steps"]
    assert json.loads((tracked / f"{MISTAKEN}.json").read_text())["incorrect_steps"]


def test_what_it_writes_is_scored(tracked: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    truth = REAL / "expected.json"
    keystep("psr", "score", "--truth", truth, "--steps", tracked, "--out", out)
    totals = json.loads(out.read_text(encoding="utf-8"))["totals"]["all"]
    assert totals["f1"] >= 0.95  # the shipped settings have seen these recordings
    assert totals["pos"] >= 0.87
    assert totals["mean_delay_frames"] <= 31.0


@pytest.mark.parametrize("method", ["b1", "b2", "b3", "storm", "tracker"])
def test_every_method_takes_the_same_published_files(method: str, tmp_path: Path) -> None:
    clips = tmp_path / "clips.csv.gz"
    rows = [["framenr", *(f"component_{k}" for k in range(11))]]
    rows += [[str(k), *["0.1"] * 11] for k in range(256, 300)]
    with gzip.open(clips, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    common = ("--procedure", PUBLISHED, "--task", "assy", "--clips", clips)
    steps = run(tmp_path / "o.json", *common, detections=real(RETRACTING), method=method)["steps"]
    frames = [step["frame"] for step in steps]
    assert frames
    assert frames == sorted(frames)
    plain = tmp_path / "plain_pred.csv"
    plain.write_bytes(gzip.decompress(real(RETRACTING).read_bytes()))
    again = run(tmp_path / "p.json", *common, detections=plain, method=method)["steps"]
    assert again == steps
    assert {step["confidence"] == 1.0 for step in steps} == {method != "tracker"}


def test_incorrect_steps_come_among_the_others_where_asked(tmp_path: Path) -> None:
    common = ("--procedure", "industreal")
    apart = run(tmp_path / "a.json", *common, detections=real(MISTAKEN))
    among = run(tmp_path / "b.json", *common, "--with-incorrect", detections=real(MISTAKEN))
    assert set(among) == {"steps"}
    assert sorted(among["steps"], key=str) == sorted(
        apart["steps"] + apart["incorrect_steps"], key=str
    )
    frames = [step["frame"] for step in among["steps"]]
    assert frames == sorted(frames)


def test_settings_of_another_fit_are_taken(tmp_path: Path) -> None:
    settings, out = tmp_path / "settings.json", tmp_path / "o.json"
    save_tracker_model(TrackerModel(report_threshold=0.99), settings)
    usual = run(out, "--procedure", "industreal", detections=real(MISTAKEN))
    common = ("--procedure", "industreal", "--tracker-settings", settings)
    strict = run(out, *common, detections=real(MISTAKEN))
    assert min(step["confidence"] for step in usual["steps"]) < 0.99
    assert all(step["confidence"] > 0.99 for step in strict["steps"])
    with pytest.raises(ConfigError, match="--method tracker, tracker-clips, not b3"):
        run(out, *common, detections=real(MISTAKEN), method="b3")
    settings.write_text('{"keystep_tracker": 1, "settings": {"step_rate": 7}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"settings\.json: .*step_rate: expected a number between"):
        run(out, *common, detections=real(MISTAKEN))


def other_procedure(folder: Path) -> tuple[object, ...]:
    """A published procedure_info file of another object, with its detector's states."""
    titles = ("Install {}", "Incorrectly installed {}", "Remove {}")
    steps = [
        {
            "id": 3 * component + offset,
            "description": title.format(f"part {component}"),
            "install": offset != 2,
            "state_idx": component,
            "expected_in_assy": offset == 0,
        }
        for component in range(2)
        for offset, title in enumerate(titles)
    ]
    (folder / "info.json").write_text(json.dumps(steps), encoding="utf-8")
    (folder / "states.json").write_text('["background", "00", "10", "11"]', encoding="utf-8")
    return ("--procedure", folder / "info.json", "--task", "assy")


def test_another_objects_procedure_runs_with_plain_rates_and_says_so(tmp_path: Path) -> None:
    procedure = (*other_procedure(tmp_path), "--states", tmp_path / "states.json")
    frames = [(k, 1) for k in range(30)] + [(k, 2) for k in range(330, 370)]
    detections, out = tmp_path / "d.csv", tmp_path / "o.json"
    rows = [f"d,{frame},{seen},0.85,100,100,10,10\n" for frame, seen in frames]
    detections.write_text(HEADER + "".join(rows), encoding="utf-8")
    common = ("--method", "tracker", "--detections", detections, "--out", out)
    said = keystep("psr", "run", *common, *procedure)
    assert "no tracker settings were fitted for procedure 'info-assy'" in said
    assert [step["id"] for step in json.loads(out.read_text(encoding="utf-8"))["steps"]] == [0]
    shipped = tmp_path / "shipped.json"
    save_tracker_model(builtin_tracker_model("industreal"), shipped)
    with pytest.raises(ConfigError, match="got step 6, which it does not have; these settings"):
        keystep("psr", "run", *common, *procedure, "--tracker-settings", shipped)
    with pytest.raises(ConfigError, match=r"give --states, or a document with detector_states"):
        keystep("psr", "run", *common, *other_procedure(tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,24,0.5,100,100,10,10", "line 2, bb_class: expected a class from 0 to 23, got '24'"),
        ("a,1,9,1.5,100,100,10,10", "line 2, bb_conf: .* from 0 to 1, got '1.5'"),
        ("a,1,9,nan,100,100,10,10", "line 2, bb_conf: .*got 'nan'"),
        ("a,1,9,0.5,1279,100,10,10", "line 2: expected a box inside the image of 1280x720"),
        ("a,3,9,0.5,9,9,9,9\na,2,9,0.5,9,9,9,9", "line 3: expected frame 3 or a later one, got"),
        ("a,3,9,0.5,9,9,9,9\na,3,9,0.5,9,9,9,9", "line 3: expected frame 3 once, got it repe"),
        ("a,50,9", "line 2: expected frames below 50, got frame 50"),
    ],
)
def test_bad_detections_are_refused_on_one_line(tmp_path: Path, row: str, message: str) -> None:
    path, out = tmp_path / "a_assy.csv", tmp_path / "out.json"
    path.write_text(HEADER + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        run(out, "--procedure", "industreal", "--frames", 50, detections=path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_frames_without_rows_were_seen_empty(tmp_path: Path) -> None:
    """A row that ends after the class says the same as no row."""
    gaps, said = tmp_path / "gaps_assy.csv", tmp_path / "said_assy.csv"
    seen = [
        f"a,{k},{c},0.85,100,100,10,10\n" for c, at in ((1, 0), (5, 60)) for k in range(at, at + 40)
    ]
    empty = [f"a,{k},0\n" for k in range(40, 60)]
    gaps.write_text(HEADER + "".join(seen), encoding="utf-8")
    said.write_text(HEADER + "".join(seen[:40] + empty + seen[40:]), encoding="utf-8")
    written = [
        run(tmp_path / "o.json", "--procedure", "industreal", detections=path)
        for path in (gaps, said)
    ]
    assert written[0] == written[1] != {"steps": []}
