"""One run of `keystep record`: begins a recording, shows how it goes, ends it, says where it is."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import typer

from keystep_capture.errors import NoAnswerError, NotFoundError, StateError
from keystep_server.rest_client import RestClient

LOOK_EVERY_S: Final = 1.0
LINE_EVERY_S: Final = 10.0
"""A line is written so often where the output is no terminal."""
CLOSE_WITHIN_S: Final = 600.0
_MEGABYTE: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSession:
    """Which session is to be recorded; None: as it is."""

    device_id: str
    task: str | None = None
    procedure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a session's recording stands.

    Attributes:
        state: `open`, `paused` or `closed`.
        is_live: Whether a headset has joined it since the server was started.
        is_on: Whether all streams are being recorded.
        packets: Packets written since the server was started.
        dropped: Packets left out since then, because the disk did not follow.
        waiting_bytes: What waits for the disk.
        size_bytes: What is in the files.
        disk_error: What the disk says, while nothing can be written.
    """

    state: str
    is_live: bool
    is_on: bool
    packets: int
    dropped: int
    waiting_bytes: int
    size_bytes: int
    disk_error: str | None
    dropped_by_stream: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """All of it in a line."""
        if not self.is_live and self.state != "closed":
            return "waiting for the headset to connect"
        size = f"{self.packets} packets, {self.size_bytes / _MEGABYTE:.1f} MB"
        left = f"dropped {self.dropped}, waiting {self.waiting_bytes / _MEGABYTE:.1f} MB"
        off = "" if self.is_on or self.state == "closed" else "video only, "
        disk = f", DISK: {self.disk_error}" if self.disk_error else ""
        return f"{off}{size}, {left}{disk}"


def read_progress(client: RestClient, session: str) -> Progress:
    """Ask how a session's recording stands.

    Raises:
        KeystepError: As `RestClient.send`.
    """
    found = client.get(f"/sessions/{session}/stats")
    recording: dict[str, Any] = found["stats"].get("recording", {})
    files = client.get("/recordings", session=session, limit=1)["recordings"]
    dropped: dict[str, int] = recording.get("dropped", {})
    return Progress(
        state=found["state"],
        is_live=bool(found["stats"].get("streams")),
        is_on=bool(recording.get("everything")),
        packets=recording.get("packets", 0),
        dropped=sum(dropped.values()),
        waiting_bytes=recording.get("waiting_bytes", 0),
        size_bytes=files[0]["size_bytes"] if files else 0,
        disk_error=recording.get("disk_error"),
        dropped_by_stream=dropped,
    )


