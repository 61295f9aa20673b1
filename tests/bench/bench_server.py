"""CPU the server spends for a frame's features, against its bare parts measured in the same run.

Usage: python tests/bench/bench_server.py [--frames 300] [--rounds 3]

Prints one JSON object. A real server in a process of its own gets the bundled real video as PV
H.264, 640x360 at 30 Hz, from a real sender in this process, and extracts features at 10 Hz; its CPU
(user and system, all threads) is read from /proc, so Linux is needed. The bare parts, one thread
each: decoding all frames (PyAV), preprocessing the extracted ones, one ONNX Runtime call for each
(the session options of `OnnxModel`). Rounds alternate between server and parts.

Both run twice: at life speed, and as fast as they can. Between frames at life speed caches go cold,
which makes the same work dearer on both sides, so each is compared at the same speed; the harshest
comparison (server at life speed, parts at full speed) is given too. Everything the server does
while packets come is counted: wire, recording, ticks, heartbeat. What it does with the session open
and nothing coming is measured as well, and the ratio given with and without it. Closing (key steps,
pictures) is not per frame and given on its own, CPU ms. Target: ratio 1.3.
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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import onnxruntime

from keystep_capture.samples import find_sample
from keystep_capture.sender import Sender, Source
from keystep_server.load.bare import EXTRACT_EVERY, PARTS, BareParts
from keystep_server.load.packets import RATE_HZ, SIZE, StoredPacket

WARM_UP_FRAMES = 60
TARGET = 1.3
SPEEDS = {"life_speed": 1.0, "full_speed": 1000.0}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# -- the video ---------------------------------------------------------------------------------


def encode_sample(frame_count: int) -> list[StoredPacket]:
    """The real sample, played round and round, as simulated PV packets."""
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height = SIZE
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, RATE_HZ), Fraction(RATE_HZ)
    encoder.bit_rate = SIZE[0] * SIZE[1] * RATE_HZ * 12 // 75  # hl2ss's own choice
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = RATE_HZ, 0, 1
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": "aud=1:repeat-headers=1:scenecut=0",
    }
    packets = []
    for number, frame in zip(range(frame_count), _pictures(), strict=False):
        frame.pts, frame.time_base = number, encoder.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        (packet,) = encoder.encode(frame)
        packets.append(
            StoredPacket(
                stream="rgb",
                offset_ns=number * 1_000_000_000 // RATE_HZ,
                payload=bytes(packet),
                encoding="h264",
                keyframe=bool(packet.is_keyframe),
            )
        )
    return packets


def _pictures() -> Iterator[av.VideoFrame]:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    while True:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                yield frame.reformat(width=SIZE[0], height=SIZE[1], format="yuv420p")


# -- the server --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRound:
    """CPU ms of the server, per extracted frame where it says so."""

    total_per_frame: float
    without_idle_per_frame: float
    idle_per_s: float
    closing: float
    extracted_count: int


Round = tuple[dict[str, float], ServerRound]


@asynccontextmanager
async def server_process(data_dir: Path) -> AsyncIterator[tuple[int, str, str]]:
    """`keystep serve` on free ports: its process id, wire endpoint and REST address."""
    code = "from keystep_capture.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "serve", "--data-dir", str(data_dir), "--rest-port", "0"),
        *("--wire-bind", "tcp://127.0.0.1:*", "--publish-bind", "tcp://127.0.0.1:*"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if line.startswith(b"READY "):
                fields = dict(part.split("=", 1) for part in line.decode().split()[1:])
                yield process.pid, fields["wire"], fields["rest"]
                return
        raise SystemExit("the server ended before it was ready")
    finally:
        process.terminate()
        await process.communicate()


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class ServerUnderTest:
    """Streams the video to a server process, one session a round."""

    def __init__(self, pid: int, wire: str, rest: str) -> None:
        self._pid, self._wire, self._rest = pid, wire, rest
        self._session_count = 0

    async def measure(self, packets: list[StoredPacket], speed: float) -> ServerRound:
        self._session_count += 1
        source = Source(
            device=f"bench-{self._session_count}",
            client="bench_server",
            streams=("rgb",),
            kind="expert",
            replay=True,
            time_scale=speed,
        )
        sender = Sender(source, server=self._wire, instance=f"round-{self._session_count}")
        running = asyncio.create_task(sender.run())
        warm_up, measured = packets[:WARM_UP_FRAMES], packets[WARM_UP_FRAMES:]
        await self._stream(sender, warm_up, 0, speed)
        before_count = await self._settled(sender)
        start_cpu_s, start_s = process_cpu_s(self._pid), time.monotonic()
        await self._stream(sender, measured, len(warm_up), speed)
        await asyncio.sleep(0.5)  # the last frames are on their way through the model
        took_s, cpu_s = time.monotonic() - start_s, process_cpu_s(self._pid) - start_cpu_s
        extracted_count = await self._settled(sender) - before_count
        idle_per_s = await self._idle_cpu_per_s()
        before_closing_s = process_cpu_s(self._pid)
        await sender.finish(close=True)
        closing_s = process_cpu_s(self._pid) - before_closing_s
        await running
        return ServerRound(
            total_per_frame=1e3 * cpu_s / extracted_count,
            without_idle_per_frame=1e3 * (cpu_s - idle_per_s * took_s) / extracted_count,
            idle_per_s=1e3 * idle_per_s,
            closing=1e3 * closing_s,
            extracted_count=extracted_count,
        )

    async def _stream(
        self, sender: Sender, packets: list[StoredPacket], first: int, speed: float
    ) -> None:
        """Send packets at their rate."""
        start_s = time.monotonic()
        for number, packet in enumerate(packets):
            due_s = start_s + number / RATE_HZ / speed
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            if not sender.has_room("rgb"):
                await sender.room("rgb")
            sender.offer(
                "rgb",
                (first + number) * 1_000_000_000 // RATE_HZ,
                packet.payload,
                encoding="h264",
                keyframe=packet.keyframe,
                width=SIZE[0],
                height=SIZE[1],
            )

    async def _settled(self, sender: Sender) -> int:
        """Features extracted when all that was sent has been worked off."""
        async with httpx.AsyncClient(base_url=self._rest) as rest:
            before = -1
            while True:
                answer = await rest.get(f"/api/v1/sessions/{sender.session}/stats")
                count = int(answer.json()["stats"]["appearance_features"])
                if count == before:
                    return count
                before = count
                await asyncio.sleep(0.5)

    async def _idle_cpu_per_s(self) -> float:
        """What the server uses while the session is open and nothing comes."""
        seconds = 3.0
        before_s = process_cpu_s(self._pid)
        await asyncio.sleep(seconds)
        return (process_cpu_s(self._pid) - before_s) / seconds


# -- the run -----------------------------------------------------------------------------------


async def run(frame_count: int, round_count: int) -> dict[str, Any]:
    packets = encode_sample(WARM_UP_FRAMES + frame_count)
    bare = BareParts(packets[WARM_UP_FRAMES:])
    bare.measure(speed=SPEEDS["full_speed"])  # warm-up
    results: dict[str, list[Round]] = {name: [] for name in SPEEDS}
    with tempfile.TemporaryDirectory() as folder:
        async with server_process(Path(folder)) as (pid, wire, rest):
            server = ServerUnderTest(pid, wire, rest)
            await server.measure(packets[: 2 * WARM_UP_FRAMES], SPEEDS["full_speed"])
            for _ in range(round_count):
                for name, speed in SPEEDS.items():
                    parts_ms = await asyncio.to_thread(bare.measure, speed=speed)
                    results[name].append((parts_ms, await server.measure(packets, speed)))
    return report(results, frame_count=frame_count)


def report(results: dict[str, list[Round]], **settings: Any) -> dict[str, Any]:
    speeds = {name: summary(rounds) for name, rounds in results.items()}
    fastest_bare_ms = speeds["full_speed"]["bare_ms"]["sum"]
    return {
        "benchmark": "server CPU per extracted frame",
        "video": {"size": SIZE, "rate_hz": RATE_HZ, "features_hz": RATE_HZ // EXTRACT_EVERY},
        **settings,
        "ratio": speeds["life_speed"]["ratio"],
        "target_ratio": TARGET,
        "ratio_of_life_speed_to_bare_at_full_speed": round(
            speeds["life_speed"]["server_ms"] / fastest_bare_ms, 3
        ),
        **speeds,
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "av": av.__version__,
        },
    }


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Medians of the rounds, their ratios, and the rounds themselves."""
    parts_ms = [parts for parts, _ in rounds]
    medians_ms = {name: statistics.median(part[name] for part in parts_ms) for name in PARTS}
    bare_ms = sum(medians_ms.values())
    server_ms = statistics.median(server.total_per_frame for _, server in rounds)
    without_idle_ms = statistics.median(server.without_idle_per_frame for _, server in rounds)
    return {
        "bare_ms": {**_rounded(medians_ms), "sum": round(bare_ms, 3)},
        "server_ms": round(server_ms, 3),
        "server_without_idle_ms": round(without_idle_ms, 3),
        "ratio": round(server_ms / bare_ms, 3),
        "ratio_without_idle": round(without_idle_ms / bare_ms, 3),
        "rounds": [
            {"bare_ms": _rounded(parts), "server_ms": _rounded(asdict(server))}
            for parts, server in rounds
        ],
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = asyncio.run(run(arguments.frames, arguments.rounds))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
