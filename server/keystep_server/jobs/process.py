"""A job's subprocess: its progress, its log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

MAX_LINE_BYTES = 64 * 1024
MAX_LOG_BYTES = 1024 * 1024
NICE = 19
"""The lowest priority there is: live sessions get the processor first."""
_TERM_S = 5.0  # from SIGTERM to SIGKILL
_ERROR_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a process ended: its exit code, negative for a signal, and its last line on stderr."""

    code: int
    message: str

    @property
    def reason(self) -> str:
        """Why it failed, for people."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            hint = "; perhaps memory ran out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
        return self.message or f"its process ended with code {self.code} and without a word"


def last_line(errors: bytes) -> str:
    """What the `keystep` command said last on stderr, where it tells of its errors."""
    text = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return text.removeprefix("keystep: ")[-_ERROR_CHARS:]


class JobLog:
    """A job's log file; goes on where an earlier attempt's ended, up to a size."""

    def __init__(self, path: Path, limit: int = MAX_LOG_BYTES) -> None:
        """Open the file, making its folder.

        Raises:
            OSError: The disk does not take it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._room = limit - path.stat().st_size

    def note(self, at: datetime, text: str) -> None:
        """Write a line of the server's own."""
        self.write(f"[{at.isoformat(timespec='seconds')}] {text}\n".encode())

    def write(self, content: bytes) -> None:
        """Write what still fits; a full disk must not end the job, which says so itself."""
        if self._room <= 0:
            return
        if len(content) > self._room:
            content = content[: self._room] + b"\n[the log is full; more was left out]\n"
            self._room = 0
        self._room -= len(content)
        with contextlib.suppress(OSError):
            self._file.write(content)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JobProcess:
    """A running subprocess of lowest priority, in a process group of its own."""

    def __init__(self, process: Process, log: JobLog) -> None:
        self._process = process
        self._log = log
        self._message = b""
        self._reading = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(
        cls, program: Sequence[str], arguments: Sequence[str], *, folder: Path, log: JobLog
    ) -> Self:
        """Start a program.

        Args:
            program: How the `keystep` command is called; the first is a path.
            arguments: Its arguments.
            folder: Where it writes; it is locked while it runs.
            log: Where its stderr goes.

        Raises:
            OSError: It cannot be started.
        """
        child = (sys.executable, "-m", "keystep_server.jobs.child")
        process = await asyncio.create_subprocess_exec(
            *(*child, str(os.getpid()), str(NICE), str(folder / "lock"), *program, *arguments),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # a Ctrl-C is for the server, which then ends it
        )
        return cls(process, log)

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        return self._process.pid

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """The JSON objects that it writes to stdout, a line each; other lines are passed over."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than a line may be; asyncio has thrown it away
                continue
            if not line:
                return
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    async def ended(self) -> Ending:
        """Wait for its end."""
        await asyncio.shield(self._reading)
        code = await self._process.wait()
        return Ending(code=code, message=last_line(self._message))

    async def stop(self) -> None:
        """End it and all that it started: asked first, then without asking."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, kind)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERM_S):
                    await self._process.wait()
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it left behind
        await asyncio.shield(self._reading)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while content := await self._process.stderr.read(4096):
            self._log.write(content)
            self._message = (self._message + content)[-_ERROR_CHARS * 4 :]
