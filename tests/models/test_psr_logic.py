import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError, NotFoundError, StateError
from keystep_models.psr.confidence_sums import ConfidenceSums
from keystep_models.psr.detections import read_detections
from keystep_models.psr.logic import Detection, StepCompletion, StepLogic, make_logic
from keystep_models.psr.procedure import (
    Procedure,
    ProcedureStep,
    builtin_procedure,
    parse_state,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIMULATED = json.loads((GOLDEN / "psr" / "recordings.json").read_text(encoding="utf-8"))
REAL = json.loads((GOLDEN / "industreal" / "expected.json").read_text(encoding="utf-8"))
METHODS = ("b1", "b2", "b3")
ASSEMBLY = builtin_procedure("industreal-assy")

# Few classes and full confidence often, so that sums reach the threshold.
detection_lists = st.lists(
    st.builds(
        Detection,
        st.sampled_from((0, 1, 4, 5, 8, 13, 23)),
        st.one_of(st.just(1.0), st.floats(0, 1)),
    ),
    max_size=3,
)
recordings = st.lists(
    st.tuples(detection_lists, st.integers(1, 6)).map(lambda pair: [pair[0]] * pair[1]),
    max_size=25,
).map(lambda blocks: [frame for block in blocks for frame in block])


def every_installation_expected(recording: dict[str, Any]) -> Procedure:
    """MECCANO's procedure as far as the logic can tell; its file has no licence to copy it."""
    count = recording["num_components"]
    kinds = ("completed", "incorrect", "removed")
    return Procedure(
        name="meccano",
        task="assy",
        steps=tuple(
            ProcedureStep(
                id=3 * component_idx + offset,
                title=f"{kind} {component_idx}",
                component_idx=component_idx,
                kind=kind,  # type: ignore[arg-type]
                expected=offset == 0,
            )
            for component_idx in range(count)
            for offset, kind in enumerate(kinds)
        ),
        component_count=count,
        initial_state=parse_state(recording["initial_state"]),
        states=(None, *(parse_state(text) for text in recording["states"][1:-1]), None),
    )


def run(logic: StepLogic, frames: Iterable[Sequence[Detection]]) -> list[StepCompletion]:
    return [done for idx, frame in enumerate(frames) for done in logic.step(idx, frame)]


def as_lists(completions: Iterable[StepCompletion]) -> list[list[float]]:
    return [[done.frame_idx, done.step_id, done.confidence] for done in completions]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", range(6))
def test_simulated_recordings_give_the_published_steps(number: int, method: str) -> None:
    recording = SIMULATED[number]
    meccano = recording["dataset"] == "meccano"
    procedure = every_installation_expected(recording) if meccano else ASSEMBLY
    frames = [[Detection(*values) for values in frame] for frame in recording["detections"]]
    completions = run(make_logic(method, procedure), frames)
    assert as_lists(completions) == recording["expected"][method]["steps"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REAL)
def test_real_recordings_give_the_published_steps(name: str, method: str) -> None:
    recording = REAL[name]
    frames = read_detections(GOLDEN / "industreal" / f"{name}_pred.csv.gz", recording["n_frames"])
    procedure = builtin_procedure(f"industreal-{recording['procedure']}")
    completions = run(make_logic(method, procedure), frames)
    expected = [[s["frame"], s["id"], s["conf"]] for s in recording["expected"][method]["steps"]]
    assert as_lists(completions) == expected


@pytest.mark.parametrize("method", METHODS)
@given(frames=recordings, share=st.floats(0, 1))
def test_a_restored_session_goes_on_as_an_uninterrupted_one(
    method: str, frames: list[list[Detection]], share: float
) -> None:
    cut = int(share * len(frames))
    whole = run(make_logic(method, ASSEMBLY, threshold=3.0), frames)
    first, second = (make_logic(method, ASSEMBLY, threshold=3.0) for _ in range(2))
    before = run(first, frames[:cut])
    second.restore(json.loads(json.dumps(first.snapshot())))
    after = [done for idx in range(cut, len(frames)) for done in second.step(idx, frames[idx])]
    assert before + after == whole


@given(frames=recordings)
def test_b3_completes_only_expected_steps_that_change_its_state(
    frames: list[list[Detection]],
) -> None:
    logic = make_logic("b3", ASSEMBLY, threshold=2.0)
    for frame_idx, frame in enumerate(frames):
        before = logic.state
        for done in logic.step(frame_idx, frame):
            assert ASSEMBLY.step(done.step_id).expected
            assert before is not None
            assert before[done.component_idx] == 0


@given(frames=recordings)
@settings(max_examples=50)
def test_b1_and_b2_states_follow_from_their_steps(frames: list[list[Detection]]) -> None:
    for method in ("b1", "b2"):
        logic = make_logic(method, ASSEMBLY, threshold=2.0)
        for frame_idx, frame in enumerate(frames):
            before = logic.state
            completions = logic.step(frame_idx, frame)
            if before is not None and logic.state is not None:
                changed = ASSEMBLY.steps_between(before, logic.state)
                assert [done.step_id for done in completions] == [step.id for step in changed]


def test_a_sum_must_exceed_the_threshold_and_decays_without_gain() -> None:
    sees_all = [Detection(13, 0.5)]
    frames = [sees_all, sees_all, [], sees_all, sees_all]  # 0.5, 1.0, 0.75, 1.25
    logic = make_logic("b3", ASSEMBLY, threshold=1.0, decay=0.75)
    completions = run(logic, frames[:3])
    assert completions == []
    assert {done.step_id for done in logic.step(3, sees_all)} == {3, 6, 9, 15, 18, 21, 24, 27, 30}
    assert logic.state == ASSEMBLY.states[13]


def test_classes_without_a_state_complete_nothing_and_set_nothing() -> None:
    for method in METHODS:
        logic = make_logic(method, ASSEMBLY, threshold=0.1)
        before = logic.state
        assert run(logic, [[Detection(23, 1.0)], [Detection(0, 1.0)]] * 3) == []
        assert logic.state == before


def test_completions_say_which_component_changed_how() -> None:
    logic = make_logic("b1", builtin_procedure("industreal-main"))
    completions = run(logic, [[Detection(13, 0.9)], [Detection(14, 0.9)]])
    assert completions == [StepCompletion(1, 20, 1.0, 6, "removed")]


@pytest.mark.parametrize("frame_idx", [4, 5, -1])
def test_frames_out_of_order_are_refused(frame_idx: int) -> None:
    logic = make_logic("b2", ASSEMBLY)
    logic.step(5, [])
    with pytest.raises(StateError, match=f"after 5, got frame {frame_idx}"):
        logic.step(frame_idx, [])


@pytest.mark.parametrize(
    "bad", [Detection(24, 0.5), Detection(-1, 0.5), Detection(1, 1.5), Detection(1, float("nan"))]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_refused_detection_leaves_the_logic_as_it_was(method: str, bad: Detection) -> None:
    logic = make_logic(method, ASSEMBLY)
    run(logic, [[Detection(1, 0.9)], [Detection(13, 0.9)]])
    before = logic.snapshot()
    with pytest.raises(DataError, match="expected a"):
        logic.step(7, [Detection(13, 0.9), bad])
    assert logic.snapshot() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "b1"},
        {"procedure": "industreal-main"},
        {"state": [0, 1]},
        {"state": [5] * 11},
        {"state": None},
        {"state": 3},
        {"frame_idx": "soon"},
        {"sums": None},
        {"sums": {"threshold": 8.0}},
        {"sums": {"threshold": 6.0, "decay": 0.75, "sum_by_step": {}, "gained": []}},
        {"sums": {"threshold": 8.0, "decay": 0.5, "sum_by_step": {}, "gained": []}},
        {"sums": {"threshold": 8.0, "decay": 0.75, "sum_by_step": {"x": 1}, "gained": []}},
        {"sums": {"threshold": 8.0, "decay": 0.75, "sum_by_step": {"3": 1e999}, "gained": []}},
    ],
)
def test_foreign_and_malformed_snapshots_are_refused(changes: dict[str, Any]) -> None:
    logic = make_logic("b3", ASSEMBLY)
    run(logic, [[Detection(13, 0.9)]] * 2)
    before = logic.snapshot()
    with pytest.raises(DataError, match="expected"):
        logic.restore(before | changes)
    with pytest.raises(DataError, match="expected"):
        logic.restore({})
    assert logic.snapshot() == before


