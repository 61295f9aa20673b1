"""What the wearer asks for: commands spoken to the headset (docs/wire.md) or sent over REST.

A command is run between two batches of its session's packets, and what it changed is written down
before it is answered, so that a restarted server goes on with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec
import structlog

from keystep_capture import wire
from keystep_capture.errors import StateError
from keystep_server.sessions import SessionRegistry
from keystep_server.storage import Branch, SessionState, StepEvent, StepEventKind

if TYPE_CHECKING:
    from keystep_models.psr.procedure import ProcedureStep
    from keystep_server.guidance import Guide
    from keystep_server.live import LiveSession

CommandName: TypeAlias = Literal[
    "next", "back", "done", "repeat", "pause", "go on", "start recording", "stop recording"
]
COMMANDS: Final[tuple[str, ...]] = get_args(CommandName)
MAX_WAITING = 8
"""Commands of one session that wait for their turn; a wearer does not speak faster."""
MAX_REMEMBERED = 64
"""Answers kept of one session, so that a command that comes again does nothing."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutcome:
    """What became of a command.

    Attributes:
        accepted: Whether it did what it asks for.
        text: For the wearer; empty where the guidance that follows says it all.
    """

    accepted: bool
    text: str = ""


SetRecording: TypeAlias = Callable[[str, bool], Awaitable[CommandOutcome]]
"""Begins or ends a recording of a session (its id, on or off) and says how that went."""


class CommandMemory:
    """Answers to a session's newest commands by their ids."""

    def __init__(self, answers: Iterable[tuple[str, bool, str]] = ()) -> None:
        self._outcomes: OrderedDict[str, CommandOutcome] = OrderedDict()
        for command_id, accepted, text in answers:
            self.keep(command_id, CommandOutcome(accepted=bool(accepted), text=str(text)))

    def keep(self, command_id: str, outcome: CommandOutcome) -> None:
        """Remember an answer, and forget the oldest."""
        self._outcomes[command_id] = outcome
        while len(self._outcomes) > MAX_REMEMBERED:
            self._outcomes.popitem(last=False)

    def get(self, command_id: str) -> CommandOutcome | None:
        """The answer a command got; None if it is new."""
        return self._outcomes.get(command_id)

    def snapshot(self) -> list[tuple[str, bool, str]]:
        """All of it as JSON values, oldest first."""
        return [(name, one.accepted, one.text) for name, one in self._outcomes.items()]


class CommandDesk:
    """Runs the commands of all sessions; belongs to the event loop."""

    def __init__(
        self,
        *,
        registry: SessionRegistry,
        live_of: Callable[[str], LiveSession | None],
        announce: Callable[[str, str], None],
        set_recording: SetRecording,
    ) -> None:
        """Take what commands act on.

        Args:
            registry: Knows the sessions.
            live_of: The live session of an id, if a source has joined it.
            announce: Told of a session's new state.
            set_recording: Who records on request.
        """
        self._registry = registry
        self._live_of = live_of
        self._announce = announce
        self._set_recording = set_recording
        self._waiting: Counter[str] = Counter()

    def run(
        self, session_id: str, command: str, command_id: str
    ) -> Coroutine[Any, Any, CommandOutcome]:
        """Run a command; to be awaited at once. A `command_id` that was answered does nothing.

        Raises:
            NotFoundError: There is no such session.
            StateError: It is closed or being closed, or no source has joined it.
        """
        if self._waiting[session_id] >= MAX_WAITING:
            return _too_many()
        self._waiting[session_id] += 1
        return self._run(session_id, command, command_id)

    async def _run(self, session_id: str, command: str, command_id: str) -> CommandOutcome:
        try:
            live = await self._find(session_id)
            async with live.turn:
                known = live.commands.get(command_id)
                if known is not None:
                    return known
                if live.is_finished:
                    raise StateError(f"session {session_id} is being closed; open a new one")
                outcome = await self._act(live, command, command_id)
                live.commands.keep(command_id, outcome)
            await live.written_down(command_id)
        finally:
            self._waiting[session_id] -= 1
            if not self._waiting[session_id]:
                del self._waiting[session_id]
        log.info("command", session=session_id, command=command[:64], accepted=outcome.accepted)
        return outcome

    async def _find(self, session_id: str) -> LiveSession:
        session = await self._registry.get(session_id)
        if session.state is SessionState.CLOSED:
            raise StateError(f"session {session_id} is closed; open a new one")
        live = self._live_of(session_id)
        if live is None:
            raise StateError(
                f"session {session_id} has no source: commands are taken once its headset has "
                "connected to this server"
            )
        return live

    async def _act(self, live: LiveSession, command: str, command_id: str) -> CommandOutcome:
        if command in ("start recording", "stop recording"):
            return await self._set_recording(live.session.id, command == "start recording")
        if command in ("pause", "go on"):
            return await self._pause(live, paused=command == "pause")
        if command not in COMMANDS:
            return _refused(f"I don't know the command {command[:40]!r}.")
        if live.guide is None:
            return _refused("This session has no procedure.")
        if command == "repeat":
            return _repeat(live, live.guide)
        if live.guide.paused:
            return _refused('The session is paused. Say "go on" first.')
        if command == "done":
            return await _complete_shown(live, live.guide, command_id)
        return _look(live, live.guide, forward=command == "next")

    async def _pause(self, live: LiveSession, *, paused: bool) -> CommandOutcome:
        if live.paused == paused:
            return _refused("The session is paused already." if paused else "It is not paused.")
        await self._registry.set_paused(live.session.id, paused)
        live.set_paused(paused)
        live.recorder.session_note("paused" if paused else "resumed")
        self._announce(live.session.id, "paused" if paused else "open")
        if live.guide is None:
            return CommandOutcome(accepted=True, text="Paused." if paused else "Going on.")
        _tell(live)
        return CommandOutcome(accepted=True)


