"""The client: one TCP connection per stream of a HoloLens 2 that runs hl2ss.

The headset never answers a configuration; it sends packets or closes. A second client of a port
is accepted and gets silence. So every read has a time limit, and every DeviceError says which.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.connection import Connection, connect, packets
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT, Packet, Port
from keystep_hololens.hl2ss.spatial_input import (
    SPATIAL_INPUT_SIZE,
    SpatialInput,
    decode_spatial_input,
)


class PvPacket(NamedTuple):
    """One frame of personal video.

    `encoded` is one Annex B access unit (or a raw frame), a view of the receive buffer; `pose` is
    the wire's row-vector (4, 4) float32 matrix, camera -> world, None in mode 0 or when it is not
    known.
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
    async with connect(
        host,
        Port.PERSONAL_VIDEO,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(request)
        async for packet in packets(
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
    async with connect(
        host,
        Port.SPATIAL_INPUT,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        async for packet in packets(
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
    async with connect(
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
    async with connect(
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

    async def map_camera_points(
        self, kind: Port, mapping: rc.PointMapping, points: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Map points of a Research Mode camera between image and unit plane.

        Args:
            kind: Which camera.
            mapping: Direction.
            points: Shape (N, 2): pixels, or unit-plane coordinates.

        Returns:
            Shape (N, 2), float32.
        """
        flat = np.asarray(points, np.float32).ravel().tolist()
        arguments = (DEFAULT_BASE_PORT + kind, int(mapping), len(flat) // 2, *flat)
        return (await self._ask_floats(rc.Command.RM_MAP_CAMERA_POINTS, arguments)).reshape(-1, 2)

    async def rig_poses(self, timestamps_hns: Sequence[int]) -> NDArray[np.float32]:
        """Ask where the rig node was; returns (N, 4, 4) float32, row vectors, rig -> world.

        A pose that is not known is 16 zeros.
        """
        arguments = (len(timestamps_hns), *timestamps_hns)
        floats = await self._ask_floats(rc.Command.RM_RIG_NODE_WORLD_POSES, arguments)
        return floats.reshape(-1, 4, 4)

    async def configure(self, *calls: rc.RcCall) -> None:
        """Run commands that are not answered; returns when the headset has read them all.

        Raises:
            ConfigError: One of them is answered.
        """
        if any(rc.reply_size(call) for call in calls):
            raise ConfigError("only commands without a reply can be run together")
        async with self._connect() as connection:
            await connection.send(b"".join(map(rc.encode_call, calls)))
            await _exchange(connection, rc.RcCall(rc.Command.APPLICATION_VERSION))

    async def _ask_floats(
        self, command: rc.Command, arguments: tuple[int | float, ...]
    ) -> NDArray[np.float32]:
        call = rc.RcCall(command, arguments)
        async with self._connect() as connection:
            await connection.send(rc.encode_call(call))
            return np.frombuffer(await connection.read(rc.reply_size(call)), "<f4")

    async def _ask(self, call: rc.RcCall) -> tuple[int, ...]:
        async with self._connect() as connection:
            return await _exchange(connection, call)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        async with connect(
            self.host,
            Port.REMOTE_CONFIGURATION,
            self.base_port,
            connect_timeout_s=self.connect_timeout_s,
            read_timeout_s=self.read_timeout_s,
        ) as connection:
            yield connection


async def _exchange(connection: Connection, call: rc.RcCall) -> tuple[int, ...]:
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
