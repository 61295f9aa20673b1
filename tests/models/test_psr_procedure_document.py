import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.order_cycles import cycle_in, find_knots
from keystep_models.psr.procedure import BUILTIN_PROCEDURES, Procedure, builtin_procedure
from keystep_models.psr.procedure_document import (
    find_problems,
    of_procedure,
    parse_document,
    read_document,
    to_procedure,
    write_document,
)
from keystep_models.psr.procedure_files import documents_to_check, load_procedure, read_states

INFO = Path(__file__).parents[2] / "models" / "keystep_models" / "psr" / "data"
INFO_FILE = INFO / "procedure_info_IndustReal.json"
graphs = st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 8), max_size=3), max_size=8)


def step(step_id: int, component: str, **changes: Any) -> dict[str, Any]:
    own = {"id": step_id, "title": f"Step {step_id}", "component": component, "kind": "completed"}
    return own | changes


def document(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "keystep_procedure": 1,
        "name": "bike",
        "task": "assy",
        "components": ["a", "b", "c"],
        "initial_state": [0, 0, 0],
        "steps": list(steps) or [step(0, "a")],
    } | changes


def problems(*steps: dict[str, Any], **changes: Any) -> list[str]:
    return find_problems(parse_document(json.dumps(document(*steps, **changes)), "x.json"))


@pytest.mark.parametrize("name", BUILTIN_PROCEDURES)
def test_a_procedure_survives_its_document(name: str, tmp_path: Path) -> None:
    procedure = builtin_procedure(name)
    path = tmp_path / "p.json"
    write_document(of_procedure(procedure), path)
    assert find_problems(read_document(path)) == []
    assert to_procedure(read_document(path)) == procedure == load_procedure(str(path))


def test_pinned_models_survive_and_must_go_together() -> None:
    pinned = replace(builtin_procedure("industreal-assy"), detector="1" * 64, storm="2" * 64)
    assert to_procedure(of_procedure(pinned)) == pinned
    assert problems(storm="x")[0].startswith("storm: expected the 64 hex digits of a bundle's id")
    [clash] = problems(storm="2" * 64, bundle="3" * 64)
    assert "expected a bundle or a storm, got both" in clash


def test_order_and_marks_reach_the_procedure() -> None:
    text = json.dumps(
        document(
            step(0, "a"),
            step(3, "b", requires=[0], optional=True, repeatable=True, undoable=False),
        )
    )
    procedure = to_procedure(parse_document(text, "x"))
    second = procedure.step(3)
    assert (second.optional, second.repeatable, second.undoable) == (True, True, False)
    assert [s.id for s in procedure.next_steps((0, 0, 0))] == [0]
    assert [s.id for s in procedure.next_steps((1, 0, 0))] == [3]
    assert [s.id for s in procedure.next_steps((0, 0, 0), done=[0])] == [0, 3]


def test_a_cycle_is_named() -> None:
    found = problems(
        step(3, "a", requires=[9]), step(6, "b", requires=[3]), step(9, "c", requires=[6])
    )
    assert found == [
        "cycle: each of these steps requires the next:"
        " 3 (Step 3) -> 9 (Step 9) -> 6 (Step 6) -> 3 (Step 3)"
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([step(0, "a"), step(0, "b")], ["duplicate id 0: 'Step 0' and 'Step 0'"]),
        (
            [step(0, "a"), step(5, "a")],
            ["duplicate change: steps 0 and 5 both make 'a' completed"],
        ),
        (
            [step(0, "x")],
            [
                "step 0 (Step 0): unknown component 'x'",
                "step 0 (Step 0): unreachable: its component 'x' does not exist",
            ],
        ),
        (
            [step(0, "a", requires=[7])],
            [
                "step 0 (Step 0): requires the unknown step 7",
                "step 0 (Step 0): unreachable: it requires step 7, which does not exist",
            ],
        ),
        (
            [step(2, "a", kind="removed")],
            ["step 2 (Step 2): unreachable: 'a' is never installed before"],
        ),
        (
            [step(0, "a", expected=False), step(3, "b", requires=[0])],
            [
                "step 3 (Step 3): unreachable: it requires step 0, which the procedure does not"
                " expect"
            ],
        ),
        (
            [step(0, "a", requires=[0]), step(3, "b", requires=[0])],
            [
                "cycle: each of these steps requires the next: 0 (Step 0) -> 0 (Step 0)",
                "step 3 (Step 3): unreachable: it requires step 0, which is unreachable or in a"
                " cycle",
            ],
        ),
        ([step(-1, "a")], ["step -1 (Step -1): expected an id of 0 or more"]),
        ([step(0, "a"), step(2, "a", kind="removed", requires=[0])], []),
    ],
)
def test_each_problem_is_one_line(steps: list[dict[str, Any]], expected: list[str]) -> None:
    assert problems(*steps) == expected


