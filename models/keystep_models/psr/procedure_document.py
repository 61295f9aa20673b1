"""Keystep's own procedure document: JSON, versioned, readable and writable by people.

    {"keystep_procedure": 1, "name": "toy-bike", "task": "assy",
     "components": ["base", "front chassis"],
     "initial_state": [1, 0],
     "detector_states": [null, [1, 0], [1, 1], null],
     "steps": [{"id": 3, "title": "Install front chassis", "component": "front chassis",
                "kind": "completed", "expected": true, "optional": false, "repeatable": false,
                "undoable": true, "requires": []}]}

`requires` is the partial order: ids of the steps expected before this one. `detector_states` says
what each class of the assembly-state detector stands for: a value per component, or null for a
class without a state (background, error state).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from keystep_capture.errors import DataError
from keystep_models.psr.procedure import ComponentState, Procedure, ProcedureStep, StepKind
from keystep_models.psr.text_files import open_text

SCHEMA_VERSION: Final = 1


class StepEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a document; see `ProcedureStep`."""

    id: int
    title: str
    component: str
    kind: StepKind
    expected: bool = True
    optional: bool = False
    repeatable: bool = False
    undoable: bool = True
    requires: list[int] = []


class ProcedureDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A procedure as a file holds it; its parts may contradict each other (`find_problems`)."""

    keystep_procedure: int
    name: str
    task: str
    components: list[str]
    initial_state: list[int]
    steps: list[StepEntry]
    detector_states: list[list[int] | None] = []


def read_document(path: str | Path) -> ProcedureDocument:
    """Read a document of this version; DataError naming the file and the value otherwise."""
    path = Path(path)
    with open_text(path, "a procedure") as lines:
        text = lines.read()
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> ProcedureDocument:
    """Parse a document of this version; DataError naming `source` and the value otherwise."""
    try:
        version = json.loads(text).get("keystep_procedure")
    except json.JSONDecodeError as error:
        raise DataError(f"{source}, line {error.lineno}: expected JSON, got {error.msg}") from error
    except (AttributeError, RecursionError) as error:
        raise DataError(f"{source}: expected a JSON object with keystep_procedure") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{source}: expected keystep_procedure {SCHEMA_VERSION}, got {version!r}; this Keystep"
            " reads no other version"
        )
    try:
        return msgspec.json.decode(text, type=ProcedureDocument)
    except msgspec.ValidationError as error:
        raise DataError(f"{source}: {error}") from error


def write_document(document: ProcedureDocument, path: str | Path) -> None:
    """Write a document as indented JSON."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    Path(path).write_text(text + "\n", encoding="utf-8")


def to_procedure(document: ProcedureDocument) -> Procedure:
    """The procedure a document describes; DataError with the first problem when it has any."""
    problems = find_problems(document)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(
            f"procedure {document.name!r}: {problems[0]}{more}; `keystep procedure check` lists all"
        )
    index = {name: idx for idx, name in enumerate(document.components)}
    return Procedure(
        name=document.name,
        task=document.task,
        steps=tuple(
            ProcedureStep(
                id=step.id,
                title=step.title,
                component_idx=index[step.component],
                kind=step.kind,
                expected=step.expected,
                optional=step.optional,
                repeatable=step.repeatable,
                undoable=step.undoable,
                requires=tuple(step.requires),
            )
            for step in document.steps
        ),
        component_count=len(document.components),
        initial_state=tuple(document.initial_state),
        states=tuple(None if s is None else tuple(s) for s in document.detector_states),
    )


def of_procedure(procedure: Procedure) -> ProcedureDocument:
    """The document that describes a procedure; components are named after their installation."""
    return of_steps(
        procedure.steps,
        name=procedure.name,
        task=procedure.task,
        initial_state=procedure.initial_state,
        states=procedure.states,
    )


def of_steps(
    steps: Sequence[ProcedureStep],
    *,
    name: str,
    task: str,
    initial_state: ComponentState,
    states: Sequence[ComponentState | None] = (),
) -> ProcedureDocument:
    """A document of these parts, which may contradict each other (`find_problems`)."""
    names = _component_names(steps, len(initial_state))
    return ProcedureDocument(
        keystep_procedure=SCHEMA_VERSION,
        name=name,
        task=task,
        components=names,
        initial_state=list(initial_state),
        detector_states=[None if state is None else list(state) for state in states],
        steps=[
            StepEntry(
                id=step.id,
                title=step.title,
                component=names[step.component_idx],
                kind=step.kind,
                expected=step.expected,
                optional=step.optional,
                repeatable=step.repeatable,
                undoable=step.undoable,
                requires=list(step.requires),
            )
            for step in steps
        ],
    )


def _component_names(steps: Sequence[ProcedureStep], count: int) -> list[str]:
    names = [f"component {idx}" for idx in range(count)]
    for step in steps:
        name = step.title.removeprefix("Install ").strip()
        if step.kind == "completed" and name and name not in names:
            names[step.component_idx] = name
    return names


# --- what can be wrong ------------------------------------------------------------------------


