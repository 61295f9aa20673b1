"""Whether a long session costs the server the same at its end as at its beginning.

Usage: python tests/bench/bench_memory.py [--hours 0.1] [--every-s 30]

Prints one JSON object. One simulated headset (stored packets: real video, simulated head, gaze and
hands) is replayed losslessly, as fast as a real server in a process of its own takes it; `--hours`
are hours of data. Each `--every-s` of data the server's resident memory and CPU time are read from
/proc, so Linux is needed. The first tenth, two minutes of data at least, is warm-up. Targets: from
then on memory stays within 5 % of its median, and the CPU per tick of the last third is within 5 %
of the first third's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystep_capture.sender import Sender, Source
from keystep_server.load.measure import (
    TICK_RATE_HZ,
    Plan,
    Target,
    process_cpu_s,
    server_process,
)
from keystep_server.load.packets import StoredPackets, make_packets

TARGET = 0.05
WARM_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Reading:
    data_s: float
    rss_mib: float
    cpu_s: float


def read(pid: int, data_s: float) -> Reading:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return Reading(data_s, int(line.split()[1]) / 1024, process_cpu_s(pid))


async def replay(
    target: Target, stored: StoredPackets, seconds: float, every_s: float
) -> list[Reading]:
    assert target.pid is not None
    source = Source(
        device="bench-memory",
        client="bench_memory",
        streams=tuple(dict.fromkeys(packet.stream for packet in stored.packets)),
        kind="expert",
        replay=True,
        time_scale=1000.0,
    )
    sender = Sender(source, server=target.wire, instance="bench-memory")
    running = asyncio.create_task(sender.run())
    readings: list[Reading] = []
    due_s = 0.0
    for offset_ns, packet in stored.endless():
        data_s = offset_ns / 1e9
        if data_s >= due_s:
            readings.append(read(target.pid, data_s))
            print(f"{data_s:.0f} s of data, {readings[-1].rss_mib:.0f} MiB", file=sys.stderr)
            due_s += every_s
        if data_s >= seconds:
            break
        if not sender.has_room(packet.stream):
            await sender.room(packet.stream)
        sender.offer(
            packet.stream,
            offset_ns,
            packet.payload,
            encoding=packet.encoding,
            keyframe=packet.keyframe,
            width=packet.width,
            height=packet.height,
        )
    running.cancel()
    return readings


def report(readings: list[Reading], took_s: float) -> dict[str, Any]:
    warm_up_s = min(max(readings[-1].data_s / 10, WARM_UP_S), readings[-1].data_s / 2)
    warm = [reading for reading in readings if reading.data_s >= warm_up_s]
    rss_mib = [reading.rss_mib for reading in warm]
    median_mib = statistics.median(rss_mib)
    tick_ms = [
        1e3 * (after.cpu_s - before.cpu_s) / ((after.data_s - before.data_s) * TICK_RATE_HZ)
        for before, after in itertools.pairwise(warm)
    ]
    third = max(1, len(tick_ms) // 3)
    first_ms, last_ms = statistics.median(tick_ms[:third]), statistics.median(tick_ms[-third:])
    return {
        "benchmark": "memory and cost of a long session",
        "data_s": round(readings[-1].data_s, 1),
        "took_s": round(took_s, 1),
        "warm_up_s": round(warm_up_s, 1),
        "rss_mib": {
            "start": round(readings[0].rss_mib, 1),
            "median": round(median_mib, 1),
            "min": round(min(rss_mib), 1),
            "max": round(max(rss_mib), 1),
            "last": round(rss_mib[-1], 1),
        },
        "memory_spread": round(
            max(max(rss_mib) - median_mib, median_mib - min(rss_mib)) / median_mib, 4
        ),
        "cpu_ms_per_tick": {"first_third": round(first_ms, 3), "last_third": round(last_ms, 3)},
        "cost_growth": round(last_ms / first_ms - 1, 4),
        "target": TARGET,
        "readings": [
            [round(r.data_s, 1), round(r.rss_mib, 1), round(r.cpu_s, 2)] for r in readings
        ],
    }


async def run(hours: float, every_s: float) -> dict[str, Any]:
    stored = make_packets()
    async with server_process(Plan(headsets=1, seconds=1.0)) as target:
        start_s = time.monotonic()
        readings = await replay(target, stored, hours * 3600, every_s)
        return report(readings, time.monotonic() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--every-s", type=float, default=30.0)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(run(arguments.hours, arguments.every_s)), indent=2))


if __name__ == "__main__":
    main()
