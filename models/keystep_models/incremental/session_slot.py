"""One session's place in the encoders' pool, from its first tick to its last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from keystep_models.incremental.encoders import IncrementalEncoders
from keystep_models.incremental.ticks import MAX_ABSOLUTE_VALUE, Ticks

Row = NDArray[np.float32]


class SessionSlot:
    """A slot that is taken when it is made and given back by `close`."""

    def __init__(self, encoders: IncrementalEncoders) -> None:
        """Take a slot.

        Raises:
            StateError: All slots are in use.
        """
        self._encoders = encoders
        self._slot: int | None = encoders.open()

    @property
    def cues(self) -> tuple[str, ...]:
        """The cues that are encoded."""
        return tuple(self._encoders.spec.cues)

    @property
    def memory_ticks(self) -> int:
        """How many of the newest ticks, stepped through in order, bring an empty slot to here.

        A row of one layer rests on the newest W rows of the layer below.
        """
        spec = self._encoders.spec
        return len(spec.layers) * (spec.context - 1) + 1

    def step(self, frame: int, rows: Mapping[str, Row | None]) -> dict[str, Row]:
        """Take the next tick.

        Args:
            frame: Its number, greater than the last one's.
            rows: Cue to raw feature, float32 (D,). Missing are those that are None, not there, or
                have a value that is not finite or beyond `MAX_ABSOLUTE_VALUE`.

        Returns:
            Adapted features of the cues that are there.

        Raises:
            ShapeError: A row has another size.
            StateError: The frame is not after the last one, or the slot was closed.
            ModelError: ONNX Runtime failed.
        """
        there = {
            cue: row[None]
            for cue in self.cues
            if (row := rows.get(cue)) is not None
            and bool((np.abs(row) <= MAX_ABSOLUTE_VALUE).all())
        }
        slot = -1 if self._slot is None else self._slot
        ticks = Ticks(
            slots=np.array([slot], np.int64),
            frames=np.array([frame], np.int64),
            raw=there,
            valid={},
        )
        found = self._encoders.step(ticks)
        return {cue: found.adapted[cue][0] for cue in there}

    def close(self) -> None:
        """Give the slot back; once is enough."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._encoders.close(slot)
