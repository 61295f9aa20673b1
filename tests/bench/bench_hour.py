"""Opening, seeking in and giving out a recording of an hour, against one whole reading of it.

Usage: python tests/bench/bench_hour.py [--minutes 60] [--seeks 20]

Prints one JSON object. The recording is simulated: the bundled real video, encoded once as a
headset would (H.264, 640x360, 30 Hz, about 6 kB a picture) and played round and round, with gaze,
head and hands at 30 Hz, a tick with 1280 features at 10 Hz and a step event each half minute. Each
row is a process of its own that does one thing: its seconds (wall and CPU), the bytes it asked the
operating system for (`rchar` of /proc/self/io, so Linux is needed) and the memory it took beyond
what it had after its imports. `whole` reads every packet, as a reader without an index has to;
`open_unclosed` opens what a killed server leaves, parts without an index. The rows of `rest` are a
real server's, which has that hour as a closed session: seconds as its client sees them, and bytes
read and memory (of `VmHWM`) of the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from keystep_capture import wire
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.notes import StepEventNote, TickNote
from keystep_capture.recording.pictures import read_ticks
from keystep_capture.samples import find_sample
from keystep_capture.streams import STREAMS
from keystep_server.sessions import new_session_id
from keystep_server.storage import Session, SessionKind, SessionState, Store

RATE_HZ, TICK_EVERY, STEP_EVERY, KEY_EVERY = 30, 3, 900, 30
SIZE = (640, 360)
NS = 1_000_000_000
SESSION = "ses_01jq7v8k3n4m5p6q7r8s9t0v1w"
RANGE_BYTES = 1_000_000


# -- the hour --------------------------------------------------------------------------------------


def encode_clip() -> list[tuple[bool, bytes]]:
    """The real sample as a headset sends it: key frame or not, and the picture."""
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height = SIZE
    encoder.pix_fmt, encoder.bit_rate = "yuv420p", 6000 * 8 * RATE_HZ
    encoder.time_base, encoder.framerate = Fraction(1, RATE_HZ), Fraction(RATE_HZ)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = KEY_EVERY, 0, 1
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
    clip = []
    with av.open(str(find_sample("pour-coffee").video_path)) as container:
        for number, picture in enumerate(container.decode(video=0)):
            frame = picture.reformat(*SIZE, format="yuv420p")
            frame.pts, frame.time_base = number, encoder.time_base
            frame.pict_type = av.video.frame.PictureType.NONE
            (unit,) = encoder.encode(frame)
            clip.append((bool(unit.is_keyframe), bytes(unit)))
    return clip[: len(clip) // KEY_EVERY * KEY_EVERY]  # each round begins with a key frame


def without_index(folder: Path) -> None:
    """The same recording beside it as a killed server leaves it."""
    target = folder.with_name("unclosed")
    shutil.copytree(folder, target)
    for part in target.iterdir():
        os.truncate(part, part.stat().st_size - 40)


def header(stream: str, number: int, **fields: Any) -> wire.PacketHeader:
    time_ns = number * NS // RATE_HZ
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session=SESSION,
        epoch=1,
        stream=stream,
        sequence=number,
        device_time_ns=time_ns,
        send_time_ns=time_ns,
        encoding=next(iter(STREAMS[stream].encodings)),
        **fields,
    )


def write_hour(folder: Path, minutes: float) -> int:
    """Record it; the number of packets."""
    now_ns = 0
    info = RecordingInfo(session=SESSION, kind="expert", source="simulated")
    writer = RecordingWriter(folder, info, clock=lambda: now_ns)
    clip, generator = encode_clip(), np.random.default_rng(1)
    values = {}
    for stream in ("gaze", "head", "hands"):
        encoding = next(iter(STREAMS[stream].encodings.values()))
        count = encoding.row_bytes // np.dtype(encoding.numeric).itemsize
        values[stream] = [
            generator.normal(size=count).astype(encoding.numeric).tobytes() for _ in range(97)
        ]
    features = [generator.normal(size=1280).astype("<f4").tobytes() for _ in range(97)]
    for number in range(int(minutes * 60 * RATE_HZ)):
        now_ns = number * NS // RATE_HZ
        keyframe, payload = clip[number % len(clip)]
        fields = {"keyframe": keyframe, "width": SIZE[0], "height": SIZE[1]}
        writer.write_packet(header("rgb", number, **fields), payload)
        for stream, payloads in values.items():
            writer.write_packet(header(stream, number), payloads[number % 97])
        if number % TICK_EVERY == 0:
            tick = TickNote(
                epoch=1,
                index=number // TICK_EVERY,
                device_time_ns=now_ns,
                cues=["rgb", *values],
                features={"appearance": features[number % 97]},
            )
            writer.write_note(tick, device_time_ns=now_ns)
        if number % STEP_EVERY == 0:
            step = StepEventNote(id=str(number), kind="completed", step_id=1, device_time_ns=now_ns)
            writer.write_note(step, device_time_ns=now_ns)
    writer.close()
    return writer.packet_count


# -- one thing in a process of its own -------------------------------------------------------------


def moments(recording: Recording, count: int) -> list[int]:
    """Random device times, the same in every run."""
    span = recording.device_span_ns
    assert span is not None
    chosen = random.Random(1)
    return [chosen.randrange(*span) for _ in range(count)]


def open_it(path: Path, _seeks: int) -> int:
    with Recording(path) as recording:
        return len(recording.parts)


def open_unclosed(path: Path, _seeks: int) -> int:
    with Recording(path.with_name("unclosed")) as recording:
        assert not recording.finished
        return len(recording.parts)


def info(path: Path, _seeks: int) -> int:
    with Recording(path) as recording:
        assert recording.device_span_ns is not None
        assert recording.finished
        return len(recording.lanes)


def seek(path: Path, seeks: int) -> int:
    """The packets from the key frame before a moment up to it, for random moments."""
    count = 0
    with Recording(path) as recording:
        for time_ns in moments(recording, seeks):
            begin_ns = recording.keyframe_before("rgb", time_ns, epoch=1)
            assert begin_ns is not None
            assert time_ns - begin_ns <= NS * KEY_EVERY // RATE_HZ
            packets = recording.packets(("rgb",), epoch=1, start_ns=begin_ns, end_ns=time_ns + 1)
            count += sum(1 for _ in packets)
    return count


def ticks(path: Path, seeks: int) -> int:
    """One decoded tick at each of the random moments."""
    with Recording(path) as recording:
        found = 0
        for time_ns in moments(recording, seeks):
            end_ns = time_ns + NS
            some = read_ticks(recording, epoch=1, start_ns=time_ns, end_ns=end_ns)
            found += next(iter(some), None) is not None
        return found


def step_events(path: Path, _seeks: int) -> int:
    with Recording(path) as recording:
        return sum(1 for _ in recording.notes("step_event"))


def whole(path: Path, _seeks: int) -> int:
    with Recording(path) as recording:
        return sum(1 for _ in recording.packets())


THINGS: dict[str, Callable[[Path, int], int]] = {
    "open": open_it,
    "open_unclosed": open_unclosed,
    "info": info,
    "seek": seek,
    "ticks": ticks,
    "step_events": step_events,
    "whole": whole,
}


def measure_here(name: str, path: Path, seeks: int) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports does not count
    memory_kib, read_bytes = peak_kib("self"), bytes_read("self")
    wall, cpu = time.perf_counter(), time.process_time()
    found = THINGS[name](path, seeks)
    return {
        "wall_s": round(time.perf_counter() - wall, 4),
        "cpu_s": round(time.process_time() - cpu, 4),
        "read_bytes": bytes_read("self") - read_bytes,
        "memory_mib": round((peak_kib("self") - memory_kib) / 1024, 1),
        "found": found,
    }


def measure(name: str, path: Path, seeks: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--path", str(path), "--seeks", str(seeks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def peak_kib(process: str | int) -> int:
    """The most memory a process had; the system's count for getrusage begins with its parent's."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def bytes_read(process: str | int) -> int:
    text = Path(f"/proc/{process}/io").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("rchar")).split()[1])


