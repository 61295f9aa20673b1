"""The bridge: a HoloLens 2's streams to the server, the server's guidance back.

Each sensor has its own connection to the headset and comes back by itself; the session goes on
whatever is lost meanwhile. `sensor_streams` opens the sensors, `wire_packets` turns hl2ss's
conventions into the wire's, `uplink` sends, `clock_watch` measures the headset's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import structlog

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.errors import ConfigError, DeviceError, VideoError
from keystep_capture.key_files import DeviceKey
from keystep_capture.sender import Callbacks, Sender, Source
from keystep_hololens.backlog import Backlog, SpoolConfig
from keystep_hololens.camera_switch import CameraSwitch
from keystep_hololens.clock_watch import ClockWatch
from keystep_hololens.device_streams import (
    DEFAULT_STREAMS,
    RESEARCH_MODE_SENSORS,
    VideoCodec,
    check_streams,
    wire_streams,
)
from keystep_hololens.hl2ss import client
from keystep_hololens.hl2ss.personal_video import PV_FORMATS
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT
from keystep_hololens.sensor_streams import Pump, SensorSettings, SensorStreams
from keystep_hololens.target import check_target
from keystep_hololens.uplink import Uplink
from keystep_hololens.wearer import Wearer, WearerConfig

CLOCK_EVERY_S = 2.0
RESTART_CHECK_S = 2.0
RESEARCH_MODE_HINT = "it needs Research Mode: Device Portal > System > Research mode"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """What one bridge does.

    Attributes:
        host: The headset's address.
        base_port: Port of the headset's first service.
        server: The server's endpoint, e.g. `tcp://127.0.0.1:8041`.
        device: The headset's id.
        kind, task, procedure, method: Of a new session.
        session: To continue a certain session.
        key: What the device's key file holds; needed off loopback.
        streams: Which of the headset's streams to carry; see
            `device_streams.DEVICE_STREAMS`.
        video_codec: What the headset encodes video with.
        width, height, fps: The PV format asked for.
        time_scale: Device seconds a second, for a simulated headset that plays faster; the session
            is then a lossless replay.
        spool: Where packets wait while the server is away or slow; the session is then a lossless
            replay, too, oldest first. Only an expert's: guidance cannot wait for a backlog.
        exit_when_silent_s: End when every stream has been silent for this long, from the first
            welcome on (until then it dials on); None: never.
        close_at_end: Have the session closed when the bridge ends.
        display, voice: Show guidance on the headset; listen for spoken commands.

    Raises:
        ConfigError: The target is malformed or lacks its key, there is no such PV format or
            stream, streams exclude each other, or a guided session has a spool.
    """

    host: str
    base_port: int = DEFAULT_BASE_PORT
    server: str = "tcp://127.0.0.1:8041"
    device: str = "hololens2"
    kind: wire.SessionKind = "guided"
    task: str | None = None
    procedure: str | None = None
    method: str | None = None
    session: str | None = None
    key: DeviceKey | None = None
    streams: tuple[str, ...] = DEFAULT_STREAMS
    video_codec: VideoCodec = "h264"
    width: int = 640
    height: int = 360
    fps: int = 30
    time_scale: float = 1.0
    spool: SpoolConfig | None = None
    exit_when_silent_s: float | None = None
    close_at_end: bool = False
    display: bool = True
    voice: bool = True

    def __post_init__(self) -> None:
        check_target(server=self.server, device=self.device, key=self.key)
        check_streams(self.streams)
        if self.spool is not None and self.kind != "expert":
            raise ConfigError("--spool is for --kind expert: guidance cannot wait for a backlog")
        asked = (self.width, self.height, self.fps)
        if asked not in PV_FORMATS:
            sizes = sorted(PV_FORMATS)
            raise ConfigError(
                f"the headset has no video format {_format(asked)}; it offers "
                + ", ".join(_format(size) for size in sizes)
            )


class Bridge:
    """Runs one headset's streams into one session."""

    def __init__(
        self,
        config: BridgeConfig,
        *,
        on_guidance: Callable[[wire.Guidance], None] = lambda _: None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            config: What to do.
            on_guidance: Told of each new revision, whether or not the headset can show it.
            clock: Monotonic clock, ns.

        Raises:
            StateError: Another bridge of this device uses the spool.
        """
        self._config = config
        self._clock = clock
        self._on_guidance = on_guidance
        self._told: dict[str, str] = {}
        self._welcomed_ns: int | None = None
        self._stop, self._is_hurried = asyncio.Event(), False
        wanted = config.spool
        spool = None if wanted is None else wanted.open(config.device, clock=clock)
        is_fast = config.time_scale != 1.0
        streams = wire_streams(config.streams)
        self.sender = Sender(
            Source(
                device=config.device,
                client=f"keystep-hololens {version('keystep')}",
                streams=streams,
                kind=config.kind,
                session=config.session,
                task=config.task,
                procedure=config.procedure,
                method=config.method,
                replay=is_fast or spool is not None,
                time_scale=config.time_scale,
            ),
            server=config.server,
            instance=_new_instance(),
            key=config.key,
            callbacks=Callbacks(
                on_guidance=self._take_guidance,
                on_session=self._join,
                on_picture=lambda message, image: self.wearer.take_picture(message, image),
                on_command_result=lambda result: self.wearer.take_result(result),
            ),
            spool=spool,
            clock=clock,
        )
        self.backlog = Backlog(self.sender, spool)
        self.wearer = Wearer(
            WearerConfig(
                host=config.host,
                base_port=config.base_port,
                display=config.display,
                voice=config.voice,
            ),
            self.sender,
            clock=clock,
        )
        remote = client.RemoteConfigurationClient(host=config.host, base_port=config.base_port)
        remote_free = asyncio.Lock()
        self._camera = CameraSwitch(remote, remote_free, clock=clock)
        self._watch = ClockWatch(
            remote,
            remote_free,
            self.sender,
            rate=config.time_scale,
            clock=clock,
            on_restart=self._begin_epoch,
        )
        self._uplink = Uplink(
            self.sender,
            streams=frozenset(streams),
            replay=is_fast and spool is None,
            clock=clock,
            on_restart=self._begin_epoch,
        )
        self._pumps = SensorStreams(
            SensorSettings(
                host=config.host,
                base_port=config.base_port,
                video_codec=config.video_codec,
                width=config.width,
                height=config.height,
                fps=config.fps,
            ),
            self._camera,
        ).pumps(frozenset(config.streams))

    def stop(self) -> None:
        """End cleanly: `run` sends what is held and returns; a second time: as soon as it can."""
        self._is_hurried = self._stop.is_set()
        self._stop.set()

    async def run(self) -> None:
        """Stream until the session is closed or `stop` is called.

        Raises:
            RefusedError: The server refused this bridge for good.
            ProtocolError: The server speaks another major version.
        """
        link = asyncio.create_task(self.sender.run(), name="link")
        sensors = [
            asyncio.create_task(self._keep_up(sensor, pump), name=sensor)
            for sensor, pump in self._pumps.items()
        ]
        jobs = [
            *sensors,
            asyncio.create_task(self.backlog.tell()),
            asyncio.create_task(self._watch_clock()),
            asyncio.create_task(self._watch_silence()),
            asyncio.create_task(self.wearer.run()),
        ]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([link, stopped, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done() and self.sender.state != "closed":
                    job.result()  # raises what ended it
            if not link.done():
                if self._config.spool is not None:  # else it would never be through
                    await _cancel(sensors)
                await self._finish()
        finally:
            await _cancel([stopped, *jobs])
            await self._camera.off()
            if not link.done():
                link.cancel()
            result = (await asyncio.gather(link, return_exceptions=True))[0]
        if isinstance(result, Exception):
            raise result

    async def _finish(self) -> None:
        """Hand over what is held, where the server can be reached."""
        if self.sender.state == "connecting":
            log.warning("ending; the server was never reached", server=self._config.server)
            return
        await self.backlog.hand_over(
            close=self._config.close_at_end, is_hurried=lambda: self._is_hurried
        )

    # -- streams ---------------------------------------------------------------------------------

    async def _keep_up(self, sensor: str, pump: Pump) -> None:
        """Run a sensor's pump again and again: headsets sleep, restart and lose Wi-Fi."""
        backoff = client.Backoff(initial_s=0.25, maximum_s=5.0)
        while True:
            started_ns = self._clock()
            feed, reason = self._uplink.open(), "ended by the headset"
            try:
                await pump(feed)
            except (DeviceError, VideoError) as error:
                reason = str(error)
            if feed.sent_count:
                self._told.pop(sensor, None)
            missing = sensor in RESEARCH_MODE_SENSORS and not feed.sent_count
            self._tell(sensor, reason, hint=RESEARCH_MODE_HINT if missing else None)
            ended_ns = self._clock()
            if ended_ns - started_ns > 5e9:
                backoff.reset()
            await backoff.wait()
            if (self._watch.read_ns or 0) > ended_ns:
                continue  # that the headset was not restarted has been seen meanwhile
            # Before its first packets: they must not count as the epoch's before a restart.
            with contextlib.suppress(DeviceError, TimeoutError):
                async with asyncio.timeout(RESTART_CHECK_S):
                    await self._watch.read()

    def _tell(self, what: str, reason: str, *, hint: str | None = None) -> None:
        """Log a trouble once, not at every attempt."""
        if self._told.get(what) != reason:
            self._told[what] = reason
            hints = {} if hint is None else {"hint": hint}
            log.warning("interrupted, trying again", what=what, reason=reason, **hints)

    async def _watch_clock(self) -> None:
        """Measure the headset's clock again and again."""
        while True:
            try:
                await self._watch.read()
                self._told.pop("clock", None)
            except DeviceError as error:
                self._tell("clock", str(error))
            await asyncio.sleep(CLOCK_EVERY_S)

    def _begin_epoch(self) -> None:
        log.warning("the headset was restarted: a new epoch begins")
        self._watch.reset()
        self._uplink.begin_epoch()
        self.sender.restart(_new_instance())

    async def _watch_silence(self) -> None:
        limit_s = self._config.exit_when_silent_s
        while True:
            await asyncio.sleep(0.2)
            if limit_s is None or self._welcomed_ns is None:
                continue
            since_ns = max(self._welcomed_ns, self._uplink.heard_ns or self._welcomed_ns)
            if self._clock() - since_ns > limit_s * 1e9:
                log.info("every stream is silent, ending")
                self._stop.set()
                return

    # -- guidance --------------------------------------------------------------------------------

    def _take_guidance(self, guidance: wire.Guidance) -> None:
        self._on_guidance(guidance)
        self.wearer.take_guidance(guidance)

    def _join(self, welcome: wire.Welcome) -> None:
        if self._welcomed_ns is None:
            self._welcomed_ns = self._clock()
        log.info("in session", session=welcome.session, epoch=welcome.epoch)
        self.wearer.join()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def _format(size: tuple[int, int, int]) -> str:
    width, height, fps = size
    return f"{width}x{height}@{fps}"


def _new_instance() -> str:
    return secrets.token_hex(8)
