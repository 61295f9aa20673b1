"""Confidence accumulated per step: what gains adds up, what does not gain decays.

Source: Schoonbeek et al., IndustReal, WACV 2024 (accumulated-confidence baselines).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from keystep_capture.errors import ConfigError, DataError

# Below this a sum no longer changes any float64 sum with a confidence above 1e-80.
_NEGLIGIBLE: Final = 1e-100


class ConfidenceSums:
    """Float64 sum of confidences per step id, with decay; untouched steps cost nothing."""

    def __init__(self, *, decay: float = 0.75) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ConfigError(f"expected a decay from 0 to 1, got {decay}")
        self._decay = decay
        self._sum_by_step: dict[int, float] = {}
        self._gained: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no step has a sum and none gained since the last decay."""
        return not self._sum_by_step and not self._gained

    def add(self, step_id: int, confidence: float) -> float:
        """Let a step gain; returns its new sum and keeps it from the next decay."""
        total = self._sum_by_step.get(step_id, 0.0) + confidence
        self._sum_by_step[step_id] = total
        self._gained.add(step_id)
        return total

    def reset(self, step_id: int) -> None:
        """Set a step's sum to 0."""
        self._sum_by_step.pop(step_id, None)

    def decay(self) -> None:
        """Multiply the sums of steps that did not gain since the last call by the factor."""
        sums = self._sum_by_step
        if sums:
            gained, factor = self._gained, self._decay
            for step_id in [step_id for step_id in sums if step_id not in gained]:
                total = sums[step_id] * factor
                if total > _NEGLIGIBLE:
                    sums[step_id] = total
                else:
                    del sums[step_id]
        if self._gained:
            self._gained.clear()

    def snapshot(self) -> dict[str, Any]:
        """The factor, sums and gainers since the last decay, as values that JSON holds exactly."""
        return {
            "decay": self._decay,
            "sum_by_step": {str(step_id): total for step_id, total in self._sum_by_step.items()},
            "gained": sorted(self._gained),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over a `snapshot`; DataError, and no change, when it is malformed."""
        try:
            if snapshot["decay"] != self._decay:
                raise DataError(
                    f"expected sums that decay by {self._decay}, got {snapshot['decay']}"
                )
            sums = {int(step_id): float(x) for step_id, x in snapshot["sum_by_step"].items()}
            gained = {int(step_id) for step_id in snapshot["gained"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"expected a snapshot of confidence sums, got {snapshot!r}") from error
        if not all(math.isfinite(total) for total in sums.values()):
            raise DataError(f"expected finite sums, got {sums}")
        self._sum_by_step.clear()  # in place: another branch may share the mapping
        self._sum_by_step.update(sums)
        self._gained = gained

    def unite(self, other: ConfidenceSums, *, weight: float) -> None:
        """Replace both sums by (1 - weight) x own + weight x other's, from then on one vector.

        Both go on adding to it and decaying it; which steps gained stays each one's own.
        """
        if self._sum_by_step is other._sum_by_step:
            return
        for step_id in {*self._sum_by_step, *other._sum_by_step}:
            self._sum_by_step[step_id] = self.blended(other, step_id, weight=weight)
        other.share(self)

    def share(self, other: ConfidenceSums) -> None:
        """Give up the own sums for the other's, as one vector from now on."""
        self._sum_by_step = other._sum_by_step

    def blended(self, other: ConfidenceSums, step_id: int, *, weight: float) -> float:
        """One step's (1 - weight) x own sum + weight x the other's; changes nothing."""
        mine, theirs = self._sum_by_step.get(step_id, 0.0), other._sum_by_step.get(step_id, 0.0)
        return (1.0 - weight) * mine + weight * theirs
