"""`keystep` commands as processes of the chain, and what is asked of a server."""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from keystep_server.demo_processes import KeystepProcess

HUNG_S = 90.0
"""What is awaited for longer has failed: this is no measurement."""


class Server:
    """`keystep serve`, which can be killed and started again on the same data and port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.data, self.options = folder, folder / "data", options
        self.wire, self.rest = "tcp://127.0.0.1:*", ""
        self._runs = 0
        self._process: KeystepProcess | None = None
        self.keeper: asyncio.Task[None] | None = None

    def keep_running(self) -> None:
        """Start it again whenever it ends, as a service manager does."""
        self.keeper = asyncio.create_task(self._keep_running())

    async def _keep_running(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if not self.process.is_running:
                await self.start()

    @property
    def start_count(self) -> int:
        return self._runs

    async def start(self) -> None:
        self._runs += 1
        self._process = await KeystepProcess.start(
            f"serve-{self._runs}",
            self.folder / "logs",
            *("serve", "--data-dir", str(self.data), "--rest-port", self.rest_port),
            *("--wire-bind", self.wire, "--publish-bind", "tcp://127.0.0.1:*", *self.options),
        )
        ready = await self._process.ready()
        self.wire, self.rest = ready["wire"], ready["rest"]

    @property
    def rest_port(self) -> str:
        return self.rest.rpartition(":")[2] or "0"

    @property
    def process(self) -> KeystepProcess:
        assert self._process is not None
        return self._process

    async def get(self, path: str, *, timeout_s: float = 60.0) -> Any:
        async with httpx.AsyncClient(base_url=self.rest, timeout=timeout_s) as rest:
            answer = await rest.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def memory_mb(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

    async def close(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
            await self._process.kill()


async def keystep(*arguments: str) -> None:
    """Run a `keystep` command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0, arguments


async def make_key(server: Server, name: str) -> Path:
    path = server.folder / f"{name}-{secrets.token_hex(2)}.key"
    await keystep("device", "add", name, "--out", str(path), "--data-dir", str(server.data))
    return path


async def until(ask: Callable[[], Awaitable[Any]], true: Callable[[Any], Any]) -> Any:
    """What is answered once it is as wanted."""
    async with asyncio.timeout(HUNG_S):
        while True:
            with suppress(httpx.TransportError):
                if true(answer := await ask()):
                    return answer
            await asyncio.sleep(0.05)
