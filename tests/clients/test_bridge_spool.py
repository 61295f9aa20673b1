"""An expert's bridge, as a process, over outages of its server and over its own death.

The headset is simulated; its video, head poses and gaze are real.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from keystep_capture.errors import ConfigError
from keystep_capture.recording import Recording
from keystep_capture.samples import find_sample, load_gaze_camera, load_sensor_rows
from keystep_capture.spool import Spool
from keystep_hololens.backlog import SpoolConfig
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.simulator import DeviceClock, SensorSource, SimulatedHeadset, VideoSource
from keystep_server.demo_processes import KeystepProcess

pytestmark = pytest.mark.timeout(400)

SENSORS, VIDEO = find_sample("industreal-03"), find_sample("pour-coffee")
HUNG_S = 120.0
"""What takes longer is no slow machine but a hung test."""
STREAMS = ("rgb", "head", "gaze", "hands")


class Site:
    """A server and an expert's bridge as processes, a headset in this one."""

    def __init__(self, folder: Path, headset: SimulatedHeadset) -> None:
        self._folder, self._headset = folder, headset
        self._wire, self._rest_port, self._started = "tcp://127.0.0.1:*", "0", 0
        self.spool = folder / "spool"
        self.session = ""
        self.server: KeystepProcess | None = None
        self.bridge: KeystepProcess | None = None

    async def start_server(self) -> None:
        self.server = await self._start(
            *("serve", "--data-dir", str(self._folder / "data"), "--rest-port", self._rest_port),
            *("--wire-bind", self._wire, "--publish-bind", "tcp://127.0.0.1:*"),
        )
        ready = await self.server.ready()
        self._wire, self._rest_port = ready["wire"], ready["rest"].rpartition(":")[2]

    async def start_bridge(self) -> None:
        self.bridge = await self._start(
            *("bridge", "--device", "127.0.0.1", "--base-port", str(self._headset.base_port)),
            *("--server", self._wire, "--device-id", "hl2", "--kind", "expert", "--close"),
            *("--spool-dir", str(self.spool), "--streams", ",".join(STREAMS)),
            *("--no-display", "--no-voice"),
        )

    async def stop_bridge(self) -> None:
        """Ctrl-C; then it hands over what it holds, which takes as long as it takes."""
        assert self.bridge is not None
        self.bridge.signal(signal.SIGINT)
        async with asyncio.timeout(HUNG_S):
            await self.bridge.ended()

    async def _start(self, *arguments: str) -> KeystepProcess:
        self._started += 1
        name = f"{arguments[0]}-{self._started}"
        return await KeystepProcess.start(name, self._folder / "logs", *arguments)

    def log(self, name: str) -> str:
        return (self._folder / "logs" / f"{name}.log").read_text()

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._rest_port}") as rest:
            answer = await rest.get(f"/api/v1{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until_recording(self, *, epoch: int, packets: int) -> None:
        """Wait until so many head poses of an epoch came in."""
        async with asyncio.timeout(HUNG_S):
            while True:
                sessions = (await self.get("/sessions"))["sessions"]
                if sessions:
                    self.session = sessions[0]["id"]
                    stats = (await self.get(f"/sessions/{self.session}/stats"))["stats"]
                    lane = stats["streams"].get("head", {"epoch": 0, "packets": 0})
                    if lane["epoch"] == epoch and lane["packets"] >= packets:
                        return
                await asyncio.sleep(0.05)

    async def until_spooled(self, size_bytes: int) -> None:
        async with asyncio.timeout(HUNG_S):
            while self._spooled() < size_bytes:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)

    def _spooled(self) -> int:
        return sum(path.stat().st_size for path in self.spool.glob("*/*.spool"))

    def recorded(self) -> dict[tuple[int, str], list[tuple[int, int]]]:
        """(sequence, device time) of each packet, by epoch and stream."""
        found = defaultdict(list)
        with Recording(self._folder / "data" / "sessions" / self.session / "recording") as record:
            for packet in record.packets():
                header = packet.header
                place = (header.sequence, header.device_time_ns)
                found[header.epoch, header.stream].append(place)
        return found

    async def kill_all(self) -> None:
        for process in (self.server, self.bridge):
            if process is not None:
                await process.kill()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    sensors = SensorSource(
        rows={n: row for n, row in load_sensor_rows(SENSORS.sensors_path).items() if n < 60},  # type: ignore[arg-type]
        camera=load_gaze_camera(SENSORS.camera_path),  # type: ignore[arg-type]
        frame_count=60,
        frame_rate_hz=10.0,
        loop=True,
    )
    assert VIDEO.video_path is not None
    video = VideoSource.open(VIDEO.video_path, loop=True)
    async with SimulatedHeadset(video=video, sensors=sensors, clock=DeviceClock()) as headset:
        running = Site(tmp_path, headset)
        await running.start_server()
        await running.start_bridge()
        yield running
        await running.kill_all()


