"""The plan as movement: where every part, the turntable and both hands are at every instant.

Everything is sampled at 60 Hz, of which all sensors' rates are divisors. A carried part is placed
first and the hand follows it, so a part is never beside the hand that holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import (
    Array,
    about_y,
    ease,
    euler,
    normalised,
    pose,
    ramp,
    rotations_of,
    transformed,
    turned,
    window,
)
from keystep_capture.simulation.hands import HandTrack, pose_hand
from keystep_capture.simulation.layout import Layout, Thing
from keystep_capture.simulation.people import Person
from keystep_capture.simulation.plan import DRIVER_BACK_S, Action, Plan
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.tasks import Task

RATE_HZ = 60
Samples: TypeAlias = NDArray[np.int64]
PointsAt: TypeAlias = Callable[[Samples], Array]
"""Sample indices (N,) to positions (N, 3)."""
_ELBOW_M = np.array([0.27, 0.10, 0.46])
_WITHDRAW_S = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """All that moves, over time.

    Attributes:
        times_s: Shape (T,), at 60 Hz.
        assembly: `world_from_assembly`, (T, 4, 4).
        things: `world_from_thing` of parts, decoys and the screwdriver, (K, T, 4, 4).
        hands: Left and right.
        eye_m: Where the eyes roughly are, (3,).
        occluded: Per action, whether the hands were told to hide its completion.
    """

    times_s: Array
    assembly: Array
    things: Array
    hands: tuple[HandTrack, HandTrack]
    eye_m: Array
    occluded: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hold:
    """A hand's stay at a point that may move."""

    start_s: float
    end_s: float
    points: PointsAt
    grip: float
    cover: float = 0.0  # 1: flat over the part, between it and the eyes


@dataclass(slots=True)
class _Stage:
    """What is filled in while the plan is walked through."""

    task: Task
    person: Person
    layout: Layout
    times_s: Array
    assembly: Array
    things: Array
    eye_m: Array
    holds: tuple[list[_Hold], list[_Hold]] = field(default_factory=lambda: ([], []))

    def sample(self, time_s: float) -> int:
        return int(np.clip(round(time_s * RATE_HZ), 0, len(self.times_s) - 1))


def choreograph(
    task: Task, plan: Plan, person: Person, layout: Layout, seed: int, *, occlusion_rate: float
) -> Movement:
    """Turn a plan into movement.

    Args:
        task: What is done.
        plan: When.
        person: By whom.
        layout: Where everything lies.
        seed: The same seed gives the same movement.
        occlusion_rate: Share of completions that the hands hide, 0 to 1. Those hidden at a lower
            rate are hidden at a higher one too, and nothing else changes but the hands around them.
    """
    times_s = np.arange(int(np.ceil(plan.duration_s * RATE_HZ)) + 1) / RATE_HZ
    rng = generator(seed, "motion", task.name, person.name)
    things = [*layout.parts, *layout.decoys, layout.driver]
    stage = _Stage(
        task=task,
        person=person,
        layout=layout,
        times_s=times_s,
        assembly=_turning(times_s, plan, rng),
        things=np.repeat(np.stack([t.rest for t in things])[:, None], len(times_s), axis=1),
        eye_m=np.array([0.0, person.height_m, 0.33]),
    )
    occluded = tuple(action.occlusion_draw < occlusion_rate for action in plan.actions)
    for action, hidden in zip(plan.actions, occluded, strict=True):
        wobble = rng.normal(size=3)
        _move_part(stage, action, wobble)
        _hold_part(stage, action, hidden)
        if action.driver_s is not None:
            _use_driver(stage, action, hidden)
        _steady(stage, action, hidden)
    left, right = (_hand_track(stage, side, rng) for side in (0, 1))
    return Movement(
        times_s=times_s,
        assembly=stage.assembly,
        things=stage.things,
        hands=(left, right),
        eye_m=stage.eye_m,
        occluded=occluded,
    )


def _turning(times_s: Array, plan: Plan, rng: np.random.Generator) -> Array:
    """The turntable: still but for the times the assembly is looked at from another side."""
    angle = np.full(len(times_s), rng.normal(0.0, 0.15))
    now = angle[0]
    for action in plan.actions:
        aim = float(rng.normal(0.0, 0.45))
        if action.inspects:
            span = action.reach_s - action.start_s
            share = ramp(times_s, action.start_s + 0.25 * span, action.start_s + 0.7 * span)
            angle += (aim - now) * share
            now = aim
    poses = np.tile(np.eye(4), (len(times_s), 1, 1))
    poses[:, :3, :3] = about_y(angle)
    return poses