# -- over REST -------------------------------------------------------------------------------------


def prepared(data_dir: Path) -> tuple[str, Path]:
    """A closed session in a server's data directory; its id and where its recording belongs."""
    now = datetime.now(UTC)
    session = Session(
        id=new_session_id(now),
        device_id="bench",
        kind=SessionKind.EXPERT,
        state=SessionState.OPEN,
        task="bench",
        procedure=None,
        replay=False,
        time_scale=1.0,
        created_at=now,
    )
    store = Store.open(f"sqlite:///{data_dir.resolve() / 'keystep.db'}")
    store.add_session(session)
    store.close_session(session.id, now, "bench")
    store.close()
    return session.id, data_dir / "sessions" / session.id / "recording"


@asynccontextmanager
async def served(data_dir: Path) -> AsyncIterator[tuple[str, int]]:
    """A server of that data; its REST address and process id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "serve", "--data-dir", str(data_dir)),
        *("--rest-port", "0", "--wire-bind", "tcp://127.0.0.1:*"),
        *("--publish-bind", "tcp://127.0.0.1:*"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if line.startswith(b"READY "):
                ready = dict(part.split("=", 1) for part in line.decode().split()[1:])
                yield ready["rest"], process.pid
                return
        raise RuntimeError("the server ended before it was ready")
    finally:
        process.terminate()
        await process.wait()


def requests(session: str, sizes: dict[str, int], seeks: int) -> Iterator[tuple[str, str, Any]]:
    """Row, path and range of what a client asks for, in order."""
    base, chosen = f"/api/v1/recordings/{session}", random.Random(2)
    yield "list", "/api/v1/recordings", None
    yield "open", base, None
    yield "thumbnail, first", f"{base}/thumbnail", None
    yield "thumbnail, again", f"{base}/thumbnail", None
    for _ in range(seeks):
        name = chosen.choice(sorted(sizes))
        start = chosen.randrange(max(1, sizes[name] - RANGE_BYTES))
        byte_range = f"bytes={start}-{start + RANGE_BYTES - 1}"
        yield "ranges of the files", f"{base}/files/{name}", byte_range
    yield "video, first", f"{base}/video", "bytes=0-99"
    for _ in range(seeks):
        start = chosen.randrange(sum(sizes.values()) // 4)
        byte_range = f"bytes={start}-{start + RANGE_BYTES - 1}"
        yield "ranges of the video", f"{base}/video", byte_range


async def measure_rest(data_dir: Path, session: str, seeks: int) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    async with served(data_dir) as (rest, pid), httpx.AsyncClient(base_url=rest) as client:
        sizes = {
            path.name: path.stat().st_size
            for path in (data_dir / "sessions" / session / "recording").iterdir()
        }
        for row, path, byte_range in requests(session, sizes, seeks):
            memory_kib, read_bytes = peak_kib(pid), bytes_read(pid)
            headers = {"Range": byte_range} if byte_range else {}
            began = time.perf_counter()
            answer = await client.get(path, headers=headers, timeout=600)
            took_s = time.perf_counter() - began
            answer.raise_for_status()
            kept = rows.setdefault(
                row, {"count": 0, "wall_s": 0.0, "read_bytes": 0, "sent_bytes": 0, "memory_mib": 0}
            )
            kept["count"] += 1
            kept["wall_s"] = round(kept["wall_s"] + took_s, 4)
            kept["read_bytes"] += bytes_read(pid) - read_bytes
            kept["sent_bytes"] += len(answer.content)
            kept["memory_mib"] = round(kept["memory_mib"] + (peak_kib(pid) - memory_kib) / 1024, 1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seeks", type=int, default=20)
    parser.add_argument("--one", choices=sorted(THINGS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(arguments.one, arguments.path, arguments.seeks)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(scratch)
        session, folder = prepared(data_dir)
        packet_count = write_hour(folder, arguments.minutes)
        without_index(folder)
        rows = {name: measure(name, folder, arguments.seeks) for name in THINGS}
        shutil.rmtree(folder.with_name("unclosed"))
        assert rows["whole"]["found"] == packet_count
        size = sum(path.stat().st_size for path in folder.iterdir())
        report = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "minutes": arguments.minutes,
            "seeks": arguments.seeks,
            "packets": packet_count,
            "size_bytes": size,
            "parts": len(list(folder.iterdir())),
            "reading": rows,
            "share_of_whole": {
                name: round(row["read_bytes"] / rows["whole"]["read_bytes"], 5)
                for name, row in rows.items()
            },
            "rest": asyncio.run(measure_rest(data_dir, session, arguments.seeks)),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
