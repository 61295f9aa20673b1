"""The bridge: a HoloLens 2's streams to the server, the server's guidance back.

Each stream has its own connection to the headset and comes back by itself; the session goes on
whatever is lost meanwhile. hl2ss's conventions are turned into the wire's here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import structlog

from keystep_capture import wire
from keystep_capture.clock import Clock, ClockEstimator
from keystep_capture.errors import ConfigError, DeviceError, StateError
from keystep_capture.sender import Callbacks, Payload, Sender, Source
from keystep_capture.streams import HAND_JOINT_VALUES, HAND_JOINTS
from keystep_capture.video import is_h264_keyframe
from keystep_hololens.hl2ss import client, conventions
from keystep_hololens.hl2ss.personal_video import PV_FORMATS, PvConfig
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT
from keystep_hololens.hl2ss.spatial_input import HandPose, SpatialInput
from keystep_hololens.target import check_target

CLOCK_EVERY_S = 2.0
CLOCK_PROBES = 6
CLOCK_JUMP_NS = 1_000_000_000
"""A headset's clock that is off by more than this from what it was is a restarted headset's."""
PV_START_S = 10.0
PV_STOP_S = 2.0
FINISH_S = 5.0
RESTART_CHECK_S = 2.0

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
        token: The server's shared secret; needed off loopback.
        width, height, fps: The PV format asked for.
        time_scale: Device seconds a second, for a simulated headset that plays faster; the session
            is then a lossless replay.
        exit_when_silent_s: End when every stream has been silent for this long, from the start
            on; None: never.
        close_at_end: Have the session closed when the bridge ends.

    Raises:
        ConfigError: The target is malformed or lacks its token, or there is no such PV format.
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
    token: str | None = None
    width: int = 640
    height: int = 360
    fps: int = 30
    time_scale: float = 1.0
    exit_when_silent_s: float | None = None
    close_at_end: bool = False

    def __post_init__(self) -> None:
        check_target(server=self.server, device=self.device, token=self.token)
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
            on_guidance: Told of each new revision; it is acknowledged as not displayed, since
                nothing is drawn on the headset yet (issue B).
            clock: Monotonic clock, ns.
        """
        self._config = config
        self._clock = clock
        self._on_guidance = on_guidance
        self._remote = client.RemoteConfigurationClient(
            host=config.host, base_port=config.base_port
        )
        self._remote_free = asyncio.Lock()  # the port serves one client at a time
        self._pv = PvConfig.live(
            width=config.width, height=config.height, fps=config.fps, gop_size=config.fps // 2
        )
        self._device_clock = ClockEstimator(rate=config.time_scale)
        self._newest_device_ns: dict[str, int] = {}
        self._camera_found_on = False
        self._heard_ns: int | None = None
        self._told: dict[str, str] = {}
        self._stop = asyncio.Event()
        self._replay = config.time_scale != 1.0
        self.sender = Sender(
            Source(
                device=config.device,
                client=f"keystep-hololens {version('keystep')}",
                streams=("rgb", "gaze", "head", "hands"),
                kind=config.kind,
                session=config.session,
                task=config.task,
                procedure=config.procedure,
                method=config.method,
                replay=self._replay,
                time_scale=config.time_scale,
            ),
            server=config.server,
            instance=_new_instance(),
            token=config.token,
            callbacks=Callbacks(on_guidance=self._take_guidance, on_session=_say_session),
            clock=clock,
        )

    def stop(self) -> None:
        """End cleanly: `run` sends what is held and returns."""
        self._stop.set()

    async def run(self) -> None:
        """Stream until the session is closed or `stop` is called.

        Raises:
            RefusedError: The server refused this bridge for good.
            ProtocolError: The server speaks another major version.
        """
        link = asyncio.create_task(self.sender.run(), name="link")
        jobs = [
            asyncio.create_task(self._keep_up("rgb", self._stream_video)),
            asyncio.create_task(self._keep_up("head", self._stream_spatial_input)),
            asyncio.create_task(self._watch_clock()),
            asyncio.create_task(self._watch_silence()),
        ]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([link, stopped, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done() and self.sender.state != "closed":
                    job.result()  # raises what ended it
            if not link.done():
                await self._finish()
        finally:
            for task in (stopped, *jobs):
                task.cancel()
            await asyncio.gather(stopped, *jobs, return_exceptions=True)
            await self._switch_camera_off()
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
        try:
            await self.sender.finish(close=self._config.close_at_end, timeout_s=FINISH_S)
        except StateError as error:
            log.warning("ending; not all was handed over", reason=str(error))

    # -- streams ---------------------------------------------------------------------------------

    async def _keep_up(self, stream: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Serve a stream again and again: headsets sleep, restart and lose Wi-Fi."""
        backoff = client.Backoff(initial_s=0.25, maximum_s=5.0)
        while True:
            started_ns = self._clock()
            try:
                await serve()
                self._tell(stream, "ended by the headset")
            except DeviceError as error:
                self._tell(stream, str(error))
            if self._clock() - started_ns > 5e9:
                backoff.reset()
            await backoff.wait()
            # Before its first packets: they must not count as the epoch's before a restart.
            with contextlib.suppress(DeviceError, TimeoutError):
                async with asyncio.timeout(RESTART_CHECK_S):
                    await self._read_clock()

    def _tell(self, stream: str, what: str) -> None:
        """Log a stream's trouble once, not at every attempt."""
        if self._told.get(stream) != what:
            self._told[stream] = what
            log.warning("stream interrupted, trying again", stream=stream, reason=what)

    async def _stream_video(self) -> None:
        config = self._config
        await self._switch_camera_on()
        packets = client.open_pv(config.host, self._pv, base_port=config.base_port)
        async with aclosing(packets):
            async for packet in packets:
                metadata = packet.metadata
                pose = None
                if packet.pose is not None:
                    pose = conventions.world_from_camera(packet.pose).ravel().tolist()
                await self._send(
                    "rgb",
                    packet.timestamp_hns,
                    packet.encoded,
                    encoding="h264",
                    keyframe=is_h264_keyframe(packet.encoded),
                    width=metadata.width,
                    height=metadata.height,
                    intrinsics=(*metadata.focal_length_px, *metadata.principal_point_px),
                    pose=pose,
                )

    async def _stream_spatial_input(self) -> None:
        config = self._config
        packets = client.open_spatial_input(config.host, base_port=config.base_port)
        async with aclosing(packets):
            async for packet in packets:
                for stream, encoding, payload, valid in _split(packet.sample):
                    await self._send(
                        stream, packet.timestamp_hns, payload, encoding=encoding, valid=valid
                    )

    async def _send(
        self,
        stream: str,
        timestamp_hns: int,
        payload: Payload,
        *,
        encoding: str,
        keyframe: bool = False,
        width: int | None = None,
        height: int | None = None,
        intrinsics: wire.Intrinsics | None = None,
        pose: list[float] | None = None,
        valid: int = -1,
    ) -> None:
        self._heard_ns = self._clock()
        self._told.pop("rgb" if stream == "rgb" else "head", None)
        if self._replay:
            await self.sender.room(stream)
        device_time_ns = conventions.device_time_ns(timestamp_hns)
        if device_time_ns < self._newest_device_ns.get(stream, 0) - CLOCK_JUMP_NS:
            self._begin_epoch()
        self._newest_device_ns[stream] = device_time_ns
        self.sender.offer(
            stream,
            device_time_ns,
            payload,
            encoding=encoding,
            keyframe=keyframe,
            width=width,
            height=height,
            intrinsics=intrinsics,
            pose=pose,
            valid=valid,
        )

    async def _switch_camera_on(self) -> None:
        config = self._config
        async with self._remote_free:
            self._camera_found_on = await self._remote.pv_status()
            if self._camera_found_on:
                return
            await client.start_pv(config.host, base_port=config.base_port)
            deadline_ns = self._clock() + int(PV_START_S * 1e9)
            while not await self._remote.pv_status():
                if self._clock() > deadline_ns:
                    raise DeviceError(
                        f"the camera of {config.host} did not start within {PV_START_S:g} s"
                    )
                await asyncio.sleep(0.1)
            self._camera_found_on = True

    async def _switch_camera_off(self) -> None:
        if not self._camera_found_on:
            return
        config = self._config
        with contextlib.suppress(DeviceError):  # the headset is gone, and its camera with it
            await client.stop_pv(
                config.host, base_port=config.base_port, connect_timeout_s=PV_STOP_S
            )

    # -- clock -----------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """Measure the headset's clock again and again."""
        while True:
            try:
                await self._read_clock()
                self._told.pop("clock", None)
            except DeviceError as error:
                self._tell("clock", str(error))
            await asyncio.sleep(CLOCK_EVERY_S)

    async def _read_clock(self) -> None:
        """Measure the headset's clock, notice a restart by it, and pass it on.

        Raises:
            DeviceError: The headset does not answer.
        """
        async with self._remote_free:
            probes = await self._remote.probe_clock(self._clock, count=CLOCK_PROBES)
        if self._has_jumped(probes[-1]):
            self._begin_epoch()
        for probe in probes:
            self._device_clock.add(
                send_ns=probe.local_send_ns,
                remote_receive_ns=conventions.device_time_ns(probe.device_time_hns),
                receive_ns=probe.local_receive_ns,
            )
        reading = self._device_clock.reading(self._clock())
        if reading is not None:
            self.sender.tell_device_clock(
                device_time_ns=reading.remote_ns,
                bridge_time_ns=reading.local_ns,
                uncertainty_ns=reading.uncertainty_at(self._clock()),
                rate=reading.rate,
            )

    def _has_jumped(self, probe: client.ClockProbe) -> bool:
        """Whether the headset's clock is not where it would be, had it gone on."""
        known = self._device_clock.reading(probe.local_receive_ns)
        if known is None:
            return False
        then_ns = known.to_local(conventions.device_time_ns(probe.device_time_hns))
        slack_ns = CLOCK_JUMP_NS + known.uncertainty_at(probe.local_receive_ns)
        return not probe.local_send_ns - slack_ns <= then_ns <= probe.local_receive_ns + slack_ns

    def _begin_epoch(self) -> None:
        log.warning("the headset was restarted: a new epoch begins")
        self._device_clock.reset()
        self._newest_device_ns.clear()
        self.sender.restart(_new_instance())

    async def _watch_silence(self) -> None:
        limit_s = self._config.exit_when_silent_s
        began_ns = self._clock()
        while True:
            await asyncio.sleep(0.2)
            if limit_s is None:
                continue
            if self._clock() - (self._heard_ns or began_ns) > limit_s * 1e9:
                log.info("every stream is silent, ending")
                self._stop.set()
                return

    # -- guidance --------------------------------------------------------------------------------

    def _take_guidance(self, guidance: wire.Guidance) -> None:
        self._on_guidance(guidance)
        self.sender.acknowledge_guidance(guidance.revision, displayed=False)


def _split(sample: SpatialInput) -> list[tuple[str, str, bytes, int]]:
    """The wire's head, gaze and hands of one spatial-input sample.

    Each is (stream, encoding, payload, valid bits); a part that is not valid has no payload.
    """
    head = gaze = hands = b""
    if sample.head is not None:
        head = conventions.world_from_head(sample.head).astype("<f4").tobytes()
    if sample.eye is not None:
        gaze = np.asarray(conventions.world_eye_ray(sample.eye), "<f4").tobytes()
    hand_bits = (sample.left_hand is not None) | (sample.right_hand is not None) << 1
    if hand_bits:
        joints = np.zeros((2, HAND_JOINTS, HAND_JOINT_VALUES), "<f4")
        for side, hand in enumerate((sample.left_hand, sample.right_hand)):
            if hand is not None:
                joints[side] = _joints(hand)
        hands = joints.tobytes()
    return [
        ("head", "pose_f32", head, int(sample.head is not None)),
        ("gaze", "ray_f32", gaze, int(sample.eye is not None)),
        ("hands", "joints_f32", hands, int(hand_bits)),
    ]


def _joints(hand: HandPose) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A hand's joints as the wire has them, (26, 9): qx qy qz qw x y z radius accuracy."""
    return np.column_stack((hand.orientations, hand.positions, hand.radii, hand.accuracies))


def _format(size: tuple[int, int, int]) -> str:
    width, height, fps = size
    return f"{width}x{height}@{fps}"


def _new_instance() -> str:
    return secrets.token_hex(8)


def _say_session(welcome: wire.Welcome) -> None:
    log.info("in session", session=welcome.session, epoch=welcome.epoch)
