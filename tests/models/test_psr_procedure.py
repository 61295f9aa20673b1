import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import DataError, NotFoundError
from keystep_models.psr.procedure import (
    BUILTIN_PROCEDURES,
    VALUE_AFTER,
    Procedure,
    ProcedureStep,
    builtin_procedure,
    load_industreal,
    parse_state,
)

vectors = st.tuples(*[st.sampled_from((-1, 0, 1))] * 11)


def info_row(step_id: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": step_id,
        "description": f"step {step_id}",
        "install": step_id % 3 != 2,
        "state_idx": step_id // 3,
        "expected_in_assy": step_id % 3 == 0,
    }
    return {key: value for key, value in (row | changes).items() if value is not None}


def write_info(folder: Path, rows: Any) -> Path:
    path = folder / "procedure_info_bike.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BUILTIN_PROCEDURES)
def test_builtin_procedures_have_the_data_sets_size_and_a_known_initial_state(name: str) -> None:
    procedure = builtin_procedure(name)
    assert (len(procedure.steps), procedure.component_count, len(procedure.states)) == (33, 11, 24)
    assert procedure.states[0] is None
    assert procedure.states[23] is None
    assert procedure.initial_state in procedure.states


def test_assembly_expects_nine_installations_in_document_order() -> None:
    procedure = builtin_procedure("industreal-assy")
    steps = procedure.next_steps(procedure.initial_state)
    assert [step.id for step in steps] == [3, 6, 9, 15, 18, 21, 24, 27, 30]
    assert steps[0].title == "Install front chassis"
    assert {step.kind for step in steps} == {"completed"}


def test_maintenance_first_removes_then_installs_again() -> None:
    procedure = builtin_procedure("industreal-main")
    state = list(procedure.initial_state)
    assert [step.id for step in procedure.next_steps(state)] == [11, 12, 17, 20, 32]
    remaining = [step.id for step in procedure.remaining_steps(state)]
    assert remaining == [11, 12, 15, 17, 18, 20, 30, 32]
    state[5] = 0
    assert [step.id for step in procedure.next_steps(state, [17])] == [11, 12, 15, 20, 32]
    state[5] = 1
    assert [step.id for step in procedure.next_steps(state, [17, 15])] == [11, 12, 20, 32]


@pytest.mark.parametrize("name", BUILTIN_PROCEDURES)
def test_doing_the_next_step_again_and_again_finishes_the_procedure(name: str) -> None:
    procedure = builtin_procedure(name)
    state, done = list(procedure.initial_state), list[int]()
    while steps := procedure.next_steps(state, done):
        state[steps[0].component_idx] = VALUE_AFTER[steps[0].kind]
        done.append(steps[0].id)
    assert sorted(done) == sorted(step.id for step in procedure.expected_steps)
    assert procedure.remaining_steps(state, done) == ()


@given(before=vectors, after=vectors)
def test_steps_between_two_states_lead_from_one_to_the_other(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    state = list(before)
    for step in builtin_procedure("industreal-assy").steps_between(before, after):
        assert state[step.component_idx] != VALUE_AFTER[step.kind]
        state[step.component_idx] = VALUE_AFTER[step.kind]
    pairs = zip(before, after, strict=True)
    assert state == [old if (old, new) == (-1, 0) else new for old, new in pairs]


def test_a_file_with_another_component_count_loads(tmp_path: Path) -> None:
    path = write_info(tmp_path, [info_row(step_id) for step_id in range(51)])
    states = (None, (1,) + (0,) * 16, None)
    procedure = load_industreal(path, "assy", states=states)
    assert procedure.name == "procedure_info_bike-assy"
    assert procedure.initial_state == (0,) * 17
    assert [step.id for step in procedure.next_steps((1,) + (0,) * 16)] == list(range(3, 51, 3))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "non-empty list"),
        ({"steps": []}, "non-empty list"),
        (["install"], "entry 0: expected an object"),
        ([info_row(0, id=None)], "'id' as int, got None"),
        ([info_row(0, id=True)], "'id' as int, got True"),
        ([info_row(0, description=3)], "'description' as str"),
        ([info_row(0, state_idx=1)], "3k to install"),
        ([info_row(0, state_idx=-1)], "3k to install"),
        ([info_row(2, install=True)], "3k to install"),
        ([info_row(0), info_row(0)], "occur twice"),
        ([info_row(0, expected_in_assy=None, expected_in_main=True)], r"tasks here: \['main'\]"),
    ],
)
def test_malformed_files_are_refused_with_what_is_wrong(
    tmp_path: Path, rows: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_industreal(write_info(tmp_path, rows), "assy")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_industreal(tmp_path / "missing.json", "assy")
    path = tmp_path / "cut.json"
    path.write_text('[{"id": 0,', encoding="utf-8")
    with pytest.raises(DataError, match="expected JSON"):
        load_industreal(path, "assy")


@pytest.mark.parametrize("text", ["", "10a", "-10", "12"])
def test_states_are_digits_0_and_1(text: str) -> None:
    with pytest.raises(DataError, match="digits 0 and 1"):
        parse_state(text)


def test_contradicting_parts_are_refused() -> None:
    step = ProcedureStep(id=0, title="a", component_idx=2, kind="completed", expected=True)
    common: dict[str, Any] = {"name": "p", "task": "t", "component_count": 2}
    with pytest.raises(DataError, match="expected component 0 to 1, got 2"):
        Procedure(**common, steps=(step,), initial_state=(0, 0))
    with pytest.raises(DataError, match="initial state of 'p': expected 2 values"):
        Procedure(**common, steps=(), initial_state=(0,))
    with pytest.raises(DataError, match="state of class 1 of 'p'"):
        Procedure(**common, steps=(), initial_state=(0, 0), states=(None, (0, 2)))


def test_guidance_needs_a_whole_state() -> None:
    procedure = builtin_procedure("industreal-assy")
    for ask in (procedure.next_steps, procedure.remaining_steps):
        with pytest.raises(DataError, match="present state: expected 11 values"):
            ask((1, 0))


def test_unknown_names_and_ids_are_not_found() -> None:
    with pytest.raises(NotFoundError, match="industreal-assy"):
        builtin_procedure("ikea")
    with pytest.raises(NotFoundError, match="no step 99"):
        builtin_procedure("industreal-assy").step(99)


def test_procedures_copy_pickle_and_compare_by_value() -> None:
    procedure = builtin_procedure("industreal-main")
    assert pickle.loads(pickle.dumps(procedure)) == procedure == copy.deepcopy(procedure)
    assert hash(procedure) == hash(builtin_procedure("industreal-main"))
    assert procedure.step(32) is procedure.step_for(10, "removed")