def test_installing_what_is_there_from_the_start_is_unreachable() -> None:
    found = problems(step(0, "a"), initial_state=[1, 0, 0])
    assert found == [
        "step 0 (Step 0): unreachable: 'a' is installed from the start and never removed"
    ]


def test_vectors_and_components_are_checked() -> None:
    found = problems(
        step(0, "a"),
        components=["a", "a"],
        initial_state=[0, 5],
        detector_states=[None, [0, 0], [1]],
    )
    assert found == [
        "duplicate component 'a': expected every name once",
        "initial_state: expected 2 values, each -1, 0 or 1, got [0, 5]",
        "detector_states[2]: expected 2 values, each -1, 0 or 1, got [1]",
    ]


def test_a_document_with_problems_is_no_procedure() -> None:
    text = json.dumps(document(step(0, "a"), step(0, "b"), step(3, "x")))
    with pytest.raises(DataError, match=r"duplicate id 0.*\(and 2 more\).*procedure check"):
        to_procedure(parse_document(text, "x"))


@given(graph=graphs)
def test_cycles_are_cycles_and_every_graph_with_one_shows_one(graph: dict[int, list[int]]) -> None:
    knots = find_knots(graph)
    for knot in knots:
        cycle = cycle_in(knot, graph)
        assert set(cycle) <= knot
        for step_id, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert following in graph[step_id]
    left = dict(graph)
    while free := [i for i, needs in left.items() if not left.keys() & set(needs)]:
        for step_id in free:
            del left[step_id]
    assert bool(knots) == bool(left)


def test_ten_thousand_steps_are_checked_in_whatever_order_they_stand() -> None:
    count = 10_000
    chain = [step(i, f"c{i}", requires=[i - 1] if i else []) for i in range(count)]
    names = {"components": [f"c{i}" for i in range(count)], "initial_state": [0] * count}
    assert problems(*chain, **names) == []
    assert problems(*chain[::-1], **names) == []
    ring = [{**chain[0], "requires": [count - 1]}, *chain[1:]]
    [found] = problems(*ring, **names)
    assert "-> 9990 more -> 0 (Step 0)" in found
    with pytest.raises(DataError, match="at most 10000 steps, got 10001"):
        problems(*chain, chain[0])


def test_steps_that_all_require_each_other_are_one_line() -> None:
    count = 200
    clique = [step(i, f"c{i}", requires=[j for j in range(count) if j != i]) for i in range(count)]
    names = {"components": [f"c{i}" for i in range(count)], "initial_state": [0] * count}
    [found] = problems(*clique, **names)
    assert found.endswith("0 (Step 0); 198 more steps require these and are required by them")
    pairs = [step(i, f"c{i}", requires=[i ^ 1]) for i in range(count)]
    assert problems(*pairs, **names)[-1] == "cycle: 95 more groups of steps require each other"