def place_of(task: Task, action: Action) -> Array:
    """`assembly_from_part` of an action's place, (4, 4); crooked where it is put in wrongly."""
    component = task.components[action.component]
    rotation = euler(*component.turn_deg)
    position = np.asarray(component.at_mm) / 1000
    if action.fault == "crooked":
        rotation = euler(16, 38, 14) @ rotation
        position = position + np.array([0.004, 0.010, 0.005])
    return pose(position, rotation)


def _move_part(stage: _Stage, action: Action, wobble: Array) -> None:
    """Move a part from the tray to its place, or back."""
    track, times = stage.things[action.part], stage.times_s
    lift, arrive = stage.sample(action.lift_s), stage.sample(action.arrive_s)
    removing = action.kind == "remove"
    if removing:
        goal = np.repeat(stage.layout.parts[action.part].rest[None], len(times) - lift, axis=0)
    else:
        goal = stage.assembly[lift:] @ place_of(stage.task, action)
    after = times[lift:]
    share = ease((after - action.lift_s) / (action.arrive_s - action.lift_s))
    start = track[lift]
    offset = np.zeros((len(after), 3))
    offset[:, 1] = _arc_m(start[:3, 3], goal[0, :3, 3]) * 4 * share * (1 - share)
    rotation = turned(start[:3, :3], goal[:, :3, :3], share)
    if not removing:  # comes from above, is wiggled until it sits
        settled = ramp(after, action.arrive_s, (action.driver_s or action.complete_s) - 0.1)
        loose = share * (1 - settled)
        offset[:, 1] += 0.022 * loose
        phase = 2 * np.pi * 1.7 * (after - action.arrive_s)
        shake = np.stack([np.sin(phase + k) * w for k, w in enumerate(wobble)], axis=1)
        offset += shake * loose[:, None] * 0.0025
        rotation = rotations_of(shake[:, ::-1] * loose[:, None] * 0.06) @ rotation
    track[lift:, :3, :3] = rotation
    travel = start[:3, 3] + share[:, None] * (goal[:, :3, 3] - start[:3, 3])
    track[lift:, :3, 3] = travel + offset
    if removing:
        track[arrive:] = stage.layout.parts[action.part].rest


def _arc_m(start: Array, goal: Array) -> float:
    """How high a movement over other things goes."""
    return 0.03 + 0.18 * float(np.linalg.norm(goal - start))


def _towards_hand(stage: _Stage, side: int, point: Array) -> Array:
    """Level unit direction from points (T, 3) to the elbow of a hand."""
    level = (_ELBOW_M * (1 if side else -1, 1, 1) - point) * (1, 0, 1)
    return normalised(level)


def _grip_points(stage: _Stage, action_part: int, side: int, cover: float) -> PointsAt:
    """Where a hand takes hold of a thing: at the edge towards it, or over all of it."""
    things = [*stage.layout.parts, *stage.layout.decoys, stage.layout.driver]
    thing: Thing = things[action_part]
    reach = 0.4 * float(np.sort(thing.size_m)[1])
    height = 0.25 * float(np.median(thing.size_m))

    def points(samples: Samples) -> Array:
        middle = stage.things[action_part, samples, :3, 3]
        at_edge = middle + _towards_hand(stage, side, middle) * reach + (0, height, 0)
        if not cover:
            return at_edge
        to_eye = normalised(stage.eye_m - middle)
        # The palm, not the fingertips, comes between the part and the eyes.
        over = middle + to_eye * 0.055 - _towards_hand(stage, side, middle) * 0.045
        return np.asarray(at_edge + cover * (over - at_edge))

    return points


