"""Who sends, and what it wants to hear of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from keystep_capture import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who sends what; the constant part of a hello.

    Attributes:
        device: The headset's id.
        client: Name and version of the sending program, for people.
        streams: The streams it will send.
        kind: `expert` or `guided`.
        session: The session to continue; None: the device's open one, or a new one.
        task: Name of the task, for a new session.
        procedure: Name of the procedure to be guided by, for a new session.
        method: Name of the method that recognises its steps, for a new session; None: the server's
            choice.
        replay: Lossless: every stream waits for credit.
        time_scale: Data seconds a second.
    """

    device: str
    client: str
    streams: tuple[str, ...]
    kind: wire.SessionKind = "guided"
    session: str | None = None
    task: str | None = None
    procedure: str | None = None
    method: str | None = None
    replay: bool = False
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A source between two starts of its program or its headset; an epoch, to the server.

    Attributes:
        instance: The random word of the start.
        session: The session to enter; None: as `Source`.
        streams: The streams it sends.
    """

    instance: str
    session: str | None
    streams: tuple[str, ...]


def _ignore(*_: object) -> None:
    """Take no notice."""


@dataclass(slots=True, kw_only=True)
class Callbacks:
    """What a source wants to hear of; called on the loop."""

    on_guidance: Callable[[wire.Guidance], None] = _ignore
    on_finish: Callable[[wire.Finish], None] = _ignore
    on_session: Callable[[wire.Welcome], None] = _ignore
    on_refused: Callable[[wire.Refused], None] = field(default=_ignore)
    on_picture: Callable[[wire.Picture, bytes], None] = _ignore
    on_command_result: Callable[[wire.CommandResult], None] = _ignore
