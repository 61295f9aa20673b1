"""From light to payloads: the colour camera with its encoder, and the depth camera."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.renderer import Float
from keystep_capture.simulation.seeding import generator

_NOISE_ROOM = 64  # the noise picture is this much larger, and shifted from frame to frame
_TARGET_BRIGHTNESS = 0.24  # linear, of the mean of a frame


class ColourSensor:
    """Exposure that adapts, vignette, lens blur and noise; the seed sets how much of each."""

    def __init__(self, width: int, height: int, frame_rate_hz: float, *names: int | str) -> None:
        """Draw the camera's qualities; `names` are the seed and what it is for."""
        rng = generator(*names, "colour sensor")
        self._rng = rng
        self._keep = float(np.exp(-1.0 / (0.7 * frame_rate_hz)))
        self._gain: float | None = None
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        strength = rng.uniform(0.12, 0.30)
        vignette = 1.0 - strength * (0.75 * x * x + 0.25 * y * y)
        tint = 1.0 + rng.normal(0.0, 0.03, 3) * (1.0, 0.3, 1.0)
        self._map = (vignette[..., None] * tint).astype(np.float32)
        self._blur = float(rng.uniform(0.42, 0.62)) * max(1.0, width / 640)
        size = (height + _NOISE_ROOM, width + _NOISE_ROOM)
        grain = rng.standard_normal((*size, 1), np.float32)
        colour = rng.standard_normal((*size, 3), np.float32)
        # The square root that follows makes shot noise about the same at every brightness.
        amount = rng.uniform(1.2, 3.0)
        self._noise = (amount * (0.8 * grain + 0.6 * colour)).astype(np.float32)

    def develop(self, linear: Float) -> NDArray[np.uint8]:
        """Take a picture: linear RGB (H, W, 3) to 8-bit RGB of the same shape."""
        height, width = linear.shape[:2]
        wanted = _TARGET_BRIGHTNESS / max(float(linear[::6, ::6].mean()), 0.02)
        self._gain = wanted if self._gain is None else (
            self._keep * self._gain + (1 - self._keep) * wanted
        )  # fmt: skip
        exposed = linear * self._map
        exposed *= np.float32(self._gain)
        exposed = cv2.GaussianBlur(exposed, (3, 3), self._blur)
        cv2.sqrt(exposed, exposed)
        exposed *= np.float32(255.0)
        top, left = self._rng.integers(_NOISE_ROOM, size=2).tolist()
        exposed += self._noise[top : top + height, left : left + width]
        return np.asarray(cv2.convertScaleAbs(np.maximum(exposed, 0.0, out=exposed)))


class VideoEncoder:
    """H.264 (Annex B), one access unit for each picture, at once: no picture waits for another."""

    def __init__(self, width: int, height: int, frame_rate_hz: int, gop_size: int) -> None:
        """Open libx264 with one thread, so that the same pictures give the same bytes."""
        encoder = av.VideoCodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.framerate = Fraction(frame_rate_hz)
        encoder.time_base = Fraction(1, frame_rate_hz)
        encoder.gop_size, encoder.max_b_frames, encoder.thread_count = gop_size, 0, 1
        encoder.options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": "27",
            "x264-params": "aud=1:repeat-headers=1:scenecut=0",
        }
        self._encoder, self._count = encoder, 0

    def encode(self, rgb: NDArray[np.uint8]) -> tuple[bytes, bool]:
        """Encode a picture (H, W, 3); give its access unit and whether it is a key frame."""
        planes = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, self._count = self._count, self._count + 1
        packets = self._encoder.encode(frame)
        return b"".join(bytes(packet) for packet in packets), any(p.is_keyframe for p in packets)


class DepthSensor:
    """Time of flight: noise that grows with distance, holes at edges and on grazed surfaces."""

    def __init__(self, *names: int | str) -> None:
        """`names` are the seed and what it is for."""
        self._rng = generator(*names, "depth sensor")

    def measure(self, distance_m: Float) -> NDArray[np.uint16]:
        """Measure distances along the rays (H, W), metres: millimetres, 0 where there is a hole."""
        rng, shape = self._rng, distance_m.shape
        sigma = 0.0015 + 0.0025 * distance_m * distance_m
        noisy = distance_m + sigma * rng.standard_normal(shape, np.float32)
        across = cv2.Sobel(distance_m, cv2.CV_32F, 1, 0, scale=0.25)
        down = cv2.Sobel(distance_m, cv2.CV_32F, 0, 1, scale=0.25)
        steep = np.hypot(across, down)
        chance = np.clip((steep - 0.02) * 18.0, 0.0, 0.85) + 0.004
        # Holes come in small patches.
        patches = cv2.blur(rng.random(shape, np.float32), (2, 2))
        lost = (patches - 0.5) * 1.8 + 0.5 < chance
        lost |= distance_m <= 0.0
        return np.where(lost, 0, np.rint(noisy * 1000.0)).astype(np.uint16)
