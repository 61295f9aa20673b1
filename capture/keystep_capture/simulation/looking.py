"""Where a person looks and how the head follows: gaze leads the hands, the head lags the gaze.

How strongly and how late the head follows, and how it sways, is fitted to real HoloLens 2 tracks
(`fit_tracks.py`, `data/tracks.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from keystep_capture.simulation.geometry import Array, frames_of, normalised, rotations_of
from keystep_capture.simulation.layout import Layout
from keystep_capture.simulation.motion import RATE_HZ, Movement, PointsAt
from keystep_capture.simulation.people import Person
from keystep_capture.simulation.plan import Action, Plan
from keystep_capture.simulation.seeding import generator

HEAD_LEAD_S = 0.35  # the eyes reach a part this long before the hand begins to move


class TrackModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How head and eyes move.

    Attributes:
        follow: Share of a gaze shift that the head takes part in.
        lag_s: Time constant of the head's two low passes.
        sway_deg: Standard deviation of each axis's slow wandering.
        sway_s: Its correlation time.
        shake_deg: Standard deviation of the quick part.
        shake_s: Its correlation time.
        drift_m: Standard deviation of the position's slow wandering.
        drift_s: Its correlation time.
        lean: Metres that the head moves towards what is looked at, for each metre it is away.
        fixation_log_s: Mean of the logarithm of a fixation's duration.
        fixation_log_sigma: Its standard deviation.
        fixation_deg: How far fixations miss their target, each axis.
        tremor_deg: Eye tremor and tracker noise between samples, each axis.
        wander_deg: Slow wandering of the eyes within a fixation, each axis.
    """

    follow: float
    lag_s: float
    sway_deg: float
    sway_s: float
    shake_deg: float
    shake_s: float
    drift_m: float
    drift_s: float
    lean: float
    fixation_log_s: float
    fixation_log_sigma: float
    fixation_deg: float
    tremor_deg: float
    wander_deg: float


