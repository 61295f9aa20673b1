"""The client: one TCP connection per stream of a HoloLens 2 that runs hl2ss.

The headset never answers a configuration; it sends packets or closes. A second client of a port
is accepted and gets silence. So every read has a time limit, and every DeviceError says which.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import (
    DEFAULT_BASE_PORT,
    PACKET_HEADER_SIZE,
    POSE_SIZE,
    Packet,
    Port,
    decode_packet_header,
    decode_pose,
    port,
)
from keystep_hololens.hl2ss.spatial_input import (
    SPATIAL_INPUT_SIZE,
    SpatialInput,
    decode_spatial_input,
)


class PvPacket(NamedTuple):
    """One frame of personal video.

    `encoded` is one Annex B access unit, a view of the receive buffer; `pose` is the wire's
    row-vector (4, 4) float32 matrix, camera -> world, None in mode 0 or when it is not known.
    """

    timestamp_hns: int
    encoded: memoryview
    metadata: pv.PvMetadata
    pose: NDArray[np.float32] | None


class SpatialInputPacket(NamedTuple):
    """One sample of head, eyes and hands."""

    timestamp_hns: int
    sample: SpatialInput


class ClockProbe(NamedTuple):
    """One round trip: the headset's QPC between two readings of the local clock."""

    local_send_ns: int
    device_time_hns: int
    local_receive_ns: int


class _Connection:
    """A connected socket whose reads are bounded in time and size."""

    def __init__(self, connected: socket.socket, where: str, read_timeout_s: float) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._read_timeout_s = read_timeout_s
        self._received = False
        self.where = where

    async def send(self, data: bytes) -> None:
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
async def _connect(
    host: str, kind: Port, base_port: int, *, connect_timeout_s: float, read_timeout_s: float
) -> AsyncIterator[_Connection]:
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
        yield _Connection(connecting, where, read_timeout_s)


