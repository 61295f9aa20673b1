"""One TCP connection to a port of a headset: bounded in time and size."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import (
    PACKET_HEADER_SIZE,
    POSE_SIZE,
    Packet,
    Port,
    decode_packet_header,
    decode_pose,
    port,
)


class Connection:
    """A connected socket whose reads are bounded in time and size."""

    def __init__(self, connected: socket.socket, where: str, read_timeout_s: float) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._read_timeout_s = read_timeout_s
        self._received = False
        self.where = where

    async def send(self, data: bytes) -> None:
        """Send all.

        Raises:
            DeviceError: The headset takes no data in time, or is gone.
        """
        try:
            async with asyncio.timeout(self._read_timeout_s):
                await self._loop.sock_sendall(self._socket, data)
        except TimeoutError as error:
            raise DeviceError(f"{self.where} takes no data") from error
        except OSError as error:
            raise DeviceError(f"{self.where} closed the connection: {error}") from error

    async def read(self, size: int) -> bytearray:
        """Read exactly `size` bytes into a buffer of their own."""
        buffer = bytearray(size)
        if await self._fill(memoryview(buffer)) < size:
            raise DeviceError(f"{self.where} closed the connection inside a message")
        return buffer

    async def read_or_end(self, size: int) -> bytearray | None:
        """Read exactly `size` bytes, or return None where the connection ends before the first."""
        buffer = bytearray(size)
        count = await self._fill(memoryview(buffer))
        if 0 < count < size:
            raise DeviceError(f"{self.where} closed the connection inside a message")
        return buffer if count else None

    async def _fill(self, view: memoryview) -> int:
        count = 0
        try:
            async with asyncio.timeout(self._read_timeout_s):
                while count < len(view):
                    received = await self._loop.sock_recv_into(self._socket, view[count:])
                    if not received:
                        break
                    count += received
                    self._received = True
        except TimeoutError as error:
            raise DeviceError(self._silence()) from error
        except ConnectionError:
            return count
        return count

    def _silence(self) -> str:
        if self._received:
            return f"{self.where} sent nothing more for {self._read_timeout_s:g} s"
        return (
            f"{self.where} accepted the connection and stays silent for {self._read_timeout_s:g} s:"
            " another client may hold this port, or a permission prompt waits on the headset"
        )


@asynccontextmanager
async def connect(
    host: str, kind: Port, base_port: int, *, connect_timeout_s: float, read_timeout_s: float
) -> AsyncIterator[Connection]:
    """Connect to one service of a headset; closed at the end of the context.

    Raises:
        DeviceError: Refused, not reachable, or no answer in time.
    """
    address = (host, port(kind, base_port))
    where = f"headset {host}:{address[1]} ({kind.name.lower()})"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connecting:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(connect_timeout_s):
                await asyncio.get_running_loop().sock_connect(connecting, address)
        except TimeoutError as error:
            raise DeviceError(
                f"{where} did not answer within {connect_timeout_s:g} s; is it on this network?"
            ) from error
        except ConnectionRefusedError as error:
            raise DeviceError(
                f"{where} refused the connection: start the hl2ss app, or it lacks this stream"
            ) from error
        except OSError as error:
            raise DeviceError(f"{where} cannot be reached: {error}") from error
        yield Connection(connecting, where, read_timeout_s)


async def packets(
    connection: Connection, *, with_pose: bool, smallest: int, largest: int, why_closed: str
) -> AsyncIterator[Packet]:
    """Yield packets until the headset closes between two of them."""
    count = 0
    while (head := await connection.read_or_end(PACKET_HEADER_SIZE)) is not None:
        timestamp_hns, size = decode_packet_header(head)
        if not smallest <= size <= largest:
            raise DeviceError(
                f"{connection.where} announces a payload of {size} bytes, expected"
                f" {smallest} to {largest}: not this stream, or out of step"
            )
        body = memoryview(await connection.read(size + POSE_SIZE * with_pose))
        yield Packet(timestamp_hns, body[:size], decode_pose(body[size:]) if with_pose else None)
        count += 1
    if count == 0:
        raise DeviceError(f"{connection.where} closed without data: {why_closed}")
