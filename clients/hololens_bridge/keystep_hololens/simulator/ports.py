"""The simulated headset's TCP ports: one client at a time, served to the end, then the next.

Like the headset, a port queues further clients (they connect and get silence) and notices a lost
client only when a send fails.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from keystep_capture.errors import ConfigError, KeystepError
from keystep_hololens.hl2ss.protocol import PACKET_HEADER_SIZE, Port, port
from keystep_hololens.simulator.clock import DeviceClock
from keystep_hololens.simulator.packets import PacketStream

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_RECEIVE_SIZE = 4096
_FREE_BASE_ATTEMPTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Ways in which a headset fails, for tests; packets are counted per connection from 0.

    Attributes:
        silent: Accept and never answer.
        truncate_at: Send half of this packet and close.
        oversize_at: Send this packet with an absurd length field.
        drop_at: Close instead of sending this packet.
    """

    silent: bool = False
    truncate_at: int | None = None
    oversize_at: int | None = None
    drop_at: int | None = None


class Client:
    """One connected client."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()

    async def receive(self, parse: Callable[[bytes], _T | None]) -> _T | None:
        """Read until `parse` makes something of all that has come; None if the client leaves."""
        while (parsed := parse(bytes(self._buffer))) is None:
            chunk = await self._loop.sock_recv(self._socket, _RECEIVE_SIZE)
            if not chunk:
                return None
            self._buffer += chunk
        return parsed

    def discard(self, size: int) -> None:
        """Forget the first `size` bytes received."""
        del self._buffer[:size]

    async def send(self, data: bytes) -> None:
        """Send all; raises OSError if the client is gone."""
        await self._loop.sock_sendall(self._socket, data)


def bind_ports(
    host: str, base_port: int, kinds: list[Port]
) -> tuple[int, dict[Port, socket.socket]]:
    """Listen on the ports of these services; base 0 takes any free base. Returns the base too.

    Raises:
        ConfigError: A port is in use, or the address is not ours.
    """
    if base_port:
        return base_port, _bind_all(host, base_port, kinds)
    for _ in range(_FREE_BASE_ATTEMPTS - 1):
        base = random.randrange(20_000, 32_000)  # below Linux's ephemeral ports
        try:
            return base, _bind_all(host, base, kinds)
        except ConfigError:
            continue
    raise ConfigError(f"found no free run of ports on {host}")


def _bind_all(host: str, base_port: int, kinds: list[Port]) -> dict[Port, socket.socket]:
    listeners: dict[Port, socket.socket] = {}
    try:
        for kind in kinds:
            listeners[kind] = _listen(host, port(kind, base_port))
    except BaseException:
        close_all(listeners)
        raise
    return listeners


def _listen(host: str, number: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, number))
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {number} on {host} is in use: stop what holds it or choose another"
                " --base-port"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{number}: {error}") from error
    return listener


def close_all(listeners: Mapping[Port, socket.socket]) -> None:
    """Close listening sockets."""
    for listener in listeners.values():
        listener.close()


async def accept_one_by_one(
    listener: socket.socket, kind: Port, serve: Callable[[Client], Awaitable[None]]
) -> None:
    """Serve clients forever, each to its end before the next is looked at."""
    loop = asyncio.get_running_loop()
    while True:
        connected, peer = await loop.sock_accept(listener)
        with connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await serve(Client(connected))
            except OSError as error:
                _log.info("client left", port=kind.name, peer=peer[0], reason=str(error))
            except KeystepError as error:
                _log.warning("closed a client", port=kind.name, peer=peer[0], reason=str(error))


async def send_stream(
    client: Client, stream: PacketStream, clock: DeviceClock, faults: Faults
) -> None:
    """Send a stream's packets as they fall due, until its end or the client's.

    Packets are made in a thread of their own, one ahead. A client that reads slowly gets all of
    them, late.
    """
    loop = asyncio.get_running_loop()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="headset-stream")
    try:
        count = 0
        while (packet := await loop.run_in_executor(worker, stream.next)) is not None:
            await clock.sleep_until(packet.due_hns)
            if count == faults.drop_at:
                return
            if count == faults.truncate_at:
                await client.send(packet.data[: len(packet.data) // 2])
                return
            if count == faults.oversize_at:
                head = packet.data[: PACKET_HEADER_SIZE - 4] + b"\xff\xff\xff\xff"
                await client.send(head + packet.data[PACKET_HEADER_SIZE:])
            else:
                await client.send(packet.data)
            count += 1
    finally:
        worker.submit(stream.close)  # after a packet that is still being made
        worker.shutdown(wait=False)
