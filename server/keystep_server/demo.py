"""The demo's story: an assembly guided step by step, then key steps out of a video."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from keystep_capture.samples import SampleTruth, find_sample, load_truth
from keystep_server.demo_processes import KeystepProcess, ProcessError

SETTLED_S = 0.8
_STRETCHES = {
    "capture_to_arrival": "capture to arrival at the server",
    "capture_to_feature": "capture to appearance features",
    "arrival_to_feature": "arrival to appearance features",
    "capture_to_event": "capture to step event stored",
    "arrival_to_event": "arrival to step event stored",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How the demo runs: see `keystep demo --help`."""

    speed: float
    keep: bool
    out: Path


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
            ProcessError: A part failed, or the steps differ from the published logic's.
        """
        started_s = time.monotonic()
        async with AsyncExitStack() as stack:
            server = await self._start_server(stack)
            await self._guide(stack, server)
            await self._extract(stack, server)
            print_ = self._console.print
            print_(f"\nREST docs: {server.rest_url}/docs")
            print_(f"The demo took {time.monotonic() - started_s:.0f} s.")
            if self._settings.keep:
                print_("The server goes on (--keep); Ctrl-C ends it.")
                await asyncio.Event().wait()

    # -- the two samples -------------------------------------------------------------------------

    async def _guide(self, stack: AsyncExitStack, server: _Server) -> None:
        sample, speed = find_sample("industreal-03"), self._settings.speed
        truth = load_truth(sample)
        self._title(
            f"1. {sample.title}",
            f"{truth.frame_count} frames of a real detector's output, real head poses and gaze, "
            f"through a simulated headset at {speed:g} times life",
        )
        session = await self._open_session(
            server,
            {
                "device_id": "demo-assembly",
                "kind": "guided",
                "procedure": f"industreal-{truth.procedure}",
                "replay": speed != 1.0,
                "time_scale": speed,
            },
        )
        events: list[dict[str, Any]] = []
        following = asyncio.create_task(self._follow(server, session, truth, events))
        scale = ("--time-scale", str(speed))
        source = ("--server", server.wire, "--device-id", "demo-assembly")
        bridge = await self._play(
            stack, server, "assembly", ("--sample", sample.name, *source, *scale), scale
        )
        await self._close(server, session)
        await bridge.ended()
        await following
        found = [(event["frame_idx"], event["step_id"]) for event in events]
        expected = [(step.frame, step.id) for step in truth.expected_b3]
        if found != expected:
            raise ProcessError(
                f"the step events {found} are not those of the published B3 logic, {expected}"
            )
        self._console.print(
            f"All {len(found)} step events equal the published B3 logic's, frame for frame."
        )
        await self._print_latencies(server, session)

    async def _extract(self, stack: AsyncExitStack, server: _Server) -> None:
        sample = find_sample("pour-coffee")
        self._title(
            f"2. {sample.title}",
            "real video as personal video (H.264, 640x360) through a simulated headset at life "
            "speed; EfficientNet-Lite0 features at 10 Hz; key steps when the session closes",
        )
        session = await self._open_session(
            server, {"device_id": "demo-video", "kind": "expert", "task": "pour coffee"}
        )
        bridge = await self._play(stack, server, "video", ("--sample", sample.name), ())
        await self._close(server, session)
        await bridge.ended()
        key_steps = (await self._get(server, f"/sessions/{session}/key-steps"))["key_steps"]
        table = Table("key step", "from", "to", "exemplar", "confidence", "picture", box=None)
        for step in key_steps:
            table.add_row(
                step["title"],
                f"{step['start_s']:.1f} s",
                f"{step['end_s']:.1f} s",
                f"{step['exemplar_s']:.1f} s",
                f"{step['confidence']:.2f}",
                step["exemplar"]["url"] if step["exemplar"] else "-",
            )
        self._console.print(table)
        if not key_steps:
            raise ProcessError("no key steps were extracted from the video")
        sheet = self._settings.out / "key_steps.jpg"
        shutil.copyfile(server.data_dir / "sessions" / session / "contact_sheet.jpg", sheet)
        self._console.print(f"Contact sheet: {sheet}")
        await self._print_latencies(server, session)

    async def _play(
        self,
        stack: AsyncExitStack,
        server: _Server,
        name: str,
        simulate: tuple[str, ...],
        bridge: tuple[str, ...],
    ) -> KeystepProcess:
        """Play a sample to its end and until its packets have arrived; the bridge still runs."""
        headset = await KeystepProcess.start(
            f"{name}-simulate", self._logs, "simulate", *simulate, "--base-port", "0"
        )
        stack.callback(headset.kill)
        base_port = (await headset.ready())["base_port"]
        running = await KeystepProcess.start(
            f"{name}-bridge",
            self._logs,
            *("bridge", "--device", "127.0.0.1", "--base-port", base_port),
            *("--server", server.wire, "--device-id", f"demo-{name}", *bridge),
        )
        stack.callback(running.kill)
        await headset.ended()
        await self._settled(server, f"demo-{name}")
        return running

    # -- REST ------------------------------------------------------------------------------------

    async def _start_server(self, stack: AsyncExitStack) -> _Server:
        data_dir = self._settings.out / "data"
        shutil.rmtree(data_dir, ignore_errors=True)
        process = await KeystepProcess.start(
            "serve",
            self._logs,
            *("serve", "--data-dir", str(data_dir), "--rest-port", "0"),
            *("--wire-bind", "tcp://127.0.0.1:*", "--publish-bind", "tcp://127.0.0.1:*"),
        )
        stack.callback(process.kill)
        ready = await process.ready()
        stack.push_async_callback(process.stop)
        rest = await stack.enter_async_context(
            httpx.AsyncClient(base_url=ready["rest"], timeout=30.0)
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

    async def _settled(self, server: _Server, device: str) -> None:
        """Wait until no more packets of a device's session arrive."""
        sessions = await self._get(server, f"/sessions?device_id={device}&state=open")
        session = sessions["sessions"][0]["id"]
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
        self._console.print("   frame  step event                        truth  delay")
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
        self._console.print(f"   {event['frame_idx']:5}  {event['title']:<32}  {delay}")

    def _title(self, title: str, subtitle: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")
        self._console.print(subtitle)

    async def _print_latencies(self, server: _Server, session: str) -> None:
        stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
        table = Table("latency", "count", "p50 ms", "p95 ms", "max ms", "± ms (clocks)", box=None)
        for name, label in _STRETCHES.items():
            if (row := stats["latency"].get(name)) is not None:
                values = (row["p50_ms"], row["p95_ms"], row["max_ms"], row["uncertainty_ms"])
                table.add_row(label, str(row["count"]), *(f"{value:.1f}" for value in values))
        self._console.print(table)
