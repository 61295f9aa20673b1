"""The demo's story: an assembly guided step by step, then key steps out of a video."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import AsyncExitStack
from typing import Any

from keystep_capture.samples import SampleTruth, find_sample, load_truth
from keystep_server.demo_base import DemoRun, DemoServer, plain_table
from keystep_server.demo_processes import ProcessError


class Demo(DemoRun):
    """Runs the story and prints it."""

    async def _tell(self, stack: AsyncExitStack, server: DemoServer) -> None:
        await self._guide(stack, server)
        await self._extract(stack, server)

    # -- the two samples -------------------------------------------------------------------------

    async def _guide(self, stack: AsyncExitStack, server: DemoServer) -> None:
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

    async def _extract(self, stack: AsyncExitStack, server: DemoServer) -> None:
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
        table = plain_table("key step", "from s", "to s", "exemplar s", "confidence")
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

    async def _follow(
        self, server: DemoServer, session: str, truth: SampleTruth, events: list[dict[str, Any]]
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
