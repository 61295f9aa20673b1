"""A session's scene, ready to be drawn at any instant."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import trimesh
from numpy.typing import NDArray

from keystep_capture.simulation.bench import SIZE_M, bench_picture
from keystep_capture.simulation.camera import Camera
from keystep_capture.simulation.geometry import Array, normalised
from keystep_capture.simulation.hands import BONES, RADII_M, bone_lengths, bone_poses
from keystep_capture.simulation.layout import Layout, Thing
from keystep_capture.simulation.motion import Movement
from keystep_capture.simulation.people import Person
from keystep_capture.simulation.renderer import (
    BENCH,
    MAX_MATERIALS,
    Batch,
    Float,
    Lighting,
    Picture,
    Placed,
    Renderer,
    draw_depth,
)
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.shapes import Corners, Solid, corners_of

_FLOOR = 0
_ARM_M = 0.30
_CUFF_M = 0.075
_ELBOW_M = np.array([0.27, 0.10, 0.46])


@dataclass(slots=True)
class _Materials:
    """Numbers of materials and what each looks like."""

    colours: Float
    shine: Float
    count: int = 2

    def add(self, colours: Array, shine: Array) -> int:
        first, self.count = self.count, self.count + len(colours)
        assert self.count <= MAX_MATERIALS
        self.colours[first : self.count] = colours
        self.shine[first : self.count] = shine
        return first


class Scene:
    """All that is drawn, and where it is at each instant of a movement.

    Attributes:
        thing_of_material: For each material the index into the movement's things, else -1;
            shape (256,).
        turntable_material: The first of the turntable's.
    """

    def __init__(
        self, layout: Layout, movement: Movement, person: Person, camera: Camera, seed: int
    ) -> None:
        """Build meshes, materials, bench and lighting."""
        self._movement, self._person = movement, person
        materials = _Materials(
            np.zeros((MAX_MATERIALS, 3), np.float32), np.zeros(MAX_MATERIALS, np.float32)
        )
        materials.colours[_FLOOR] = (0.10, 0.10, 0.11)
        materials.shine[BENCH] = 0.05
        self.thing_of_material = np.full(MAX_MATERIALS, -1)
        moving = [*layout.parts, *layout.decoys, layout.driver]
        things: list[Thing] = [*layout.others, layout.turntable, *moving]
        first_moving = 1 + len(layout.others) + 1
        pieces = [(_bench_corners(), np.array([BENCH]))]
        for idx, thing in enumerate(things, start=1):
            first = materials.add(thing.colours, thing.shine)
            numbers = np.arange(first, materials.count)
            pieces.append((thing.corners, numbers))
            if idx >= first_moving:
                self.thing_of_material[numbers] = idx - first_moving
        self._scene = Placed(_batch(pieces))
        self._still = np.stack([np.eye(4), *(thing.rest for thing in things)]).astype(np.float32)
        self._turntable_body, self._first_moving = first_moving - 1, first_moving
        skin = materials.add(np.array([person.skin, person.sleeve]), np.array([0.10, 0.02]))
        self._hands = Placed(_batch(_arm_pieces(person.hand_scale, skin) * 2))
        self._bench = bench_picture(seed, layout.sheet_m)
        self._lighting = _lighting(seed)
        self._renderer = Renderer(
            camera, self._lighting, materials.colours, materials.shine, self._bench, SIZE_M
        )

    def draw(self, sample: int, world_from_camera: Array) -> Picture:
        """Draw the colour camera's view of one sample of the movement."""
        self._move(sample)
        return self._renderer.draw(world_from_camera, self._scene, self._hands)

    def draw_depth(self, sample: int, camera: Camera, world_from_camera: Array) -> Float:
        """Distance along each ray of a depth camera, metres, 0 where there is nothing."""
        self._move(sample)
        return draw_depth(camera, world_from_camera, (self._scene, self._hands))

    def _move(self, sample: int) -> None:
        self._scene.move(self._scene_poses(sample))
        self._hands.move(self._hand_poses(sample))

    def _scene_poses(self, sample: int) -> NDArray[np.float32]:
        poses = self._still.copy()
        poses[self._turntable_body] = self._movement.assembly[sample]
        poses[self._first_moving :] = self._movement.things[:, sample]
        return poses

    def _hand_poses(self, sample: int) -> NDArray[np.float32]:
        poses = []
        for sign, hand in zip((-1.0, 1.0), self._movement.hands, strict=True):
            joints = hand.joints[sample]
            poses.append(bone_poses(joints))
            poses.append(_arm_poses(joints[1], sign))
        return np.concatenate(poses)


