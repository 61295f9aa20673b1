"""A procedure: the steps of a task over the state of its components.

A task's object has C components. The state vector s in {-1, 0, 1}^C says of each whether it is
incorrectly installed, absent or correctly installed. A step changes one component: `completed`
(to 1), `incorrect` (to -1) or `removed` (1 to 0); -1 to 0 is no step.

Source: Schoonbeek et al., IndustReal, WACV 2024; STORM-PSR, arXiv:2510.12385.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar

from keystep_capture.errors import DataError, NotFoundError
from keystep_models.psr.text_files import parse_json, read_text, shown

StepKind: TypeAlias = Literal["completed", "incorrect", "removed"]
ComponentState: TypeAlias = tuple[int, ...]

_T = TypeVar("_T")

_KIND_OF_OFFSET: Final[tuple[StepKind, ...]] = ("completed", "incorrect", "removed")
_KIND_OF_NEW_VALUE: Final[Mapping[int, StepKind]] = MappingProxyType(
    {1: "completed", -1: "incorrect", 0: "removed"}
)
VALUE_AFTER: Final[Mapping[StepKind, int]] = MappingProxyType(
    {"completed": 1, "incorrect": -1, "removed": 0}
)
"""The component's value once a step of this kind has happened."""

MAX_PROCEDURE_ENTRIES: Final = 10_000
"""Steps, components and detector classes that a procedure may have, each."""

