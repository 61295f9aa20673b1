"""The demo's child processes: started, read until ready, ended."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from keystep_capture.errors import KeystepError

READY_S = 60.0
END_S = 15.0


class ProcessError(KeystepError):
    """A child process of the demo failed."""


class KeystepProcess:
    """One `keystep` command as a child process; its log goes to a file."""

    def __init__(self, name: str, log_path: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._log_path = log_path
        self._process = process

    @classmethod
    async def start(cls, name: str, log_folder: Path, *arguments: str) -> KeystepProcess:
        """Run `keystep ARGUMENTS`."""
        await asyncio.to_thread(log_folder.mkdir, parents=True, exist_ok=True)
        path = log_folder / f"{name}.log"
        with await asyncio.to_thread(path.open, "wb") as log_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "keystep_capture.cli",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
        return cls(name, path, process)

    async def ready(self) -> dict[str, str]:
        """Wait for the line `READY key=value ...`; its values.

        Raises:
            ProcessError: The process ended before, or took too long.
        """
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    text = self._log_path.read_text(errors="replace")
                    if found := re.search(r"^READY (.*)$", text, re.MULTILINE):
                        return dict(part.split("=", 1) for part in found[1].split())
                    if self._process.returncode is not None:
                        raise ProcessError(self._story("ended before it was ready"))
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ProcessError(self._story(f"was not ready within {READY_S:g} s")) from None

    async def ended(self) -> None:
        """Wait until it ends by itself.

        Raises:
            ProcessError: It failed.
        """
        if await self._process.wait() != 0:
            raise ProcessError(self._story(f"failed with code {self._process.returncode}"))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.is_running:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """Ask it to end as Ctrl-C does; kill it if it does not.

        Raises:
            ProcessError: It failed or had to be killed.
        """
        self.signal(signal.SIGINT)
        try:
            async with asyncio.timeout(END_S):
                await self.ended()
        except TimeoutError:
            await self.kill()
            raise ProcessError(self._story(f"did not end within {END_S:g} s")) from None

    async def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.is_running:
            self._process.kill()
            await self._process.wait()

    def _story(self, what: str) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return f"{self.name} {what}; its log ({self._log_path}) ends: {' / '.join(lines[-3:])}"
