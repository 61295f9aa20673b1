"""What lies on the bench and where, drawn from the seed: tray, parts, tools, things not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keystep_capture.simulation import tasks
from keystep_capture.simulation.geometry import Array, euler, pose
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.shapes import Colour, Corners, Solid, block, corners_of
from keystep_capture.simulation.tasks import Task

TRAY_FLOOR_M = 0.006
TRAY_SIZE_M = (0.30, 0.36)
_GAP_M = 0.014


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object of the scene.

    Attributes:
        name: For people.
        corners: Its triangles, in its own frame.
        colours: Of each of its solids, shape (S, 3), linear.
        shine: Of each of its solids, shape (S,).
        rest: `world_from_thing` where it lies at first, (4, 4).
        size_m: Of its box, in its own frame, (3,).
    """

    name: str
    corners: Corners
    colours: Array
    shine: Array
    rest: Array
    size_m: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The scene of one session before anything is moved.

    `parts` are the task's own, by component, then `decoys`; `driver` is the screwdriver.
    """

    parts: tuple[Thing, ...]
    decoys: tuple[Thing, ...]
    driver: Thing
    turntable: Thing
    others: tuple[Thing, ...]
    tray_centre_m: Array
    sheet_m: Array
    tray_side: int


def make_layout(task: Task, seed: int, person: str) -> Layout:
    """Draw where everything lies for one person's session."""
    rng = generator(seed, "layout", task.name, person)
    side = 1 if rng.random() < 0.7 else -1
    centre = np.array([side * rng.uniform(0.27, 0.30), 0.0, rng.uniform(-0.07, -0.02)])
    hues = generator(seed, "colours", task.name).normal(0, 0.06, (len(task.components), 3))
    loose = [
        _thing(
            component.name, component.make(), np.clip(np.array(component.colour) * (1 + hue), 0, 1)
        )
        for component, hue in zip(task.components, hues, strict=True)
    ]
    alike = [idx for idx, c in enumerate(task.components) if c.look_alike is not None]
    chosen = rng.choice(alike, size=2, replace=False)
    decoys = [_decoy(task, int(idx), rng) for idx in chosen.tolist()]
    placed = _packed([*loose, *decoys], centre, rng)
    return Layout(
        parts=tuple(placed[: len(loose)]),
        decoys=tuple(placed[len(loose) :]),
        driver=_lying_driver(side, rng),
        turntable=_thing("turntable", tasks.turntable(), tasks.GREY),
        others=(*_tray(centre, rng), *_distractors(side, rng)),
        tray_centre_m=centre,
        sheet_m=np.array([-side * rng.uniform(0.24, 0.30), 0.0, rng.uniform(-0.2, -0.12)]),
        tray_side=side,
    )


def _thing(
    name: str, solids: Sequence[Solid], colour: Colour | Array, rest: Array | None = None
) -> Thing:
    corners = corners_of(solids)
    low, high = corners.points.min(0), corners.points.max(0)
    return Thing(
        name=name,
        corners=corners,
        colours=np.array([colour if s.colour is None else s.colour for s in solids], float),
        shine=np.array([s.shine for s in solids]),
        rest=np.eye(4) if rest is None else rest,
        size_m=np.asarray(high - low, float),
    )


def _decoy(task: Task, idx: int, rng: np.random.Generator) -> Thing:
    """A part like one of the task's that belongs nowhere."""
    component = task.components[idx]
    tint = np.clip(np.array(component.colour) * rng.uniform(0.7, 1.3), 0, 1)
    return _thing(f"spare {component.name}", component.make(), tint)


def _lying(thing: Thing, rng: np.random.Generator) -> Array:
    """Rotation that lays a thing on its broadest side, its length along x or z."""
    shortest = int(np.argmin(thing.size_m))
    turn = (euler(0, 0, 90), np.eye(3), euler(90, 0, 0))[shortest]
    return np.asarray(euler(0, float(rng.normal(0, 6)), 0) @ turn)


