"""Faults of the server's process, disk, load and guests, each with a server of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fault_chain import Chain, Fault, chain_on
from fault_processes import Server, keystep, make_key
from fault_sources import Neighbour
from fault_table import Rows
from keystep_capture.key_files import load_device_key
from keystep_server.load.generator import Joined, Played, Settings
from keystep_server.load.measure import start_generator
from keystep_server.load.packets import make_packets

pytestmark = pytest.mark.timeout(300)

ATTACKER = Path(__file__).parents[1] / "server" / "flood_attacker.py"
FAULT_S = 5.0
DISK_MB = 48


@asynccontextmanager
async def site(
    server: Server, *, keys: tuple[Path, ...] = (), kind: str = "guided"
) -> AsyncIterator[tuple[Chain, Neighbour]]:
    """A chain on a started server, and a neighbour."""
    neighbour = Neighbour(server, load_device_key(keys[1]) if keys else None)
    try:
        key = keys[0] if keys else None
        async with chain_on(server, device="hl2", key=key, kind=kind) as chain:
            yield chain, neighbour
    finally:
        await neighbour.close()


async def attack(
    server: Server, kind: str, count: int, *, is_survived: bool = True, **environment: str
) -> None:
    """Run one flood of strangers to its end; where the server ends under it, so does the flood."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ATTACKER), kind, str(count), server.wire.removeprefix("tcp://")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=None if is_survived else asyncio.subprocess.DEVNULL,
        env=os.environ | environment,
    )
    assert await process.wait() == 0 or not is_survived


async def start_again(server: Server, fault: Fault) -> None:
    """Start the server as a service manager does; the wait for it counts as recovery."""
    back = asyncio.create_task(fault.ended())
    await server.start()
    await back


# -- the process ---------------------------------------------------------------------------------


async def test_a_killed_server_goes_on_where_it_was(make_server: Any, reliability: Rows) -> None:
    server = await make_server()
    await server.start()
    async with site(server) as (chain, neighbour):
        async with chain.fault() as fault:
            await server.process.kill()
            await start_again(server, fault)
        await neighbour.check()
    reliability.add("server killed (-9), started again at once", fault)
    assert fault.after["guidance"]["revision"] >= fault.before["guidance"]["revision"]


@pytest.mark.slow
async def test_a_killed_server_lacks_nothing_of_an_experts_session(
    make_server: Any, reliability: Rows
) -> None:
    server = await make_server()
    await server.start()
    async with site(server, kind="expert") as (chain, neighbour):
        async with chain.fault() as fault:
            await server.process.kill()
            await asyncio.sleep(FAULT_S)
            await start_again(server, fault)
        await neighbour.check()
    reliability.add("server of an expert's session killed (-9), started again after 5 s", fault)
    assert all(lane["lost"] == 0 for lane in fault.after["streams"].values())


@pytest.mark.slow
async def test_a_server_that_hangs_is_told_to_the_wearer(
    make_server: Any, reliability: Rows
) -> None:
    server = await make_server()
    await server.start()
    async with site(server) as (chain, neighbour):
        async with chain.fault() as fault:
            server.process.signal(signal.SIGSTOP)
            await asyncio.sleep(3 * FAULT_S)
            server.process.signal(signal.SIGCONT)
        await neighbour.check()
    reliability.add("server hangs for 15 s", fault)


# -- disk and load -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the data; needs the right to mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a small disk here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
async def test_a_full_disk_loses_nothing_that_was_acknowledged(
    make_server: Any, reliability: Rows, small_disk: Path, tmp_path_factory: Any
) -> None:
    server = await make_server(folder=tmp_path_factory.mktemp("server"))
    server.data = small_disk / "data"
    await server.start()
    async with site(server) as (chain, neighbour):
        async with chain.fault() as fault:
            fill(small_disk / "ballast")
            await asyncio.sleep(2 * FAULT_S)
            (small_disk / "ballast").unlink()
        await neighbour.check()
    reliability.add("disk full for 10 s", fault)


@pytest.mark.slow
async def test_an_overload_slows_a_session_and_passes(
    make_server: Any, reliability: Rows, tmp_path: Path
) -> None:
    packets, config = tmp_path / "packets", tmp_path / "server.toml"
    make_packets(60).write(packets)
    config.write_text("feature_rate_hz = 30.0\n")
    server = await make_server("--config", str(config))
    await server.start()
    async with AsyncExitStack() as stack, site(server) as (chain, neighbour):
        crowd = Settings(
            packets=str(packets),
            server=server.wire,
            devices=[f"crowd-{number}" for number in range(12)],
            phases=[number / 360 for number in range(12)],
        )
        async with chain.fault(memory_mb=600) as fault:
            generator = await start_generator(stack, crowd)
            await generator.read(Joined)
            await asyncio.sleep(2 * FAULT_S)
            generator.stop()
            await generator.read(Played)
        await neighbour.check()
    reliability.add("overload: 12 more headsets for 10 s", fault, rate_hz=30)
    assert fault.after["appearance_features"] > fault.before["appearance_features"]


# -- guests --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_revoked_key_ends_its_connections_and_a_new_one_goes_on(
    make_server: Any, reliability: Rows
) -> None:
    server = await make_server()
    keys = [await make_key(server, name) for name in ("hl2", "bench-2")]
    await server.start()
    async with site(server, keys=keys) as (chain, neighbour):
        async with chain.fault(epoch_growth=2) as fault:
            chain.detector.playing = False
            await keystep("device", "revoke", "hl2", "--data-dir", str(server.data))
            async with asyncio.timeout(60):
                while chain.bridge.is_running:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.05)
            await chain.detector.hang_up()
            await asyncio.sleep(FAULT_S)
            chain.use_key(await make_key(server, "hl2"))
            await chain.start_bridge()
            chain.detector.dial()
            chain.detector.playing = True
        await neighbour.check()
    reliability.add("the headset's key is revoked, a new one made after 5 s", fault)


@pytest.mark.slow
async def test_a_flood_of_strangers_is_not_felt(make_server: Any, reliability: Rows) -> None:
    server = await make_server()
    keys = [await make_key(server, name) for name in ("hl2", "bench-2")]
    await server.start()
    public = load_device_key(keys[0]).server_public.decode()
    async with site(server, keys=keys) as (chain, neighbour):
        async with chain.fault() as fault:
            for kind, count in (("silent", 1000), ("garbage", 300), ("unknown_key", 150)):
                await attack(server, kind, count, SERVER_PUBLIC_KEY=public)
        await neighbour.check()
    reliability.add("flood of 1450 connections without a key", fault)
    assert fault.seen == "the step"


@pytest.mark.slow
async def test_a_server_at_its_memory_limit_goes_on_after_a_restart(
    make_server: Any, reliability: Rows
) -> None:
    server = await make_server("--memory-limit-mb", "1024")
    await server.start()
    async with site(server) as (chain, neighbour):
        server.keep_running()
        chain.may_lack = "MemoryError"  # the key steps of a close at the limit; the session says so
        async with chain.fault() as fault:
            await attack(server, "unfinished", 180, is_survived=False)
        await neighbour.check()
    ends = f"the server ends {server.start_count - 1} times and is started again"
    note = ends.replace("1 times", "once") if server.start_count > 1 else "the server goes on"
    reliability.add("server at its memory limit (1024 MiB)", fault, note=note)
