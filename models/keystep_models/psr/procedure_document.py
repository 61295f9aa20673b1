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

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from keystep_capture.errors import DataError
from keystep_models.psr.order_cycles import cycle_in, find_knots
from keystep_models.psr.procedure import (
    MAX_PROCEDURE_LENGTH,
    ComponentState,
    Procedure,
    ProcedureStep,
    StepKind,
    check_size,
)
from keystep_models.psr.text_files import parse_json, plain, read_text, shown

SCHEMA_VERSION: Final = 1

_ID: Final = re.compile(r"[0-9a-f]{64}")
_PICTURE: Final = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/){0,4}[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
)
_MAX_CYCLES: Final = 5  # that are written out, and of each at most so many steps:
_MAX_CYCLE_STEPS: Final = 10


class StepEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a document; see `ProcedureStep`. `picture` is a file beside the document."""

    id: int
    title: str
    component: str
    kind: StepKind
    expected: bool = True
    optional: bool = False
    repeatable: bool = False
    undoable: bool = True
    requires: list[int] = []
    picture: str | msgspec.UnsetType = msgspec.UNSET


class ProcedureDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A procedure as a file holds it; its parts may contradict each other (`find_problems`).

    `bundle` is the id of the bundle that recognises the steps (docs/guidance.md), `detector` that
    of the detector that sees the states (docs/detector.md), `storm` that of the bundle that sees
    changes within clips (docs/storm.md).
    """

    keystep_procedure: int
    name: str
    task: str
    components: list[str]
    initial_state: list[int]
    steps: list[StepEntry]
    detector_states: list[list[int] | None] = []
    bundle: str | msgspec.UnsetType = msgspec.UNSET
    detector: str | msgspec.UnsetType = msgspec.UNSET
    storm: str | msgspec.UnsetType = msgspec.UNSET


def read_document(path: str | Path) -> ProcedureDocument:
    """Read a document of this version; DataError naming the file and the value otherwise."""
    path = Path(path)
    text = read_text(path, "a procedure", max_length=MAX_PROCEDURE_LENGTH)
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> ProcedureDocument:
    """Parse a document of this version; DataError naming `source` and the value otherwise."""
    content = parse_json(text, source, "a procedure")
    if not isinstance(content, dict):
        raise DataError(f"{source}: expected a JSON object with keystep_procedure")
    version = content.get("keystep_procedure")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{source}: expected keystep_procedure {SCHEMA_VERSION}, got {shown(version)}; this"
            " Keystep reads no other version"
        )
    for what in ("steps", "components", "detector_states"):
        if isinstance(content.get(what), list):
            check_size(len(content[what]), source, what)
    try:
        return msgspec.json.decode(text, type=ProcedureDocument)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{source}: {plain(str(error), 200)}") from error


