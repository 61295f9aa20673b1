"""What a person does and when: the order of steps, their durations, mistakes and removals.

Gaps between completions follow the fitted distribution, scaled so that a session lasts as long as
asked; no gap is shorter than the movements in it need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from keystep_capture.simulation.people import Person, behaviour
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.tasks import Task

Kind: TypeAlias = Literal["install", "misinstall", "remove"]
Fault: TypeAlias = Literal["wrong_part", "crooked"]

# Set, not fitted: MECCANO's people finish, and correct every labelled mistake.
MISSED_PART_RATE = 0.02
CORRECTED_RATE = 0.95
DRIVER_S = 2.2  # reach for the screwdriver, bring it, turn
DRIVER_BACK_S = 0.7
_FIT_S = 0.7
_GRASP_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """An action before it has a time."""

    kind: Kind
    component: int
    part: int
    fault: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One change of the assembly, and the movements that make it.

    Attributes:
        kind: What happens to the component: it becomes 1, -1 or 0.
        component: Which place of the assembly.
        part: Which part moves; another than `component` for a wrong part.
        fault: What is wrong with a misinstall.
        hand: Which hand, 0 left, 1 right.
        start_s: End of the action before; the eyes begin to search.
        reach_s: The hand begins to move.
        grasp_s: The hand is at the part.
        lift_s: The part begins to move. For `remove` the state changes here.
        arrive_s: The part is at its place, roughly.
        driver_s: The screwdriver is fetched from here on; None without one.
        complete_s: The state changes.
        end_s: The hand lets go and leaves.
        inspects: The assembly is turned and looked at before.
        occlusion_draw: Uniform; the hands hide the completion where it is below the rate asked for.
    """

    kind: Kind
    component: int
    part: int
    fault: Fault | None
    hand: int
    start_s: float
    reach_s: float
    grasp_s: float
    lift_s: float
    arrive_s: float
    driver_s: float | None
    complete_s: float
    end_s: float
    inspects: bool
    occlusion_draw: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole session: actions in order of time, and how long it lasts."""

    actions: tuple[Action, ...]
    duration_s: float


def make_plan(
    task: Task, person: Person, seed: int, *, mistake_scale: float = 1.0, usual_s: float = 140.0
) -> Plan:
    """Draw a person's session.

    Args:
        task: What is done.
        person: Who does it.
        seed: The same seed gives the same plan.
        mistake_scale: Multiplies the person's rate of mistakes and removals; 0 for none.
        usual_s: How long a person of usual pace needs.
    """
    rng = generator(seed, "plan", task.name, person.name)
    wishes = list(_wishes(task, person, rng, mistake_scale))
    return _timed(wishes, task, person, rng, usual_s)


def draw_order(task: Task, noise: float, rng: np.random.Generator) -> list[int]:
    """Draw a person's order: the usual one with noise, as far as the parts allow."""
    wanted = np.arange(len(task.components)) + rng.normal(
        0.0, max(noise, 1e-9), len(task.components)
    )
    order: list[int] = []
    while len(order) < len(task.components):
        possible = [
            idx
            for idx, component in enumerate(task.components)
            if idx not in order and all(before in order for before in component.after)
        ]
        order.append(min(possible, key=lambda idx: wanted[idx]))
    return order


def _wishes(
    task: Task, person: Person, rng: np.random.Generator, mistake_scale: float
) -> Iterator[Wish]:
    fitted, scale = behaviour(), person.mistake_scale * mistake_scale
    mistake_rate = min(fitted["mistakes_per_install"] * scale, 0.5)
    removal_rate = min(fitted["removals_per_install"] * scale, 0.4)
    order = draw_order(task, person.order_noise, rng)
    needed = {before for component in task.components for before in component.after}
    wrong: dict[int, Wish] = {}  # components to put right, with what was done to them
    away: set[int] = set()  # parts that sit in the assembly
    for idx in order:
        # Drawn for every component, so that a rate changes no other draw.
        missed, mistaken, removed, corrected, delayed, which = rng.random(6)
        for broken in [b for b in wrong if b in task.components[idx].after or delayed < 0.6]:
            yield from _put_right(broken, wrong.pop(broken), away)
        if missed < MISSED_PART_RATE * scale and idx not in needed and idx not in away:
            continue
        if mistaken < mistake_rate and idx not in away:
            wish = _mistake(task, idx, which, away)
            yield wish
            away.add(wish.part)
            if corrected < CORRECTED_RATE or idx in needed or wish.part != idx:
                wrong[idx] = wish
            continue
        yield from _install(idx, wrong, away)
        if removed < removal_rate:
            yield Wish(kind="remove", component=idx, part=idx)
            away.discard(idx)
            yield from _install(idx, wrong, away)
    for broken in list(wrong):
        yield from _put_right(broken, wrong.pop(broken), away)


