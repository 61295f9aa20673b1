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


def evaluation_frames(frame_count: int, stride: int = 2) -> NDArray[np.int64]:
    """Frames for evaluation: the centre of each chunk of `stride` frames; at least one frame.

    Returns:
        Frame indices, int64, increasing.
    """
    if frame_count < 1 or stride < 1:
        raise ConfigError(f"cannot take every {stride} of {frame_count} frames")
    frames = np.arange(stride // 2, frame_count, stride, dtype=np.int64)
    return frames if len(frames) else np.array([frame_count // 2], np.int64)
