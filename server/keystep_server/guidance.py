"""What the wearer is told now: derived from the component state, numbered, latest wins."""

from __future__ import annotations

from dataclasses import dataclass, field

from keystep_capture import wire
from keystep_models.psr.logic import StepCompletion, StepLogic
from keystep_models.psr.procedure import ComponentState, Procedure, ProcedureStep

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
        procedure: What the wearer is guided through.
        logic: Holds the component state.
        done: Ids of the steps completed so far.
        latest: The newest guidance; None before the first.
    """

    procedure: Procedure
    logic: StepLogic
    done: set[int] = field(default_factory=set)
    latest: wire.Guidance | None = None

    def note(self, completion: StepCompletion) -> None:
        """Take a step event into account."""
        if completion.kind == "completed":
            self.done.add(completion.step_id)
            return
        undone = {
            step.id
            for step in self.procedure.steps
            if step.component_idx == completion.component_idx and step.kind == "completed"
        }
        self.done -= undone

    @property
    def current_step(self) -> ProcedureStep | None:
        """The first step that can be done now; None when all are done."""
        possible = self.procedure.next_steps(self._state, self.done)
        return possible[0] if possible else None

    @property
    def _state(self) -> ComponentState:
        return self.logic.state or self.procedure.initial_state

    def update(
        self,
        *,
        device_time_ns: int,
        mistake: str | None = None,
        blind: bool = False,
        revision: int | None = None,
    ) -> wire.Guidance | None:
        """The guidance of this moment, or None if it says what the last one said.

        Args:
            device_time_ns: Time of the evidence.
            mistake: Title of a step that was just seen done wrong.
            blind: Whether the evidence is missing: better nothing than something stale.
            revision: To number it by; by default one more than the last.
        """
        remaining = self.procedure.remaining_steps(self._state, self.done)
        current = self.current_step
        following = next((step for step in remaining if step is not current), None)
        step_count = len(self.procedure.expected_steps)
        severity, text = _words(current, mistake=mistake, blind=blind)
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


def _words(
    current: ProcedureStep | None, *, mistake: str | None, blind: bool
) -> tuple[wire.Severity, str]:
    if blind:
        return "cannot_see", "I can't see: no picture of the work is coming in."
    if mistake is not None:
        return "caution", f"Check this: {mistake}."
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
