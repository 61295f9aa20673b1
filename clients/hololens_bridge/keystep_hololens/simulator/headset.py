"""The simulated HoloLens 2: clock, camera switch, and what each of its ports does."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from types import TracebackType
from typing import Self

import structlog

from keystep_capture.errors import ConfigError
from keystep_capture.samples import Sample
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator.clock import DeviceClock, Playback
from keystep_hololens.simulator.packets import PacketStream
from keystep_hololens.simulator.ports import (
    Client,
    Faults,
    accept_one_by_one,
    bind_ports,
    close_all,
    send_stream,
)
from keystep_hololens.simulator.sensors import SensorSource, SpatialInputPacketStream
from keystep_hololens.simulator.video import (
    H264_PROFILES,
    PvPacketStream,
    VideoSource,
    nominal_calibration,
)

_log = structlog.get_logger(__name__)

APPLICATION_VERSION = rc.Version(1, 0, 37, 0)
SHARED_FORMAT = (1280, 720, 30)
"""What the other app is taken to capture when PV is started in shared mode; a choice of ours."""

_RESEARCH_MODE_COMMANDS = frozenset(
    {
        rc.Command.RM_EYE_SELECTION,
        rc.Command.RM_MAP_CAMERA_POINTS,
        rc.Command.RM_RIG_NODE_WORLD_POSES,
        rc.Command.RM_LOOP_CONTROL,
    }
)


class SimulatedHeadset:
    """A headset with hl2ss running and Research Mode off; an async context manager.

    Ports it has no data for refuse connections. The sample plays once, from the moment the first
    client streams (or at once): whoever connects later gets what plays then. `finished` is set
    when all sources have ended.
    """

    def __init__(
        self,
        *,
        video: VideoSource | None = None,
        sensors: SensorSource | None = None,
        host: str = "127.0.0.1",
        base_port: int = 0,
        clock: DeviceClock | None = None,
        start_at_once: bool = False,
        faults: Faults | None = None,
    ) -> None:
        """Describe the headset; `base_port` 0 takes free ports (see `base_port` once entered)."""
        if video is None and sensors is None:
            raise ConfigError("a simulated headset needs a video or sensors to play")
        self.host, self.base_port = host, base_port
        self.clock = clock or DeviceClock()
        self.playback = Playback(clock=self.clock)
        self.finished = asyncio.Event()
        self._video, self._sensors = video, sensors
        self._start_at_once = start_at_once
        self._faults = faults or Faults()
        self._pv: pv.PvStart | None = None
        self._unfinished: set[Port] = set()
        self._streaming: set[Port] = set()
        self._listeners: dict[Port, socket.socket] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def of_sample(
        cls,
        sample: Sample,
        *,
        host: str = "127.0.0.1",
        base_port: int = 0,
        time_scale: float = 1.0,
        loop: bool = False,
        start_at_once: bool = False,
        faults: Faults | None = None,
    ) -> Self:
        """Make a headset that plays a bundled sample."""
        video = VideoSource.open(sample.video_path, loop=loop) if sample.video_path else None
        sensors = SensorSource.of_sample(sample, loop=loop) if sample.sensors_path else None
        return cls(
            video=video,
            sensors=sensors,
            host=host,
            base_port=base_port,
            clock=DeviceClock(time_scale=time_scale),
            start_at_once=start_at_once,
            faults=faults,
        )

    @property
    def playback_origin_hns(self) -> int | None:
        """Device time of frame 0; None before playback starts (await `playback.started`)."""
        return self.playback.origin_hns

    @property
    def open_ports(self) -> dict[str, int]:
        """The services that listen, by name, with their port numbers."""
        return {kind.name.lower(): port(kind, self.base_port) for kind in self._listeners}

    async def __aenter__(self) -> Self:
        servers = {Port.REMOTE_CONFIGURATION: self._serve_remote_configuration}
        durations = {}
        if self._video is not None:
            servers[Port.PERSONAL_VIDEO] = self._serve_personal_video
            durations[Port.PERSONAL_VIDEO] = self._video.duration_hns
        if self._sensors is not None:
            servers[Port.SPATIAL_INPUT] = self._serve_spatial_input
            durations[Port.SPATIAL_INPUT] = self._sensors.duration_hns
        self.base_port, self._listeners = bind_ports(self.host, self.base_port, list(servers))
        self._unfinished = set(durations)
        for kind, serve in servers.items():
            accepting = accept_one_by_one(self._listeners[kind], kind, serve)
            self._tasks.append(asyncio.create_task(accepting))
        for kind, duration_hns in durations.items():
            if duration_hns is not None:
                self._tasks.append(asyncio.create_task(self._end_on_time(kind, duration_hns)))
        if self._start_at_once:
            self.playback.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        close_all(self._listeners)
        for result in results:
            if isinstance(result, Exception) and exc is None:
                raise result

    # --- end of playback -------------------------------------------------------------------------

    async def _end_on_time(self, kind: Port, duration_hns: int) -> None:
        """A source that nobody listens to ends by the clock; a listener is served to the end."""
        await self.playback.started.wait()
        await self.clock.sleep_until(self.playback.begin() + duration_hns)
        if kind not in self._streaming:
            self._end(kind)

    def _end(self, kind: Port) -> None:
        self._unfinished.discard(kind)
        if not self._unfinished:
            self.finished.set()

    async def _stream(
        self, client: Client, kind: Port, stream: PacketStream, duration_hns: int | None
    ) -> None:
        self._streaming.add(kind)
        try:
            await send_stream(client, stream, self.clock, self._faults)
        finally:
            self._streaming.discard(kind)
            if duration_hns is not None and (
                self.clock.now_hns() >= self.playback.begin() + duration_hns
            ):
                self._end(kind)

    # --- ports -----------------------------------------------------------------------------------

    async def _serve_spatial_input(self, client: Client) -> None:
        await self._stay_silent_if_told()
        assert self._sensors is not None
        now_hns = self.clock.now_hns()  # before playback begins, so that frame 0 is sent
        stream = SpatialInputPacketStream(
            self._sensors, origin_hns=self.playback.begin(), now_hns=now_hns
        )
        await self._stream(client, Port.SPATIAL_INPUT, stream, self._sensors.duration_hns)

    async def _serve_personal_video(self, client: Client) -> None:
        await self._stay_silent_if_told()
        request = await client.receive(pv.parse_pv_request)
        if request is None:
            return
        if request.start is not None:
            self._pv = request.start
        try:
            match request.stream:
                case pv.PvConfig() as config:
                    await self._stream_video(client, config)
                case pv.PvCalibrationRequest() as calibration:
                    await self._send_calibration(client, calibration)
        finally:
            if request.stop:
                self._pv = None

    async def _stream_video(self, client: Client, config: pv.PvConfig) -> None:
        assert self._video is not None
        asked = self._format_in_use(config.width, config.height, config.fps)
        reason = _why_not(config) if asked is not None else "PV is off or lacks this format"
        if asked is None or reason:
            _log.warning("closed a PV client", reason=reason, asked=config)
            return
        config = dataclasses.replace(config, width=asked[0], height=asked[1], fps=asked[2])
        now_hns = self.clock.now_hns()  # before playback begins, so that frame 0 is sent
        stream = PvPacketStream(
            self._video, config, origin_hns=self.playback.begin(), now_hns=now_hns
        )
        await self._stream(client, Port.PERSONAL_VIDEO, stream, self._video.duration_hns)

    async def _send_calibration(self, client: Client, asked: pv.PvCalibrationRequest) -> None:
        used = self._format_in_use(asked.width, asked.height, asked.fps)
        if used is None:
            _log.warning("closed a PV client", reason="PV is off or lacks this format", asked=asked)
            return
        await client.send(nominal_calibration(used[0], used[1]).encode())

    def _format_in_use(self, width: int, height: int, fps: int) -> tuple[int, int, int] | None:
        """Return width, height, fps the camera runs at; None if it is off or cannot."""
        if self._pv is None:
            return None
        if self._pv.shared:
            return SHARED_FORMAT
        asked = (width, height, fps)
        return asked if asked in pv.PV_FORMATS else None

    async def _serve_remote_configuration(self, client: Client) -> None:
        await self._stay_silent_if_told()
        while (parsed := await client.receive(rc.parse_call)) is not None:
            call, size = parsed
            client.discard(size)
            if call.command in _RESEARCH_MODE_COMMANDS:
                _log.warning("closed an RC client: Research Mode is off", call=call.command.name)
                return
            if (reply := self._reply(call)) is not None:
                await client.send(rc.REPLIES[call.command].pack(*reply))

    def _reply(self, call: rc.RcCall) -> tuple[int, ...] | None:
        """Answer what is asked; setters are accepted and change nothing."""
        match call.command:
            case rc.Command.APPLICATION_VERSION:
                return APPLICATION_VERSION
            case rc.Command.UTC_OFFSET:
                return (self.clock.utc_offset_hns,)
            case rc.Command.PV_STATUS:
                return (int(self._pv is not None),)
            case rc.Command.CURRENT_TIME if call.arguments[0] == rc.TimeSource.UTC:
                return (self.clock.utc_hns(),)
            case rc.Command.CURRENT_TIME:
                return (self.clock.now_hns(),)
            case _:
                return None

    async def _stay_silent_if_told(self) -> None:
        if self._faults.silent:
            await asyncio.Event().wait()


def _why_not(config: pv.PvConfig) -> str:
    """Say why the encoder cannot serve this configuration, or nothing."""
    if config.divisor < 1 or config.bitrate_bps < 1:
        return "divisor and bit rate are at least 1"
    if config.profile not in tuple(H264_PROFILES):
        return "the simulated headset encodes H264 only (profiles 0, 1, 2)"
    return ""
