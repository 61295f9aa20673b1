"""A stranger who floods a server's wire; run as a process of its own by test_flood.py.

    python flood_attacker.py KIND COUNT HOST:PORT

It prints how many connections it made.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator

import zmq

HOLD_S = 3.0
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
LARGE_FRAME_BYTES = 8 * 1024 * 1024


def greeting(mechanism: bytes) -> bytes:
    """ZMTP 3.0: signature, version, mechanism, as-server, filler."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def connections(address: tuple[str, int], count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        yield socket.create_connection(address, timeout=30)


def silent(address: tuple[str, int], count: int) -> int:
    """Connections that say nothing."""
    held = list(connections(address, count))
    time.sleep(HOLD_S)
    return len(held)


def greeted(address: tuple[str, int], count: int) -> int:
    """Connections that stop in the middle of the handshake."""
    held = []
    for connection in connections(address, count):
        _say(connection, greeting(b"CURVE"))
        held.append(connection)
    time.sleep(HOLD_S)
    return len(held)


def garbage(address: tuple[str, int], count: int) -> int:
    """Random bytes."""
    for connection in connections(address, count):
        with connection:
            _say(connection, os.urandom(65536))
    return count


def wrong_mechanism(address: tuple[str, int], count: int) -> int:
    """Plain text, with a message right behind the handshake."""
    for number, connection in enumerate(connections(address, count)):
        with connection:
            _say(connection, greeting((b"NULL", b"PLAIN")[number % 2]) + READY + b"\x00\x01x")
    return count


def large_frames(address: tuple[str, int], count: int) -> int:
    """Handshake commands of the largest size that is not refused at once, less their last byte."""
    poller, left = select.poll(), {}
    for connection in connections(address, count):
        connection.setblocking(False)
        # a long command: flag 6, eight bytes of size
        head = greeting(b"CURVE") + b"\x06" + LARGE_FRAME_BYTES.to_bytes(8, "big")
        left[connection.fileno()] = (connection, memoryview(head + bytes(LARGE_FRAME_BYTES - 1)))
        poller.register(connection, select.POLLOUT)
    end = time.monotonic() + 2 * HOLD_S
    while left and time.monotonic() < end:
        for descriptor, _ in poller.poll(100):
            connection, rest = left[descriptor]
            try:
                sent = connection.send(rest[: 1 << 18])
            except BlockingIOError:
                continue
            except OSError:
                sent = len(rest)
            left[descriptor] = (connection, rest[sent:])
            if sent == len(rest):
                poller.unregister(descriptor)
    return count


def unfinished(address: tuple[str, int], count: int) -> int:
    """Frames of a message that never ends, a little less of each than is cut off."""
    frame = b"\x03" + (4 << 20).to_bytes(8, "big") + bytes(4 << 20)
    held = []
    for connection in connections(address, count):
        _say(connection, greeting(b"NULL") + READY + 3 * frame)
        held.append(connection)
    time.sleep(HOLD_S)
    return len(held)


def unknown_key(address: tuple[str, int], count: int) -> int:
    """Whole CURVE handshakes with the server's real public key and keys of nobody."""
    server_public = os.environ["SERVER_PUBLIC_KEY"].encode()
    with zmq.Context() as context:
        for _ in range(count // 50):
            sockets = []
            for _ in range(50):
                dealer = context.socket(zmq.DEALER)
                dealer.linger = 0
                dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
                dealer.curve_serverkey = server_public
                dealer.connect(f"tcp://{address[0]}:{address[1]}")
                dealer.send(b"\xc0")
                sockets.append(dealer)
            time.sleep(0.3)
            for dealer in sockets:
                dealer.close()
    return count


def _say(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # hung up on
        connection.sendall(data)


KINDS = {
    kind.__name__: kind
    for kind in (unfinished, silent, greeted, garbage, wrong_mechanism, large_frames, unknown_key)
}

if __name__ == "__main__":
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    name, number, endpoint = sys.argv[1:]
    host, port = endpoint.split(":")
    print(KINDS[name]((host, int(port)), int(number)))  # noqa: T201