def _hold_part(stage: _Stage, action: Action, hidden: bool) -> None:
    """The hand that moves the part: grasp, carry, fit; then leave, or stay over it."""
    side = action.hand
    plain = _grip_points(stage, action.part, side, 0.0)
    over = _grip_points(stage, action.part, side, 1.0)
    holds = stage.holds[side]
    if action.kind == "remove":
        start_cover = action.grasp_s + 0.3
        if hidden:
            holds.append(_Hold(start_s=action.grasp_s, end_s=start_cover, points=plain, grip=0.75))
            holds.append(
                _Hold(start_s=start_cover + 0.3, end_s=action.lift_s + 0.1, points=over,
                      grip=0.35, cover=1.0)
            )  # fmt: skip
            holds.append(
                _Hold(start_s=action.lift_s + 0.4, end_s=action.end_s, points=plain, grip=0.75)
            )
        else:
            holds.append(_Hold(start_s=action.grasp_s, end_s=action.end_s, points=plain, grip=0.75))
        return
    fitted = action.driver_s or action.complete_s
    if hidden and action.driver_s is None:
        covering = max(action.arrive_s + 0.15, fitted - 0.9)
        holds.append(_Hold(start_s=action.grasp_s, end_s=covering, points=plain, grip=0.75))
        holds.append(
            _Hold(start_s=min(covering + 0.35, fitted), end_s=action.end_s, points=over,
                  grip=0.35, cover=1.0)
        )  # fmt: skip
    else:
        holds.append(_Hold(start_s=action.grasp_s, end_s=fitted, points=plain, grip=0.75))


def _use_driver(stage: _Stage, action: Action, hidden: bool) -> None:
    """Fetch the screwdriver, turn it on the part until the step is done, lay it back."""
    assert action.driver_s is not None
    idx, times = len(stage.things) - 1, stage.times_s
    rest = stage.layout.driver.rest
    taken, there = action.driver_s + 0.5, action.driver_s + 1.1
    back_from = action.end_s - DRIVER_BACK_S
    component = stage.task.components[action.component]
    thing = stage.layout.parts[action.part]
    tip = np.asarray(component.at_mm) / 1000 + (0, 0.4 * thing.size_m[1], 0)
    lean = 1 if action.hand else -1
    use = stage.assembly @ pose(tip, euler(12, 0, -14 * lean))
    span = slice(stage.sample(taken), len(times))
    share = ramp(times, taken, there) * (1 - ramp(times, back_from, action.end_s))
    track = stage.things[idx]
    spin = about_y(6.0 * (times - there) * window(times, there, action.complete_s, 0.05))
    upright = use[:, :3, :3] @ spin
    track[span, :3, :3] = turned(rest[:3, :3], upright[span], share[span])
    arc = 0.07 * 4 * share * (1 - share)
    travel = rest[:3, 3] + share[:, None] * (use[:, :3, 3] - rest[:3, 3])
    track[span, :3, 3] = (travel + arc[:, None] * (0, 1, 0))[span]
    handle = np.array([[0.0, 0.095, 0.0]])

    def points(samples: Samples) -> Array:
        return transformed(track[samples], np.repeat(handle, len(samples), axis=0))

    stage.holds[action.hand].append(
        _Hold(start_s=taken, end_s=action.end_s, points=points, grip=0.85)
    )


def _steady(stage: _Stage, action: Action, hidden: bool) -> None:
    """The other hand: turns the assembly, steadies it, or helps to hide the completion."""
    other = 1 - action.hand
    sign = 1.0 if other else -1.0

    def rim(samples: Samples) -> Array:
        base = stage.assembly[samples]
        spot = np.array([[sign * 0.055, 0.016, 0.045]])
        return transformed(base, np.repeat(spot, len(samples), axis=0))

    if action.inspects:
        span = action.reach_s - action.start_s
        stage.holds[other].append(
            _Hold(start_s=action.start_s + 0.22 * span, end_s=action.start_s + 0.75 * span,
                  points=rim, grip=0.55)
        )  # fmt: skip
    if action.kind == "remove" and not hidden:
        return
    begin = action.lift_s if action.kind != "remove" else action.grasp_s
    hide_from = action.complete_s - 0.6
    hides = hidden and action.occlusion_draw * 7 % 1 < 0.6 and action.kind != "remove"
    hides = hides or (hidden and action.driver_s is not None)
    steady_end = hide_from - 0.3 if hides else action.complete_s + (0.1 if not hidden else 0.3)
    if steady_end > begin + 0.75:
        stage.holds[other].append(
            _Hold(start_s=begin + 0.6, end_s=steady_end, points=rim, grip=0.55)
        )
    if hides:
        over = _grip_points(stage, action.part, other, 1.0)
        end_s = action.end_s - (DRIVER_BACK_S if action.driver_s is not None else 0.1)
        stage.holds[other].append(
            _Hold(start_s=hide_from, end_s=max(end_s, action.complete_s + 0.2), points=over,
                  grip=0.35, cover=1.0)
        )  # fmt: skip