class RecordRun:
    """Records one session from here to Ctrl-C, or for some seconds."""

    def __init__(
        self,
        client: RestClient,
        wanted: WantedSession,
        *,
        seconds: float | None,
        keep_open: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            client: Asks the server.
            wanted: The session.
            seconds: When to end it; None: when it is interrupted or the session is closed.
            keep_open: Leave a session open that is opened here.
            clock: Monotonic seconds.
        """
        self._client = client
        self._wanted = wanted
        self._seconds = seconds
        self._keep_open = keep_open
        self._clock = clock
        self._opened_here = False
        self._line = _LiveLine(clock)

    def run(self) -> None:
        """Begin, watch, end, and say where the recording is.

        Raises:
            StateError: It cannot be begun or ended, or no packet came.
            KeystepError: As `RestClient.send`.
        """
        session = self._begin()
        typer.echo(f"recording session {session} of {self._wanted.device_id}; Ctrl-C ends it")
        with _interruption() as interrupted:
            closed = self._watch(session, interrupted)
        self._line.end()
        self._end(session, closed=closed)
        self._conclude(session)

    def _begin(self) -> str:
        """Take the device's open session, or open one; its id."""
        wanted = self._wanted
        found = self._client.get("/sessions", device=wanted.device_id, limit=1)["sessions"]
        if found and found[0]["state"] != "closed":
            _check(found[0], wanted)
            session = str(found[0]["id"])
            self._client.send("PUT", f"/sessions/{session}/recording", body={"on": True})
            return session
        asked = {"task": wanted.task, "procedure": wanted.procedure}
        body = {"device_id": wanted.device_id, "kind": "expert", "record": True}
        body |= {name: value for name, value in asked.items() if value is not None}
        self._opened_here = True
        return str(self._client.send("POST", "/sessions", body=body)["id"])

    def _watch(self, session: str, interrupted: threading.Event) -> bool:
        """Show how it goes until the end; whether somebody else closed the session."""
        began_s = self._clock()
        while True:
            passed_s = self._clock() - began_s
            try:
                progress = read_progress(self._client, session)
                self._line.show(f"{passed_s:.0f} s: {progress.line()}")
                if progress.state == "closed":
                    return True
            except NoAnswerError as error:  # it goes on by itself when the server is back
                self._line.show(f"{passed_s:.0f} s: {error}")
            wait_s = LOOK_EVERY_S
            if self._seconds is not None:
                wait_s = min(wait_s, self._seconds - (self._clock() - began_s))
            if wait_s <= 0 or interrupted.wait(wait_s):
                return False

    def _end(self, session: str, *, closed: bool) -> None:
        if closed:
            typer.echo(f"session {session} was closed")
        elif self._opened_here and not self._keep_open:
            typer.echo("closing the session")
            self._client.send("POST", f"/sessions/{session}/close", timeout_s=CLOSE_WITHIN_S)
        else:
            self._client.send("PUT", f"/sessions/{session}/recording", body={"on": False})
            typer.echo(f"session {session} goes on, recorded no longer")

    def _conclude(self, session: str) -> None:
        progress = read_progress(self._client, session)
        if not progress.size_bytes:
            raise StateError(
                f"nothing was recorded of session {session}: no packet came; has the headset's "
                f"bridge connected as {self._wanted.device_id}?"
            )
        typer.echo(f"recording {session}: {progress.line()}")
        for stream, count in sorted(progress.dropped_by_stream.items()):
            typer.echo(f"left out, since the disk did not follow: {count} of {stream}")
        if progress.state == "closed":
            self._say_health(session)
        typer.echo(f"files {session}/recording, in sessions/ of the server's data directory")
        typer.echo(f"URL   {self._client.url(f'/recordings/{session}')}")

    def _say_health(self, session: str) -> None:
        try:
            path = f"/recordings/{session}/health"
            health = self._client.get(path, timeout_s=CLOSE_WITHIN_S)
        except NotFoundError:
            return
        typer.echo(f"health {health['verdict']}")
        for reason in health["reasons"]:
            typer.echo(f"- {reason}")


def _check(session: dict[str, Any], wanted: WantedSession) -> None:
    """Refuse to record another session than was asked for."""
    name = f"device {wanted.device_id} has the {session['state']} session {session['id']}"
    if session["kind"] != "expert":
        raise StateError(
            f"{name}, which is {session['kind']}, not expert: close it, or record it as it is "
            f"with keystep record start {session['id']}"
        )
    for what, asked in (("task", wanted.task), ("procedure", wanted.procedure)):
        if asked is not None and session[what] != asked:
            raise StateError(
                f"{name} of {what} {session[what]!r}, not {asked!r}: close it, or record it as it "
                f"is, without --{what}"
            )


class _LiveLine:
    """A line that is written over on a terminal, and a line now and then elsewhere."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._is_terminal = sys.stdout.isatty()
        self._written_s: float | None = None
        self._width = 0

    def show(self, text: str) -> None:
        now_s = self._clock()
        if self._is_terminal:
            typer.echo(f"\r{text:<{self._width}}", nl=False)
            self._width = len(text)
        elif self._written_s is None or now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            typer.echo(text)

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if self._width:
            typer.echo("")


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or SIGTERM) sets; a second one interrupts as ever."""
    asked = threading.Event()
    before = {}

    def ask(number: int, _frame: object) -> None:
        asked.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
