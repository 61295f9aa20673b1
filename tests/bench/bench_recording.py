"""The recording writer against a bare mcap.Writer, and reading by ticks against bare PyAV.

Usage: python tests/bench/bench_recording.py [--rounds 5] [--seconds 20]

Prints one JSON object. `writer`: packets of an expert session (rgb 30 Hz of 60,000 B, gaze, head
and hands 60 Hz, detections 10 Hz) through `RecordingWriter`, which builds and checks every message,
against a loop over `mcap.Writer.add_message` with the very messages of that file, built beforehand,
and the same settings (chunks of 1 MiB, no compression, checksums, a flush each second of data).
`reader`: `read_ticks` at 10 Hz over a recorded H.264 stream with its sensors, against
`container.decode` of the same H.264 in an MP4; no picture is converted in either. Rounds alternate,
so that both see the same machine; times are CPU seconds of this process, disk included in `wall`.
Targets: 0.9 and 0.8.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from keystep_capture import wire
from keystep_capture.recording import Recording, RecordingInfo, RecordingWriter
from keystep_capture.recording.pictures import read_ticks
from keystep_capture.samples import find_sample
from keystep_capture.streams import STREAMS

TARGETS = {"writer": 0.9, "reader": 0.8}
RATES = {"rgb": 30, "gaze": 60, "head": 60, "hands": 60, "detections": 10}
POSE = [1.0, 0.0, 0.0, 0.1, 0.0, 1.0, 0.0, 1.6, 0.0, 0.0, 1.0, 0.2, 0.0, 0.0, 0.0, 1.0]
Packets = list[tuple[wire.PacketHeader, bytes]]


def packet(stream: str, number: int, time_ns: int, **fields: Any) -> wire.PacketHeader:
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session="ses_01jq7v8k3n4m5p6q7r8s9t0v1w",
        epoch=1,
        stream=stream,
        sequence=number,
        device_time_ns=time_ns,
        send_time_ns=time_ns,
        encoding=next(iter(STREAMS[stream].encodings)),
        **fields,
    )


def sensor_packets(seconds: float) -> Packets:
    generator = np.random.default_rng(1)
    packets = []
    for stream in ("gaze", "head", "hands", "detections"):
        encoding = next(iter(STREAMS[stream].encodings.values()))
        count = encoding.row_bytes // np.dtype(encoding.numeric).itemsize
        for number in range(int(seconds * RATES[stream])):
            values = generator.normal(size=count).astype(encoding.numeric)
            time_ns = round(number * 1e9 / RATES[stream])
            packets.append((packet(stream, number, time_ns), values.tobytes()))
    return packets


def by_time(*packets: Packets) -> Packets:
    return sorted(itertools.chain(*packets), key=lambda one: one[0].device_time_ns)


def video_packets(seconds: float) -> Packets:
    payload = os.urandom(60_000)
    return [
        (
            packet(
                "rgb",
                number,
                round(number * 1e9 / 30),
                keyframe=number % 15 == 0,
                width=1280,
                height=720,
                intrinsics=(990.0 + number % 2, 990.5, 640.0, 360.0),
                pose=POSE,
            ),
            payload,
        )
        for number in range(int(seconds * 30))
    ]


# -- writing ---------------------------------------------------------------------------------------


def write_ours(folder: Path, packets: Packets) -> Path:
    now_ns = 0
    writer = RecordingWriter(folder, RecordingInfo(session="s"), clock=lambda: now_ns)
    for header, payload in packets:
        now_ns = header.device_time_ns
        writer.write_packet(header, payload, receive_time_ns=now_ns)
    writer.close()
    return folder / "part-000.mcap"


def messages_of(part: Path) -> tuple[list[Any], list[Any]]:
    with part.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        messages = [one[2] for one in reader.iter_messages(log_time_order=False)]
    return [*summary.schemas.values(), *summary.channels.values()], messages


def write_bare(path: Path, described: list[Any], messages: list[Any]) -> None:
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE)
        writer.start()
        for one in described:
            if hasattr(one, "topic"):
                writer.register_channel(
                    one.topic, one.message_encoding, one.schema_id, one.metadata
                )
            else:
                writer.register_schema(one.name, one.encoding, one.data)
        flushed = 0
        for message in messages:
            writer.add_message(
                message.channel_id,
                message.log_time,
                message.data,
                message.publish_time,
                message.sequence,
            )
            if message.publish_time - flushed >= 1_000_000_000:
                flushed = message.publish_time
                writer.flush()
        writer.finish()
        file.flush()
        os.fsync(file.fileno())


# -- reading ---------------------------------------------------------------------------------------


def record_clip(folder: Path, mp4: Path, width: int, height: int) -> int:
    """The bundled clip, scaled up and encoded as PV would, as a recording and as an MP4."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"tune": "zerolatency", "preset": "veryfast", "g": "15", "bf": "0"}
    packets: Packets = []
    with (
        av.open(str(find_sample("pour-coffee").video_path)) as container,
        av.open(str(mp4), "w") as out,
    ):
        track = out.add_stream("libx264", rate=30)
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        for picture in container.decode(video=0):
            frame = picture.reformat(width, height, "yuv420p")
            frame.pts, frame.pict_type = len(packets), av.video.frame.PictureType.NONE
            frame.time_base = Fraction(1, 30)
            (unit,) = encoder.encode(frame)
            fields = {"keyframe": unit.is_keyframe, "width": width, "height": height}
            number = len(packets)
            header = packet("rgb", number, round(number * 1e9 / 30), **fields)
            packets.append((header, bytes(unit)))
            unit.stream, unit.time_base = track, Fraction(1, 30)
            unit.pts = unit.dts = number
            out.mux(unit)
    write_ours(folder, by_time(packets, sensor_packets(len(packets) / 30)))
    return len(packets)


