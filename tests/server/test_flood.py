"""What strangers can do to a server that asks for keys: nothing to the sessions it has.

The figures of docs/security.md: `pytest tests/server/test_flood.py -s`
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from keystep_capture.entrance import MAX_CONNECTIONS
from keystep_capture.key_files import DeviceKey, load_device_key
from keystep_capture.sender import Sender, Source

ATTACKER = Path(__file__).with_name("flood_attacker.py")
MEMORY_LIMIT_MB = 2048
GROWTH_LIMIT_MB = 1536
"""192 connections (entrance.MAX_CONNECTIONS) of one frame of 8 MiB each: what strangers can use."""
UNREAD_EVENTS = 2000
"""Connections that libzmq accepts before the loop hears of them: its monitor's queue."""


@dataclass
class Server:
    """A server process that asks for keys, on loopback."""

    process: asyncio.subprocess.Process
    rest: str
    wire: str

    def memory_mb(self, field: str) -> float:
        """A figure of the kernel's about the process: VmRSS, VmHWM (its highest), VmData."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

    def forget_peak(self) -> None:
        """Begin VmHWM anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def counts(self) -> dict[str, float]:
        """Connections of the wire by what became of them."""
        async with httpx.AsyncClient(timeout=60) as client:
            text = (await client.get(f"{self.rest}/metrics")).text
        pattern = r'keystep_connections_total\{outcome="(\w+)",socket="wire"\} (\S+)'
        return {outcome: float(count) for outcome, count in re.findall(pattern, text)}


async def run(*arguments: str, environment: dict[str, str] | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def make_key(name: str, folder: Path) -> DeviceKey:
    path = folder / f"{name}.key"
    await run(
        *("-m", "keystep_capture.cli", "device", "add", name),
        *("--out", str(path), "--data-dir", str(folder / "data")),
    )
    return load_device_key(path)


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[Server]:
    """`keystep serve` on free ports; its log is in serve.log."""
    with (folder / "serve.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "keystep_capture.cli", "serve"),
            *("--data-dir", str(folder / "data"), "--rest-port", "0"),
            *("--wire-bind", "tcp://127.0.0.1:*", "--publish-bind", "tcp://127.0.0.1:*"),
            *("--memory-limit-mb", str(MEMORY_LIMIT_MB), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None
        line = ""
        async with asyncio.timeout(60):
            while not line.startswith("READY"):
                line = (await process.stdout.readline()).decode()
                assert line, (folder / "serve.log").read_text()
        said = dict(part.split("=") for part in line.split()[1:])
        try:
            yield Server(process, said["rest"], said["wire"])
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


@asynccontextmanager
async def streaming(
    server: Server, key: DeviceKey | None
) -> AsyncIterator[tuple[Sender, list[int]]]:
    """A device that sends gaze at 60 Hz; the list grows with each packet offered."""
    sender = Sender(
        Source(device=key.name if key else "bench", client="test", streams=("gaze",)),
        server=server.wire,
        instance="i1",
        key=key,
    )
    offered: list[int] = []

    async def offer() -> None:
        while True:
            if sender.state == "open":
                offered.append(sender.epoch)
                time_ns = len(offered) * 16_666_667
                sender.offer("gaze", time_ns, bytes(24), encoding="ray_f32")
            await asyncio.sleep(1 / 60)

    tasks = [asyncio.create_task(sender.run()), asyncio.create_task(offer())]
    try:
        async with asyncio.timeout(30):
            while sender.state != "open":  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.01)
        yield sender, offered
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


FLOODS = {
    "silent": 3000,
    "greeted": 1000,
    "garbage": 1000,
    "wrong_mechanism": 1000,
    "large_frames": 300,
    "unknown_key": 300,
}


async def flood(server: Server, kind: str, server_public: bytes) -> str:
    """Run one flood to its end; the figures of it."""
    server.forget_peak()
    files_before, files, before_mb = server.open_files(), 0, server.memory_mb("VmRSS")
    attack = asyncio.create_task(
        run(
            *(str(ATTACKER), kind, str(FLOODS[kind]), server.wire.removeprefix("tcp://")),
            environment={"SERVER_PUBLIC_KEY": server_public.decode()},
        )
    )
    while not attack.done():
        files = max(files, server.open_files())
        await asyncio.sleep(0.05)
    made, peak_mb = int(await attack), server.memory_mb("VmHWM")
    assert server.process.returncode is None
    assert made == FLOODS[kind]
    assert peak_mb - before_mb < GROWTH_LIMIT_MB
    assert files - files_before < MAX_CONNECTIONS + UNREAD_EVENTS
    return (
        f"{kind}: {made} connections; memory {before_mb:.0f} -> {peak_mb:.0f} MiB at most; "
        f"{files - files_before} more files open at most"
    )


@pytest.mark.timeout(300)
async def test_a_flood_of_strangers_costs_a_session_nothing(tmp_path: Path) -> None:
    figures: list[str] = []
    key, late_key = [await make_key(name, tmp_path) for name in ("bench-1", "bench-2")]
    async with serving(tmp_path) as server, streaming(server, key) as (sender, offered):
        for kind in FLOODS:
            figures.append(await flood(server, kind, key.server_public))
            async with streaming(server, late_key):
                pass  # another device finds its way in
        await sender.finish(close=True)
        taken = await taken_packets(server, sender)
        figures.append(f"session: {len(offered)} packets offered, {taken} taken")
        print("", *figures, await server.counts(), sep="\n")  # noqa: T201
        assert set(offered) == {1}  # one epoch, no restart
        assert sender.dropped() == {"gaze": 0}
        assert taken == sender.sent()["gaze"] == len(offered)


async def test_a_server_at_its_memory_limit_loses_no_session(tmp_path: Path) -> None:
    """On loopback without keys, since a stranger's messages come so far only there.

    The server may outlive this or end; its sessions are there again after a restart.
    """
    limit_mb = 1024
    async with (
        serving(tmp_path, "--memory-limit-mb", str(limit_mb)) as server,
        streaming(server, None) as (sender, _),
    ):
        attack = asyncio.create_task(
            run(str(ATTACKER), "unfinished", "180", server.wire.removeprefix("tcp://"))
        )
        peak_mb = 0.0
        while not attack.done():
            with suppress(OSError, AssertionError):  # it has ended
                peak_mb = max(peak_mb, server.memory_mb("VmData"))
            await asyncio.sleep(0.05)
        await attack
    assert limit_mb / 2 < peak_mb < limit_mb + 1
    print(f"\nended with code {server.process.returncode}")  # noqa: T201
    async with serving(tmp_path) as server, streaming(server, None) as (again, _):
        assert again.session == sender.session
        assert again.epoch == sender.epoch  # the same instance goes on


async def taken_packets(server: Server, sender: Sender) -> int:
    """Packets of a session that the server took."""
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"{server.rest}/api/v1/sessions/{sender.session}/stats")
    return int(answer.json()["stats"]["streams"]["gaze"]["packets"])
