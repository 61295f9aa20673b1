"""Which frames of a video are used (STEPs, section D.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError


def sample_frames(
    frame_count: int, chunk_count: int, extent: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Frames for training: one drawn evenly from each of equal chunks of a stretch of the video.

    Args:
        frame_count: Frames of the video (T), at least 1.
        chunk_count: Chunks (N); where the stretch has fewer frames, some are drawn repeatedly.
        extent: Length of the stretch, of the video's (beta), above 0 and at most 1; where it lies
            is drawn too.
        rng: Where the draws come from.

    Returns:
        Frame indices, int64 (N,), never decreasing.
    """
    if frame_count < 1 or chunk_count < 1 or not 0.0 < extent <= 1.0:
        raise ConfigError(
            f"cannot draw {chunk_count} chunks of {extent} of a video of {frame_count} frames"
        )
    length = max(extent * frame_count, 1.0)
    start = rng.uniform(0.0, frame_count - length) if length < frame_count else 0.0
    places = start + (np.arange(chunk_count) + rng.random(chunk_count)) * (length / chunk_count)
    return np.minimum(places.astype(np.int64), frame_count - 1)


def live_frames(
    frame_count: int, count: int, tempo: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames for training as they come live: one after the other, perhaps played at another tempo.

    Args:
        frame_count: Frames of the video (T), at least 1.
        count: Frames to take (N), at most `live_count(frame_count, tempo)`.
        tempo: Frames of the video a tick moves on by; 1: as recorded, 2: a wearer twice as fast.
        rng: Draws where the stretch begins.

    Returns:
        Frame indices, and the ticks at which a live session of that tempo would have come to
        them, both int64 (N,); the ticks lie one after the other.
    """
    ticks_there = live_count(frame_count, tempo)
    if not 1 <= count <= ticks_there:
        raise ConfigError(f"cannot take {count} ticks of {ticks_there}")
    ticks = int(rng.integers(ticks_there - count + 1)) + np.arange(count, dtype=np.int64)
    return np.minimum((ticks * tempo).astype(np.int64), frame_count - 1), ticks


def live_count(frame_count: int, tempo: float) -> int:
    """Ticks of a video that is played at a tempo."""
    return max(1, int(np.ceil(frame_count / tempo)))


def draw_tempo(limit: float, rng: np.random.Generator) -> float:
    """A tempo between 1 / limit and limit, its logarithm drawn evenly."""
    return float(np.exp(rng.uniform(-1.0, 1.0) * np.log(limit)))


def evaluation_frames(frame_count: int, stride: int = 2) -> NDArray[np.int64]:
    """Frames for evaluation: the centre of each chunk of `stride` frames; at least one frame.

    Returns:
        Frame indices, int64, increasing.
    """
    if frame_count < 1 or stride < 1:
        raise ConfigError(f"cannot take every {stride} of {frame_count} frames")
    frames = np.arange(stride // 2, frame_count, stride, dtype=np.int64)
    return frames if len(frames) else np.array([frame_count // 2], np.int64)