def find_problems(document: ProcedureDocument) -> list[str]:
    """All that makes a document no usable procedure, one line each; empty when it is one."""
    problems = [*_structure_problems(document), *_reference_problems(document)]
    cycles = find_cycles({step.id: step.requires for step in document.steps})
    titles = {step.id: step.title for step in document.steps}
    for cycle in cycles:
        way = " -> ".join(f"{step_id} ({titles[step_id]})" for step_id in (*cycle, cycle[0]))
        problems.append(f"cycle: each of these steps requires the next: {way}")
    problems += _unreachable_problems(document, {step_id for cycle in cycles for step_id in cycle})
    return problems


def _structure_problems(document: ProcedureDocument) -> Iterator[str]:
    count = len(document.components)
    if not document.steps:
        yield "expected at least one step, got none"
    for name in sorted({n for n in document.components if document.components.count(n) > 1}):
        yield f"duplicate component {name!r}: expected every name once"
    vectors = [("initial_state", document.initial_state)]
    for class_id, state in enumerate(document.detector_states):
        if state is not None:
            vectors.append((f"detector_states[{class_id}]", state))
    for what, vector in vectors:
        if len(vector) != count or any(value not in (-1, 0, 1) for value in vector):
            yield f"{what}: expected {count} values, each -1, 0 or 1, got {vector}"
    first_with_id: dict[int, StepEntry] = {}
    first_with_change: dict[tuple[str, StepKind], StepEntry] = {}
    for step in document.steps:
        same = first_with_id.setdefault(step.id, step)
        if same is not step:
            yield f"duplicate id {step.id}: {same.title!r} and {step.title!r}"
        same = first_with_change.setdefault((step.component, step.kind), step)
        if same is not step and same.id != step.id:
            yield (
                f"duplicate change: steps {same.id} and {step.id} both make {step.component!r}"
                f" {step.kind}"
            )


def _reference_problems(document: ProcedureDocument) -> Iterator[str]:
    ids = {step.id for step in document.steps}
    for step in document.steps:
        if step.id < 0:
            yield f"step {step.id} ({step.title}): expected an id of 0 or more"
        if step.component not in document.components:
            yield f"step {step.id} ({step.title}): unknown component {step.component!r}"
        for required in step.requires:
            if required not in ids:
                yield f"step {step.id} ({step.title}): requires the unknown step {required}"


def find_cycles(requires: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Cycles in a graph, each from its smallest id; at least one for every knot of steps.

    Args:
        requires: Per step id the ids it requires; ids that are no key are ignored.
    """
    finished: set[int] = set()
    cycles: list[list[int]] = []
    for start in sorted(requires):
        if start in finished:
            continue
        path, pending = [start], [(start, iter(requires[start]))]
        while pending:
            other = next(pending[-1][1], None)
            if other is None:
                pending.pop()
                finished.add(path.pop())
            elif other in path:
                cycle = path[path.index(other) :]
                least = cycle.index(min(cycle))
                cycles.append(cycle[least:] + cycle[:least])
            elif other in requires and other not in finished:
                path.append(other)
                pending.append((other, iter(requires[other])))
    return cycles


def _unreachable_problems(document: ProcedureDocument, in_cycle: set[int]) -> Iterator[str]:
    """Expected steps that nothing can lead to, apart from those that a cycle names already."""
    steps = {step.id: step for step in document.steps}
    reached = _reachable(document)
    for step in steps.values():
        if step.expected and step.id not in reached and step.id not in in_cycle:
            yield f"step {step.id} ({step.title}): unreachable: {_why(document, step, reached)}"


def _reachable(document: ProcedureDocument) -> set[int]:
    """Ids of expected steps that some order of steps arrives at."""
    reached: set[int] = set()
    while True:
        more = {
            step.id
            for step in document.steps
            if step.id not in reached
            and step.expected
            and reached.issuperset(step.requires)
            and _can_change(document, step, reached)
        }
        if not more:
            return reached
        reached |= more


def _can_change(document: ProcedureDocument, step: StepEntry, reached: set[int]) -> bool:
    """Whether the component can be as it must be before this step.

    Mistakes need not be expected to happen; installations and removals do.
    """
    if step.component not in document.components:
        return False
    idx = document.components.index(step.component)
    if idx >= len(document.initial_state):
        return False
    initial = document.initial_state[idx]
    own = {s.kind for s in document.steps if s.component == step.component and s.id in reached}
    if step.kind == "removed":
        return initial == 1 or "completed" in own
    if step.kind == "completed":
        return initial != 1 or "removed" in own or "incorrect" in own
    return initial != -1 or "removed" in own or "completed" in own


def _why(document: ProcedureDocument, step: StepEntry, reached: set[int]) -> str:
    by_id = {other.id: other for other in document.steps}
    for required in step.requires:
        if required in reached:
            continue
        if required not in by_id:
            return f"it requires step {required}, which does not exist"
        if not by_id[required].expected:
            return f"it requires step {required}, which the procedure does not expect"
        return f"it requires step {required}, which is unreachable or in a cycle"
    if step.component not in document.components:
        return f"its component {step.component!r} does not exist"
    if step.kind == "removed":
        return f"{step.component!r} is never installed before"
    if step.kind == "completed":
        return f"{step.component!r} is installed from the start and never removed"
    return f"{step.component!r} is wrong from the start and never put right"
