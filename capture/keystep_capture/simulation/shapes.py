"""Meshes of parts, tools and bench things, put together from trimesh's primitives.

Lengths in the recipes are millimetres, since drawings are; meshes are metres. A part's own frame
has its origin at its middle and y up as it sits in the finished assembly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import euler

Colour = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """One primitive of a part.

    Attributes:
        mesh: In the primitive's own frame, metres.
        at_mm: Where its middle lies in the part.
        turn_deg: Rotation about x, y, z.
        colour: Linear RGB, 0 to 1; None takes the part's.
        shine: Strength of the highlight.
    """

    mesh: trimesh.Trimesh
    at_mm: Point = (0.0, 0.0, 0.0)
    turn_deg: Point = (0.0, 0.0, 0.0)
    colour: Colour | None = None
    shine: float = 0.25


def block(
    x: float,
    y: float,
    z: float,
    *,
    at: Point = (0, 0, 0),
    turn: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.25,
) -> Solid:
    """A box of these sides."""
    mesh = trimesh.creation.box(np.array([x, y, z]) / 1000)
    return Solid(mesh=mesh, at_mm=at, turn_deg=turn, colour=colour, shine=shine)


def rod(
    radius: float,
    length: float,
    *,
    axis: str = "y",
    at: Point = (0, 0, 0),
    turn: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.5,
    sections: int = 14,
) -> Solid:
    """A cylinder along an axis of the part."""
    mesh = trimesh.creation.cylinder(radius / 1000, length / 1000, sections=sections)
    _lay_along(mesh, axis)
    return Solid(mesh=mesh, at_mm=at, turn_deg=turn, colour=colour, shine=shine)


def cone(
    bottom: float,
    top: float,
    length: float,
    *,
    at: Point = (0, 0, 0),
    turn: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.25,
    sections: int = 16,
) -> Solid:
    """A cone cut off at the top, upright."""
    profile = np.array(
        [[0, -length / 2], [bottom, -length / 2], [top, length / 2], [0, length / 2]]
    )
    mesh = trimesh.creation.revolve(profile / 1000, sections=sections)
    _lay_along(mesh, "y")
    return Solid(mesh=mesh, at_mm=at, turn_deg=turn, colour=colour, shine=shine)


def ring(
    outer: float,
    inner: float,
    length: float,
    *,
    axis: str = "y",
    at: Point = (0, 0, 0),
    turn: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.4,
) -> Solid:
    """A tube along an axis."""
    mesh = trimesh.creation.annulus(inner / 1000, outer / 1000, length / 1000, sections=16)
    _lay_along(mesh, axis)
    return Solid(mesh=mesh, at_mm=at, turn_deg=turn, colour=colour, shine=shine)


def hoop(
    radius: float,
    thickness: float,
    *,
    axis: str = "y",
    at: Point = (0, 0, 0),
    turn: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.3,
) -> Solid:
    """A torus about an axis."""
    mesh = trimesh.creation.torus(
        radius / 1000, thickness / 1000, major_sections=18, minor_sections=6
    )
    _lay_along(mesh, axis)
    return Solid(mesh=mesh, at_mm=at, turn_deg=turn, colour=colour, shine=shine)


def ball(
    radius: float, *, at: Point = (0, 0, 0), colour: Colour | None = None, shine: float = 0.5
) -> Solid:
    """A sphere."""
    mesh = trimesh.creation.icosphere(subdivisions=1, radius=radius / 1000)
    return Solid(mesh=mesh, at_mm=at, colour=colour, shine=shine)


def gear(
    radius: float,
    teeth: int,
    length: float,
    *,
    at: Point = (0, 0, 0),
    colour: Colour | None = None,
    shine: float = 0.5,
) -> Solid:
    """A toothed wheel, axis upright."""
    angle = np.arange(4 * teeth) * (np.pi / (2 * teeth))
    reach = np.where((np.arange(4 * teeth) % 4) < 2, radius, radius * 0.84)
    rim = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
    mesh = _prism(rim / 1000, length / 1000)
    _lay_along(mesh, "y")
    return Solid(mesh=mesh, at_mm=at, colour=colour, shine=shine)


def _prism(outline: NDArray[np.float64], height: float) -> trimesh.Trimesh:
    """A straight prism over an outline (N, 2) that its middle sees all of."""
    n = len(outline)
    level = np.full((n, 1), height / 2)
    vertices = np.concatenate(
        [
            np.hstack([outline, level]),
            np.hstack([outline, -level]),
            [[0, 0, height / 2], [0, 0, -height / 2]],
        ]
    )
    here = np.arange(n)
    after = (here + 1) % n
    faces = np.concatenate(
        [
            np.stack([here, after, np.full(n, 2 * n)], 1),
            np.stack([after + n, here + n, np.full(n, 2 * n + 1)], 1),
            np.stack([here, here + n, after], 1),
            np.stack([after, here + n, after + n], 1),
        ]
    )
    return trimesh.Trimesh(vertices, faces, process=False)


def _lay_along(mesh: trimesh.Trimesh, axis: str) -> None:
    """Trimesh's solids of revolution stand along z."""
    turn = {"x": euler(0, 90, 0), "y": euler(-90, 0, 0), "z": np.eye(3)}[axis]
    transform = np.eye(4)
    transform[:3, :3] = turn
    mesh.apply_transform(transform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corners:
    """Triangles with their own corners, ready to be drawn.

    Attributes:
        points: Shape (3 K, 3), float32, metres; three in a row are a triangle, counter-clockwise
            as seen from outside.
        normals: Shape (3 K, 3), float32, unit length, smooth over edges below 40 degrees.
        solids: Shape (3 K,), int: which of the part's solids.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    solids: NDArray[np.int64]


def corners_of(solids: Sequence[Solid]) -> Corners:
    """Put a part's solids together."""
    points, normals, owners = [], [], []
    for idx, solid in enumerate(solids):
        rotation = euler(*solid.turn_deg)
        placed = solid.mesh.vertices @ rotation.T + np.asarray(solid.at_mm) / 1000
        triangles = placed[solid.mesh.faces]
        points.append(triangles.reshape(-1, 3))
        normals.append(_smooth_normals(triangles, solid.mesh.faces))
        owners.append(np.full(len(triangles) * 3, idx))
    return Corners(
        points=np.concatenate(points).astype(np.float32),
        normals=np.concatenate(normals).astype(np.float32),
        solids=np.concatenate(owners),
    )


def _smooth_normals(
    triangles: NDArray[np.float64], faces: NDArray[np.int64], angle_deg: float = 40.0
) -> NDArray[np.float64]:
    """Normals (3 K, 3) of triangle corners: the mean of neighbours that bend less than an angle."""
    scaled = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    flat = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-15)
    owner = np.repeat(np.arange(len(faces)), 3)
    vertex = faces.reshape(-1)
    bends_little = flat @ flat.T > np.cos(np.radians(angle_deg))
    together = (vertex[:, None] == vertex) & bends_little[owner][:, owner]
    result = together.astype(np.float64) @ scaled[owner]
    return np.asarray(result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-15))
