"""The demo's story: an assembly guided step by step, then key steps out of a video."""

from __future__ import annotations

import asyncio
import json
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
from keystep_capture.samples import SampleTruth, find_sample, load_truth
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
class _Server:
    rest: httpx.AsyncClient
    rest_url: str
    wire: str
    data_dir: Path


class Demo:
    """Runs the story and prints it."""

    def __init__(self, settings: DemoSettings, console: Console | None = None) -> None:
        self._settings = settings
        self._console = console or Console(highlight=False)
        self._logs = settings.out / "logs"

    async def run(self) -> None:
        """Play both samples through server, simulated headset and bridge.

        Raises:
            ConfigError: The output folder holds something else.
            ProcessError: A part failed, or the steps differ from the published logic's.
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
            await self._guide(stack, server)
            await self._extract(stack, server)
            self._say(f"\nThe demo took {time.monotonic() - started_s:.0f} s.")
            self._say(f"REST docs: {server.rest_url}/docs")
            if self._settings.keep:
                self._say("The server goes on (--keep); Ctrl-C ends it.")
                await _interruption()
            else:
                self._say("The server ends now; with --keep it goes on.")

    # -- the two samples -------------------------------------------------------------------------

    async def _guide(self, stack: AsyncExitStack, server: _Server) -> None:
        sample, speed = find_sample("industreal-03"), self._settings.speed
        truth = load_truth(sample)
        self._title(
            f"1. {sample.title}",
            f"A simulated headset plays {truth.frame_count} frames of a real detector's output "
            f"with real head poses and gaze, at {speed:g} times life speed.",
        )
        session = await self._open_session(
            server,
            {
                "device_id": "demo-assembly",
                "kind": "guided",
                "procedure": f"industreal-{truth.procedure}",
                "method": "b3",  # what it prints is compared with the published logic
                "replay": speed != 1.0,
                "time_scale": speed,
            },
        )
        events: list[dict[str, Any]] = []
        following = asyncio.create_task(self._follow(server, session, truth, events))
        scale = ("--time-scale", str(speed))
        source = ("--server", server.wire, "--device-id", "demo-assembly")
        try:
            bridge = await self._play(
                stack,
                server,
                session,
                "assembly",
                simulate=("--sample", sample.name, *source, *scale),
                bridge=scale,
            )
            await self._close(server, session)
            await bridge.ended()
            await following
        finally:
            following.cancel()
        found = [(event["frame_idx"], event["step_id"]) for event in events]
        expected = [(step.frame, step.id) for step in truth.expected_b3]
        if found != expected:
            raise ProcessError(
                f"the step events {found} are not those of the published B3 logic, {expected}"
            )
        self._say(f"All {len(found)} step events equal the published B3 logic's, frame for frame.")
        await self._print_latencies(server, session)

    async def _extract(self, stack: AsyncExitStack, server: _Server) -> None:
        sample = find_sample("pour-coffee")
        self._title(
            f"2. {sample.title}",
            "A simulated headset sends real video (H.264, 640x360) at life speed; key steps are "
            "found without labels, from EfficientNet-Lite0 features at 10 Hz, when the session "
            "closes.",
        )
        session = await self._open_session(
            server, {"device_id": "demo-video", "kind": "expert", "task": "pour coffee"}
        )
        bridge = await self._play(
            stack, server, session, "video", simulate=("--sample", sample.name), bridge=()
        )
        await self._close(server, session)
        await bridge.ended()
        key_steps = (await self._get(server, f"/sessions/{session}/key-steps"))["key_steps"]
        if not key_steps:
            raise ProcessError("no key steps were extracted from the video")
        table = _table("key step", "from s", "to s", "exemplar s", "confidence")
        for step in key_steps:
            seconds = (step["start_s"], step["end_s"], step["exemplar_s"])
            table.add_row(
                step["title"], *(f"{value:.1f}" for value in seconds), f"{step['confidence']:.2f}"
            )
        self._console.print(table)
        sheet = self._settings.out / "key_steps.jpg"
        shutil.copyfile(server.data_dir / "sessions" / session / "contact_sheet.jpg", sheet)
        self._say(f"Contact sheet: {sheet}")
        self._say("First picture over REST:")
        self._say(f"  {server.rest_url}{key_steps[0]['exemplar']['url']}")
        await self._print_latencies(server, session)

    async def _play(
        self,
        stack: AsyncExitStack,
        server: _Server,
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

    async def _start_server(self, stack: AsyncExitStack) -> _Server:
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
        return _Server(rest=rest, rest_url=ready["rest"], wire=ready["wire"], data_dir=data_dir)

    async def _open_session(self, server: _Server, body: dict[str, Any]) -> str:
        response = await server.rest.post("/api/v1/sessions", json=body)
        response.raise_for_status()
        session: str = response.json()["id"]
        return session

    async def _get(self, server: _Server, path: str) -> dict[str, Any]:
        response = await server.rest.get(f"/api/v1{path}")
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    async def _settled(self, server: _Server, session: str) -> None:
        """Wait until no more packets of a session arrive."""
        before, quiet_since_s = -1, time.monotonic()
        while time.monotonic() - quiet_since_s < SETTLED_S:
            stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
            taken = sum(stream["packets"] for stream in stats["streams"].values())
            if taken != before:
                before, quiet_since_s = taken, time.monotonic()
            await asyncio.sleep(0.1)

    async def _close(self, server: _Server, session: str) -> None:
        response = await server.rest.post(f"/api/v1/sessions/{session}/close")
        response.raise_for_status()
        if error := response.json()["error"]:
            raise ProcessError(f"session {session} was closed with an error: {error}")

    async def _follow(
        self, server: _Server, session: str, truth: SampleTruth, events: list[dict[str, Any]]
    ) -> None:
        """Print each step event as it is detected, beside the ground truth."""
        truth_frames = {step.id: step.frame for step in truth.ground_truth}
        self._say("   frame  step event                        truth  delay")
        url = f"/api/v1/sessions/{session}/events"
        headers = {"Accept": "text/event-stream"}
        async with server.rest.stream("GET", url, headers=headers, timeout=None) as stream:
            name = ""
            async for line in stream.aiter_lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:") and name == "step_event":
                    event = json.loads(line[5:])
                    events.append(event)
                    self._print_event(event, truth_frames.get(event["step_id"]))
                if name == "session_closed":
                    return

    # -- printing --------------------------------------------------------------------------------

    def _print_event(self, event: dict[str, Any], truth_frame: int | None) -> None:
        delay = "not in truth"
        if truth_frame is not None:
            delay = f"{truth_frame:5}  {(event['frame_idx'] - truth_frame) / 10:+.1f} s"
        self._say(f"   {event['frame_idx']:5}  {event['title']:<32}  {delay}")

    def _title(self, title: str, subtitle: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")
        self._console.print(subtitle)

    def _say(self, line: str) -> None:
        """Print one line, never broken: paths and URLs are for copying."""
        self._console.print(line, soft_wrap=True, markup=False)

    async def _print_latencies(self, server: _Server, session: str) -> None:
        stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
        table = _table("latency", "count", "p50 ms", "p95 ms", "max ms", "± ms")
        for name, label in _STRETCHES.items():
            if (row := stats["latency"].get(name)) is not None:
                values = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "max_ms")]
                uncertainty = f"{row['uncertainty_ms']:.1f}" if name.startswith("capture") else "-"
                table.add_row(label, str(row["count"]), *values, uncertainty)
        self._console.print(table)
        self._say("(± ms: how well the simulated headset's clock is known)")


def _table(first: str, *others: str) -> Table:
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