def test_control_characters_of_titles_are_escaped() -> None:
    [first, _] = problems(step(0, "a", title="a\x1b[31m" + "b" * 500, requires=[7]))
    assert first.startswith("step 0 (a\\x1b[31mbbb")
    assert len(first) < 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json, line 1: expected JSON"),
        ("[]", "expected a JSON object"),
        ('{"name": "a"}', "expected keystep_procedure 1, got None"),
        ('{"keystep_procedure": 2}', "expected keystep_procedure 1, got 2"),
        ('{"keystep_procedure": 1}', "missing required field"),
        (json.dumps(document(step(0, "a", kind="done"))), r"\$.steps\[0\].kind"),
        (json.dumps(document(colour="red")), "unknown field `colour`"),
        (f'{{"keystep_procedure": {"9" * 5000}}}', "a number of too many digits"),
        (json.dumps(document(initial_state=[float("nan"), 0, 0])), "x.json: JSON is malformed"),
        (json.dumps(document(**{"\x1b" + "a" * 999: 1})), r"field `\\x1ba+\.\.\.$"),
        (json.dumps(document(name="\ud800")), "half of a surrogate pair"),
        ('{"keystep_procedure": ' + "[" * 100_000, "nested too deeply"),
        ('{"keystep_procedure": 1, "name": "a", "name": "b"}', "got 'name' repeated"),
    ],
)
def test_other_json_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_document(text, "x.json")


def test_the_published_file_brings_the_published_states_with_it() -> None:
    for task in ("assy", "main"):
        loaded = load_procedure(str(INFO_FILE), task)
        known = builtin_procedure(f"industreal-{task}")
        assert loaded.states == known.states
        assert loaded.initial_state == known.initial_state
        assert loaded.steps == known.steps
    assert [d.task for d in documents_to_check(INFO_FILE)] == ["assy", "main"]
    assert [find_problems(d) for d in documents_to_check(INFO_FILE)] == [[], []]


def test_a_file_that_differs_from_the_published_one_gets_no_states(tmp_path: Path) -> None:
    rows = json.loads(INFO_FILE.read_text(encoding="utf-8"))
    rows[3]["description"] = "Fit the front chassis"
    path = tmp_path / "info.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    procedure = load_procedure(str(path), "assy")
    assert procedure.states == ()
    assert procedure.initial_state == (0,) * 11


def test_duplicates_in_a_published_file_are_explained(tmp_path: Path) -> None:
    rows = json.loads(INFO_FILE.read_text(encoding="utf-8"))
    path = tmp_path / "info.json"
    path.write_text(json.dumps([*rows, rows[3]]), encoding="utf-8")
    [checked] = documents_to_check(path, "assy")
    assert find_problems(checked)[0] == (
        "duplicate id 3: 'Install front chassis' and 'Install front chassis'"
    )


def test_names_and_tasks_must_fit() -> None:
    assert load_procedure("industreal", "main").task == "main"
    assert load_procedure("industreal", fallback_task="assy").task == "assy"
    with pytest.raises(ConfigError, match="say which with --task"):
        load_procedure("industreal")
    with pytest.raises(ConfigError, match="is for task 'assy', --task asks for 'main'"):
        load_procedure("industreal-assy", "main")
    with pytest.raises(ConfigError, match="no procedure 'ikea'"):
        load_procedure("ikea")


def test_a_procedure_refuses_unknown_requirements() -> None:
    known = builtin_procedure("industreal-assy")
    steps = (replace(known.steps[0], requires=(99,)), *known.steps[1:])
    with pytest.raises(DataError, match=r"step 0: expected known ids in requires, got \[99\]"):
        Procedure(
            name="p",
            task="assy",
            steps=steps,
            component_count=known.component_count,
            initial_state=known.initial_state,
        )


def test_detector_states_read_from_text(tmp_path: Path) -> None:
    path = tmp_path / "states.json"
    path.write_text('["background", "100", null, ""]', encoding="utf-8")
    assert read_states(path) == (None, (1, 0, 0), None, None)
    for text, message in (("[]", "a list of states"), ("[3]", "class 0: expected a text")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_states(path)
