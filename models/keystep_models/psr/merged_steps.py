"""The published merging of two branches' steps into one list.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385, as published with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from keystep_capture.errors import DataError
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.procedure import Procedure


class MergedSteps:
    """Says which of the steps that come are taken into the merged list.

    A step never seen before always is. One seen before is taken again only when its component's
    installation and removal were both seen, the installation first.
    """

    def __init__(self, procedure: Procedure) -> None:
        self._procedure = procedure
        self._seen: list[int] = []  # ids in the order of their first occurrence

    def take(self, steps: Sequence[StepCompletion]) -> list[StepCompletion]:
        """Those of a frame's steps that the merged list takes, in order."""
        taken = []
        for step in steps:
            is_new = step.step_id not in self._seen
            if is_new or self._can_recur(step.component_idx):
                taken.append(step)
            if is_new:
                self._seen.append(step.step_id)
        return taken

    def _can_recur(self, component_idx: int) -> bool:
        install = self._procedure.step_for(component_idx, "completed")
        removal = self._procedure.step_for(component_idx, "removed")
        if install is None or removal is None or removal.id not in self._seen:
            return False
        return install.id in self._seen[: self._seen.index(removal.id)]

    def snapshot(self) -> list[int]:
        """Ids seen, in the order of their first occurrence."""
        return list(self._seen)

    def restore(self, snapshot: Sequence[int]) -> None:
        """Take over a `snapshot`; DataError, and no change, when it is malformed."""
        known = {step.id for step in self._procedure.steps}
        if len(set(snapshot)) != len(snapshot) or not known.issuperset(snapshot):
            raise DataError(f"expected each a known step id, once; got {snapshot!r}")
        self._seen = list(snapshot)
