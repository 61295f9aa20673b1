"""What the wearer is told now: derived from the component state, numbered, latest wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from keystep_capture import wire
from keystep_models.psr.procedure import Procedure, ProcedureStep
from keystep_models.psr.recogniser import Follower
from keystep_server.standing import StandingReports

_TITLE_CHARACTERS = 120  # of at most 4 bytes each: a message's header has 4,096 bytes
_TEXT_CHARACTERS = 400
_SPOKEN_CHARACTERS = 160


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
        looking_at: Id of the step the wearer asked to see; None: the recognised one is on show.
        paused: Whether the wearer has paused the session.
        said: What was last to be spoken, and the revision that first said it.
        picture_ids: Exemplar pictures by step id; a step may have none.
    """

    logic: Follower
    standing: StandingReports = field(init=False)
    latest: wire.Guidance | None = None
    looking_at: int | None = None
    paused: bool = False
    said: tuple[str, int] = ("", 0)
    picture_ids: Mapping[int, str] = field(default_factory=dict)

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
    def shown_step(self) -> ProcedureStep | None:
        """The step on show: the one the wearer asked to see, or the current one."""
        if self.looking_at is not None:
            return self.procedure.step(self.looking_at)
        return self.current_step

    def step_after(self, shown: ProcedureStep | None) -> ProcedureStep | None:
        """The step that comes after the one on show, among those that remain."""
        if shown is None:
            return None
        remaining = self.procedure.remaining_steps(self.logic.state, self.standing.done)
        if self.looking_at is not None:
            ids = [step.id for step in self.procedure.expected_steps]
            later = set(ids[ids.index(shown.id) + 1 :])
            return next((step for step in remaining if step.id in later), None)
        return next((step for step in remaining if step is not shown), None)

    def is_done(self, step: ProcedureStep) -> bool:
        """Whether a step needs no more doing."""
        return step not in self.procedure.remaining_steps(self.logic.state, self.standing.done)

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
        shown = self.shown_step
        step_count = len(self.procedure.expected_steps)
        severity, text = self._words(shown, blind=blind)
        number = revision or (self.latest.revision + 1 if self.latest else 1)
        spoken = text[:_SPOKEN_CHARACTERS]
        guidance = wire.Guidance(
            protocol=wire.PROTOCOL,
            revision=number,
            severity=severity,
            current_step=_name(shown),
            next_step=_name(self.step_after(shown)),
            text=text[:_TEXT_CHARACTERS],
            progress=(step_count - len(remaining), step_count),
            device_time_ns=device_time_ns,
            spoken=spoken,
            spoken_revision=number if spoken != self.said[0] else self.said[1],
            picture=None if shown is None else self.picture_ids.get(shown.id),
        )
        if self.latest is not None and _content(guidance) == _content(self.latest):
            return None
        self.latest, self.said = guidance, (spoken, guidance.spoken_revision)
        return guidance

    def _words(self, shown: ProcedureStep | None, *, blind: bool) -> tuple[wire.Severity, str]:
        if self.paused:
            return "info", 'Paused. Say "go on" to go on.'
        if self.looking_at is not None and shown is not None:
            return "info", f"{'Done already' if self.is_done(shown) else 'Later'}: {shown.title}."
        if blind:
            return "cannot_see", "I can't see: no picture of the work is coming in."
        if not self.logic.can_see:
            return "cannot_see", "I can't see the work: it is not in view."
        if (mistake := self.mistake) is not None:
            return "caution", f"Check this: {mistake.title}."
        if shown is None:
            return "info", "All steps are done."
        return "info", f"{shown.title}."


def _content(guidance: wire.Guidance) -> tuple[object, ...]:
    """All that the wearer sees of it."""
    return (
        guidance.severity,
        guidance.current_step,
        guidance.next_step,
        guidance.text,
        guidance.progress,
        guidance.picture,
    )
