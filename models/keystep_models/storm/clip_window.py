"""The embeddings of a session's newest ticks: what the next clip is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_models.storm.bundle import ClipGeometry
from keystep_models.storm.settings import MAX_WINDOW_BYTES


class ClipWindow:
    """Rings of embeddings by tick; a tick without one, or left out, is missing in every clip.

    There is a ring for each tick that clips may end at among `every`, and each embedding is in its
    ring twice, one length apart: the frames of any clip then lie in one stretch of memory.
    """

    def __init__(self, clip: ClipGeometry, embedding_size: int) -> None:
        """Start before the first tick.

        Args:
            clip: N frames, one every `every` ticks.
            embedding_size: D.

        Raises:
            ConfigError: It would take more than `MAX_WINDOW_BYTES`.
        """
        shape = (clip.every, 2 * clip.frames)
        size = shape[0] * shape[1] * embedding_size * 4
        if size > MAX_WINDOW_BYTES:
            raise ConfigError(
                f"clips of {clip.ticks} ticks of {embedding_size} values take {size >> 20} MiB a"
                f" session, more than {MAX_WINDOW_BYTES >> 20}; train with shorter clips"
            )
        self._frames, self._every = clip.frames, clip.every
        self._rows = np.zeros((*shape, embedding_size), np.float32)
        self._there = np.zeros(shape, np.bool_)
        self._newest = [-1] * clip.every  # of each ring, in its own count

    def put(self, index: int, embedding: NDArray[np.float32]) -> None:
        """Take the embedding of a tick, float32 (D,); ticks come in order."""
        count, ring = divmod(index, self._every)
        newest = self._newest[ring]
        if count > newest + 1:
            self._skip(ring, range(newest + 1, min(count, newest + 1 + self._frames)))
        slot = count % self._frames
        rows = self._rows[ring]
        rows[slot] = embedding
        rows[slot + self._frames] = embedding
        if count < self._frames or not self._there[ring, slot]:
            self._there[ring, slot :: self._frames] = True
        self._newest[ring] = count

    def _skip(self, ring: int, counts: range) -> None:
        """Ticks that have no embedding: what is in their places is from long ago."""
        for count in counts:
            slot = count % self._frames
            self._there[ring, slot :: self._frames] = False
            self._rows[ring, slot :: self._frames] = 0.0

    def has(self, index: int) -> bool:
        """Whether the embedding of this tick, or of a later one, is there."""
        count, ring = divmod(index, self._every)
        return self._newest[ring] >= count

    def clip(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The clip that ends at the tick that was put last.

        Returns:
            Float32 (N, D), oldest first, zeros where there is none; bool (N,), where there is one.
            Both are views, which stand until the next `put`.
        """
        count, ring = divmod(index, self._every)
        first = (count + 1) % self._frames
        stretch = slice(first, first + self._frames)
        return self._rows[ring, stretch], self._there[ring, stretch]