async def _packets(
    connection: _Connection, *, with_pose: bool, smallest: int, largest: int, why_closed: str
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


async def open_pv(
    host: str,
    config: pv.PvConfig,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[PvPacket, None]:
    """Stream personal video; ends when the headset closes the stream between two packets.

    Packets with metadata but no picture are skipped. Wrap in `contextlib.aclosing` to leave early.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
        ConfigError: `config` does not fit the wire.
    """
    request = pv.encode_pv_request(pv.PvRequest(stream=config))
    async with _connect(
        host,
        Port.PERSONAL_VIDEO,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(request)
        async for packet in _packets(
            connection,
            with_pose=config.mode == 1,
            smallest=0,
            largest=pv.PV_MAX_PAYLOAD_SIZE,
            why_closed="start PV first, and ask for a format and profile it offers",
        ):
            if len(packet.payload) > pv.PV_METADATA_SIZE:
                yield _pv_packet(packet)


def _pv_packet(packet: Packet) -> PvPacket:
    pose = packet.pose if packet.pose is not None and packet.pose[3, 3] != 0 else None
    return PvPacket(
        timestamp_hns=packet.timestamp_hns,
        encoded=packet.payload[: -pv.PV_METADATA_SIZE],
        metadata=pv.PvMetadata.decode(packet.payload[-pv.PV_METADATA_SIZE :]),
        pose=pose,
    )


async def open_spatial_input(
    host: str,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[SpatialInputPacket, None]:
    """Stream head, eyes and hands; ends when the headset closes between two packets.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
    """
    async with _connect(
        host,
        Port.SPATIAL_INPUT,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        async for packet in _packets(
            connection,
            with_pose=False,
            smallest=SPATIAL_INPUT_SIZE,
            largest=SPATIAL_INPUT_SIZE,
            why_closed="spatial input does not run in flat mode and needs the wearer's permission",
        ):
            yield SpatialInputPacket(packet.timestamp_hns, decode_spatial_input(packet.payload))


async def read_pv_calibration(
    host: str,
    request: pv.PvCalibrationRequest,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 10.0,
    connect_timeout_s: float = 5.0,
) -> pv.PvCalibration:
    """Read the PV camera's constants at one format (mode 2); PV must be on.

    Raises:
        DeviceError: Not reachable, silent, or closed before the 208 bytes were there.
    """
    async with _connect(
        host,
        Port.PERSONAL_VIDEO,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(pv.encode_pv_request(pv.PvRequest(stream=request)))
        return pv.PvCalibration.decode(await connection.read(pv.PV_CALIBRATION_SIZE))


async def start_pv(
    host: str,
    start: pv.PvStart | None = None,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    connect_timeout_s: float = 5.0,
) -> None:
    """Switch the PV camera on. Nothing is answered: ask `pv_status`, or open the stream."""
    await _switch_pv(host, pv.PvRequest(start=start or pv.PvStart()), base_port, connect_timeout_s)


async def stop_pv(
    host: str, *, base_port: int = DEFAULT_BASE_PORT, connect_timeout_s: float = 5.0
) -> None:
    """Switch the PV camera off."""
    await _switch_pv(host, pv.PvRequest(stop=True), base_port, connect_timeout_s)


async def _switch_pv(host: str, request: pv.PvRequest, base_port: int, timeout_s: float) -> None:
    async with _connect(
        host,
        Port.PERSONAL_VIDEO,
        base_port,
        connect_timeout_s=timeout_s,
        read_timeout_s=timeout_s,
    ) as connection:
        await connection.send(pv.encode_pv_request(request))


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConfigurationClient:
    """Asks one thing per connection, because the port serves one client at a time."""

    host: str
    base_port: int = DEFAULT_BASE_PORT
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 5.0

    async def version(self) -> rc.Version:
        """Ask for the version of the app on the headset."""
        return rc.Version(*await self._ask(rc.RcCall(rc.Command.APPLICATION_VERSION)))

    async def utc_offset(self) -> int:
        """Ask what to add to a timestamp to get UTC FILETIME, in 100 ns."""
        return (await self._ask(rc.RcCall(rc.Command.UTC_OFFSET)))[0]

    async def pv_status(self) -> bool:
        """Ask whether the PV camera is on."""
        return (await self._ask(rc.RcCall(rc.Command.PV_STATUS)))[0] != 0

    async def current_time(self, source: rc.TimeSource = rc.TimeSource.QPC) -> int:
        """Ask for the headset's time in 100 ns, since boot or as UTC FILETIME."""
        return (await self._ask(rc.RcCall(rc.Command.CURRENT_TIME, (source,))))[0]

    async def probe_clock(self, now_ns: Callable[[], int], *, count: int = 1) -> list[ClockProbe]:
        """Measure the headset's clock against `now_ns` by round trips within one connection."""
        call = rc.RcCall(rc.Command.CURRENT_TIME, (rc.TimeSource.QPC,))
        probes = []
        async with self._connect() as connection:
            for _ in range(count):
                sent_ns = now_ns()
                (device_hns,) = await _exchange(connection, call)
                probes.append(ClockProbe(sent_ns, device_hns, now_ns()))
        return probes

    async def _ask(self, call: rc.RcCall) -> tuple[int, ...]:
        async with self._connect() as connection:
            return await _exchange(connection, call)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[_Connection]:
        async with _connect(
            self.host,
            Port.REMOTE_CONFIGURATION,
            self.base_port,
            connect_timeout_s=self.connect_timeout_s,
            read_timeout_s=self.read_timeout_s,
        ) as connection:
            yield connection


async def _exchange(connection: _Connection, call: rc.RcCall) -> tuple[int, ...]:
    reply = rc.REPLIES[call.command]
    await connection.send(rc.encode_call(call))
    return reply.unpack(await connection.read(reply.size))


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Growing, jittered pauses between attempts to reach a headset.

    Attributes:
        jitter: Each pause is shortened at random by up to this part of it.
        sleep, uniform: Injected, so that tests neither wait nor guess.
    """

    initial_s: float = 0.5
    maximum_s: float = 10.0
    factor: float = 2.0
    jitter: float = 0.25
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[], float] = random.random
    _longest_s: float = field(default=0.0, init=False)

    def next_delay_s(self) -> float:
        """Return the next pause and count the attempt."""
        grown = max(self.initial_s, self._longest_s * self.factor)
        self._longest_s = min(self.maximum_s, grown)
        return self._longest_s * (1 - self.jitter * self.uniform())

    async def wait(self) -> None:
        """Pause before the next attempt."""
        await self.sleep(self.next_delay_s())

    def reset(self) -> None:
        """Begin anew with the shortest pause, after a success."""
        self._longest_s = 0.0
