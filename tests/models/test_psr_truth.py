import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.psr import GroundTruthStep
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.recording_files import ProcedureChoice, find_detections, read_truths
from keystep_models.psr.steps_files import StepReport, read_steps, write_steps
from keystep_models.psr.truth import (
    raw_steps_between,
    read_expected,
    read_labels,
    read_raw_labels,
    read_state_labels,
)

GOLDEN = Path(__file__).parents[1] / "golden"
STATES = GOLDEN / "psr" / "industreal_states"
REAL = json.loads((GOLDEN / "industreal" / "expected.json").read_text(encoding="utf-8"))
ASSEMBLY = builtin_procedure("industreal-assy")
GT_HEADER = "clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n"


def written(folder: Path, text: str, name: str = "PSR_labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def expected_steps(name: str) -> tuple[GroundTruthStep, ...]:
    return tuple(
        GroundTruthStep(step["frame"], step["id"], step["not_before"])
        for step in REAL[name]["ground_truth_from_states"]
    )


@pytest.mark.parametrize("file", sorted(STATES.glob("*.csv.gz")), ids=lambda path: path.name)
def test_real_state_labels_give_the_expected_ground_truth(file: Path) -> None:
    name = file.name.removesuffix("_gt.csv.gz")
    truth = read_state_labels(file, name, builtin_procedure("industreal-main"))
    assert truth.steps == expected_steps(name)
    assert truth.frame_count == REAL[name]["n_frames"]
    assert truth.has_errors == (name == "19_main_0_1")


def test_expected_json_gives_every_recording() -> None:
    truths = read_expected(GOLDEN / "industreal" / "expected.json")
    assert {name: truth.steps for name, truth in truths.items()} == {
        name: expected_steps(name) for name in REAL
    }
    assert truths["03_assy_0_1"].task == "assy"
    assert truths["03_assy_0_1"].frame_count == 2754
    assert truths["03_assy_0_1"].has_errors is None


def test_a_folder_of_state_labels_is_found_by_its_names() -> None:
    truths = read_truths(STATES, None)
    assert set(truths) == {"03_main_0_1", "10_main_3_4", "19_main_0_1"}


def test_labels_beside_expected_json_tell_the_errors(tmp_path: Path) -> None:
    for name in ("03_main_0_1", "19_main_0_1"):
        (tmp_path / f"{name}_gt.csv.gz").write_bytes((STATES / f"{name}_gt.csv.gz").read_bytes())
    written(tmp_path, json.dumps(REAL), "expected.json")
    truths = read_truths(tmp_path, None)
    told = {n: t.has_errors for n, t in truths.items() if t.has_errors is not None}
    assert told == {"03_main_0_1": False, "19_main_0_1": True}


def test_unlabelled_frames_and_the_error_state_are_no_labels(tmp_path: Path) -> None:
    rows = ["a,0,1,1,10,10,9,9", "a,1,0", "a,2,23,1,10,10,9,9", "a,3,4,1,10,10,9,9", "a,4,0"]
    path = written(tmp_path, GT_HEADER + "\n".join(rows) + "\n", "a_assy_gt.csv")
    truth = read_state_labels(path, "a", ASSEMBLY)
    changed = ASSEMBLY.steps_between(ASSEMBLY.states[1] or (), ASSEMBLY.states[4] or ())
    assert truth.steps == tuple(GroundTruthStep(3, step.id, 0) for step in changed)
    assert truth.has_errors
    assert truth.frame_count == 5


def test_a_frame_without_a_state_label_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GT_HEADER + "a,0,0\na,2,0\n", "a_gt.csv")
    with pytest.raises(DataError, match="line 3: expected frame 1, got frame 2"):
        read_state_labels(path, "a", ASSEMBLY)


def test_label_files_give_steps_in_file_order(tmp_path: Path) -> None:
    path = written(tmp_path, "00007.jpg,6,Install b\n00007.jpg,3,Install a\n00009.jpg,5,Out, a\n")
    truth = read_labels(path, "a")
    assert truth.steps == tuple(GroundTruthStep(*pair) for pair in ((7, 6), (7, 3), (9, 5)))
    assert dict(truth.titles) == {6: "Install b", 3: "Install a", 5: "Out, a"}
    assert truth.has_errors is None


def test_errors_are_told_by_the_files_beside(tmp_path: Path) -> None:
    path = written(tmp_path, "00007.jpg,0,x\n")
    written(tmp_path, "00007.jpg,0,x\n00008.jpg,4,y\n", "PSR_labels_with_errors.csv")
    assert read_labels(path, "a").has_errors is True
    written(tmp_path, "00001.jpg,0\n00007.jpg,1\n", "PSR_labels_raw.csv")
    assert read_labels(path, "a").has_errors is False


RAW = "00001.jpg,0,0\n00005.jpg,-1,1\n00006.jpg,0,1\n00007.jpg,1,0\n00009.jpg,-1,0\n"


def test_raw_states_become_steps_with_and_without_errors(tmp_path: Path) -> None:
    path = written(tmp_path, RAW, "PSR_labels_raw.csv")
    plain = [(s.frame_idx, s.step_id) for s in read_raw_labels(path, "a").steps]
    assert plain == [(5, 3), (7, 0), (7, 5), (9, 2)]
    with_errors = read_raw_labels(path, "a", with_errors=True)
    assert with_errors.has_errors
    steps = [(s.frame_idx, s.step_id) for s in with_errors.steps]
    assert steps == [(5, 1), (5, 3), (7, 0), (7, 5), (9, 1)]


