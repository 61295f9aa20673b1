"""A simulated headset that plays a recording on hl2ss's ports.

Its clock shows the recorded times, so that what a bridge makes of it has the times it was recorded
with. Payloads are the recorded ones; what hl2ss wants beside them and nobody recorded is zero.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import structlog

from keystep_capture.errors import DataError
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator.clock import DeviceClock, Playback
from keystep_hololens.simulator.faults import Faults, FaultSwitch
from keystep_hololens.simulator.ports import Client, OpenPorts, Serve, send_stream
from keystep_hololens.simulator.recorded import RecordedEpoch, survey
from keystep_hololens.simulator.recorded_constants import PORT_OF_SENSOR
from keystep_hololens.simulator.recorded_ports import Packets, RecordedPorts
from keystep_hololens.simulator.recorded_streams import RecordedStream
from keystep_hololens.simulator.remote import RemoteAnswers
from keystep_hololens.simulator.unity import UnityApp
from keystep_hololens.simulator.voice import VoiceControl

_log = structlog.get_logger(__name__)

CATCH_UP_S = 10.0
"""Host seconds in which each port's first client is sent its stream from the beginning on."""
_QUIET_NS = 5_000_000_000
"""After so long without any client, the next one finds the clock at the recording's beginning."""


class RecordedHeadset:
    """A headset with hl2ss that plays a recording once; an async context manager.

    It plays from the moment the first client streams. Bridges open their ports one after the
    other, so each port's first client gets its stream from the beginning, as fast as it reads,
    if it comes within `CATCH_UP_S`; whoever comes later gets what plays then. Where a recording's
    epoch ends, the headset restarts: connections break, its clock shows the next epoch's times.
    `finished` is set when all was played, or with `failure` when the recording cannot be read on.
    """

    def __init__(
        self,
        path: Path,
        *,
        host: str = "127.0.0.1",
        base_port: int = 0,
        time_scale: float = 1.0,
        app: UnityApp | None = None,
        voice: VoiceControl | None = None,
        catch_up_s: float = CATCH_UP_S,
    ) -> None:
        """Look at a recording.

        Args:
            path: A file, or a folder of parts.
            host: Address to listen on.
            base_port: Port of the first service; 0 takes free ports (see `base_port` once entered).
            time_scale: Device seconds per second.
            app: What takes UMQ messages and offers GMQ ones; simulated.
            voice: What voice input hears; simulated.
            catch_up_s: In place of `CATCH_UP_S`.

        Raises:
            DataError: It is no recording, is damaged, or has nothing that hl2ss has a port for.
            OSError: It cannot be read.
            ConfigError: The time scale is not above 0.
        """
        session = survey(path)
        self.path, self.epochs, self.remarks = path, session.epochs, session.remarks
        self.host, self.base_port = host, base_port
        self.clock = DeviceClock(origin_hns=self.epochs[0].start_hns, time_scale=time_scale)
        self.app, self.voice = app, voice
        self.finished = asyncio.Event()
        self.failure: DataError | OSError | None = None
        self._catch_up_s = catch_up_s
        self._switch = FaultSwitch(Faults(), sleep=self.clock.sleep)
        self._ports: OpenPorts | None = None
        self._playing: asyncio.Task[None] | None = None
        self._begin_epoch(self.epochs[0])

    def _begin_epoch(self, epoch: RecordedEpoch) -> None:
        self._epoch = epoch
        self.clock.restart(epoch.start_hns)
        self._contact_ns: int | None = None
        self._started_ns: int | None = None
        self._started, self._all_served = asyncio.Event(), asyncio.Event()
        self._idle, self._over = asyncio.Event(), asyncio.Event()
        self._served: set[Port] = set()
        self._ended: set[Port] = set()
        self._streaming = 0

    @property
    def open_ports(self) -> dict[str, int]:
        """The services that listen, by name, with their port numbers."""
        return {} if self._ports is None else self._ports.numbers

    async def __aenter__(self) -> Self:
        if self.voice is not None:
            self.voice.follow(self.clock)
        self._open()
        self._playing = asyncio.create_task(self._play_epochs())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._playing is not None
        self._playing.cancel()
        (ended,) = await asyncio.gather(self._playing, return_exceptions=True)
        failures = await self._shut()
        if isinstance(ended, Exception):
            failures.append(ended)
        if failures and exc is None:
            raise failures[0]

    def _open(self) -> None:
        self._ports = OpenPorts(self.host, self.base_port, self._serves(), self._switch)
        self.base_port = self._ports.base_port

    async def _shut(self) -> list[Exception]:
        ports, self._ports = self._ports, None
        return [] if ports is None else await ports.close()

    def _serves(self) -> dict[Port, Serve]:
        ports = RecordedPorts(self._epoch, self._play)
        serves = dict(ports.servers())
        serves[Port.REMOTE_CONFIGURATION] = partial(self._serve_remote_configuration, ports)
        if self.app is not None:
            serves[Port.UNITY_MESSAGE_QUEUE] = self.app.serve_messages
            serves[Port.GUEST_MESSAGE_QUEUE] = self.app.serve_guest_messages
        if self.voice is not None:
            serves[Port.VOICE_INPUT] = self.voice.serve
        return {kind: partial(self._serve, serve) for kind, serve in serves.items()}

    async def _serve(self, serve: Serve, client: Client) -> None:
        """Serve a client; who comes before it plays finds the clock at the beginning."""
        now_ns = self.clock.monotonic_ns()
        is_new = self._contact_ns is None or now_ns - self._contact_ns > _QUIET_NS
        self._contact_ns = now_ns
        if is_new and self._started_ns is None:
            self.clock.restart(self._epoch.start_hns)
        await serve(client)

    async def _serve_remote_configuration(self, ports: RecordedPorts, client: Client) -> None:
        answers = RemoteAnswers(
            playback=Playback(clock=self.clock),
            cameras=ports.cameras,
            rig_pose_at=lambda time_s: np.zeros((4, 4), np.float32),
            base_port=self.base_port,
            camera_is_on=lambda: ports.camera_is_on,
        )
        while (parsed := await client.receive(rc.parse_call)) is not None:
            call, size = parsed
            client.discard(size)
            if (reply := answers.answer(call)) is not None:
                await client.send(reply)

    # --- playing ---------------------------------------------------------------------------------

    async def _play(self, client: Client, packets: Packets) -> None:
        """Send a client its stream; to the first one of a port from the beginning on."""
        kind = client.kind
        if kind not in self._ended:
            stream = RecordedStream(self.path, packets(self._start_of(kind)))
            with self._counted():
                try:
                    await send_stream(client, stream, self.clock, self._switch)
                except (DataError, OSError) as error:
                    if isinstance(error, DataError) or error.filename is not None:
                        self.failure = self.failure or error
                        self.finished.set()
                    raise
            self._ended.add(kind)
        await self._over.wait()  # a sensor that has nothing more to say is silent

    def _start_of(self, kind: Port) -> int | None:
        """Device time from which to send; None: from the beginning."""
        now_ns = self.clock.monotonic_ns()
        if self._started_ns is None:
            self._started_ns = now_ns
            self._started.set()
        is_first = kind not in self._served
        self._served.add(kind)
        if self._served >= {PORT_OF_SENSOR[sensor] for sensor in self._epoch.sensors}:
            self._all_served.set()
        in_time = now_ns - self._started_ns <= self._catch_up_s * 1e9
        return None if is_first and in_time else self.clock.now_hns()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._streaming += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._streaming -= 1
            if not self._streaming:
                self._idle.set()

    async def _play_epochs(self) -> None:
        """See each epoch to its end, and restart the headset for the next."""
        for number, epoch in enumerate(self.epochs):
            if number:
                failures = await self._shut()
                if failures:
                    raise failures[0]
                if self.app is not None:
                    self.app.restart()
                self._begin_epoch(epoch)
                self._open()
                _log.info("restarted, as the recorded headset was", epoch=epoch.epoch)
            await self._started.wait()
            await self.clock.sleep_until(epoch.end_hns)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._catch_up_left_s()):
                    await self._all_served.wait()
            while self._streaming:
                await self._idle.wait()
            self._over.set()
        self.finished.set()

    def _catch_up_left_s(self) -> float:
        assert self._started_ns is not None
        passed_s = (self.clock.monotonic_ns() - self._started_ns) / 1e9
        return max(0.0, self._catch_up_s - passed_s)