MAX_PROCEDURE_LENGTH: Final = 16_000_000
"""Characters that a procedure's file may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureStep:
    """One change of one component that a recording can show.

    `expected` says whether the procedure asks for it; the others can only be seen, not followed.
    An `optional` step may be left out, a `repeatable` one may happen again, an `undoable` one may
    be taken back. `requires` are the ids of steps that are expected before this one. `picture` is a
    file beside the procedure's that shows the step.
    """

    id: int
    title: str
    component_idx: int
    kind: StepKind
    expected: bool
    optional: bool = False
    repeatable: bool = False
    undoable: bool = True
    requires: tuple[int, ...] = ()
    picture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Procedure:
    """The steps of one task, its initial state and what its detector's classes stand for.

    `states[class_id]` is the component vector of a detector class, or None where the class has
    none (background, error state). `task` names the variant ("assy", "main"). `bundle` is
    the id of the bundle that recognises the steps from embeddings, `detector` that of the detector
    that sees the states, `storm` that of the bundle that sees changes, where there is one.
    Raises DataError when the parts contradict each other.
    """

    name: str
    task: str
    steps: tuple[ProcedureStep, ...]
    component_count: int
    initial_state: ComponentState
    states: tuple[ComponentState | None, ...] = ()
    bundle: str | None = None
    detector: str | None = None
    storm: str | None = None
    _step_by_change: Mapping[tuple[int, StepKind], ProcedureStep] = field(
        init=False, repr=False, compare=False
    )
    _step_by_id: Mapping[int, ProcedureStep] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for idx, state in enumerate((self.initial_state, *self.states)):
            if state is not None:
                what = "initial state" if idx == 0 else f"state of class {idx - 1}"
                self.check_state(state, f"{what} of {self.name!r}")
        by_change = {(step.component_idx, step.kind): step for step in self.steps}
        by_id = {step.id: step for step in self.steps}
        if not len(by_change) == len(by_id) == len(self.steps):
            raise DataError(
                f"procedure {self.name!r}: expected every step id, and every pair of component"
                " and kind, once; some occur twice; remove the duplicates"
            )
        for step in self.steps:
            if not by_id.keys() >= set(step.requires):
                raise DataError(
                    f"procedure {self.name!r}, step {step.id}: expected known ids in requires, got"
                    f" {sorted(set(step.requires) - by_id.keys())}"
                )
            if not 0 <= step.component_idx < self.component_count:
                raise DataError(
                    f"procedure {self.name!r}, step {step.id}: expected component 0 to"
                    f" {self.component_count - 1}, got {step.component_idx}"
                )
        object.__setattr__(self, "_step_by_change", MappingProxyType(by_change))
        object.__setattr__(self, "_step_by_id", MappingProxyType(by_id))

    def __reduce__(self) -> tuple[Callable[..., Procedure], tuple[Any, ...]]:
        """Pickle and copy by the public fields; the look-up tables are rebuilt."""
        values = (self.name, self.task, self.steps, self.component_count, self.initial_state)
        return _rebuild, (*values, self.states, self.bundle, self.detector, self.storm)

    def check_state(self, state: Sequence[int], what: str = "state") -> None:
        """Raise DataError, naming `what`, unless `state` is one of this procedure's vectors."""
        if len(state) != self.component_count or any(value not in (-1, 0, 1) for value in state):
            raise DataError(
                f"{what}: expected {self.component_count} values, each -1, 0 or 1, got"
                f" {list(state)}"
            )

    def step(self, step_id: int) -> ProcedureStep:
        """The step with this id; NotFoundError when there is none."""
        found = self._step_by_id.get(step_id)
        if found is None:
            raise NotFoundError(
                f"procedure {self.name!r} has no step {step_id}; it has {sorted(self._step_by_id)}"
            )
        return found

    def step_for(self, component_idx: int, kind: StepKind) -> ProcedureStep | None:
        """The step that changes a component this way, or None where the procedure names none."""
        return self._step_by_change.get((component_idx, kind))

    def steps_between(
        self, before: Sequence[int], after: Sequence[int]
    ) -> tuple[ProcedureStep, ...]:
        """The steps that lead from one state vector to another, in component order."""
        found = []
        for component_idx, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and not (old == -1 and new == 0):
                step = self._step_by_change.get((component_idx, _KIND_OF_NEW_VALUE[new]))
                if step is not None:
                    found.append(step)
        return tuple(found)

    @property
    def expected_steps(self) -> tuple[ProcedureStep, ...]:
        """The steps the procedure asks for, in document order."""
        return tuple(step for step in self.steps if step.expected)

    def remaining_steps(
        self, state: Sequence[int], done: Iterable[int] = ()
    ) -> tuple[ProcedureStep, ...]:
        """Expected steps that the state does not satisfy yet, in document order.

        Where the procedure asks for a component's removal and for its installation (maintenance),
        the state alone cannot tell a finished component from an untouched one: the ids already
        completed (`done`) do. The installation remains as long as the removal does.
        Raises DataError when `state` is not a state vector of this procedure.
        """
        self.check_state(state, "present state")
        done_ids = frozenset(done)
        return tuple(step for step in self.expected_steps if self._remains(step, state, done_ids))

    def next_steps(
        self, state: Sequence[int], done: Iterable[int] = ()
    ) -> tuple[ProcedureStep, ...]:
        """Those of `remaining_steps` that can be done now, in document order.

        An installation that first needs a removal of the same component is left out, and so is a
        step that requires others not yet completed.

        Args:
            state: Present value of every component, length C, each -1, 0 or 1.
            done: Ids of the steps completed so far, in any order.

        Raises:
            DataError: `state` is not a state vector of this procedure.
        """
        done_ids = frozenset(done)
        return tuple(
            step
            for step in self.remaining_steps(state, done_ids)
            if state[step.component_idx] != VALUE_AFTER[step.kind]
            and all(self._is_met(required, state, done_ids) for required in step.requires)
        )

    def _is_met(self, step_id: int, state: Sequence[int], done: frozenset[int]) -> bool:
        required = self.step(step_id)
        return step_id in done or state[required.component_idx] == VALUE_AFTER[required.kind]

    def _remains(self, step: ProcedureStep, state: Sequence[int], done: frozenset[int]) -> bool:
        value = state[step.component_idx]
        if step.kind == "removed":
            return value != 0 and step.id not in done
        if value != VALUE_AFTER[step.kind]:
            return True
        removal = self.step_for(step.component_idx, "removed")
        return removal is not None and removal.expected and removal.id not in done


def _rebuild(
    name: str,
    task: str,
    steps: tuple[ProcedureStep, ...],
    component_count: int,
    initial_state: ComponentState,
    states: tuple[ComponentState | None, ...],
    bundle: str | None,
    detector: str | None,
    storm: str | None,
) -> Procedure:
    return Procedure(
        name=name,
        task=task,
        steps=steps,
        component_count=component_count,
        initial_state=initial_state,
        states=states,
        bundle=bundle,
        detector=detector,
        storm=storm,
    )


def parse_state(text: str) -> ComponentState:
    """Read a state vector as the data sets write it: one digit, 0 or 1, per component.

    Raises:
        DataError: the text holds anything else.
    """
    if not text or set(text) - {"0", "1"}:
        raise DataError(f"expected a state as digits 0 and 1, one per component, got {shown(text)}")
    return tuple(int(digit) for digit in text)