@cache
def track_model() -> TrackModel:
    """The fitted numbers of `fit_tracks.py`."""
    text = (resources.files(__package__) / "data" / "tracks.json").read_text("utf-8")
    return msgspec.convert(json.loads(text)["model"], TrackModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """Head and eyes over time.

    Attributes:
        world_from_head: (T, 4, 4); x right, y up, z back.
        gaze_direction: Unit vectors in the world, (T, 3).
        target_m: What is looked at, (T, 3).
    """

    world_from_head: Array
    gaze_direction: Array
    target_m: Array


@dataclass(frozen=True, slots=True)
class _Glance:
    start_s: float
    point: PointsAt


def look(
    plan: Plan,
    person: Person,
    layout: Layout,
    movement: Movement,
    seed: int,
    model: TrackModel | None = None,
) -> Looking:
    """Make the eyes and the head of a session; independent of the occlusion rate."""
    rng = generator(seed, "looking", person.name)
    model = track_model() if model is None else model
    times = movement.times_s
    glances = sorted(_glances(plan, layout, movement, rng, model), key=lambda g: g.start_s)
    target, missed = np.empty((len(times), 3)), np.empty((len(times), 2))
    starts = [int(glance.start_s * RATE_HZ) for glance in glances]
    for glance, start, end in zip(glances, starts, [*starts[1:], len(times)], strict=True):
        if end > start:
            target[start:end] = glance.point(np.arange(start, end))
            missed[start:end] = np.radians(rng.normal(0.0, model.fixation_deg, 2))
    target[: starts[0]], missed[: starts[0]] = target[starts[0]], 0.0
    head = _head(target, person, rng, model)
    wander = wandering(len(times), 2, 0.4, rng) * np.radians(model.wander_deg)
    noise = missed + wander + rng.normal(0.0, np.radians(model.tremor_deg), missed.shape)
    direction = normalised(target - head[:, :3, 3])
    turn = np.concatenate([noise, np.zeros((len(times), 1))], axis=1)  # about x and y of the head
    turn = (head[:, :3, :3] @ turn[..., None])[..., 0]
    gaze = (rotations_of(turn) @ direction[..., None])[..., 0]
    return Looking(world_from_head=head, gaze_direction=gaze, target_m=target)


def _glances(
    plan: Plan, layout: Layout, movement: Movement, rng: np.random.Generator, model: TrackModel
) -> Iterator[_Glance]:
    """One for each fixation; what comes later in time overrides what began before."""
    tray = [*layout.parts, *layout.decoys]
    seen = 0
    yield _Glance(0.0, _at_thing(movement, 0))
    for action in plan.actions:
        leaves_s = max(action.reach_s - HEAD_LEAD_S, action.start_s + 0.05)
        now = action.start_s
        while now < leaves_s - 0.12:  # searches the tray, the assembly, now and then the sheet
            choice = rng.random()
            if action.inspects and choice < 0.7:
                yield _Glance(now, _at_assembly(movement, rng.normal(0, (0.04, 0.015, 0.03))))
            elif choice < 0.78:
                seen = _nearer(layout, rng.integers(len(tray), size=3), seen)
                yield _Glance(now, _at_thing(movement, seen))
            elif choice < 0.90:
                yield _Glance(now, _at_assembly(movement, rng.normal(0, (0.04, 0.015, 0.03))))
            else:
                yield _Glance(now, _at_point(layout.sheet_m + rng.normal(0, (0.04, 0, 0.04))))
            now += _fixation_s(rng, model)
        yield from _glances_of_action(action, leaves_s, movement, rng, model)


def _nearer(layout: Layout, choices: NDArray[np.int64], seen: int) -> int:
    """Of some things in the tray the one nearest to what was looked at last: eyes search nearby."""
    spots = np.stack([thing.rest[:3, 3] for thing in (*layout.parts, *layout.decoys)])
    away = np.linalg.norm(spots[choices] - spots[seen], axis=1)
    return int(choices[np.argmin(np.where(choices == seen, np.inf, away))])


def _glances_of_action(
    action: Action, leaves_s: float, movement: Movement, rng: np.random.Generator, model: TrackModel
) -> Iterator[_Glance]:
    part = _at_thing(movement, action.part)
    yield _Glance(leaves_s, part)
    if action.kind == "remove":
        yield _Glance(action.lift_s + 0.1, _at_point(movement.things[action.part, -1, :3, 3]))
        yield _Glance(action.arrive_s - 0.1, part)
        return
    # The eyes are at the place before the part is: "look ahead".
    final = movement.things[action.part, round(action.complete_s * RATE_HZ), :3, 3]
    offset = final - movement.assembly[0, :3, 3]
    yield _Glance(action.lift_s + 0.05, _at_assembly(movement, offset))
    now = action.arrive_s
    if action.driver_s is not None:
        yield _Glance(action.driver_s - 0.05, _at_thing(movement, len(movement.things) - 1))
    while now < action.complete_s:
        if action.driver_s is None or not action.driver_s - 0.4 < now < action.driver_s + 0.6:
            yield _Glance(now, _at_assembly(movement, offset + rng.normal(0, 0.012, 3)))
        now += _fixation_s(rng, model)


def _fixation_s(rng: np.random.Generator, model: TrackModel) -> float:
    return float(np.clip(rng.lognormal(model.fixation_log_s, model.fixation_log_sigma), 0.12, 3.0))


def _at_thing(movement: Movement, idx: int) -> PointsAt:
    return lambda samples: movement.things[idx, samples, :3, 3]


def _at_assembly(movement: Movement, offset: Array) -> PointsAt:
    above = offset if offset[1] > 0.02 else offset + np.array([0.0, 0.055, 0.0])
    return lambda samples: movement.assembly[samples, :3, 3] + above


def _at_point(point: Array) -> PointsAt:
    return lambda samples: np.repeat(point[None], len(samples), axis=0)


def _head(target: Array, person: Person, rng: np.random.Generator, model: TrackModel) -> Array:
    """The head turns and leans after the eyes, with a lag, and sways by itself."""
    count = len(target)
    usual = np.array([0.0, 0.03, -0.04])
    attended = smoothed(smoothed(usual + model.follow * (target - usual), model.lag_s), model.lag_s)
    eye = np.array([0.0, person.height_m, 0.30]) + model.lean * (attended - usual) * (1, 0.3, 1)
    eye = eye + wandering(count, 3, model.drift_s, rng) * model.drift_m * (1.0, 0.4, 1.0)
    sway = wandering(count, 3, model.sway_s, rng) * np.radians(model.sway_deg)
    shake = wandering(count, 3, model.shake_s, rng) * np.radians(model.shake_deg)
    result = np.tile(np.eye(4), (count, 1, 1))
    up = np.broadcast_to(np.array([0.0, 1.0, 0.0]), eye.shape)
    rotation = frames_of(attended - eye, up) @ rotations_of((sway + shake) * (1.0, 1.0, 0.7))
    result[:, :3, :3], result[:, :3, 3] = rotation, eye
    return result


def smoothed(values: Array, time_constant_s: float) -> Array:
    """First-order low pass of (T, D), at rest at its first value."""
    keep = float(np.exp(-1.0 / (RATE_HZ * time_constant_s)))
    filtered, _ = lfilter([1.0 - keep], [1.0, -keep], values, axis=0, zi=keep * values[:1])
    return np.asarray(filtered)


def wandering(count: int, axes: int, time_constant_s: float, rng: np.random.Generator) -> Array:
    """Smooth noise of unit variance, shape (T, D): white noise through two low passes."""
    margin = int(6 * time_constant_s * RATE_HZ) + 1
    noise = rng.normal(size=(count + margin, axes))
    rough = smoothed(smoothed(noise, time_constant_s), time_constant_s)[margin:]
    keep = np.exp(-1.0 / (RATE_HZ * time_constant_s))
    gain = (1 - keep) ** 4 * (1 + keep**2) / (1 - keep**2) ** 3  # variance after both passes
    return np.asarray(rough / np.sqrt(gain))