def _hand_track(stage: _Stage, side: int, rng: np.random.Generator) -> HandTrack:
    """Join a hand's holds by minimum-jerk movements, with rests where there is time for them."""
    times = stage.times_s
    sign = 1.0 if side else -1.0
    home = np.array([sign * 0.16, 0.035, 0.24]) + rng.normal(0, 0.01, 3)
    holds = _with_rests(sorted(stage.holds[side], key=lambda hold: hold.start_s), home, times[-1])
    points = np.empty((len(times), 3))
    grip, cover = np.empty(len(times)), np.empty(len(times))
    for number, hold in enumerate(holds):
        first, last = stage.sample(hold.start_s), stage.sample(hold.end_s) + 1
        inside = np.arange(first, last)
        points[first:last] = hold.points(inside)
        grip[first:last], cover[first:last] = hold.grip, hold.cover
        if number == 0:
            continue
        before = holds[number - 1]
        gap = np.arange(stage.sample(before.end_s) + 1, first)
        if len(gap) == 0:
            continue
        share = ease((gap - gap[0] + 1) / (len(gap) + 1))
        a, b = points[gap[0] - 1], hold.points(np.array([first]))[0]
        arc = 0.12 * np.linalg.norm(b - a) * 4 * share * (1 - share)
        points[gap] = a + share[:, None] * (b - a) + arc[:, None] * (0, 1, 0)
        # Open on the way, as a hand is that is going to grasp.
        grip[gap] = before.grip + share * (hold.grip - before.grip)
        grip[gap] -= 0.35 * np.sin(np.pi * share)
        cover[gap] = before.cover + share * (hold.cover - before.cover)
    points += _tremor(len(times), rng)
    rotation = _hand_rotation(points, cover, sign)
    return pose_hand(
        points, rotation, np.clip(grip, 0.0, 1.0), left=side == 0, scale=stage.person.hand_scale
    )


def _with_rests(holds: list[_Hold], home: Array, end_s: float) -> list[_Hold]:
    """Put holds one after the other, at home in between where there is time to go there."""

    def rest(start_s: float, stop_s: float) -> _Hold:
        return _Hold(
            start_s=start_s,
            end_s=stop_s,
            points=lambda samples: np.repeat(home[None], len(samples), axis=0),
            grip=0.3,
        )

    result = [rest(0.0, 0.1)]
    for hold in holds:
        before = result[-1]
        start_s = max(hold.start_s, before.end_s + 0.12)
        if hold.end_s < start_s + 0.05:
            continue
        gap = start_s - before.end_s
        if gap > 2 * _WITHDRAW_S + 0.2:
            reach = min(0.75, gap - _WITHDRAW_S - 0.15)
            result.append(rest(before.end_s + _WITHDRAW_S, start_s - reach))
        result.append(
            _Hold(start_s=start_s, end_s=hold.end_s, points=hold.points, grip=hold.grip,
                  cover=hold.cover)
        )  # fmt: skip
    result.append(rest(min(result[-1].end_s + 0.6, end_s - 0.05), end_s))
    return result


def _hand_rotation(points: Array, cover: Array, sign: float) -> Array:
    """A hand points away from its elbow, slanting down; it lies flatter where it covers."""
    away = points - _ELBOW_M * (sign, 1, 1)
    level = np.linalg.norm(away[:, [0, 2]], axis=1)
    slant = -0.55 + 0.35 * cover
    forward = normalised(np.stack([away[:, 0], slant * level, away[:, 2]], axis=1))
    up = np.array([0.0, 1.0, 0.0])
    dorsal = normalised(up - (forward @ up)[:, None] * forward)
    roll = sign * (0.75 - 0.65 * cover)  # thumb up when gripping, palm down when covering
    dorsal = (rotations_of(forward * roll[:, None]) @ dorsal[..., None])[..., 0]
    return np.stack([np.cross(forward, dorsal), forward, dorsal], axis=-1)


def _tremor(count: int, rng: np.random.Generator) -> Array:
    """A hand is never quite still: slow noise of about a millimetre, shape (T, 3)."""
    noise = rng.normal(size=(count, 3))
    result = np.empty_like(noise)
    value = np.zeros(3)
    for t in range(count):
        value = 0.93 * value + noise[t]
        result[t] = value
    return result * 0.0004
