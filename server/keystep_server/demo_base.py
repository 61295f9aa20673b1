"""What every demo does: a server on this machine, simulated headsets, and plain words."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from keystep_capture.errors import ConfigError
from keystep_server.demo_processes import KeystepProcess, ProcessError

SETTLED_S = 0.8
_STRETCHES = {
    "capture_to_arrival": "capture to arrival at the server",
    "capture_to_feature": "capture to appearance features",
    "arrival_to_feature": "arrival to appearance features",
    "capture_to_event": "capture to step event stored",
    "capture_to_display": "capture to guidance on the headset",
    "arrival_to_event": "arrival to step event stored",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How the demo runs: see `keystep demo --help`; `token`: of REST, if the server has one."""

    speed: float
    keep: bool
    out: Path
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoServer:
    """A running server and how it is reached."""

    rest: httpx.AsyncClient
    rest_url: str
    wire: str
    data_dir: Path


class DemoRun:
    """Starts, plays, prints; the stories are told by classes built on it."""

    def __init__(self, settings: DemoSettings, console: Console | None = None) -> None:
        self._settings = settings
        self._console = console or Console(highlight=False)
        self._logs = settings.out / "logs"

    async def run(self) -> None:
        """Tell the story.

        Raises:
            ConfigError: The output folder holds something else.
            ProcessError: A part failed.
        """
        try:
            await self._run()
        except httpx.HTTPError as error:
            raise ProcessError(
                f"the server did not answer ({type(error).__name__}: {error}); "
                f"its log is {self._logs / 'serve.log'}"
            ) from None

    async def _run(self) -> None:
        started_s = time.monotonic()
        self._say(f"Starting the server on this machine; logs are in {self._logs}")
        async with AsyncExitStack() as stack:
            server = await self._start_server(stack)
            await self._tell(stack, server)
            self._say(f"\nThe demo took {time.monotonic() - started_s:.0f} s.")
            self._say(f"REST docs: {server.rest_url}/docs")
            if self._settings.keep:
                self._say("The server goes on (--keep); Ctrl-C ends it.")
                await _interruption()
            else:
                self._say("The server ends now; with --keep it goes on.")

    async def _tell(self, stack: AsyncExitStack, server: DemoServer) -> None:
        raise NotImplementedError

    async def _play(
        self,
        stack: AsyncExitStack,
        server: DemoServer,
        session: str,
        name: str,
        *,
        simulate: tuple[str, ...],
        bridge: tuple[str, ...],
    ) -> KeystepProcess:
        """Play a sample to its end and until its packets have arrived; the bridge still runs."""
        headset = await KeystepProcess.start(
            f"{name}-simulate", self._logs, "simulate", *simulate, "--base-port", "0"
        )
        stack.push_async_callback(headset.kill)
        base_port = (await headset.ready())["base_port"]
        running = await KeystepProcess.start(
            f"{name}-bridge",
            self._logs,
            *("bridge", "--device", "127.0.0.1", "--base-port", base_port),
            *("--server", server.wire, "--device-id", f"demo-{name}", *bridge),
        )
        stack.push_async_callback(running.kill)
        await headset.ended()
        await self._settled(server, session)
        return running

    # -- REST ------------------------------------------------------------------------------------

    async def _start_server(self, stack: AsyncExitStack) -> DemoServer:
        data_dir = self._settings.out / "data"
        if data_dir.exists():
            if not (data_dir / "keystep.db").is_file():
                raise ConfigError(f"{data_dir} holds no earlier demo; choose another --out")
            await asyncio.to_thread(shutil.rmtree, data_dir)
        process = await KeystepProcess.start(
            "serve",
            self._logs,
            *("serve", "--data-dir", str(data_dir), "--rest-port", "0"),
            *("--wire-bind", "tcp://127.0.0.1:*", "--publish-bind", "tcp://127.0.0.1:*"),
        )
        stack.push_async_callback(process.kill)
        ready = await process.ready()
        stack.push_async_callback(process.stop)
        token = self._settings.token  # which the server has from the environment, too
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        rest = await stack.enter_async_context(
            httpx.AsyncClient(base_url=ready["rest"], timeout=30.0, headers=headers)
        )
        return DemoServer(rest=rest, rest_url=ready["rest"], wire=ready["wire"], data_dir=data_dir)

    async def _open_session(self, server: DemoServer, body: dict[str, Any]) -> str:
        response = await server.rest.post("/api/v1/sessions", json=body)
        response.raise_for_status()
        session: str = response.json()["id"]
        return session

    async def _get(self, server: DemoServer, path: str) -> dict[str, Any]:
        response = await server.rest.get(f"/api/v1{path}")
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    async def _settled(self, server: DemoServer, session: str) -> None:
        """Wait until no more packets of a session arrive."""
        before, quiet_since_s = -1, time.monotonic()
        while time.monotonic() - quiet_since_s < SETTLED_S:
            stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
            taken = sum(stream["packets"] for stream in stats["streams"].values())
            if taken != before:
                before, quiet_since_s = taken, time.monotonic()
            await asyncio.sleep(0.1)

    async def _close(self, server: DemoServer, session: str) -> None:
        response = await server.rest.post(f"/api/v1/sessions/{session}/close", timeout=300)
        response.raise_for_status()
        if error := response.json()["error"]:
            raise ProcessError(f"session {session} was closed with an error: {error}")

    # -- printing --------------------------------------------------------------------------------

    def _title(self, title: str, subtitle: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")
        self._console.print(subtitle)

    def _say(self, line: str) -> None:
        """Print one line, never broken: paths and URLs are for copying."""
        self._console.print(line, soft_wrap=True, markup=False)

    async def _print_latencies(self, server: DemoServer, session: str) -> None:
        stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
        table = plain_table("latency", "count", "p50 ms", "p95 ms", "max ms", "± ms")
        for name, label in _STRETCHES.items():
            if (row := stats["latency"].get(name)) is not None:
                values = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "max_ms")]
                uncertainty = f"{row['uncertainty_ms']:.1f}" if name.startswith("capture") else "-"
                table.add_row(label, str(row["count"]), *values, uncertainty)
        self._console.print(table)
        self._say("(± ms: how well the simulated headset's clock is known)")


def plain_table(first: str, *others: str) -> Table:
    """A table whose other columns hold numbers."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


async def _interruption() -> None:
    """Wait for Ctrl-C."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, asked.set)
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
