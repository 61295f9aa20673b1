"""Draws the scene: OpenCV's rasteriser fills normals, materials and depth; numpy shades them.

Per frame one pass without the hands, one with them over it (so occlusion by hands is counted, not
guessed), and one small pass from the lamp for soft shadows. Colours are linear until the end.
A pixel carries the view-space normal's x and y and the number of its material; its place follows
from its depth. Letters: H, W picture; V corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.camera import Camera
from keystep_capture.simulation.geometry import Array, normalised

Float = NDArray[np.float32]

MAX_MATERIALS = 256
BENCH = 1  # the material that takes its colour from the bench's picture
NEAR_M, FAR_M = 0.05, 4.0
SHADOW_SIZE = 144
_SHADOW_FOV = np.radians(17.0)
_SHADOW_HARDNESS = 55.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Triangles that are drawn together: corners of several bodies, each with its own pose.

    Attributes:
        points: (V, 3), in their body's frame.
        normals: (V, 3), likewise.
        spans: Of each body, its first corner and the one after its last.
        tags: (V,) material of each corner over 256, the same for a triangle's three.
    """

    points: Float
    normals: Float
    spans: tuple[tuple[int, int], ...]
    tags: Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lighting:
    """Lamp, sky and what they shine upon.

    Attributes:
        lamp_m: Where the lamp hangs, (3,).
        lamp: Its colour and strength, (3,).
        sky: Light from above, (3,).
        bounce: Light from below, (3,).
        fill: Direction towards a second, weak light, (3,), and
        fill_colour: its strength, (3,).
    """

    lamp_m: Array
    lamp: Array
    sky: Array
    bounce: Array
    fill: Array
    fill_colour: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One drawn frame.

    Attributes:
        linear: (H, W, 3), float32, linear RGB, before the camera.
        materials: (H, W), uint8, what is seen.
        behind_hands: (H, W), uint8, what would be seen without hands.
    """

    linear: Float
    materials: NDArray[np.uint8]
    behind_hands: NDArray[np.uint8]


class Renderer:
    """Draws pictures of one scene with one camera; keeps its buffers between calls."""

    def __init__(
        self,
        camera: Camera,
        lighting: Lighting,
        colours: Float,
        shine: Float,
        bench: NDArray[np.uint8],
        bench_m: tuple[float, float],
    ) -> None:
        """Prepare.

        Args:
            camera: Whose pictures.
            lighting: Of the scene.
            colours: Linear RGB of each material, (256, 3).
            shine: Strength of each material's highlight, (256,).
            bench: The bench seen from above, (h, w, 3), uint8, square root of linear RGB; x
                right, z down.
            bench_m: Its width and depth, centred on the origin.
        """
        self._camera, self._light = camera, lighting
        self._colours = np.rint(np.sqrt(colours) * 255).astype(np.uint8)
        self._shine = shine
        self._bench, self._bench_m = bench, bench_m
        size = (camera.height, camera.width)
        self._buffer = np.empty((*size, 3), np.float32)
        self._depth = np.empty(size, np.float32)
        x, y = camera.rays()
        self._x, self._y = x.astype(np.float32)[None], -y.astype(np.float32)[:, None]
        self._settings = cv2.TriangleRasterizeSettings()
        self._settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
        self._settings.setCullingMode(cv2.RASTERIZE_CULLING_CW)
        self._lamp_from_world = _looking_from(lighting.lamp_m, np.array([0.05, 0.0, -0.03]))
        widest = max(camera.width, camera.height) / 2 / camera.focal_px
        self._reach = 1.3 * widest
        self._indices = np.arange(0, dtype=np.int32).reshape(-1, 3)

    def draw(
        self,
        world_from_camera: Array,
        scene: Placed,
        hands: Placed,
    ) -> Picture:
        """Draw one frame.

        Args:
            world_from_camera: (4, 4), OpenCV's axes.
            scene: All that is not a hand; its first body is the bench.
            hands: The hands, drawn last.
        """
        view = np.asarray(np.linalg.inv(world_from_camera), np.float64)
        view[1:3] *= -1  # to OpenGL's axes, which the rasteriser wants
        self._buffer.fill(0.0)
        self._depth.fill(FAR_M)
        self._rasterise(scene, view)
        behind = _materials(self._buffer)
        self._rasterise(hands, view)
        materials = _materials(self._buffer)
        bench_end = scene.batch.spans[0][1]  # the bench casts no shadow
        lamp_depth = self._lamp_view((scene.points[bench_end:], hands.points))
        return Picture(
            linear=self._shade(view, materials, lamp_depth),
            materials=materials,
            behind_hands=behind,
        )

    def _rasterise(self, placed: Placed, view: Array) -> None:
        points = placed.points
        attributes = cv2.transform(placed.normals[None], _half(view))[0]
        attributes[:, 2] = placed.batch.tags
        triangles = _in_view(points, view, self._reach, self._triangles(len(points)))
        cv2.triangleRasterize(
            points, triangles, attributes, self._buffer, self._depth,
            view.astype(np.float32), self._camera.fov_y_rad, NEAR_M, FAR_M, self._settings,
        )  # fmt: skip

    def _triangles(self, corners: int) -> NDArray[np.int32]:
        if len(self._indices) * 3 < corners:
            self._indices = np.arange(corners, dtype=np.int32).reshape(-1, 3)
        return self._indices[: corners // 3]

    def _lamp_view(self, points: tuple[Float, ...]) -> Float:
        """What the lamp sees: distance of the nearest surface, blurred in exponentials."""
        depth = np.full((SHADOW_SIZE, SHADOW_SIZE), FAR_M, np.float32)
        for batch in points:
            cv2.triangleRasterizeDepth(
                batch, self._triangles(len(batch)), depth,
                self._lamp_from_world.astype(np.float32), _SHADOW_FOV, NEAR_M, FAR_M,
                self._settings,
            )  # fmt: skip
        base = float(np.linalg.norm(self._light.lamp_m))
        exponent = np.clip((depth - base) * _SHADOW_HARDNESS, -40.0, 12.0)
        return np.asarray(cv2.GaussianBlur(np.exp(exponent), (0, 0), 1.1), np.float32)

    def _shade(self, view: Array, materials: NDArray[np.uint8], lamp_depth: Float) -> Float:
        z, light = self._depth, self._light
        normal_x = self._buffer[..., 0] * 2 - 1
        normal_y = self._buffer[..., 1] * 2 - 1
        normal_z = np.sqrt(np.maximum(1 - normal_x * normal_x - normal_y * normal_y, 0.0))
        rotation = view[:3, :3]
        to_lamp = rotation @ normalised(light.lamp_m)
        diffuse = np.maximum(_dot((normal_x, normal_y, normal_z), to_lamp), 0.0)
        lit = diffuse * self._shadow(view, z, lamp_depth)
        upward = _dot((normal_x, normal_y, normal_z), rotation[:, 1]) * 0.5 + 0.5
        filled = np.maximum(_dot((normal_x, normal_y, normal_z), rotation @ light.fill), 0.0)
        half = normalised(to_lamp + np.array([0.0, 0.0, 1.0]))
        gloss = np.maximum(_dot((normal_x, normal_y, normal_z), half), 0.0)
        gloss *= gloss
        gloss *= gloss
        gloss *= gloss
        gloss *= gloss  # to the 16th
        gloss *= gloss
        gloss *= lit * self._shine[materials]
        albedo = self._albedo(view, z, materials)
        colour = np.empty_like(albedo)
        for c in range(3):
            energy = lit * np.float32(light.lamp[c])
            energy += upward * np.float32(light.sky[c] - light.bounce[c])
            energy += np.float32(light.bounce[c])
            energy += filled * np.float32(light.fill_colour[c])
            np.multiply(albedo[..., c], energy, out=colour[..., c])
            colour[..., c] += gloss * np.float32(light.lamp[c])
        return colour

    def _albedo(self, view: Array, z: Float, materials: NDArray[np.uint8]) -> Float:
        colours = self._colours[materials]
        width, depth = self._bench_m
        world_x, world_z = (self._along(view, z, axis) for axis in (0, 2))
        height_px, width_px = self._bench.shape[:2]
        map_x = world_x * np.float32(width_px / width) + np.float32(width_px / 2)
        map_y = world_z * np.float32(height_px / depth) + np.float32(height_px / 2)
        bench = cv2.remap(
            self._bench, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        cv2.copyTo(bench, (materials == BENCH).view(np.uint8), colours)
        albedo = colours.astype(np.float32)
        albedo *= np.float32(1 / 255)
        albedo *= albedo
        return np.asarray(albedo, np.float32)

    def _along(self, view: Array, z: Float, axis: int) -> Float:
        """World coordinate of every pixel: a plane over the picture times its depth."""
        inverse = view[:3, :3].T.astype(np.float32)
        origin = -(view[:3, :3].T @ view[:3, 3])[axis]
        slope = inverse[axis, 0] * self._x + (inverse[axis, 1] * self._y - inverse[axis, 2])
        return np.asarray(z * slope + np.float32(origin), np.float32)

    def _shadow(self, view: Array, z: Float, lamp_depth: Float) -> Float:
        """How much of the lamp each pixel sees, 0 to 1 (exponential shadow map)."""
        lamp_from_view = self._lamp_from_world @ np.linalg.inv(view)
        m = lamp_from_view.astype(np.float32)
        x, y, back = (
            z * (m[k, 0] * self._x + (m[k, 1] * self._y - m[k, 2])) + m[k, 3] for k in range(3)
        )
        away = -back
        focal = np.float32(SHADOW_SIZE / 2 / np.tan(_SHADOW_FOV / 2))
        scale = focal / away
        centre = np.float32((SHADOW_SIZE - 1) / 2)
        nearest = cv2.remap(
            lamp_depth, x * scale + centre, centre - y * scale, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT, borderValue=float(np.exp(12.0)),
        )  # fmt: skip
        base = np.float32(np.linalg.norm(self._light.lamp_m) + 0.012)  # against self-shadowing
        seen = nearest * np.exp((base - away) * np.float32(_SHADOW_HARDNESS))
        return np.asarray(np.minimum(seen, 1.0), np.float32)


def draw_depth(camera: Camera, world_from_camera: Array, batches: tuple[Placed, ...]) -> Float:
    """Distance along each pixel's ray, metres, (H, W); 0 where nothing is."""
    view = np.asarray(np.linalg.inv(world_from_camera), np.float64)
    view[1:3] *= -1
    settings = cv2.TriangleRasterizeSettings()
    settings.setCullingMode(cv2.RASTERIZE_CULLING_CW)
    z = np.full((camera.height, camera.width), FAR_M, np.float32)
    for points in (placed.points for placed in batches):
        corners = np.arange(len(points), dtype=np.int32).reshape(-1, 3)
        indices = _in_view(points, view, 1.3, corners)
        cv2.triangleRasterizeDepth(
            points, indices, z, view.astype(np.float32), camera.fov_y_rad, NEAR_M, FAR_M, settings
        )
    x, y = camera.rays()
    along = z * np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)
    return np.where(z >= FAR_M, 0.0, along).astype(np.float32)