def _install(idx: int, wrong: dict[int, Wish], away: set[int]) -> Iterator[Wish]:
    """Install a part; if it sits elsewhere by mistake, take it from there first."""
    for place, wish in list(wrong.items()):
        if wish.part == idx:
            yield from _put_right(place, wrong.pop(place), away)
    yield Wish(kind="install", component=idx, part=idx)
    away.add(idx)


def _put_right(place: int, wish: Wish, away: set[int]) -> Iterator[Wish]:
    yield Wish(kind="remove", component=place, part=wish.part)
    away.discard(wish.part)
    yield Wish(kind="install", component=place, part=place)
    away.add(place)


def _mistake(task: Task, idx: int, which: float, away: set[int]) -> Wish:
    look_alike = task.components[idx].look_alike
    if look_alike is not None and look_alike not in away and which < 0.7:
        return Wish(kind="misinstall", component=idx, part=look_alike, fault="wrong_part")
    return Wish(kind="misinstall", component=idx, part=idx, fault="crooked")


def _timed(
    wishes: list[Wish], task: Task, person: Person, rng: np.random.Generator, usual_s: float
) -> Plan:
    usual_gap_s = usual_s / len(task.components) * person.pace
    gaps = (_gaps_s(len(wishes), rng) * usual_gap_s).tolist()
    now, last_change = float(rng.uniform(1.0, 2.5)), 0.0
    actions = []
    for wish, gap in zip(wishes, gaps, strict=True):
        action = _timed_action(wish, task, person, rng, now, last_change + gap)
        actions.append(action)
        now, last_change = action.end_s, action.complete_s
    return Plan(actions=tuple(actions), duration_s=now + 2.0)


def _gaps_s(count: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Gaps relative to their mean, from the fitted quantiles."""
    fitted = behaviour()["gap_s"]
    percent = np.array(fitted["log_quantiles_percent"]) / 100
    levels = np.exp(np.array(fitted["log_quantiles"]))
    return np.asarray(np.interp(rng.random(count), percent, levels) / levels.mean())


def _timed_action(
    wish: Wish,
    task: Task,
    person: Person,
    rng: np.random.Generator,
    start_s: float,
    wanted_s: float,
) -> Action:
    """Lay the movements of an action out so that its change comes at `wanted_s` or soon after."""
    search, reach, carry, fit = _draw_durations(person, rng)
    driver = DRIVER_S if task.components[wish.component].needs_driver else 0.0
    removing = wish.kind == "remove"
    driver = 0.0 if removing else driver
    least = search + reach + _GRASP_S + fit + (0.0 if removing else carry) + driver
    spare = max(wanted_s - start_s - least, 0.0)
    pause_share, fit_share = rng.dirichlet((2.0, 3.0)).tolist()
    inspects = bool(spare > 4.0 and rng.random() < 0.5)
    search += spare * (person.idle_share + (1 - person.idle_share) * pause_share)
    fit += spare * (1 - person.idle_share) * fit_share
    linger = float(np.clip(rng.lognormal(0.0, 0.45), 0.55, 2.5))
    reach_s = start_s + search
    grasp_s = reach_s + reach
    if removing:
        complete_s = lift_s = grasp_s + _GRASP_S + fit
        arrive_s = lift_s + carry
        end_s, driver_s = arrive_s + 0.3, None
    else:
        lift_s = grasp_s + _GRASP_S
        arrive_s = lift_s + carry
        driver_s = arrive_s + fit if driver else None
        complete_s = arrive_s + fit + driver
        end_s = complete_s + linger + (DRIVER_BACK_S if driver else 0.0)
    nearer = int(rng.random() < 0.5)
    hand = nearer if rng.random() < 0.5 * person.swaps_hands else person.dominant
    return Action(
        kind=wish.kind,
        component=wish.component,
        part=wish.part,
        fault=wish.fault,
        hand=person.dominant if driver else hand,
        start_s=start_s,
        reach_s=reach_s,
        grasp_s=grasp_s,
        lift_s=lift_s,
        arrive_s=arrive_s,
        driver_s=driver_s,
        complete_s=complete_s,
        end_s=end_s,
        inspects=inspects,
        occlusion_draw=float(rng.random()),
    )


def _draw_durations(person: Person, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Least search, reach, carry and fit, seconds."""
    search = float(rng.uniform(0.25, 0.5))
    reach, carry = person.reach_s * rng.uniform(0.85, 1.25, 2)
    return search, float(reach), float(carry) * 1.15, _FIT_S