def decode_bare(mp4: Path) -> int:
    with av.open(str(mp4)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def decode_ticks(folder: Path) -> int:
    with Recording(folder) as recording:
        return sum(tick.samples["rgb"] is not None for tick in read_ticks(recording, epoch=1))


# -- comparing -------------------------------------------------------------------------------------


def compare(ours: Callable[[int], Any], bare: Callable[[int], Any], rounds: int) -> dict[str, Any]:
    """CPU and wall seconds of both, alternating, after one round that is not counted."""
    cpu: dict[str, list[float]] = {"ours": [], "bare": []}
    wall: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds + 1):
        for name, run in (("ours", ours), ("bare", bare)):
            started, started_cpu = time.perf_counter(), time.process_time()
            run(number)
            if number:
                cpu[name].append(time.process_time() - started_cpu)
                wall[name].append(time.perf_counter() - started)
    result: dict[str, Any] = {}
    for unit, times in (("cpu", cpu), ("wall", wall)):
        ratios = [bare / ours for ours, bare in zip(times["ours"], times["bare"], strict=True)]
        result[unit] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ours_s": round(statistics.median(times["ours"]), 4),
            "bare_s": round(statistics.median(times["bare"]), 4),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        packets = by_time(video_packets(arguments.seconds), sensor_packets(arguments.seconds))
        described, messages = messages_of(write_ours(root / "first", packets))
        writing = compare(
            lambda number: write_ours(root / f"ours-{number}", packets),
            lambda number: write_bare(root / f"bare-{number}.mcap", described, messages),
            arguments.rounds,
        )
        frames = record_clip(root / "clip", root / "clip.mp4", 1280, 720)
        assert decode_bare(root / "clip.mp4") == frames
        assert decode_ticks(root / "clip") == -(-frames // 3)
        reading = compare(
            lambda _: decode_ticks(root / "clip"),
            lambda _: decode_bare(root / "clip.mp4"),
            arguments.rounds,
        )
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "targets": TARGETS,
        "writer": {"packets": len(packets), "messages": len(messages), **writing},
        "reader": {"frames": frames, "size": "1280x720", **reading},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