@given(
    before=st.tuples(*[st.sampled_from((-1, 0, 1))] * 11),
    after=st.tuples(*[st.sampled_from((-1, 0, 1))] * 11),
)
def test_raw_steps_are_those_of_a_procedure_that_names_every_change(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    ids = raw_steps_between(before, after, with_errors=True)
    assert ids == [step.id for step in ASSEMBLY.steps_between(before, after)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,id,description\n", r"line 1: expected an image like 00727.jpg, got 'image' \(a h"),
        ("00001.jpg,3\n", "line 1: expected image, step id, description, got 2 values"),
        ("00001.jpg,3,x\n00002.jpg,x,y\n", "line 2, step id: expected a whole number, got 'x'"),
        ("00001.jpg,77,x\n", "line 1: .*got the unknown id 77"),
        ("00003.jpg,3,x\n00002.jpg,6,y\n", "line 2: expected an image from 3 on"),
        ("00003.jpg,3,x\n00003.jpg,3,x\n", "line 2: expected step 3 once"),
    ],
)
def test_malformed_labels_are_refused_with_file_line_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=f"PSR_labels.csv, {message}"):
        read_labels(written(tmp_path, text), "a", ASSEMBLY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,a,b\n", "line 1: expected an image"),
        ("00001.jpg,0,0\n00002.jpg,0\n", "line 2: expected an image and 2 components, got 2 val"),
        ("00001.jpg,0,2\n", "line 1: expected -1, 0 or 1, got '2'"),
        ("00001.jpg,0,0\n00001.jpg,0,1\n", "line 2: expected every image once"),
    ],
)
def test_malformed_raw_labels_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_raw_labels(written(tmp_path, text, "PSR_labels_raw.csv"), "a")


def test_malformed_expected_json_is_refused(tmp_path: Path) -> None:
    entry = {"procedure": "assy", "n_frames": 10, "ground_truth_from_states": []}
    step = {"frame": 10, "id": 3, "not_before": 2}
    cases = [
        ([], "one entry per recording"),
        ({"a": {"n_frames": 3}}, "a: expected procedure, n_frames"),
        ({"a": entry | {"ground_truth_from_states": [step]}}, r"from_states\[0\]: expected not_be"),
    ]
    for content, message in cases:
        path = written(tmp_path, json.dumps(content), "expected.json")
        with pytest.raises(DataError, match=message):
            read_expected(path)


def test_a_folder_without_labels_for_one_recording_is_refused(tmp_path: Path) -> None:
    for name in ("0001", "0002"):
        (tmp_path / name).mkdir()
    written(tmp_path / "0001", "00007.jpg,0,x\n")
    with pytest.raises(ConfigError, match="missing in 0002"):
        read_truths(tmp_path, None)
    written(tmp_path / "0002", "00009.jpg,0,x\n")
    assert set(read_truths(tmp_path, None)) == {"0001", "0002"}


def test_ids_are_checked_where_a_procedure_is_given(tmp_path: Path) -> None:
    path = written(tmp_path, "00007.jpg,48,x\n")
    assert read_truths(path, None)[tmp_path.name].steps[0].step_id == 48
    with pytest.raises(DataError, match="unknown id 48"):
        read_truths(path, ProcedureChoice(source="industreal-assy"))


reports = st.lists(
    st.builds(
        StepReport,
        st.integers(0, 99),
        st.sampled_from([s.id for s in ASSEMBLY.steps]),
        st.floats(0, 1),
    ),
    max_size=6,
    unique_by=lambda step: (step.frame_idx, step.step_id),
).map(lambda steps: sorted(steps, key=lambda step: step.frame_idx))


@given(steps=reports)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_steps_read_back_as_written(tmp_path: Path, steps: list[StepReport]) -> None:
    write_steps(tmp_path / "a.json", steps, ASSEMBLY)
    assert read_steps(tmp_path / "a.json", ASSEMBLY, 100) == steps
    write_steps(tmp_path / "a.csv", steps, ASSEMBLY)
    plain = [StepReport(step.frame_idx, step.step_id) for step in steps]
    assert read_steps(tmp_path / "a.csv", ASSEMBLY, 100) == plain


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([3], r"steps\[0\]: expected an object"),
        ([{"frame": -1, "id": 3}], "a frame of 0 or more, got -1"),
        ([{"frame": 1, "id": "3"}], "a step id of 0 or more, got '3'"),
        ([{"frame": 1, "id": 77}], "unknown id 77"),
        ([{"frame": 50, "id": 3}], r"steps\[0\]: expected frames below 50"),
        ([{"frame": 1, "id": 3, "confidence": 1.5}], "from 0 to 1, got 1.5"),
        ([{"frame": 1, "id": 3, "conf": float("nan")}], "from 0 to 1, got nan"),
        ([{"frame": 9, "id": 3}, {"frame": 8, "id": 6}], r"steps\[1\]: expected frame 9 or a lat"),
    ],
)
def test_malformed_steps_are_refused(tmp_path: Path, entries: list[object], message: str) -> None:
    path = written(tmp_path, json.dumps({"steps": entries}), "a.json")
    with pytest.raises(DataError, match=message):
        read_steps(path, ASSEMBLY, 50)
    with pytest.raises(DataError, match=r'expected \{"steps"'):
        read_steps(written(tmp_path, "[]", "b.json"))


def test_a_folder_gives_predictions_and_not_ground_truth(tmp_path: Path) -> None:
    for name in ("a_pred.csv", "b_pred.csv.gz", "a_gt.csv", "notes.csv"):
        written(tmp_path, "", name)
    assert set(find_detections(tmp_path)) == {"a", "b"}
    written(tmp_path, "", "a_pred.csv.gz")
    with pytest.raises(DataError, match="are one recording"):
        find_detections(tmp_path)
