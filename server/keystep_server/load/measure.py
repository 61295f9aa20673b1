"""One round of the load: a server, generators beside it, and what was counted meanwhile."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from keystep_capture.errors import KeystepError
from keystep_server.demo_processes import KeystepProcess, ProcessError
from keystep_server.load.generator import Joined, Played, Settings

HEADSETS_PER_GENERATOR = 8
TICK_RATE_HZ = 10.0
WRITTEN = ("arrival_to_written", "capture_to_written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server under load; `pid` where its CPU time can be read here, `token` is REST's."""

    wire: str
    rest: str
    pid: int | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One round: how many headsets, how long, and the threads of a server started for it."""

    headsets: int
    seconds: float
    warm_up_s: float = 5.0
    inference_threads: int = 1
    inference_calls: int | None = None
    pipeline_workers: int | None = None


@dataclass(slots=True, kw_only=True)
class Counted:
    """What the server says of one session at one moment."""

    time_s: float
    features: int
    decoded: int
    left_out: dict[str, int]
    dropped: dict[str, int]
    sender_dropped: dict[str, int]
    latency_counts: dict[str, int]
    newest_ms: dict[str, list[float]]


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """Both sides' CPU time and all sessions' counters at one moment."""

    time_s: float
    server_cpu_s: float | None
    generator_cpu_s: float
    sessions: dict[str, Counted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A measured stretch of one round."""

    plan: Plan
    before: Snapshot
    after: Snapshot
    latencies_ms: dict[str, list[float]]
    played: list[Played]

    @property
    def seconds(self) -> float:
        """How long was measured."""
        return self.after.time_s - self.before.time_s


@dataclass(slots=True)
class Generator:
    """One generator process."""

    process: asyncio.subprocess.Process
    sessions: dict[str, str] = field(default_factory=dict)

    async def read(self, kind: type[Any]) -> Any:
        """Its next line.

        Raises:
            ProcessError: It ended instead; its own words.
        """
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            words = (await self.process.stderr.read()).decode(errors="replace").strip()
            raise ProcessError(f"a load generator ended early: {words[-400:]}")
        return msgspec.json.decode(line, type=kind)

    def stop(self) -> None:
        """Ask it to stop playing; it then says what it has played."""
        assert self.process.stdin is not None
        self.process.stdin.close()


@asynccontextmanager
async def server_process(
    plan: Plan, *, more: Mapping[str, Any] | None = None
) -> AsyncIterator[Target]:
    """A `keystep serve` on free ports with a data directory of its own, for as long as needed."""
    with tempfile.TemporaryDirectory(prefix="keystep-load-") as name:
        folder = Path(name)
        settings = {
            "data_dir": str(folder / "data"),
            "rest_port": 0,
            "wire_bind": "tcp://127.0.0.1:*",
            "publish_bind": "tcp://127.0.0.1:*",
            "inference_threads": plan.inference_threads,
            "log_level": "warning",
            **({"inference_calls": plan.inference_calls} if plan.inference_calls else {}),
            **({"pipeline_workers": plan.pipeline_workers} if plan.pipeline_workers else {}),
            **(more or {}),
        }
        config = folder / "server.toml"
        lines = [
            f"{key} = {msgspec.json.encode(value).decode()}" for key, value in settings.items()
        ]
        config.write_text("\n".join(lines) + "\n")
        server = await KeystepProcess.start("serve", folder, "serve", "--config", str(config))
        try:
            ready = await server.ready()
            yield Target(wire=ready["wire"], rest=ready["rest"], pid=server.pid)
        finally:
            if server.is_running:
                await server.stop()