def test_settings_out_of_range_are_refused() -> None:
    for method, settings_ in [("b4", {}), ("b2", {"threshold": 0.0}), ("b3", {"decay": 1.1})]:
        with pytest.raises(ConfigError, match="expected"):
            make_logic(method, ASSEMBLY, **settings_)


def test_sums_fade_out_completely() -> None:
    sums = ConfidenceSums(decay=0.5)
    sums.add(3, 1.0)
    for _ in range(400):
        sums.decay()
    assert sums.snapshot()["sum_by_step"] == {}


# -- what a person declares ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_declared_step_changes_its_component_and_nothing_else(method: str) -> None:
    logic = make_logic(method, ASSEMBLY)
    for step in ASSEMBLY.expected_steps:
        before = list(logic.state or ASSEMBLY.initial_state)
        declared = logic.declare(step.id)
        assert (declared.step_id, declared.kind) == (step.id, step.kind)
        before[step.component_idx] = 1
        assert logic.state == tuple(before)
    with pytest.raises(NotFoundError, match="has no step 999"):
        logic.declare(999)


@pytest.mark.parametrize("method", ["b2", "b3"])
def test_detections_gathered_for_a_declared_step_do_not_report_it_again(method: str) -> None:
    logic = make_logic(method, ASSEMBLY, threshold=3.0)
    seen = [Detection(2, 1.0)]  # rear chassis and its rear pin
    logic.step(0, [Detection(1, 1.0)])
    for frame_idx in range(1, 4):
        assert logic.step(frame_idx, seen) == []
    logic.declare(9)
    found = [step.step_id for frame in range(4, 12) for step in logic.step(frame, seen)]
    assert found == [18]


def test_a_declared_step_survives_a_snapshot() -> None:
    logic, again = make_logic("b3", ASSEMBLY), make_logic("b3", ASSEMBLY)
    logic.declare(9)
    again.restore(logic.snapshot())
    assert again.state == logic.state
