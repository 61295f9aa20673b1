"""`keystep bench load`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_server.load.measure import Plan, Round, Target

MAX_HEADSETS = 60
TABLE_WIDTH = 120
"""Of what is written into a file or pipe."""


def load(
    headsets: Annotated[
        str, typer.Option(help="How many simulated headsets; several rounds as 1,4,8,16.")
    ] = "1,4,8,16",
    seconds: Annotated[float, typer.Option(min=1, max=380, help="Measured time a round.")] = 30.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Time before it, in seconds.")] = 5.0,
    inference_threads: Annotated[
        str, typer.Option(help="Threads of a model call; several rounds as 1,2.")
    ] = "1",
    inference_calls: Annotated[
        str, typer.Option(help="Model calls at a time; several rounds as 1,2; empty: the default.")
    ] = "",
    pipeline_workers: Annotated[
        str, typer.Option(help="Threads that decode; several rounds as 1,2; empty: the default.")
    ] = "",
    server: Annotated[
        str | None, typer.Option(help="Wire endpoint of a running server that asks for no keys.")
    ] = None,
    rest: Annotated[str | None, typer.Option(help="That server's REST address.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="KEYSTEP_TOKEN", help="A token of its REST side.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw every tick's latency into this PNG.")
    ] = None,
) -> None:
    """Drive a server with simulated headsets and say what a tick costs and how late it is.

    A server of its own is started for each round, unless --server names one. Each headset sends
    real video (H.264, 640x360 at 30 Hz) and simulated head, gaze and hands (60 Hz), all stored
    before. The server's CPU time per extracted frame is compared with bare decoding, preprocessing
    and ONNX Runtime, measured around each round.
    """
    if (server is None) != (rest is None):
        raise ConfigError("--server and --rest belong together: give both, or neither")
    counts = _numbers("--headsets", headsets, MAX_HEADSETS)
    threads = _numbers("--inference-threads", inference_threads, 256)
    calls = _numbers_or_none("--inference-calls", inference_calls)
    workers = _numbers_or_none("--pipeline-workers", pipeline_workers)
    if not counts or not threads:
        raise ConfigError("--headsets and --inference-threads need a number each")
    if server is not None and (len(threads) > 1 or inference_calls or pipeline_workers):
        raise ConfigError("the threads of a running server are its own: leave them out")

    from rich.console import Console

    from keystep_server.load.measure import Plan, Target
    from keystep_server.load.picture import Histogram, write_picture
    from keystep_server.load.report import table, whole_report

    plans = [
        Plan(
            headsets=count,
            seconds=seconds,
            warm_up_s=warm_up,
            inference_threads=thread_count,
            inference_calls=call_count,
            pipeline_workers=worker_count,
        )
        for thread_count in threads
        for call_count in calls
        for worker_count in workers
        for count in counts
    ]
    target = Target(wire=server, rest=rest, token=token) if server and rest else None
    rounds, reports = asyncio.run(_run(plans, target))
    console = Console()
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    console.print(table(reports))
    if json_file is not None:
        json_file.write_text(json.dumps(whole_report(reports), indent=2) + "\n")
    if picture is not None:
        rows = [
            Histogram(
                label=f"{found.plan.headsets} headset{'s' * (found.plan.headsets > 1)}",
                latencies_ms=found.latencies_ms["capture_to_written"],
            )
            for found in rounds
        ]
        write_picture(picture, "Capture to features written, every tick (simulated headsets)", rows)


def _numbers(option: str, text: str, largest: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [0]
    if any(not 1 <= number <= largest for number in numbers):
        raise ConfigError(f"{option} expects numbers from 1 to {largest} as 1,4,8, got {text!r}")
    return numbers


def _numbers_or_none(option: str, text: str) -> list[int | None]:
    return list(_numbers(option, text, 256)) or [None]


async def _run(
    plans: Sequence[Plan], target: Target | None
) -> tuple[list[Round], list[dict[str, Any]]]:
    """Measure each plan, the bare parts before and after it; the rounds and their reports."""
    from rich.console import Console

    from keystep_server.load.bare import BareParts
    from keystep_server.load.packets import make_packets
    from keystep_server.load.report import round_report

    console = Console(stderr=True)
    rounds: list[Round] = []
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="keystep-load-") as folder:
        path = Path(folder) / "packets.msgpack"
        stored = await asyncio.to_thread(make_packets)
        stored.write(path)
        bare = BareParts(stored.of("rgb"))
        await asyncio.to_thread(bare.measure, speed=1000.0)
        for plan in plans:
            console.print(
                f"{plan.headsets} headsets, {plan.inference_threads} inference threads: "
                f"{plan.warm_up_s:g} s warm-up, {plan.seconds:g} s measured ...",
                highlight=False,
            )
            parts = [await asyncio.to_thread(bare.measure)]
            rounds.append(await _round(plan, target, path))
            parts.append(await asyncio.to_thread(bare.measure))
            bare_ms = {name: sum(part[name] for part in parts) / 2 for name in parts[0]}
            reports.append(round_report(rounds[-1], bare_ms))
    return rounds, reports


async def _round(plan: Plan, target: Target | None, packets: Path) -> Round:
    from keystep_server.load.measure import measure, server_process

    async with AsyncExitStack() as stack:
        if target is not None:
            return await measure(plan, target, packets, close=True)
        own = await stack.enter_async_context(server_process(plan))
        return await measure(plan, own, packets)
