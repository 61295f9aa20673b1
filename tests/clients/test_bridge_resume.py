"""Bridge, server and simulated headset fail in turn, as real processes; the session goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from keystep_capture.samples import (
    find_sample,
    load_detection_rows,
    load_gaze_camera,
    load_sensor_rows,
    load_truth,
)
from keystep_capture.sender import Sender, Source
from keystep_capture.streams import STREAMS
from keystep_hololens.simulator import DeviceClock, SensorSource, SimulatedHeadset
from keystep_server.demo_processes import KeystepProcess

SAMPLE = find_sample("industreal-03")
TRUTH = load_truth(SAMPLE)
STEPS = [(step.frame, step.id) for step in TRUTH.expected_b3]
FIRST = STEPS[0][0]
PROCEDURE = "industreal-assy"


def worn_headset() -> SimulatedHeadset:
    """A simulated headset with head and eyes that play on and on, 10 Hz."""
    rows = load_sensor_rows(SAMPLE.sensors_path)  # type: ignore[arg-type]
    camera = load_gaze_camera(SAMPLE.camera_path)  # type: ignore[arg-type]
    sensors = SensorSource(
        rows={n: rows[550 + n] for n in range(60)},
        camera=camera,
        frame_count=60,
        frame_rate_hz=10.0,
        loop=True,
    )
    return SimulatedHeadset(sensors=sensors, clock=DeviceClock())


class Site:
    """A server and a bridge as processes, a headset and a detector in this one."""

    def __init__(self, folder: Path, headset: SimulatedHeadset) -> None:
        self._folder = folder
        self._headset = headset
        self._wire = "tcp://127.0.0.1:*"
        self._rest = ""
        self._started = 0
        self.server: KeystepProcess | None = None
        self.bridge: KeystepProcess | None = None

    async def start_server(self) -> None:
        self.server = await self._start(
            *("serve", "--data-dir", str(self._folder / "data"), "--rest-port", "0"),
            *("--wire-bind", self._wire, "--publish-bind", "tcp://127.0.0.1:*"),
        )
        ready = await self.server.ready()
        self._wire, self._rest = ready["wire"], ready["rest"]

    async def start_bridge(self) -> None:
        self.bridge = await self._start(
            *("bridge", "--device", "127.0.0.1", "--base-port", str(self._headset.base_port)),
            *("--server", self._wire, "--device-id", "hl2", "--procedure", PROCEDURE),
            *("--method", "b3"),
        )

    async def _start(self, *arguments: str) -> KeystepProcess:
        self._started += 1
        name = f"{arguments[0]}-{self._started}"
        return await KeystepProcess.start(name, self._folder / "logs", *arguments)

    def detector(self) -> Sender:
        source = Source(
            device="hl2", client="test", streams=("detections",), procedure=PROCEDURE, method="b3"
        )
        return Sender(source, server=self._wire, instance="detector")

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self._rest, timeout=60) as rest:
            answer = await rest.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, path: str, true: Callable[[Any], Any]) -> Any:
        """What REST answers once it is as wanted; a minute is a hung test, not a measurement."""
        async with asyncio.timeout(60):
            while not true(answer := await self.get(path)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return answer

    async def head(self, session: str, *, epoch: int, more_than: int = 0) -> dict[str, Any]:
        """The counters of the head's stream, once so many packets came in an epoch."""

        def arrived(answer: Any) -> bool:
            lane = answer["stats"]["streams"].get("head")
            return bool(lane and lane["epoch"] == epoch and lane["packets"] > more_than)

        stats = (await self.until(f"/sessions/{session}/stats", arrived))["stats"]
        found: dict[str, Any] = stats["streams"]["head"]
        return found

    async def steps(self, session: str) -> list[tuple[int, int]]:
        events = (await self.get(f"/sessions/{session}/events?limit=1000"))["events"]
        return [(event["frame_idx"], event["step_id"]) for event in events]

    async def progress(self, session: str) -> list[str]:
        steps = (await self.get(f"/sessions/{session}/key-steps"))["key_steps"]
        return [step["status"] for step in steps]

    async def kill_all(self) -> None:
        for process in (self.server, self.bridge):
            if process is not None:
                await process.kill()


@pytest.fixture
async def headset() -> AsyncIterator[SimulatedHeadset]:
    async with worn_headset() as worn:
        yield worn


@pytest.fixture
async def site(tmp_path: Path, headset: SimulatedHeadset) -> AsyncIterator[Site]:
    running = Site(tmp_path, headset)
    await running.start_server()
    await running.start_bridge()
    yield running
    await running.kill_all()


async def send(sender: Sender, first: int, last: int) -> None:
    assert SAMPLE.detections_path is not None
    frames = load_detection_rows(SAMPLE.detections_path, frame_count=TRUTH.frame_count)
    for frame_idx in range(first, last):
        await sender.room("detections")
        sender.offer(
            "detections",
            frame_idx * 100_000_000,
            np.array(list(frames[frame_idx]), "<f8").tobytes(),
            encoding="detections_f64",
            frame_idx=frame_idx,
        )


async def test_a_session_outlives_its_bridge_its_headset_and_its_server(
    site: Site, headset: SimulatedHeadset
) -> None:
    detector = site.detector()
    link = asyncio.create_task(detector.run())
    await send(detector, 0, FIRST + 10)
    session = str(detector.session)
    await site.until(f"/sessions/{session}/events", lambda found: len(found["events"]) == 3)
    before = await site.progress(session)
    assert before.count("completed") == 3
    bridge_epoch = (await site.get(f"/sessions/{session}"))["epoch"]
    await site.head(session, epoch=bridge_epoch)

    assert site.bridge is not None
    await site.bridge.kill()  # SIGKILL
    await site.start_bridge()
    await site.head(session, epoch=bridge_epoch + 1)
    assert await site.progress(session) == before

    await headset.reboot(0.3)
    lane = await site.head(session, epoch=bridge_epoch + 2)
    assert await site.progress(session) == before

    assert site.server is not None
    killed_at = time.monotonic()
    await site.server.kill()  # SIGKILL; headset, bridge and detector go on meanwhile
    await site.start_server()
    lane = await site.head(session, epoch=bridge_epoch + 2, more_than=lane["packets"])
    away_s = time.monotonic() - killed_at
    assert await site.progress(session) == before

    await send(detector, FIRST + 10, TRUTH.frame_count)
    await detector.finish(close=True)
    await link
    assert await site.steps(session) == STEPS
    answer = await site.get(f"/sessions/{session}")
    assert (answer["state"], answer["epoch"]) == ("closed", bridge_epoch + 2)
    streams = (await site.get(f"/sessions/{session}/stats"))["stats"]["streams"]
    assert streams["detections"]["packets"] == TRUTH.frame_count
    assert streams["detections"]["lost"] == 0
    if away_s < STREAMS["head"].max_age_s:  # so long a bridge keeps live sensors, no longer
        assert [streams[name]["lost"] for name in ("head", "gaze")] == [0, 0]
