"""Which assemblies the tracker considers, and how the work leads from one to another.

A hypothesis is a component vector that a detector class stands for (or the initial state). Each
comes twice: right, and with a mistake in it that the detector has no class for: a missing or
wrong part, or a stage between two known ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_models.psr.procedure import VALUE_AFTER, ComponentState, Procedure, ProcedureStep
from keystep_models.psr.tracker_model import TrackerModel

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateGraph:
    """H hypotheses and how they follow each other.

    Attributes:
        states: Component vectors, shape (H, C), int64, each -1, 0 or 1.
        initial_idx: Hypothesis of the procedure's initial state.
        class_of: Detector classes standing for each hypothesis, H tuples.
        transition: Chance per frame to go from column to row, shape (2H, 2H); the first H are
            right, the others have a mistake.
        next_step: Chance that a step is among the next changes, shape (H, steps of procedure).
    """

    states: NDArray[np.int64]
    initial_idx: int
    class_of: tuple[tuple[int, ...], ...]
    transition: Floats
    next_step: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edges:
    """Changes from one hypothesis (row) to another (column), shape (H, H), 0 where there is none.

    `weight` against other changes; `trust` that it is what it looks like, before any mistake;
    `repairs`, the same where it may also put a mistake right. `next_step` as in the graph.
    """

    weight: Floats
    trust: Floats
    repairs: Floats
    next_step: Floats


def build_graph(procedure: Procedure, model: TrackerModel) -> StateGraph:
    """Hypotheses and transitions of a procedure; ConfigError when its detector knows no state."""
    classes: dict[ComponentState, list[int]] = {}
    for class_id, state in enumerate(procedure.states):
        if state is not None:
            classes.setdefault(state, []).append(class_id)
    if not classes:
        raise ConfigError(
            f"procedure {procedure.name!r}: expected states for the detector's classes, got none;"
            " the tracker needs a procedure with detector_states"
        )
    classes.setdefault(procedure.initial_state, [])
    states = np.array(list(classes), dtype=np.int64)
    edges = _edges(procedure, model, states)
    return StateGraph(
        states=states,
        initial_idx=list(classes).index(procedure.initial_state),
        class_of=tuple(tuple(ids) for ids in classes.values()),
        transition=_transition(model, states, edges),
        next_step=edges.next_step,
    )


def _edges(procedure: Procedure, model: TrackerModel, states: NDArray[np.int64]) -> _Edges:
    """How known states follow each other.

    States are joined where no third one lies between them, so that whoever installs one component
    after another passes through all known states.
    """
    count = len(states)
    weight, trust, repairs = (np.zeros((count, count)) for _ in range(3))
    next_step = np.zeros((count, len(procedure.steps)))
    position = {step.id: idx for idx, step in enumerate(procedure.steps)}
    for i in range(count):
        for j in range(count):
            between = ((states == states[i]) | (states == states[j])).all(axis=1).sum()
            if i == j or between > 2:
                continue
            steps = procedure.steps_between(states[i].tolist(), states[j].tolist())
            changed_count = int((states[i] != states[j]).sum())
            unexpected = [step for step in steps if not step.expected]
            weight[i, j] = (
                model.joint_rate ** (changed_count - 1)
                * math.prod(_unexpected_weight(model, step) for step in unexpected)
                * _order_weight(procedure, model, states[i].tolist(), steps)
            )
            trust[i, j] = model.unexpected_right_rate ** len(unexpected)
            repairs[i, j] = 0.0 if unexpected else trust[i, j]
            for step in steps:
                next_step[i, position[step.id]] += weight[i, j]
        next_step[i] /= max(weight[i].sum(), 1e-300)
    return _Edges(weight=weight, trust=trust, repairs=repairs, next_step=next_step)


def _unexpected_weight(model: TrackerModel, step: ProcedureStep) -> float:
    """People more often put in a wrong part than they take out a right one."""
    return model.unexpected_rate if step.kind == "removed" else model.mistake_rate


def _order_weight(
    procedure: Procedure,
    model: TrackerModel,
    before: list[int],
    steps: tuple[ProcedureStep, ...],
) -> float:
    """How usual these steps are while other expected ones are still open."""
    now = {step.component_idx for step in steps}
    open_ids = {
        step.id
        for step in procedure.expected_steps
        if step.component_idx not in now and _is_open(procedure, step, before)
    }
    weight = 1.0
    for step in steps:
        weight *= model.out_of_order_rate ** len(open_ids.intersection(step.requires))
        shares = [_share_before(model, step.id, open_id) for open_id in open_ids]
        weight *= min(1.0, 2 * min(shares, default=0.5))
    return weight


def _is_open(procedure: Procedure, step: ProcedureStep, state: list[int]) -> bool:
    """Whether a step is known to be still to come.

    A component that is to be removed and installed again (maintenance) shows by its presence
    neither whether the removal is done nor whether the installation is.
    """
    value = state[step.component_idx]
    other = procedure.step_for(
        step.component_idx, "completed" if step.kind == "removed" else "removed"
    )
    if other is not None and other.expected and value == 1:
        return False
    return value != VALUE_AFTER[step.kind]


def _share_before(model: TrackerModel, step_id: int, other_id: int) -> float:
    """Share of recordings with `step_id` first, each way seen once more (Laplace)."""
    first = model.count_before.get((step_id, other_id), 0) + 1
    second = model.count_before.get((other_id, step_id), 0) + 1
    return first / (first + second)


def _transition(model: TrackerModel, states: NDArray[np.int64], edges: _Edges) -> Floats:
    """Chances per frame from column to row, shape (2H, 2H); columns sum to 1."""
    count = len(states)
    changed_count = (states[:, None] != states[None]).sum(axis=2)
    right = edges.trust * (1 - model.mistake_rate) ** changed_count
    repair = edges.repairs * model.repair_rate
    rate = model.step_rate * edges.weight
    rate /= np.maximum(edges.weight.sum(axis=1), 1.0)[:, None]
    in_place = model.step_rate * model.repair_rate * model.repair_in_place_rate
    matrix = np.zeros((2 * count, 2 * count))
    matrix[:count, :count] = rate * right
    matrix[:count, count:] = rate * (1 - right)
    matrix[count:, :count] = rate * repair + np.eye(count) * in_place
    matrix[count:, count:] = rate * (1 - repair)
    matrix += np.diag(1 - matrix.sum(axis=1))
    return np.ascontiguousarray(matrix.T)
