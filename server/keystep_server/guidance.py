"""What the wearer is told now: derived from the component state, numbered, latest wins."""

from __future__ import annotations

from dataclasses import dataclass, field

from keystep_capture import wire
from keystep_models.psr.procedure import Procedure, ProcedureStep
from keystep_models.psr.recogniser import Recogniser
from keystep_server.standing import StandingReports

_TITLE_CHARACTERS = 120  # of at most 4 bytes each: a message's header has 4,096 bytes
_TEXT_CHARACTERS = 400


def _name(step: ProcedureStep | None) -> wire.StepName | None:
    if step is None:
        return None
    return wire.StepName(id=step.id, title=step.title[:_TITLE_CHARACTERS])


@dataclass(slots=True, kw_only=True)
class Guide:
    """Turns a session's progress into guidance.

    Attributes:
        logic: Recognises the steps; holds the component state.
        standing: What it has reported and not taken back.
        latest: The newest guidance; None before the first.
    """

    logic: Recogniser
    standing: StandingReports = field(init=False)
    latest: wire.Guidance | None = None

    def __post_init__(self) -> None:
        self.standing = StandingReports(procedure=self.procedure)

    @property
    def procedure(self) -> Procedure:
        """What the wearer is guided through."""
        return self.logic.procedure

    @property
    def current_step(self) -> ProcedureStep | None:
        """The first step that can be done now; None when all are done."""
        possible = self.procedure.next_steps(self.logic.state, self.standing.done)
        return possible[0] if possible else None

    @property
    def mistake(self) -> ProcedureStep | None:
        """The newest mistake that is still there, as the step that reports it."""
        state = self.logic.state
        wrong = [s for s in self.standing if s.kind == "incorrect" and state[s.component_idx] == -1]
        return self.procedure.step(wrong[-1].step_id) if wrong else None

    def update(
        self, *, device_time_ns: int, blind: bool = False, revision: int | None = None
    ) -> wire.Guidance | None:
        """The guidance of this moment, or None if it says what the last one said.

        Args:
            device_time_ns: Time of the evidence.
            blind: Whether the evidence has stopped coming: better nothing than something stale.
            revision: To number it by; by default one more than the last.
        """
        remaining = self.procedure.remaining_steps(self.logic.state, self.standing.done)
        current = self.current_step
        following = next((step for step in remaining if step is not current), None)
        step_count = len(self.procedure.expected_steps)
        severity, text = self._words(current, blind=blind)
        guidance = wire.Guidance(
            protocol=wire.PROTOCOL,
            revision=revision or (self.latest.revision + 1 if self.latest else 1),
            severity=severity,
            current_step=_name(current),
            next_step=_name(following),
            text=text[:_TEXT_CHARACTERS],
            progress=(step_count - len(remaining), step_count),
            device_time_ns=device_time_ns,
        )
        if self.latest is not None and _content(guidance) == _content(self.latest):
            return None
        self.latest = guidance
        return guidance

    def _words(self, current: ProcedureStep | None, *, blind: bool) -> tuple[wire.Severity, str]:
        if blind:
            return "cannot_see", "I can't see: no picture of the work is coming in."
        if not self.logic.can_see:
            return "cannot_see", "I can't see the work: it is not in view."
        if (mistake := self.mistake) is not None:
            return "caution", f"Check this: {mistake.title}."
        if current is None:
            return "info", "All steps are done."
        return "info", f"{current.title}."


def _content(guidance: wire.Guidance) -> tuple[object, ...]:
    """All that the wearer sees of it."""
    return (
        guidance.severity,
        guidance.current_step,
        guidance.next_step,
        guidance.text,
        guidance.progress,
    )
