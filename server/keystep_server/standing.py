"""What a session's method has reported and not taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.procedure import Procedure

MAX_REPORTS = 1000
"""The newest are kept; a method takes back what it reported last of a component, if anything."""


@dataclass(slots=True, kw_only=True)
class StandingReports:
    """Reports that hold, oldest first, each with the id of its stored event.

    A report is known by its frame and step: a method reports a step once a frame.
    """

    procedure: Procedure
    _reports: dict[tuple[int, int], tuple[StepCompletion, str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[StepCompletion]:
        """The reports, oldest first."""
        return (step for step, _ in self._reports.values())

    def add(self, step: StepCompletion, event_id: str) -> None:
        """Note a report and the event it was stored as."""
        self._reports[step.frame_idx, step.step_id] = (step, event_id)
        while len(self._reports) > MAX_REPORTS:
            del self._reports[next(iter(self._reports))]

    def take_back(self, step: StepCompletion) -> str | None:
        """Forget a report that no longer holds; its event's id, None if it is not known."""
        found = self._reports.pop((step.frame_idx, step.step_id), None)
        return None if found is None else found[1]

    @property
    def done(self) -> frozenset[int]:
        """Ids of the steps done: a removal, or a mistake, undoes what its component had."""
        done: set[int] = set()
        for step in self:
            if step.kind != "completed":
                installation = self.procedure.step_for(step.component_idx, "completed")
                done.discard(-1 if installation is None else installation.id)
            if step.kind != "incorrect":
                done.add(step.step_id)
        return frozenset(done)

    def snapshot(self) -> list[list[Any]]:
        """All of it, as values that JSON holds exactly."""
        return [[*astuple(step), event_id] for step, event_id in self._reports.values()]

    def restore(self, snapshot: Sequence[Sequence[Any]]) -> None:
        """Take over a `snapshot`; TypeError or ValueError when it is malformed."""
        reports = {}
        for *values, event_id in snapshot:
            step = StepCompletion(*values)
            reports[step.frame_idx, step.step_id] = (step, str(event_id))
        self._reports = reports
