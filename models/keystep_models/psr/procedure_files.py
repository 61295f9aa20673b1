"""One way to every procedure: built in, Keystep's document, or a published procedure_info file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.procedure import (
    BUILTIN_PROCEDURES,
    MAX_PROCEDURE_LENGTH,
    ComponentState,
    Procedure,
    ProcedureStep,
    builtin_procedure,
    load_industreal,
    parse_industreal_steps,
    parse_state,
)
from keystep_models.psr.procedure_document import (
    ProcedureDocument,
    of_steps,
    read_document,
    to_procedure,
)
from keystep_models.psr.text_files import read_json, read_text, shown

_FAMILIES: Final = ("industreal", "builtin")  # with a task they name a built-in procedure


def load_procedure(
    source: str,
    task: str | None = None,
    *,
    fallback_task: str | None = None,
    states: Sequence[ComponentState | None] = (),
    initial_state: ComponentState | None = None,
) -> Procedure:
    """Load a procedure by the name or file a user gives.

    Args:
        source: "industreal-assy", "industreal-main", "industreal" (with `task`), or a JSON file:
            Keystep's own document or a procedure_info file as published with IndustReal, MECCANO.
        task: Variant of a procedure_info file; checked against the others where given.
        fallback_task: Taken where a task is needed and none given.
        states: What the detector's classes stand for, for a procedure_info file that says nothing
            about it. IndustReal's own file, recognised by its steps, gets the published ones.
        initial_state: State before the first step, likewise.

    Raises:
        ConfigError: a task is missing, or is not the procedure's.
        DataError: the file cannot be read or is not as documented.
    """
    if source in _FAMILIES:
        procedure = builtin_procedure(f"industreal-{_needed(task or fallback_task, source)}")
    elif source in BUILTIN_PROCEDURES:
        procedure = builtin_procedure(source)
    else:
        path = Path(source)
        if not path.exists():
            raise ConfigError(
                f"no procedure {source!r}: expected a JSON file, industreal, or one of"
                f" {', '.join(BUILTIN_PROCEDURES)}"
            )
        if is_published_info(read_json(path, "a procedure", max_length=MAX_PROCEDURE_LENGTH)):
            return _from_info(path, _needed(task or fallback_task, source), states, initial_state)
        procedure = to_procedure(read_document(path))
    if task is not None and task != procedure.task:
        raise ConfigError(f"{source} is for task {procedure.task!r}, --task asks for {task!r}")
    return procedure


def documents_to_check(
    path: str | Path, task: str | None = None, initial_state: ComponentState | None = None
) -> list[ProcedureDocument]:
    """What `find_problems` is to look at: a document, or one for each task of a procedure_info.

    Args:
        path: Keystep's document or a procedure_info file.
        task: Only this one; else those of "assy" and "main" that expect a step.
        initial_state: Of a procedure_info file that is not IndustReal's; all absent otherwise.

    Raises:
        DataError: the file cannot be read, or holds no such task.
    """
    path = Path(path)
    if not is_published_info(read_json(path, "a procedure", max_length=MAX_PROCEDURE_LENGTH)):
        return [read_document(path)]
    text = read_text(path, "a procedure", max_length=MAX_PROCEDURE_LENGTH)
    documents = []
    for name in (task,) if task else tuple(BUILTIN_PROCEDURES.values()):
        steps = parse_industreal_steps(text, source=str(path), task=name)
        if not task and not any(step.expected for step in steps):
            continue
        known = _known_industreal(steps, name)
        nothing = (0,) * (1 + max(step.component_idx for step in steps))
        own = nothing if known is None else known.initial_state
        documents.append(
            of_steps(
                steps,
                name=f"{path.stem}-{name}",
                task=name,
                initial_state=initial_state or own,
                states=() if known is None else known.states,
            )
        )
    return documents


def is_published_info(content: Any) -> bool:
    """Whether parsed JSON is laid out as a published procedure_info file: a list of steps."""
    return isinstance(content, list)


def _needed(task: str | None, source: str) -> str:
    if task is None:
        raise ConfigError(f"{source} holds several tasks; say which with --task assy or main")
    return task


def _known_industreal(steps: Sequence[ProcedureStep], task: str) -> Procedure | None:
    """The built-in procedure with these very steps, which brings what the file leaves out."""
    if task not in BUILTIN_PROCEDURES.values():
        return None
    known = builtin_procedure(f"industreal-{task}")
    return known if known.steps == tuple(steps) else None


def _from_info(
    path: Path,
    task: str,
    states: Sequence[ComponentState | None],
    initial_state: ComponentState | None,
) -> Procedure:
    known = _known_industreal(load_industreal(path, task).steps, task)
    if known is not None:
        states = states or known.states
        initial_state = initial_state or known.initial_state
    return load_industreal(path, task, states=states, initial_state=initial_state)


def read_states(path: str | Path) -> tuple[ComponentState | None, ...]:
    """Read what a detector's classes stand for: a JSON list of "1001..." or null, by class.

    An empty text stands for null, and so does any that holds no digit ("background").
    """
    entries = read_json(Path(path), "detector states")
    if isinstance(entries, dict):
        entries = entries.get("states")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of states, one per detector class")
    states: list[ComponentState | None] = []
    for class_id, entry in enumerate(entries):
        if entry is None or (isinstance(entry, str) and not any(c.isdigit() for c in entry)):
            states.append(None)
        elif isinstance(entry, str):
            states.append(parse_state(entry))
        else:
            raise DataError(
                f"{path}, class {class_id}: expected a text or null, got {shown(entry)}"
            )
    return tuple(states)
