"""Parts of an embedding that speak only while another one is missing.

What is around the gaze point tells steps apart better than the whole picture, and both together no
better than it alone (docs/guidance.md); but a wearer's eyes may not be tracked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.guidance.emissions import EmissionModel, EmissionSettings
from keystep_models.guidance.filter_settings import FilterSettings

Embedding = Mapping[str, NDArray[np.floating] | None]


class StandIns:
    """Which parts speak, tick after tick of one session.

    A part that stands in is silent until the other has been missing for half of `blind_s`: not at
    every blink, and before the filter says that it cannot see.
    """

    def __init__(
        self, model: EmissionModel, emissions: EmissionSettings, filtering: FilterSettings
    ) -> None:
        """Start a session in which nothing was missing yet."""
        self._others = {
            name: other for name, other in emissions.stand_ins.items() if other in model.parts
        }
        self._after_ticks = max(1, filtering.ticks(filtering.blind_s / 2))
        self._missing = dict.fromkeys(sorted(set(self._others.values())), 0)

    def speaking(self, embedding: Embedding, elapsed: int = 1) -> Embedding:
        """A tick's parts without those that are silent in it.

        Args:
            embedding: Part to its values; None where it is missing.
            elapsed: Ticks since the last one.
        """
        for other, before in self._missing.items():
            there = embedding.get(other) is not None
            self._missing[other] = 0 if there else min(before + elapsed, self._after_ticks)
        silent = {
            name for name, other in self._others.items()
            if self._missing[other] < self._after_ticks
        }  # fmt: skip
        return {name: None if name in silent else part for name, part in embedding.items()}

    def snapshot(self) -> list[int]:
        """What the next tick needs."""
        return list(self._missing.values())

    def restore(self, snapshot: Sequence[int]) -> None:
        """Go on from a `snapshot`; DataError where it is none of these parts'."""
        counts = list(snapshot)
        if len(counts) != len(self._missing) or not all(type(each) is int for each in counts):
            raise DataError(f"expected {len(self._missing)} counts of ticks, got {counts!r:.60}")
        limits = [min(max(each, 0), self._after_ticks) for each in counts]
        self._missing = dict(zip(self._missing, limits, strict=True))
