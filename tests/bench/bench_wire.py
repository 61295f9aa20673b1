"""Sender to Receiver against bare pyzmq: the same two frames, DEALER to ROUTER, two processes.

Usage: python tests/bench/bench_wire.py [--rounds 5] [--rgb 6000] [--hands 30000]

Prints one JSON object. Rounds alternate between the two, so that both see the same machine. Ours
carries everything of docs/wire.md (checks, credit, heartbeat) and loses nothing; bare pyzmq blocks
at its high-water mark of 64. Targets: ratio 0.75 for rgb (60,000 B), 0.55 for hands (1,872 B).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import structlog
import zmq

from keystep_capture import wire
from keystep_capture.peers import Admission, Buffer, Lane, Peer
from keystep_capture.receiver import Receiver
from keystep_capture.sender import Sender, Source
from keystep_capture.streams import STREAMS

SESSION = "ses_01jq7v8k3n4m5p6q7r8s9t0v1w"
PAYLOADS = {"rgb": 60_000, "hands": 1_872}
TARGETS = {"rgb": 0.75, "hands": 0.55}
ENCODINGS = {"rgb": "h264", "hands": "joints_f32"}
WARM_UP = 200


class Counting:
    """Consumes packets at once and times them from the end of the warm-up."""

    def __init__(self, count: int) -> None:
        self.receiver: Receiver
        self._left = WARM_UP + count
        self._count = count
        self._started = 0.0
        self.rate = asyncio.get_running_loop().create_future()

    async def admit(self, hello: wire.Hello) -> Admission:
        lanes = {name: Lane(spec=STREAMS[name], epoch=1) for name in hello.streams}
        return Admission(session_id=SESSION, epoch=1, lanes=lanes)

    def on_joined(self, peer: Peer) -> None:
        pass

    def on_packet(self, peer: Peer, lane: Lane, header: wire.PacketHeader, payload: Buffer) -> bool:
        self._left -= 1
        if self._left % 1000 == 0:  # as a server that writes down what it took
            self.receiver.acknowledge(lane, header.sequence)
        if self._left == self._count:
            self._started = time.perf_counter()
        elif not self._left:
            self.rate.set_result(self._count / (time.perf_counter() - self._started))
        return True

    def on_guidance_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        pass

    def on_finished(self, peer: Peer, finished: wire.Finished) -> None:
        self.receiver.dismiss(peer)

    def on_left(self, peer: Peer) -> None:
        pass


def _fields(stream: str, number: int) -> dict[str, Any]:
    """What a packet of the stream usually carries."""
    fields: dict[str, Any] = {"encoding": ENCODINGS[stream]}
    if stream == "rgb":
        fields |= {
            "keyframe": number % 15 == 0,
            "width": 640,
            "height": 360,
            "intrinsics": (500.25, 500.5, 320.0, 180.0),
            "pose": [
                1.0,
                0.0,
                0.0,
                0.1,
                0.0,
                1.0,
                0.0,
                1.6,
                0.0,
                0.0,
                1.0,
                0.2,
                0.0,
                0.0,
                0.0,
                1.0,
            ],
        }
    return fields


def _header(stream: str) -> bytes:
    return wire.encode(
        wire.PacketHeader(
            protocol=wire.PROTOCOL,
            session=SESSION,
            epoch=1,
            stream=stream,
            sequence=70_000,
            device_time_ns=8_123_456_789_012,
            send_time_ns=8_123_456_789_012,
            **_fields(stream, 0),
        )
    )


# -- the sending process -----------------------------------------------------------------------


async def send_ours(endpoint: str, stream: str, count: int) -> None:
    source = Source(device="bench", client="bench", streams=(stream,), replay=True)
    sender = Sender(source, server=endpoint, instance="bench")
    running = asyncio.create_task(sender.run())
    payload = os.urandom(PAYLOADS[stream])
    fields = _fields(stream, 0)
    for number in range(WARM_UP + count):
        if not sender.has_room(stream):
            await sender.room(stream)
        sender.offer(stream, number, payload, **fields)
    await sender.finish(close=True)
    await running


def send_bare(endpoint: str, stream: str, count: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.sndhwm = 64
    socket.connect(endpoint)
    message = [_header(stream), os.urandom(PAYLOADS[stream])]
    for _ in range(WARM_UP + count):
        socket.send_multipart(message)
    socket.close()
    context.term()


# -- the receiving process ---------------------------------------------------------------------


def _start_sender(kind: str, endpoint: str, stream: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, f"--send={kind}", endpoint, stream, str(count)]
    return subprocess.Popen(command)


async def receive_ours(stream: str, count: int) -> float:
    """Packets a second through Sender and Receiver."""
    handler = Counting(count)
    receiver = handler.receiver = Receiver(handler, bind="tcp://127.0.0.1:*")
    sender = _start_sender("ours", receiver.endpoint, stream, count)
    rate: float = await asyncio.wait_for(handler.rate, 120)
    await asyncio.to_thread(sender.wait, 30)
    await receiver.close()
    return rate


def receive_bare(stream: str, count: int) -> float:
    """Messages a second through bare sockets; frames are not copied, its faster way."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.rcvhwm = 64
    socket.bind("tcp://127.0.0.1:*")
    sender = _start_sender("bare", socket.getsockopt_string(zmq.LAST_ENDPOINT), stream, count)
    copy = PAYLOADS[stream] < 16 * 1024
    for _ in range(WARM_UP):
        socket.recv_multipart(copy=copy)
    started = time.perf_counter()
    for _ in range(count):
        socket.recv_multipart(copy=copy)
    rate = count / (time.perf_counter() - started)
    sender.wait(30)
    socket.close()
    context.term()
    return rate


def measure(stream: str, count: int, rounds: int) -> dict[str, Any]:
    """Rates of both in alternation, and how they compare."""
    ours, bare = [], []
    for number in range(rounds):
        for kind in ("ours", "bare") if number % 2 else ("bare", "ours"):
            if kind == "ours":
                ours.append(asyncio.run(receive_ours(stream, count)))
            else:
                bare.append(receive_bare(stream, count))
    return {
        "payload_bytes": PAYLOADS[stream],
        "header_bytes": len(_header(stream)),
        "packets_per_round": count,
        "ours_packets_per_s": [round(rate) for rate in ours],
        "bare_packets_per_s": [round(rate) for rate in bare],
        "ours_median_per_s": round(statistics.median(ours)),
        "bare_median_per_s": round(statistics.median(bare)),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(bare), 3),
        "ratio_by_round": [round(a / b, 3) for a, b in zip(ours, bare, strict=True)],
        "target_ratio": TARGETS[stream],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rgb", type=int, default=6_000, help="rgb packets a round")
    parser.add_argument("--hands", type=int, default=30_000, help="hands packets a round")
    parser.add_argument("--send", choices=["ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        endpoint, stream, count = arguments.rest
        if arguments.send == "ours":
            asyncio.run(send_ours(endpoint, stream, int(count)))
        else:
            send_bare(endpoint, stream, int(count))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    counts = {"rgb": arguments.rgb, "hands": arguments.hands}
    result = {
        "benchmark": "wire: Sender to Receiver against bare pyzmq, loopback TCP, two processes",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "rounds": arguments.rounds,
        **{stream: measure(stream, counts[stream], arguments.rounds) for stream in PAYLOADS},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