def _packed(things: list[Thing], centre: Array, rng: np.random.Generator) -> list[Thing]:
    """Lay things in rows into the tray, in a drawn order; what is left lies behind it."""
    placed: dict[int, Thing] = {}
    left, top = centre[0] - TRAY_SIZE_M[0] / 2, centre[2] - TRAY_SIZE_M[1] / 2
    x, z, row = _GAP_M, _GAP_M, 0.0
    spare_x = -0.16
    for idx in rng.permutation(len(things)).tolist():
        thing = things[idx]
        rotation = _lying(thing, rng)
        points = thing.corners.points @ rotation.T
        if np.ptp(points[:, 2]) > np.ptp(points[:, 0]) * 1.5 and rng.random() < 0.8:
            rotation = euler(0, 90, 0) @ rotation
            points = thing.corners.points @ rotation.T
        width, _, depth = np.ptp(points, axis=0)
        if x + width > TRAY_SIZE_M[0] - _GAP_M:
            x, z, row = _GAP_M, z + row + _GAP_M, 0.0
        if z + depth > TRAY_SIZE_M[1] - _GAP_M:  # no room: on the bench, behind the turntable
            corner = np.array([spare_x, 0.0, -0.26 - depth / 2])
            spare_x += float(width) + 0.03
        else:
            corner = np.array([left + x, TRAY_FLOOR_M, top + z])
            x, row = x + float(width) + _GAP_M, max(row, float(depth))
        position = corner - points.min(axis=0)
        placed[idx] = _at(thing, pose(position, rotation))
    return [placed[idx] for idx in range(len(things))]


def _at(thing: Thing, rest: Array) -> Thing:
    return Thing(
        name=thing.name, corners=thing.corners, colours=thing.colours, shine=thing.shine,
        rest=rest, size_m=thing.size_m,
    )  # fmt: skip


def _tray(centre: Array, rng: np.random.Generator) -> list[Thing]:
    width, depth = (1000 * side for side in TRAY_SIZE_M)
    colour = ((0.16, 0.17, 0.19), (0.07, 0.13, 0.24), (0.30, 0.29, 0.26))[int(rng.integers(3))]
    walls = [
        block(width, 5, depth, at=(0, 2.5, 0)),
        *(block(width + 8, 26, 4, at=(0, 13, z * depth / 2)) for z in (-1, 1)),
        *(block(4, 26, depth, at=(x * width / 2, 13, 0)) for x in (-1, 1)),
    ]
    return [_thing("tray", walls, colour, pose(centre))]


def _lying_driver(side: int, rng: np.random.Generator) -> Thing:
    thing = _thing("screwdriver", tasks.screwdriver(), tasks.STEEL)
    spot = (-side * rng.uniform(0.15, 0.18), 0.012, rng.uniform(0.06, 0.10))
    return _at(thing, pose(spot, euler(0, float(rng.uniform(60, 120)), 0) @ euler(0, 0, 90)))


def _distractors(side: int, rng: np.random.Generator) -> list[Thing]:
    """Things that nobody needs: on the side away from the tray."""
    x = -side
    return [
        _thing("mug", tasks.mug(), tasks.WHITE,
               pose((x * rng.uniform(0.33, 0.40), 0, rng.uniform(0.0, 0.06)),
                    euler(0, float(rng.uniform(0, 360)), 0))),
        _thing("tape", tasks.tape(), tasks.WHITE,
               pose((x * rng.uniform(0.10, 0.16), 0, rng.uniform(-0.30, -0.24)))),
        _thing("hammer", tasks.hammer(), tasks.STEEL,
               pose((x * rng.uniform(0.33, 0.4), 0.012, rng.uniform(0.12, 0.17)),
                    euler(0, float(rng.uniform(-40, 40)), 0))),
    ]  # fmt: skip