def _half(view: Array) -> Float:
    """Matrix (3, 4) that takes a world normal to its view-space x and y, from -1..1 to 0..1."""
    result = np.zeros((3, 4), np.float32)
    result[:2, :3], result[:2, 3] = view[:2, :3] * 0.5, 0.5
    return result


def _in_view(
    points: Float, view: Array, reach: float, triangles: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Leave out triangles near the camera's plane, which the rasteriser draws wrongly.

    Args:
        points: (V, 3), world; three in a row are a triangle.
        view: (4, 4), OpenGL's axes.
        reach: Tangent of the widest angle that matters; what is wholly beyond is left out too.
        triangles: (V / 3, 3) corner indices.
    """
    seen = cv2.transform(points[None], view[:3].astype(np.float32))[0]
    away = -seen[:, 2]
    edge = np.maximum(np.abs(seen[:, 0]), np.abs(seen[:, 1])) - away * np.float32(reach)
    nearest = np.minimum(np.minimum(away[::3], away[1::3]), away[2::3])
    innermost = np.minimum(np.minimum(edge[::3], edge[1::3]), edge[2::3])
    kept = (nearest > 0.07) & (innermost < 0.0)
    return np.asarray(triangles[kept], np.int32)


class Placed:
    """A batch in the world; bodies that did not move since the last call are left as they are."""

    def __init__(self, batch: Batch) -> None:
        """Nothing is placed yet."""
        self.batch = batch
        self.points = np.zeros_like(batch.points)
        self.normals = np.zeros_like(batch.normals)
        self._poses = np.full((len(batch.spans), 4, 4), np.nan, np.float32)

    def move(self, poses: NDArray[np.float32]) -> None:
        """Place bodies; `poses` has shape (bodies, 4, 4)."""
        moved = np.flatnonzero((poses != self._poses).any(axis=(1, 2)))
        self._poses = poses
        for body in moved.tolist():
            start, end = self.batch.spans[body]
            rotation = poses[body, :3, :3].T
            np.matmul(self.batch.points[start:end], rotation, out=self.points[start:end])
            self.points[start:end] += poses[body, :3, 3]
            np.matmul(self.batch.normals[start:end], rotation, out=self.normals[start:end])


def _materials(buffer: Float) -> NDArray[np.uint8]:
    return np.asarray(np.rint(buffer[..., 2] * MAX_MATERIALS), np.uint8)


def _dot(normal: tuple[Float, Float, Float], direction: Array) -> Float:
    x, y, z = (np.float32(value) for value in direction)
    return np.asarray(normal[0] * x + normal[1] * y + normal[2] * z)


def _looking_from(eye: Array, target: Array) -> Array:
    """OpenGL view matrix (4, 4)."""
    back = normalised(eye - target)
    right = normalised(np.cross(np.array([0.0, 0.0, -1.0]), back))
    rotation = np.stack([right, np.cross(back, right), back])
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, -rotation @ eye
    return result
