"""Rotations, poses and smooth motion, vectorised over time.

Letters: T times, N points. Poses are 4x4, `world_from_x`, column vectors, metres; quaternions are
(x, y, z, w).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def normalised(vectors: Array) -> Array:
    """Scale vectors (..., D) to length one; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12))


def ease(fraction: Array | float) -> Array:
    """Position along a minimum-jerk movement at a fraction of its duration, both 0 to 1.

    Source: Flash and Hogan 1985, "The coordination of arm movements".
    """
    s = np.clip(fraction, 0.0, 1.0)
    return np.asarray(s * s * s * (10.0 - 15.0 * s + 6.0 * s * s))


def ramp(times_s: Array, start_s: float, end_s: float) -> Array:
    """0 before `start_s`, 1 after `end_s`, minimum jerk between; shape (T,)."""
    return ease((times_s - start_s) / max(end_s - start_s, 1e-6))


def window(times_s: Array, start_s: float, end_s: float, edge_s: float) -> Array:
    """1 from `start_s` to `end_s`, falling to 0 within `edge_s` outside; shape (T,)."""
    rising = ramp(times_s, start_s - edge_s, start_s)
    return rising * (1.0 - ramp(times_s, end_s, end_s + edge_s))


def euler(x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> Array:
    """Rotation matrix (3, 3): about z first, then y, then x; degrees."""
    x, y, z = np.radians((x_deg, y_deg, z_deg))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def pose(position: Array | tuple[float, float, float], rotation: Array | None = None) -> Array:
    """Build a pose (4, 4) from a position (3,) and a rotation (3, 3)."""
    result = np.eye(4)
    result[:3, 3] = position
    if rotation is not None:
        result[:3, :3] = rotation
    return result


def about_y(angles_rad: Array) -> Array:
    """Rotations about the upright axis: angles (T,) to matrices (T, 3, 3)."""
    result = np.zeros((len(angles_rad), 3, 3))
    cos, sin = np.cos(angles_rad), np.sin(angles_rad)
    result[:, 0, 0], result[:, 0, 2], result[:, 1, 1] = cos, sin, 1.0
    result[:, 2, 0], result[:, 2, 2] = -sin, cos
    return result


def rotations_of(vectors_rad: Array) -> Array:
    """Rotation vectors (..., 3), radians, to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(vectors_rad, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors_rad / np.maximum(angle[..., 0], 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross)


def rotation_vectors(matrices: Array) -> Array:
    """Matrices (..., 3, 3) to rotation vectors (..., 3); not for turns of exactly 180 degrees."""
    quaternion = quaternions(matrices)
    quaternion = quaternion * np.where(quaternion[..., 3:] < 0, -1.0, 1.0)
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternion[..., 3:])
    return np.asarray(quaternion[..., :3] / np.maximum(sine, 1e-12) * angle)


def turned(start: Array, end: Array, fraction: Array) -> Array:
    """Rotations between `start` and `end` (broadcast to (T, 3, 3)) at fractions (T,)."""
    difference = rotation_vectors(np.swapaxes(start, -1, -2) @ end)
    return np.asarray(start @ rotations_of(difference * fraction[:, None]))


def quaternions(matrices: Array) -> Array:
    """Matrices (..., 3, 3) to unit quaternions (..., 4), the largest part positive."""
    m = matrices
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four expressions for the same quaternion; the one with the largest divisor is taken.
    candidates = np.stack(
        [
            np.stack(
                [
                    1 + 2 * m[..., 0, 0] - trace,
                    m[..., 0, 1] + m[..., 1, 0],
                    m[..., 0, 2] + m[..., 2, 0],
                    m[..., 2, 1] - m[..., 1, 2],
                ],
                -1,
            ),
            np.stack(
                [
                    m[..., 0, 1] + m[..., 1, 0],
                    1 + 2 * m[..., 1, 1] - trace,
                    m[..., 1, 2] + m[..., 2, 1],
                    m[..., 0, 2] - m[..., 2, 0],
                ],
                -1,
            ),
            np.stack(
                [
                    m[..., 0, 2] + m[..., 2, 0],
                    m[..., 1, 2] + m[..., 2, 1],
                    1 + 2 * m[..., 2, 2] - trace,
                    m[..., 1, 0] - m[..., 0, 1],
                ],
                -1,
            ),
            np.stack(
                [
                    m[..., 2, 1] - m[..., 1, 2],
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 1, 0] - m[..., 0, 1],
                    1 + trace,
                ],
                -1,
            ),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(candidates, axis1=-2, axis2=-1), axis=-1)
    chosen = np.take_along_axis(candidates, best[..., None, None], axis=-2)[..., 0, :]
    return normalised(chosen)


def frames_of(forward: Array, up: Array) -> Array:
    """Rotations (T, 3, 3) with columns right, up', back, for looking along `forward` (T, 3)."""
    back = -normalised(forward)
    right = normalised(np.cross(up, back))
    return np.stack([right, np.cross(back, right), back], axis=-1)


def transformed(pose_: Array, points: Array) -> Array:
    """Apply a pose (4, 4) or poses (T, 4, 4) to points (N, 3) or one point per pose (T, 3)."""
    if pose_.ndim == 3:
        return np.asarray((pose_[:, :3, :3] @ points[..., None])[..., 0] + pose_[:, :3, 3])
    return np.asarray(points @ pose_[:3, :3].T + pose_[:3, 3])