async def _too_many() -> CommandOutcome:
    return _refused("Too many commands at once.")


def _refused(text: str) -> CommandOutcome:
    return CommandOutcome(accepted=False, text=text)


def _tell(live: LiveSession) -> None:
    """Tell the wearer what is new; it rests on the evidence there was."""
    latest = live.guide.latest if live.guide is not None else None
    live.tell(device_time_ns=latest.device_time_ns if latest is not None else 0)


def _repeat(live: LiveSession, guide: Guide) -> CommandOutcome:
    """Send the newest guidance again, to be spoken."""
    if guide.latest is None:
        return _refused("There is nothing to repeat.")
    number = guide.latest.revision + 1
    guide.latest = msgspec.structs.replace(guide.latest, revision=number, spoken_revision=number)
    guide.said = (guide.latest.spoken, number)
    live.send_latest()
    return CommandOutcome(accepted=True)


def _look(live: LiveSession, guide: Guide, *, forward: bool) -> CommandOutcome:
    """Show the step after or before the one on show; what was recognised stays."""
    step = guide.step_after(guide.shown_step) if forward else _step_before(guide)
    if step is None:
        return _refused("This is the last step." if forward else "This is the first step.")
    guide.looking_at = None if step is guide.current_step else step.id
    _tell(live)
    return CommandOutcome(accepted=True)


def _step_before(guide: Guide) -> ProcedureStep | None:
    """The step before the one on show in the procedure's order; after the last step, that one."""
    steps, shown = guide.procedure.expected_steps, guide.shown_step
    position = len(steps) if shown is None else steps.index(shown)
    return steps[position - 1] if position > 0 else None


async def _complete_shown(live: LiveSession, guide: Guide, command_id: str) -> CommandOutcome:
    """Report the step on show as completed, and have the recognition go on from there."""
    step = guide.shown_step
    if step is None:
        return _refused("All steps are done.")
    services, session_id = live.services, live.session.id
    events = await asyncio.to_thread(services.store.events, session_id, limit=10_000)
    told = [event for event in events if event.branch is Branch.WEARER]
    before = [event for event in told if event.evidence.get("command_id") == command_id]
    if before:  # the server was killed between writing the event and its state
        step = guide.procedure.step(before[0].step_id)
    elif guide.is_done(step):
        return _refused(f"{step.title}: that is done already.")
    else:
        device_time_ns, epoch = live.newest_moment()
        event = StepEvent(
            step_id=step.id,
            title=step.title,
            kind=_KIND_OF[step.kind],
            frame_idx=None,
            device_time_ns=device_time_ns,
            epoch=epoch,
            detected_at=datetime.now(UTC),
            confidence=1.0,
            branch=Branch.WEARER,
            evidence={"method": "wearer", "command_id": command_id},
            occurrence=sum(event.step_id == step.id for event in told),
        )
        stored = await services.events.append(session_id, event)
        live.recorder.step_event(stored)
        services.metrics.step_event_stored(event.branch.value, event.kind.value)
    event_id = before[0].id if before else stored.id
    guide.standing.add(guide.logic.declare(step.id), event_id)
    guide.looking_at = None
    _tell(live)
    await asyncio.to_thread(live.store_progress)
    return CommandOutcome(accepted=True, text=f"Done: {step.title}.")


_KIND_OF: Final[Mapping[str, StepEventKind]] = MappingProxyType(
    {kind.value: kind for kind in StepEventKind}
)


def command_result(command_id: str, outcome: CommandOutcome) -> wire.CommandResult:
    """The outcome as the wire carries it."""
    return wire.CommandResult(
        protocol=wire.PROTOCOL,
        command_id=command_id,
        accepted=outcome.accepted,
        text=outcome.text[:400],
    )
