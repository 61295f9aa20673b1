"""The embeddings of a session's newest ticks: what the next clip is made of."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_models.storm.bundle import ClipGeometry

MAX_WINDOW_BYTES: Final = 16 << 20
"""So much one session may remember."""


class ClipWindow:
    """A ring of embeddings by tick; a tick without one, or left out, is missing in every clip."""

    def __init__(self, clip: ClipGeometry, embedding_size: int) -> None:
        """Start before the first tick.

        Args:
            clip: N frames, one every `every` ticks.
            embedding_size: D.

        Raises:
            ConfigError: It would take more than `MAX_WINDOW_BYTES`.
        """
        size = clip.ticks * embedding_size * 4
        if size > MAX_WINDOW_BYTES:
            raise ConfigError(
                f"clips of {clip.ticks} ticks of {embedding_size} values take {size >> 20} MiB a"
                f" session, more than {MAX_WINDOW_BYTES >> 20}; train with shorter clips"
            )
        self._ticks = clip.ticks
        self._before = np.arange(clip.frames - 1, 0, -1) * clip.every
        self._rows = np.zeros((clip.ticks, embedding_size), np.float32)
        self._indices = np.full(clip.ticks, -1, np.int64)

    def put(self, index: int, embedding: NDArray[np.float32] | None) -> None:
        """Take a tick's embedding, float32 (D,); None where it has none. Ticks come in order."""
        slot = index % self._ticks
        if embedding is None:
            self._indices[slot] = -1
            return
        self._rows[slot] = embedding
        self._indices[slot] = index

    def before(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The frames of the clip that ends at a tick, but the last.

        Returns:
            Float32 (N - 1, D), oldest first, zeros where there is none; bool (N - 1,), where
            there is one.
        """
        wanted = index - self._before
        slots = wanted % self._ticks
        there = (self._indices[slots] == wanted) & (wanted >= 0)
        rows = self._rows[slots]
        rows[~there] = 0.0
        return rows, there