def _batch(pieces: list[tuple[Corners, NDArray[np.int64]]]) -> Batch:
    """Join bodies; each comes with the material numbers of its solids."""
    ends = np.cumsum([0, *(len(corners.points) for corners, _ in pieces)]).tolist()
    materials = np.concatenate([numbers[corners.solids] for corners, numbers in pieces])
    return Batch(
        points=np.concatenate([corners.points for corners, _ in pieces]),
        normals=np.concatenate([corners.normals for corners, _ in pieces]),
        spans=tuple(pairwise(ends)),
        tags=(materials / MAX_MATERIALS).astype(np.float32),
    )


def _bench_corners() -> Corners:
    """A flat grid: the rasteriser drops triangles that reach behind the camera."""
    width, depth = SIZE_M
    columns, rows = 14, 10
    x, z = np.meshgrid(np.linspace(-width / 2, width / 2, columns + 1),
                       np.linspace(-depth / 2, depth / 2, rows + 1))  # fmt: skip
    grid = np.stack([x, np.zeros_like(x), z], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    points = np.stack([a, b, c, a, c, d], axis=2).reshape(-1, 3).astype(np.float32)
    normals = np.tile(np.array([0, 1, 0], np.float32), (len(points), 1))
    return Corners(points=points, normals=normals, solids=np.zeros(len(points), np.int64))


def _arm_pieces(scale: float, skin: int) -> list[tuple[Corners, NDArray[np.int64]]]:
    """Bones, forearm and sleeve of one hand, each a body of its own, along y from its origin."""
    pieces = []
    for (start, end), length in zip(BONES, bone_lengths(scale), strict=True):
        corners = _capsule(RADII_M[start] * scale, RADII_M[end] * scale, float(length))
        pieces.append((corners, np.array([skin])))
    pieces.append((_capsule(0.024 * scale, 0.036, _ARM_M, 9, 5), np.array([skin])))
    pieces.append((_capsule(0.040, 0.052, _ARM_M - _CUFF_M, 9, 5), np.array([skin + 1])))
    return pieces


def _capsule(
    start: float, end: float, length: float, sections: int = 7, pieces: int = 1
) -> Corners:
    """A bone with rounded ends; an arm in pieces, of which those near the camera are left out."""
    along = np.linspace(0.0, 1.0, pieces + 1)[:, None]
    shaft = (1 - along) * (start, 0.0) + along * (end, length)
    ends = [(0.72 * end, length + 0.62 * end), (0, length + 0.95 * end)]
    profile = np.concatenate([[(0, -0.7 * start)], shaft, ends])
    mesh = trimesh.creation.revolve(profile, sections=sections)
    return corners_of([Solid(mesh=mesh, turn_deg=(-90.0, 0.0, 0.0))])


def _arm_poses(wrist: Array, sign: float) -> NDArray[np.float32]:
    """Forearm from the wrist, sleeve from the cuff, both towards the elbow."""
    y = normalised(_ELBOW_M * (sign, 1, 1) - wrist)
    x = normalised(np.cross(y, np.array([0.0, 0.3, 1.0])))
    poses = np.zeros((2, 4, 4), np.float32)
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = x, y, np.cross(x, y)
    poses[0, :3, 3], poses[1, :3, 3] = wrist, wrist + y * _CUFF_M
    poses[:, 3, 3] = 1.0
    return poses


def _lighting(seed: int) -> Lighting:
    rng = generator(seed, "lighting")
    warmth = float(rng.uniform(-1, 1))
    lamp = np.array([1.0 + 0.10 * warmth, 1.0, 1.0 - 0.14 * warmth]) * rng.uniform(0.95, 1.35)
    return Lighting(
        lamp_m=np.array([rng.uniform(-0.8, 0.8), rng.uniform(1.9, 2.2), rng.uniform(-0.7, 0.3)]),
        lamp=lamp,
        sky=np.array([0.30, 0.32, 0.36]) * rng.uniform(0.7, 1.2),
        bounce=np.array([0.09, 0.085, 0.075]),
        fill=normalised(np.array([rng.uniform(-1, 1), 0.5, 0.8])),
        fill_colour=np.array([0.20, 0.20, 0.22]) * rng.uniform(0.5, 1.2),
    )