async def measure(plan: Plan, target: Target, packets: Path, *, close: bool = False) -> Round:
    """Drive a server with simulated headsets and count for `plan.seconds` after the warm-up.

    Args:
        plan: How many, how long.
        target: The server.
        packets: File of `StoredPackets`.
        close: Close the sessions at the end, which extracts their key steps.

    Raises:
        ProcessError: A generator failed.
        KeystepError: The server answered something else than its counters.
    """
    async with AsyncExitStack() as stack:
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        rest = await stack.enter_async_context(
            httpx.AsyncClient(base_url=target.rest, headers=headers, timeout=120)
        )
        generators = await _start_generators(stack, plan, target, packets, close=close)
        sessions = {d: s for generator in generators for d, s in generator.sessions.items()}
        await asyncio.sleep(plan.warm_up_s)
        before = await _snapshot(rest, target, generators, sessions, cpu_last=True)
        await asyncio.sleep(plan.seconds)
        after = await _snapshot(rest, target, generators, sessions, cpu_last=False)
        for generator in generators:
            generator.stop()
        played = [await generator.read(Played) for generator in generators]
        for generator in generators:
            await generator.process.wait()
    return Round(
        plan=plan,
        before=before,
        after=after,
        latencies_ms=_latencies_ms(before, after),
        played=played,
    )


async def _start_generators(
    stack: AsyncExitStack, plan: Plan, target: Target, packets: Path, *, close: bool
) -> list[Generator]:
    """Start the processes and wait until every headset is welcome."""
    run = time.monotonic_ns()
    devices = [f"load-{run:x}-{number}" for number in range(plan.headsets)]
    generators = []
    for first in range(0, plan.headsets, HEADSETS_PER_GENERATOR):
        mine = range(first, min(first + HEADSETS_PER_GENERATOR, plan.headsets))
        settings = Settings(
            packets=str(packets),
            server=target.wire,
            devices=[devices[number] for number in mine],
            phases=[number / plan.headsets / TICK_RATE_HZ for number in mine],
            close=close,
        )
        generators.append(await start_generator(stack, settings))
    for generator in generators:
        generator.sessions = (await generator.read(Joined)).sessions
    return generators


async def start_generator(stack: AsyncExitStack, settings: Settings) -> Generator:
    """Start a generator process; it is killed at the end of `stack` if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keystep_server.load.generator",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stack.push_async_callback(_end, process)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(settings) + b"\n")
    await process.stdin.drain()
    return Generator(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _snapshot(
    rest: httpx.AsyncClient,
    target: Target,
    generators: list[Generator],
    sessions: Mapping[str, str],
    *,
    cpu_last: bool,
) -> Snapshot:
    """Read all counters; asking costs the server CPU, so that is kept outside what is measured."""
    found: dict[str, Counted] = {}
    if cpu_last:
        found = {device: await counted(rest, session) for device, session in sessions.items()}
    snapshot = Snapshot(
        time_s=time.monotonic(),
        server_cpu_s=None if target.pid is None else process_cpu_s(target.pid),
        generator_cpu_s=sum(process_cpu_s(generator.process.pid) for generator in generators),
        sessions=found,
    )
    if not cpu_last:
        snapshot.sessions = {d: await counted(rest, session) for d, session in sessions.items()}
    return snapshot


async def counted(rest: httpx.AsyncClient, session_id: str) -> Counted:
    """Ask for a session's counters.

    Raises:
        KeystepError: The server did not give them.
    """
    stats = (await _get(rest, f"/api/v1/sessions/{session_id}/stats"))["stats"]
    stretches = (await _get(rest, f"/api/v1/sessions/{session_id}/latencies"))["stretches"]
    return Counted(
        time_s=time.monotonic(),
        features=stats["appearance_features"],
        decoded=stats["decoded_frames"],
        left_out=stats["features_left_out"],
        dropped=stats["dropped"],
        sender_dropped={n: lane["dropped_by_sender"] for n, lane in stats["streams"].items()},
        latency_counts={name: stretch["count"] for name, stretch in stretches.items()},
        newest_ms={name: stretch["newest_ms"] for name, stretch in stretches.items()},
    )


def _latencies_ms(before: Snapshot, after: Snapshot) -> dict[str, list[float]]:
    """Every tick's latencies between the snapshots, all sessions together."""
    found: dict[str, list[float]] = {name: [] for name in WRITTEN}
    for device, counted_after in after.sessions.items():
        for name in WRITTEN:
            count_before = before.sessions[device].latency_counts.get(name, 0)
            new = counted_after.latency_counts.get(name, 0) - count_before
            found[name] += counted_after.newest_ms[name][-new:] if new else []
    return found


async def _get(rest: httpx.AsyncClient, path: str) -> Any:
    try:
        answer = await rest.get(path)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise KeystepError(f"the server did not answer {path}: {error}") from None
    return answer.json()


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
