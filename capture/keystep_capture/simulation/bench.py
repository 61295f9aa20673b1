"""The bench from above: wood, mat or steel with wear, a cutting mat, the instruction sheet."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.geometry import Array
from keystep_capture.simulation.renderer import Float
from keystep_capture.simulation.seeding import generator

SIZE_M = (1.8, 1.4)
_PER_M = 800
_KINDS = ("wood", "mat", "steel")


def bench_picture(seed: int, sheet_m: Array) -> NDArray[np.uint8]:
    """Paint the bench, (h, w, 3), uint8, the square root of linear RGB; x right, z down."""
    rng = generator(seed, "bench")
    width, height = (round(side * _PER_M) for side in SIZE_M)
    kind = _KINDS[int(rng.integers(len(_KINDS)))]
    picture = {"wood": _wood, "mat": _mat, "steel": _steel}[kind](width, height, rng)
    _wear(picture, rng)
    _sheet(picture, sheet_m, rng)
    return np.asarray(np.rint(np.sqrt(np.clip(picture, 0.0, 1.0)) * 255), np.uint8)


def _blurred_noise(
    width: int, height: int, sigma: tuple[float, float], rng: np.random.Generator
) -> Float:
    """Noise of about unit size, smoothed along x and y."""
    noise = rng.standard_normal((height, width), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])
    return np.asarray(smooth / smooth.std(), np.float32)


def _wood(width: int, height: int, rng: np.random.Generator) -> Float:
    grain = _blurred_noise(width, height, (60.0, 1.2), rng)
    rings = np.sin(_blurred_noise(width, height, (220.0, 30.0), rng) * 9.0)
    tone = np.array([(0.36, 0.20, 0.09), (0.46, 0.31, 0.16), (0.22, 0.12, 0.06)])
    colour = tone[int(rng.integers(3))]
    shade = 1.0 + 0.10 * grain + 0.07 * rings
    picture = np.asarray(shade[..., None] * colour, np.float32)
    for x in range(0, width, int(rng.integers(220, 320))):
        picture[:, x : x + 2] *= 0.55
    return picture


def _mat(width: int, height: int, rng: np.random.Generator) -> Float:
    tone = np.array([(0.03, 0.16, 0.12), (0.05, 0.09, 0.20), (0.12, 0.12, 0.13)])
    colour = tone[int(rng.integers(3))]
    speckle = 1.0 + 0.08 * _blurred_noise(width, height, (0.8, 0.8), rng)
    picture = np.asarray(speckle[..., None] * colour, np.float32)
    for every, gain in ((40, 1.25), (200, 1.7)):
        picture[::every] *= gain
        picture[:, ::every] *= gain
    return picture


def _steel(width: int, height: int, rng: np.random.Generator) -> Float:
    brushed = 1.0 + 0.10 * _blurred_noise(width, height, (40.0, 0.7), rng)
    blotches = 1.0 + 0.06 * _blurred_noise(width, height, (50.0, 50.0), rng)
    tone = np.array([0.27, 0.28, 0.30])
    return np.asarray((brushed * blotches)[..., None] * tone, np.float32)


def _wear(picture: Float, rng: np.random.Generator) -> None:
    """Scratches and stains."""
    height, width = picture.shape[:2]
    scratches = np.ones((height, width), np.float32)
    for _ in range(60):
        start = rng.uniform((0, 0), (width, height))
        end = start + rng.normal(0, 60, 2)
        gain = float(rng.uniform(0.7, 1.3))
        cv2.line(scratches, start.astype(int).tolist(), end.astype(int).tolist(), gain, 1)
    picture *= scratches[..., None]
    stains = _blurred_noise(width // 4, height // 4, (12.0, 12.0), rng)
    large = cv2.resize(stains, (width, height), interpolation=cv2.INTER_LINEAR)
    picture *= (1.0 - 0.15 * np.clip(large - 1.6, 0, 1))[..., None]


def _sheet(picture: Float, middle_m: Array, rng: np.random.Generator) -> None:
    """A printed instruction sheet: title, drawings, lines of text."""
    page = np.full((235, 166, 3), 0.78, np.float32)
    cv2.rectangle(page, (14, 12), (120, 20), (0.1, 0.1, 0.1), -1)
    for row in range(3):
        for column in range(2):
            x, y = 14 + 74 * column, 32 + 64 * row
            cv2.rectangle(page, (x, y), (x + 62, y + 44), (0.5, 0.5, 0.5), 1)
            colour = rng.uniform(0.05, 0.6, 3).tolist()
            cv2.rectangle(page, (x + 10, y + 18), (x + 50, y + 30), colour, -1)
            cv2.circle(page, (x + 18, y + 32), 6, (0.05, 0.05, 0.05), -1)
            cv2.circle(page, (x + 44, y + 32), 6, (0.05, 0.05, 0.05), -1)
            for line in range(3):
                length = int(rng.integers(30, 62))
                cv2.line(
                    page,
                    (x, y + 48 + 4 * line),
                    (x + length, y + 48 + 4 * line),
                    (0.2, 0.2, 0.2),
                    1,
                )
    height, width = picture.shape[:2]
    centre = (middle_m[0] * _PER_M + width / 2, middle_m[2] * _PER_M + height / 2)
    angle = float(rng.uniform(-25, 25))
    move = cv2.getRotationMatrix2D((83, 117), angle, 1.0)
    move[:, 2] += (centre[0] - 83, centre[1] - 117)
    laid = cv2.warpAffine(page, move, (width, height), flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.ones((235, 166), np.float32), move, (width, height))[..., None]
    picture *= 1 - mask
    picture += laid * mask