def write_document(document: ProcedureDocument, path: str | Path) -> None:
    """Write a document as indented JSON; its folder is made where there is none."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def to_procedure(document: ProcedureDocument) -> Procedure:
    """The procedure a document describes; DataError with the first problem when it has any."""
    problems = find_problems(document)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(
            f"procedure {shown(document.name)}: {problems[0]}{more};"
            " `keystep procedure check` lists all"
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
                picture=step.picture or None,
            )
            for step in document.steps
        ),
        component_count=len(document.components),
        initial_state=tuple(document.initial_state),
        states=tuple(None if s is None else tuple(s) for s in document.detector_states),
        bundle=document.bundle or None,
        detector=document.detector or None,
        storm=document.storm or None,
    )


def of_procedure(procedure: Procedure) -> ProcedureDocument:
    """The document that describes a procedure; components are named after their installation."""
    return of_steps(
        procedure.steps,
        name=procedure.name,
        task=procedure.task,
        initial_state=procedure.initial_state,
        states=procedure.states,
        bundle=procedure.bundle,
        detector=procedure.detector,
        storm=procedure.storm,
    )


def of_steps(
    steps: Sequence[ProcedureStep],
    *,
    name: str,
    task: str,
    initial_state: ComponentState,
    states: Sequence[ComponentState | None] = (),
    bundle: str | None = None,
    detector: str | None = None,
    storm: str | None = None,
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
                picture=step.picture or msgspec.UNSET,
            )
            for step in steps
        ],
        bundle=bundle or msgspec.UNSET,
        detector=detector or msgspec.UNSET,
        storm=storm or msgspec.UNSET,
    )


def _component_names(steps: Sequence[ProcedureStep], count: int) -> list[str]:
    names = [f"component {idx}" for idx in range(count)]
    taken = set(names)
    for step in steps:
        name = step.title.removeprefix("Install ").strip()
        if step.kind == "completed" and name and name not in taken:
            taken.remove(names[step.component_idx])
            taken.add(name)
            names[step.component_idx] = name
    return names


# --- what can be wrong ------------------------------------------------------------------------


def find_problems(document: ProcedureDocument) -> list[str]:
    """All that makes a document no usable procedure, one line each; empty when it is one.

    Of steps that require each other one cycle is given, and the number of the others.
    """
    requires = {step.id: step.requires for step in document.steps}
    knots = find_knots(requires)
    return [
        *_structure_problems(document),
        *_reference_problems(document),
        *_cycle_problems(document, knots, requires),
        *_unreachable_problems(document, set[int]().union(*knots)),
    ]


def _structure_problems(document: ProcedureDocument) -> Iterator[str]:
    count = len(document.components)
    pins = {"bundle": document.bundle, "detector": document.detector, "storm": document.storm}
    for what, pinned in pins.items():
        if pinned and not _ID.fullmatch(pinned):
            owner = "detector" if what == "detector" else "bundle"
            yield f"{what}: expected the 64 hex digits of a {owner}'s id, got {shown(pinned)}"
    for what in ("detector", "storm"):
        if pins[what] and document.bundle:
            yield (
                f"expected a bundle or a {what}, got both: the bundle recognises the steps by"
                " itself"
            )
    if not document.steps:
        yield "expected at least one step, got none"
    times = Counter(document.components)
    for name in sorted(name for name in times if times[name] > 1):
        yield f"duplicate component {shown(name)}: expected every name once"
    vectors = [("initial_state", document.initial_state)]
    for class_id, state in enumerate(document.detector_states):
        if state is not None:
            vectors.append((f"detector_states[{class_id}]", state))
    for what, vector in vectors:
        if len(vector) != count or any(value not in (-1, 0, 1) for value in vector):
            yield f"{what}: expected {count} values, each -1, 0 or 1, got {shown(vector)}"
    first_with_id: dict[int, StepEntry] = {}
    first_with_change: dict[tuple[str, StepKind], StepEntry] = {}
    for step in document.steps:
        same = first_with_id.setdefault(step.id, step)
        if same is not step:
            yield f"duplicate id {step.id}: {shown(same.title)} and {shown(step.title)}"
        same = first_with_change.setdefault((step.component, step.kind), step)
        if same is not step and same.id != step.id:
            yield (
                f"duplicate change: steps {same.id} and {step.id} both make {shown(step.component)}"
                f" {step.kind}"
            )


def _reference_problems(document: ProcedureDocument) -> Iterator[str]:
    ids = {step.id for step in document.steps}
    components = set(document.components)
    for step in document.steps:
        if step.picture and not _PICTURE.fullmatch(step.picture):
            yield f"{_named(step)}: {shown(step.picture)} cannot be a picture's path"
        if step.id < 0:
            yield f"{_named(step)}: expected an id of 0 or more"
        if step.component not in components:
            yield f"{_named(step)}: unknown component {shown(step.component)}"
        for required in step.requires:
            if required not in ids:
                yield f"{_named(step)}: requires the unknown step {required}"


def _named(step: StepEntry) -> str:
    return f"step {step.id} ({plain(step.title)})"


def _cycle_problems(
    document: ProcedureDocument, knots: Sequence[set[int]], requires: Mapping[int, Sequence[int]]
) -> Iterator[str]:
    titles = {step.id: plain(step.title) for step in document.steps}
    for knot in knots[:_MAX_CYCLES]:
        cycle = cycle_in(knot, requires)
        names = [f"{step_id} ({titles[step_id]})" for step_id in cycle[:_MAX_CYCLE_STEPS]]
        if len(cycle) > _MAX_CYCLE_STEPS:
            names.append(f"{len(cycle) - _MAX_CYCLE_STEPS} more")
        others = len(knot) - len(cycle)
        yield (
            f"cycle: each of these steps requires the next: {' -> '.join([*names, names[0]])}"
            + (f"; {others} more steps require these and are required by them" if others else "")
        )
    if len(knots) > _MAX_CYCLES:
        yield f"cycle: {len(knots) - _MAX_CYCLES} more groups of steps require each other"


def _unreachable_problems(document: ProcedureDocument, in_cycle: set[int]) -> Iterator[str]:
    """Expected steps that nothing can lead to, apart from those that a cycle names already."""
    steps = {step.id: step for step in document.steps}
    reached, components = _reachable(document), set(document.components)
    for step in steps.values():
        if step.expected and step.id not in reached and step.id not in in_cycle:
            why = _why(step, steps, components, reached)
            yield f"{_named(step)}: unreachable: {why}"


def _reachable(document: ProcedureDocument) -> set[int]:
    """Ids of expected steps that some order of steps arrives at, in time linear in the document."""
    initial: dict[str, int] = {}
    for name, value in zip(document.components, document.initial_state, strict=False):
        initial.setdefault(name, value)
    unmet = [len(set(step.requires)) for step in document.steps]
    with_id, waiting, of_component = _positions(document)
    happened: dict[str, set[StepKind]] = {name: set() for name in of_component}
    reached: set[int] = set()
    pending = list(range(len(unmet)))
    while pending:
        idx = pending.pop()
        step = document.steps[idx]
        is_free = step.expected and unmet[idx] == 0 and step.component in initial
        if step.id in reached or not is_free:
            continue
        if not _can_change(step.kind, initial[step.component], happened[step.component]):
            continue
        reached.add(step.id)
        for waiting_idx in waiting.get(step.id, ()):
            unmet[waiting_idx] -= 1
            pending.append(waiting_idx)
        for same in (document.steps[i] for i in with_id[step.id]):  # several where ids are doubled
            if same.kind not in happened[same.component]:
                happened[same.component].add(same.kind)
                pending += of_component[same.component]
    return reached


def _positions(
    document: ProcedureDocument,
) -> tuple[dict[int, list[int]], dict[int, list[int]], dict[str, list[int]]]:
    """Positions of steps by their id, by the ids they require, and by their component."""
    with_id: dict[int, list[int]] = {}
    waiting: dict[int, list[int]] = {}
    of_component: dict[str, list[int]] = {}
    for idx, step in enumerate(document.steps):
        with_id.setdefault(step.id, []).append(idx)
        of_component.setdefault(step.component, []).append(idx)
        for required in set(step.requires):
            waiting.setdefault(required, []).append(idx)
    return with_id, waiting, of_component


def _can_change(kind: StepKind, initial: int, happened: set[StepKind]) -> bool:
    """Whether a component can be as it must be before a step of this kind.

    Mistakes need not be expected to happen; installations and removals do.
    """
    if kind == "removed":
        return initial == 1 or "completed" in happened
    if kind == "completed":
        return initial != 1 or "removed" in happened or "incorrect" in happened
    return initial != -1 or "removed" in happened or "completed" in happened


def _why(
    step: StepEntry, by_id: Mapping[int, StepEntry], components: set[str], reached: set[int]
) -> str:
    for required in step.requires:
        if required in reached:
            continue
        if required not in by_id:
            return f"it requires step {required}, which does not exist"
        if not by_id[required].expected:
            return f"it requires step {required}, which the procedure does not expect"
        return f"it requires step {required}, which is unreachable or in a cycle"
    if step.component not in components:
        return f"its component {shown(step.component)} does not exist"
    if step.kind == "removed":
        return f"{shown(step.component)} is never installed before"
    if step.kind == "completed":
        return f"{shown(step.component)} is installed from the start and never removed"
    return f"{shown(step.component)} is wrong from the start and never put right"