def is_whole(places: list[tuple[int, int]]) -> bool:
    """Whether no packet is missing or there twice: the bridge numbers them as they come."""
    ordered = all(before[1] <= after[1] for before, after in itertools.pairwise(places))
    return ordered and [number for number, _ in places] == list(range(len(places)))


async def test_what_a_server_missed_is_in_its_recording_when_it_is_back(site: Site) -> None:
    await site.until_recording(epoch=1, packets=60)
    assert site.server is not None
    assert site.bridge is not None
    await site.server.kill()
    await site.until_spooled(300_000)
    await site.start_server()
    await site.stop_bridge()  # and has the session closed
    assert (await site.get(f"/sessions/{site.session}"))["state"] == "closed"
    found = site.recorded()
    assert {epoch for epoch, _ in found} == {1}
    for stream in STREAMS:
        assert is_whole(found[1, stream]), stream
    sent = re.findall(r"(\w+) (\d+) \(dropped (\d+)\)", site.log("bridge-2"))
    assert {name: int(dropped) for name, _, dropped in sent if name in STREAMS} == dict.fromkeys(
        STREAMS, 0
    )
    assert "stays in" not in site.log("bridge-2")
    assert list((site.spool / "hl2.spool").glob("*.spool")) == []


async def test_what_a_killed_bridge_had_spooled_is_sent_by_the_next_one(site: Site) -> None:
    await site.until_recording(epoch=1, packets=60)
    assert site.server is not None
    assert site.bridge is not None
    await site.server.kill()
    await site.until_spooled(150_000)
    await site.bridge.kill()  # SIGKILL: neither of them is there
    await site.start_bridge()
    await site.until_spooled(300_000)
    await site.start_server()
    await site.until_recording(epoch=2, packets=60)
    await site.stop_bridge()
    found = site.recorded()
    assert {epoch for epoch, _ in found} == {1, 2}
    for (_, stream), places in found.items():
        assert is_whole(places), stream
    assert "an earlier run's packets are sent first" in site.log("bridge-3")
    assert list((site.spool / "hl2.spool").glob("*.spool")) == []


async def test_a_bridge_that_ends_before_its_server_is_back_says_what_stays(site: Site) -> None:
    await site.until_recording(epoch=1, packets=30)
    assert site.server is not None
    assert site.bridge is not None
    await site.server.kill()
    await site.until_spooled(50_000)
    await site.stop_bridge()
    assert "the next start as this device sends it" in site.log("bridge-2")
    with_left = Spool(site.spool / "hl2.spool")
    assert [life.session for life in with_left.lives] == [site.session]
    with_left.close()


def test_guided_sessions_have_no_spool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guidance cannot wait"):
        BridgeConfig(host="127.0.0.1", spool=SpoolConfig(folder=tmp_path))
    with pytest.raises(ConfigError, match="expected above 0"):
        SpoolConfig(folder=tmp_path, limit_bytes=0)


async def test_each_device_has_a_spool_of_its_own(tmp_path: Path) -> None:
    spool = SpoolConfig(folder=tmp_path)
    config = BridgeConfig(host="127.0.0.1", device="..", kind="expert", spool=spool)
    bridge = Bridge(config)
    assert [path.name for path in tmp_path.iterdir()] == ["...spool"]
    assert bridge.backlog.left() is None