def load_industreal(
    procedure_info_path: str | Path,
    task: str,
    *,
    name: str | None = None,
    states: Sequence[ComponentState | None] = (),
    initial_state: ComponentState | None = None,
) -> Procedure:
    """Read a procedure_info file as published with IndustReal and MECCANO.

    Args:
        procedure_info_path: JSON file: a list of objects with `id`, `description`, `install`,
            `state_idx` and `expected_in_<task>`.
        task: Which variant's expected steps to follow: "assy" or "main".
        name: Name of the procedure; the file's stem and the task when not given.
        states: Component vector per detector class, None for a class without one. Detections can
            only be followed with it; the published file does not hold it.
        initial_state: State before the first step; all absent when not given.

    Raises:
        DataError: the file cannot be read, or is not as documented.
    """
    path = Path(procedure_info_path)
    text = read_text(path, "a procedure", max_length=MAX_PROCEDURE_LENGTH)
    return _parse_industreal(
        text,
        source=str(path),
        task=task,
        name=name if name is not None else f"{path.stem}-{task}",
        states=tuple(states),
        initial_state=initial_state,
    )


def builtin_procedure(name: str) -> Procedure:
    """One of `BUILTIN_PROCEDURES` by name; NotFoundError for any other name."""
    task = BUILTIN_PROCEDURES.get(name)
    if task is None:
        raise NotFoundError(
            f"no built-in procedure {name!r}; there are {', '.join(BUILTIN_PROCEDURES)}"
        )
    folder = resources.files(__package__) / "data"
    file_name = "industreal_states.json"
    info = parse_json((folder / file_name).read_text(encoding="utf-8"), file_name, "states")
    return _parse_industreal(
        (folder / "procedure_info_IndustReal.json").read_text(encoding="utf-8"),
        source="procedure_info_IndustReal.json",
        task=task,
        name=name,
        states=tuple(None if text is None else parse_state(text) for text in info["states"]),
        initial_state=parse_state(info["initial_states"][task]),
    )


BUILTIN_PROCEDURES: Final[Mapping[str, str]] = MappingProxyType(
    {"industreal-assy": "assy", "industreal-main": "main"}
)
"""Names `builtin_procedure` knows, each with its IndustReal task."""


def _parse_industreal(
    text: str,
    *,
    source: str,
    task: str,
    name: str,
    states: tuple[ComponentState | None, ...],
    initial_state: ComponentState | None,
) -> Procedure:
    steps = parse_industreal_steps(text, source=source, task=task)
    component_count = 1 + max(step.component_idx for step in steps)
    return Procedure(
        name=name,
        task=task,
        steps=steps,
        component_count=component_count,
        initial_state=(0,) * component_count if initial_state is None else initial_state,
        states=states,
    )


def parse_industreal_steps(text: str, *, source: str, task: str) -> tuple[ProcedureStep, ...]:
    """Steps of a procedure_info file's text, in its order; DataError where one is malformed.

    Ids may still occur twice; a `Procedure` refuses that.
    """
    rows = parse_json(text, source, "a list of steps")
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{source}: expected a non-empty list of steps, got {type(rows).__name__}; is this"
            " a procedure_info file?"
        )
    check_size(len(rows), source, "steps")
    return tuple(_parse_step(row, task, f"{source}, entry {idx}") for idx, row in enumerate(rows))


def _parse_step(row: object, task: str, where: str) -> ProcedureStep:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, got {type(row).__name__}")
    expected_key = f"expected_in_{task}"
    if expected_key not in row:
        prefix = "expected_in_"
        tasks = sorted(str(key)[len(prefix) :] for key in row if str(key).startswith(prefix))
        raise DataError(
            f"{where}: expected the key {expected_key!r}, got none; tasks here: {tasks}"
        )
    step_id = _typed(row, "id", int, where)
    component_idx = _typed(row, "state_idx", int, where)
    check_size(component_idx + 1, where, "components")
    install = _typed(row, "install", bool, where)
    offset = step_id - 3 * component_idx
    if component_idx < 0 or offset not in (0, 1, 2) or install != (offset != 2):
        raise DataError(
            f"{where}: expected id 3k to install component k, 3k+1 to install it incorrectly, 3k+2"
            f" to remove it; got id {step_id}, state_idx {component_idx}, install {install}"
        )
    return ProcedureStep(
        id=step_id,
        title=_typed(row, "description", str, where),
        component_idx=component_idx,
        kind=_KIND_OF_OFFSET[offset],
        expected=_typed(row, expected_key, bool, where),
    )


def check_size(count: int, source: str, what: str) -> None:
    """DataError where a procedure has more steps, components or states than any real one."""
    if count > MAX_PROCEDURE_ENTRIES:
        raise DataError(
            f"{source}: expected at most {MAX_PROCEDURE_ENTRIES} {what}, got {shown(count)}"
        )


def _typed(row: Mapping[str, Any], key: str, kind: type[_T], where: str) -> _T:
    value = row.get(key)
    if type(value) is not kind:  # not isinstance: true and false are no step ids
        raise DataError(f"{where}: expected {key!r} as {kind.__name__}, got {shown(value)}")
    return value
