"""What recording costs the server: the same four sessions with and without, in one run.

Usage: python tests/bench/bench_recorder.py [--sessions 4] [--seconds 20] [--rounds 3]

Prints one JSON object. A real server in a process of its own gets, for each session, the bundled
real video as PV H.264 (640x360, 30 Hz) and simulated head, gaze and hands (60 Hz each) and
detections (10 Hz), at life speed, from real senders in this process. Rounds alternate between
sessions of which everything is recorded (streams, ticks, notes) and sessions of which only the
video is kept, as it always is; features are extracted at 10 Hz in both. CPU is the server process's
user and system time, all threads, from /proc (so Linux is needed), while packets come. `cost` is
(with - without) / with of the medians. Target: 0.15. `video_only_part` and `recorded_part` are the
packets that were written in the last round of each, as proof.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from keystep_capture.samples import find_sample
from keystep_capture.sender import Sender, Source
from keystep_capture.streams import STREAMS

TARGET = 0.15
RATES = {"rgb": 30, "head": 60, "gaze": 60, "hands": 60, "detections": 10}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def encode_sample() -> list[dict[str, Any]]:
    """The real sample as simulated PV packets."""
    path = find_sample("pour-coffee").video_path
    assert path is not None
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 640, 360, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 30), Fraction(30)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = 30, 0, 1
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": "aud=1:repeat-headers=1:scenecut=0",
    }
    packets = []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.reformat(width=640, height=360, format="yuv420p")
            picture.pts, picture.time_base = number, encoder.time_base
            picture.pict_type = av.video.frame.PictureType.NONE
            (packet,) = encoder.encode(picture)
            fields = {"payload": bytes(packet), "encoding": "h264", "width": 640, "height": 360}
            packets.append(fields | {"keyframe": bool(packet.is_keyframe)})
    return packets[: len(packets) // 30 * 30]  # so that it can go round


def values_of(stream: str) -> dict[str, Any]:
    """One simulated packet's payload."""
    encoding = next(iter(STREAMS[stream].encodings.values()))
    count = encoding.row_bytes // np.dtype(encoding.numeric).itemsize
    if stream == "detections":
        rows = np.array([[number, 0.9, 10, 10, 50, 50] for number in range(4)], "<f8")
        return {"payload": rows.tobytes(), "encoding": encoding.name}
    values = np.random.default_rng(1).normal(size=count).astype(encoding.numeric)
    return {"payload": values.tobytes(), "encoding": encoding.name}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[int, str, str]]:
    """A server's process id, wire and REST."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "serve", "--rest-port", "0"),
        *("--data-dir", str(folder), "--publish-bind", "tcp://127.0.0.1:*"),
        *("--wire-bind", "tcp://127.0.0.1:*"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"READY "):
                ready = dict(part.split("=", 1) for part in line.decode().split()[1:])
                yield process.pid, ready["wire"], ready["rest"]
                return
        raise SystemExit("the server ended before it was ready")
    finally:
        process.terminate()
        await process.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def stream_at_life_speed(sender: Sender, video: list[dict[str, Any]], seconds: float) -> None:
    """Each stream's packets when they are due; what has no room is left out, as live."""
    plan = sorted(
        (number / rate, name, number)
        for name, rate in RATES.items()
        for number in range(int(seconds * rate))
    )
    others = {name: values_of(name) for name in RATES if name != "rgb"}
    start_s = time.monotonic()
    for at_s, name, number in plan:
        wait_s = start_s + at_s - time.monotonic()
        if wait_s > 0.002:
            await asyncio.sleep(wait_s)
        fields = video[number % len(video)] if name == "rgb" else others[name]
        sender.offer(name, device_time_ns=round(at_s * 1e9), **fields)


async def one_round(
    server: tuple[int, str, str],
    video: list[dict[str, Any]],
    *,
    sessions: int,
    seconds: float,
    record: bool,
    name: str,
) -> tuple[float, int]:
    """CPU seconds a second of the server, and packets written into recordings."""
    pid, endpoint, url = server
    senders = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as rest:
        for number in range(sessions):
            device = f"{name}-{number}"
            body = {"device_id": device, "kind": "guided", "record": record}
            (await rest.post("/api/v1/sessions", json=body)).raise_for_status()
            source = Source(device=device, client="bench", streams=tuple(RATES))
            sender = Sender(source, server=endpoint, instance="one")
            senders.append((sender, asyncio.create_task(sender.run())))
        for sender, _ in senders:
            while sender.state != "open":  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        before_s, start_s = cpu_s(pid), time.monotonic()
        await asyncio.gather(
            *(stream_at_life_speed(sender, video, seconds) for sender, _ in senders)
        )
        used_s, wall_s = cpu_s(pid) - before_s, time.monotonic() - start_s
        written = 0
        for sender, task in senders:
            path = f"/api/v1/sessions/{sender.session}/stats"
            stats = (await rest.get(path)).json()["stats"]
            written += stats["recording"]["packets"]
            assert not stats["recording"]["dropped"], stats["recording"]
            await sender.finish(close=True)
            await task
    return used_s / wall_s, written


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Alternate rounds with and without."""
    video = encode_sample()
    used: dict[bool, list[float]] = {True: [], False: []}
    written: dict[bool, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder)) as server:
            options = {"sessions": args.sessions}
            await one_round(server, video, **options, seconds=3, record=True, name="warm")
            for number in range(args.rounds):
                for record in (number % 2 == 0, number % 2 == 1):
                    used_s, written[record] = await one_round(
                        server,
                        video,
                        **options,
                        seconds=args.seconds,
                        record=record,
                        name=f"round-{number}-{record}",
                    )
                    used[record].append(used_s)
    with_, without = statistics.median(used[True]), statistics.median(used[False])
    return {
        "sessions": args.sessions,
        "seconds": args.seconds,
        "cpu_with": [round(one, 4) for one in used[True]],
        "cpu_without": [round(one, 4) for one in used[False]],
        "cost": round((with_ - without) / with_, 4),
        "target": TARGET,
        "recorded_part": written[True],
        "video_only_part": written[False],
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
