"""The simulated headset's TCP ports: one client at a time, served to the end, then the next.

Like the headset, a port queues further clients (they connect and get silence) and notices a lost
client only when a send fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from keystep_capture.errors import ConfigError, KeystepError
from keystep_hololens.hl2ss.protocol import PACKET_HEADER_SIZE, Port, port
from keystep_hololens.simulator.clock import DeviceClock
from keystep_hololens.simulator.faults import FaultSwitch
from keystep_hololens.simulator.packets import PacketStream, TimedPacket

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_RECEIVE_SIZE = 65_536
_SLOW_PIECES_PER_S = 50
_FREE_BASE_ATTEMPTS = 50


class Client:
    """One connected client."""

    def __init__(self, connected: socket.socket, kind: Port, switch: FaultSwitch) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._switch = switch
        self.kind = kind

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
        """Send all, as fast as the link allows; raises OSError if the client is gone."""
        await self._switch.while_stalled(self.kind)
        rest = memoryview(data)
        while (rate := self._switch.faults.on(self.kind).bytes_per_s) is not None and rest:
            piece = rest[: max(1, int(rate / _SLOW_PIECES_PER_S))]
            await self._loop.sock_sendall(self._socket, piece)
            rest = rest[len(piece) :]
            await self._switch.sleep(len(piece) / rate)
        await self._loop.sock_sendall(self._socket, rest)


Serve = Callable[[Client], Awaitable[None]]
"""What a port does with a client, until it or the client is done."""


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


class PortServer:
    """One listening port and the client it serves."""

    def __init__(
        self,
        listener: socket.socket,
        kind: Port,
        serve: Serve,
        switch: FaultSwitch,
    ) -> None:
        self._listener, self._kind = listener, kind
        self._serve, self._switch = serve, switch
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve clients forever, each to its end before the next is looked at."""
        loop = asyncio.get_running_loop()
        while True:
            connected, peer = await loop.sock_accept(self._listener)
            with connected:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = Client(connected, self._kind, self._switch)
                self._serving = asyncio.create_task(self._serve_one(client))
                try:
                    await asyncio.wait([self._serving])
                finally:
                    self._serving.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._serving
            _log.debug("client served", port=self._kind.name, peer=peer[0])

    def disconnect(self) -> None:
        """Close the present client's connection at once."""
        if self._serving is not None:
            self._serving.cancel()

    async def _serve_one(self, client: Client) -> None:
        try:
            await self._switch.while_silent(self._kind)
            await self._serve(client)
        except OSError as error:
            _log.info("client left", port=self._kind.name, reason=str(error))
        except KeystepError as error:
            _log.warning("closed a client", port=self._kind.name, reason=str(error))


class OpenPorts:
    """The ports a headset has open, each serving clients until `close`."""

    def __init__(
        self,
        host: str,
        base_port: int,
        serves: Mapping[Port, Serve],
        switch: FaultSwitch,
    ) -> None:
        """Listen and serve at once.

        Args:
            host: Address to listen on.
            base_port: Port of the first service; 0 takes free ports.
            serves: What each port does with a client.
            switch: The faults in force.

        Raises:
            ConfigError: A port is in use, or the address is not ours.
        """
        self.base_port, self._listeners = bind_ports(host, base_port, list(serves))
        self._servers = {
            kind: PortServer(self._listeners[kind], kind, serve, switch)
            for kind, serve in serves.items()
        }
        self._tasks = [asyncio.create_task(server.run()) for server in self._servers.values()]

    @property
    def numbers(self) -> dict[str, int]:
        """The services that listen, by name, with their port numbers."""
        return {kind.name.lower(): port(kind, self.base_port) for kind in self._listeners}

    def disconnect(self, kinds: Iterable[Port] | None = None) -> None:
        """Close the connections of these services at once, of all where none are named."""
        for kind in self._servers if kinds is None else kinds:
            if kind in self._servers:
                self._servers[kind].disconnect()

    async def close(self) -> list[Exception]:
        """Close every connection and port; returns what had gone wrong in serving them."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        close_all(self._listeners)
        return [result for result in results if isinstance(result, Exception)]


async def send_stream(
    client: Client, stream: PacketStream, clock: DeviceClock, switch: FaultSwitch
) -> None:
    """Send a stream's packets as they fall due, until its end or the client's.

    Packets are made in a thread of their own, one ahead. A client that reads slowly gets all of
    them, late.
    """
    loop = asyncio.get_running_loop()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="headset-stream")
    faulty = _FaultySender(client, switch)
    try:
        while (packet := await loop.run_in_executor(worker, stream.next)) is not None:
            await clock.sleep_until(packet.due_hns)
            if not await faulty.send(packet):
                return
        await faulty.flush()
    finally:
        worker.submit(stream.close)  # after a packet that is still being made
        worker.shutdown(wait=False)


class _FaultySender:
    """Sends one connection's packets, with the faults in force."""

    def __init__(self, client: Client, switch: FaultSwitch) -> None:
        self._client, self._switch = client, switch
        self._count = 0
        self._group_count = 0
        self._held = b""
        self._noise = random.Random(0)

    async def send(self, packet: TimedPacket) -> bool:
        """Send a packet or what becomes of it; False where the connection is to be closed."""
        faults = self._switch.faults.on(self._client.kind)
        count, self._count = self._count, self._count + 1
        self._group_count = 1 if packet.key_frame else self._group_count + 1
        if faults.gop_kept is not None and self._group_count > faults.gop_kept:
            return True
        data, going_on = packet.data, True
        if count == faults.drop_at:
            return False
        if count == faults.reorder_at:
            self._held = data
            return True
        if count == faults.truncate_at:
            data, going_on = data[: len(data) // 2], False
        elif count == faults.oversize_at:
            head = data[: PACKET_HEADER_SIZE - 4] + b"\xff\xff\xff\xff"
            data = head + data[PACKET_HEADER_SIZE:]
        elif count == faults.garbage_at:
            data = self._noise.randbytes(len(data))
        elif count == faults.corrupt_at:
            data = data[:PACKET_HEADER_SIZE] + self._noise.randbytes(len(data) - PACKET_HEADER_SIZE)
        await self._client.send(data)
        await self.flush()
        return going_on

    async def flush(self) -> None:
        """Send the packet that was held back."""
        held, self._held = self._held, b""
        if held:
            await self._client.send(held)
