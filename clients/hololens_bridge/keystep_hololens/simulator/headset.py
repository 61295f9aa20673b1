"""The simulated HoloLens 2: clock, camera switch, faults, and what each of its ports does."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import structlog

from keystep_capture.errors import ConfigError
from keystep_capture.samples import Sample
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import remote_configuration as rc
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND, Port
from keystep_hololens.simulator.clock import DeviceClock, Playback
from keystep_hololens.simulator.encoder import VIDEO_PROFILES
from keystep_hololens.simulator.faults import Faults, FaultSwitch
from keystep_hololens.simulator.packets import PacketStream
from keystep_hololens.simulator.ports import Client, OpenPorts, Serve, send_stream
from keystep_hololens.simulator.remote import RemoteAnswers
from keystep_hololens.simulator.room import Room, swaying_head
from keystep_hololens.simulator.room_ports import RoomPorts
from keystep_hololens.simulator.sensors import SensorSource, SpatialInputPacketStream
from keystep_hololens.simulator.unity import UnityApp
from keystep_hololens.simulator.video import PvPacketStream, VideoSource, nominal_calibration
from keystep_hololens.simulator.voice import VoiceControl
from keystep_hololens.simulator.world import World

_log = structlog.get_logger(__name__)

SHARED_FORMAT = (1280, 720, 30)
"""What the other app is taken to capture when PV is started in shared mode; a choice of ours."""
BOOT_HNS = 300_000_000
"""What the clock shows when the app runs again after a reboot; invented."""


class SimulatedHeadset:
    """A headset with hl2ss running; an async context manager.

    Ports it has no data for refuse connections; without a room Research Mode is off. The sample
    plays once, from the moment the first client streams (or at once): whoever connects later gets
    what plays then. `finished` is set when video and sensors have ended; the room ends with them,
    and alone it never does.
    """

    def __init__(
        self,
        *,
        video: VideoSource | None = None,
        sensors: SensorSource | None = None,
        room: Room | None = None,
        app: UnityApp | None = None,
        voice: VoiceControl | None = None,
        microphone: bool = False,
        host: str = "127.0.0.1",
        base_port: int = 0,
        clock: DeviceClock | None = None,
        start_at_once: bool = False,
        faults: Faults | None = None,
    ) -> None:
        """Describe the headset.

        Args:
            video: What the PV camera sees.
            sensors: Published head poses and gaze for spatial input; without them, but with a
                room, spatial input is simulated too.
            room: What Research Mode's sensors and the eye tracker see; simulated.
            app: What takes UMQ messages and offers GMQ ones.
            voice: What voice input hears.
            microphone: Offer sound (a tone); needs a room.
            host: Address to listen on.
            base_port: Port of the first service; 0 takes free ports (see `base_port` once entered).
            clock: The headset's clock.
            start_at_once: Begin to play before any client.
            faults: Ways to fail; `set_faults` changes them.

        Raises:
            ConfigError: There is nothing to play.
        """
        if video is None and sensors is None and room is None:
            raise ConfigError("a simulated headset needs a video, sensors or a room to play")
        if microphone and room is None:
            raise ConfigError("the simulated microphone needs a room")
        self.host, self.base_port = host, base_port
        self.clock = clock or DeviceClock()
        self.playback = Playback(clock=self.clock)
        self.finished = asyncio.Event()
        self.app, self.voice = app, voice
        self._video, self._sensors, self._room = video, sensors, room
        self._microphone = microphone
        self._start_at_once = start_at_once
        self._switch = FaultSwitch(faults or Faults(), sleep=self.clock.sleep)
        self._world = World(room, sensors)
        self._left = False
        self._pv: pv.PvStart | None = None
        self._unfinished: set[Port] = set()
        self._streaming: set[Port] = set()
        self._ports: OpenPorts | None = None
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
        whole: bool = False,
        microphone: bool = False,
    ) -> Self:
        """Make a headset that plays a bundled sample.

        Args:
            sample: Which one.
            host: Address to listen on.
            base_port: Port of the first service; 0 takes free ports.
            time_scale: Device seconds per second.
            loop: Play over and over.
            start_at_once: Begin to play before any client.
            faults: Ways to fail.
            whole: Offer everything else too, simulated: a room for Research Mode and eye tracker,
                a Unity app and voice input.
            microphone: Offer sound; only with `whole`.
        """
        video = VideoSource.open(sample.video_path, loop=loop) if sample.video_path else None
        sensors = SensorSource.of_sample(sample, loop=loop) if sample.sensors_path else None
        room = Room(head_at=sensors.head_at if sensors else swaying_head) if whole else None
        return cls(
            video=video,
            sensors=sensors,
            room=room,
            app=UnityApp() if whole else None,
            voice=VoiceControl() if whole else None,
            microphone=microphone,
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
        return {} if self._ports is None else self._ports.numbers

    async def __aenter__(self) -> Self:
        self._unfinished = set(self._durations())
        if self.voice is not None:
            self.voice.follow(self.clock)
        self.set_faults(self._switch.faults)
        self._open()
        if self._start_at_once:
            self.playback.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        failures = await self._shut()
        if failures and exc is None:
            raise failures[0]

    def _open(self) -> None:
        self._ports = OpenPorts(self.host, self.base_port, self._serves(), self._switch)
        self.base_port = self._ports.base_port
        for kind, duration_hns in self._durations().items():
            if duration_hns is not None and kind in self._unfinished:
                self._tasks.append(asyncio.create_task(self._end_on_time(kind, duration_hns)))

    async def _shut(self) -> list[Exception]:
        """Close every connection and port; returns what had gone wrong in serving them."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        failures = [result for result in results if isinstance(result, Exception)]
        ports, self._tasks, self._ports = self._ports, [], None
        return failures if ports is None else [*failures, *await ports.close()]

    def _durations(self) -> dict[Port, int | None]:
        """How long the sources play; the room lasts as long as they do."""
        durations = {}
        if self._video is not None:
            durations[Port.PERSONAL_VIDEO] = self._video.duration_hns
        if self._sensors is not None:
            durations[Port.SPATIAL_INPUT] = self._sensors.duration_hns
        return durations

    def _serves(self) -> dict[Port, Serve]:
        serves: dict[Port, Serve] = {Port.REMOTE_CONFIGURATION: self._serve_remote_configuration}
        if self._room is not None:
            room = self._room_ports(self._room)
            serves |= room.servers()
            serves[Port.SPATIAL_INPUT] = room.serve_spatial_input
            if self._microphone:
                serves[Port.MICROPHONE] = room.serve_microphone
        if self._video is not None:
            serves[Port.PERSONAL_VIDEO] = self._serve_personal_video
        if self._sensors is not None:
            serves[Port.SPATIAL_INPUT] = self._serve_spatial_input
        if self.app is not None:
            serves[Port.UNITY_MESSAGE_QUEUE] = self.app.serve_messages
            serves[Port.GUEST_MESSAGE_QUEUE] = self.app.serve_guest_messages
        if self.voice is not None:
            serves[Port.VOICE_INPUT] = self.voice.serve
        return serves

    def _room_ports(self, room: Room) -> RoomPorts:
        return RoomPorts(
            room=room,
            playback=self.playback,
            switch=self._switch,
            rig_pose_at=self._world.rig_pose_at,
            tracker_pose_at=self._world.tracker_pose_at,
            end_hns=self._room_end_hns,
            stream=self._send,
        )

    # --- faults ----------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._switch.faults

    def set_faults(self, faults: Faults) -> None:
        """Put other faults in force at once, for open connections too."""
        self.clock.drift(faults.clock_drift_ppm)
        self._switch.set(faults)

    def disconnect(self, kinds: Iterable[Port] | None = None) -> None:
        """Close the connections of these services at once, of all where none are named."""
        if self._ports is not None:
            self._ports.disconnect(kinds)

    async def reboot(self, down_s: float = 0.0) -> None:
        """Restart the headset: all connections break, and its ports refuse for a while.

        Afterwards the clock and all counters begin anew, the world's origin is where the head then
        is, PV is off and the Unity app's scene is empty. The sample has played on meanwhile.

        Args:
            down_s: Host seconds until the app runs again.
        """
        origin_hns, asked_ns = self.playback.origin_hns, self.clock.monotonic_ns()
        elapsed_hns = 0 if origin_hns is None else self.clock.now_hns() - origin_hns
        if failures := await self._shut():
            raise failures[0]
        self._pv = None
        if self.app is not None:
            self.app.restart()
        await self.clock.sleep(down_s)
        down_ns = self.clock.monotonic_ns() - asked_ns
        elapsed_hns += round(down_ns * self.clock.time_scale / 100)
        self.clock.restart(BOOT_HNS)
        self.playback.resume(elapsed_hns)
        self._world.begin_at(elapsed_hns / HNS_PER_SECOND)
        if not self._left:
            self._open()

    # --- end of playback -------------------------------------------------------------------------

    def _room_end_hns(self) -> int | None:
        durations = [duration for duration in self._durations().values() if duration is not None]
        if not durations or len(durations) < len(self._durations()):
            return None
        return self.playback.begin() + max(durations)

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

    async def _send(self, client: Client, stream: PacketStream) -> None:
        await send_stream(client, stream, self.clock, self._switch)

    async def _stream(
        self, client: Client, kind: Port, stream: PacketStream, duration_hns: int | None
    ) -> None:
        self._streaming.add(kind)
        try:
            await self._send(client, stream)
        finally:
            self._streaming.discard(kind)
            if duration_hns is not None and (
                self.clock.now_hns() >= self.playback.begin() + duration_hns
            ):
                self._end(kind)

    # --- ports -----------------------------------------------------------------------------------

    async def _serve_spatial_input(self, client: Client) -> None:
        assert self._sensors is not None
        now_hns = self.clock.now_hns()  # before playback begins, so that frame 0 is sent
        stream = SpatialInputPacketStream(
            self._sensors,
            origin_hns=self.playback.begin(),
            now_hns=now_hns,
            world_from_published=self._world.from_sample,
        )
        await self._stream(client, Port.SPATIAL_INPUT, stream, self._sensors.duration_hns)

    async def _serve_personal_video(self, client: Client) -> None:
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
            self._video,
            config,
            origin_hns=self.playback.begin(),
            now_hns=now_hns,
            pose_at=self._world.pv_pose_at,
        )
        await self._stream(client, Port.PERSONAL_VIDEO, stream, self._video.duration_hns)

    async def _send_calibration(self, client: Client, asked: pv.PvCalibrationRequest) -> None:
        used = self._format_in_use(asked.width, asked.height, asked.fps)
        if used is None:
            _log.warning("closed a PV client", reason="PV is off or lacks this format", asked=asked)
            return
        extrinsics = None if self._room is None else self._room.rig.pv_extrinsics
        await client.send(nominal_calibration(used[0], used[1], extrinsics).encode())

    def _format_in_use(self, width: int, height: int, fps: int) -> tuple[int, int, int] | None:
        """Return width, height, fps the camera runs at; None if it is off or cannot."""
        if self._pv is None:
            return None
        if self._pv.shared:
            return SHARED_FORMAT
        asked = (width, height, fps)
        return asked if asked in pv.PV_FORMATS else None

    async def _serve_remote_configuration(self, client: Client) -> None:
        answers = RemoteAnswers(
            playback=self.playback,
            cameras=None if self._room is None else self._room.rig.cameras,
            rig_pose_at=self._world.rig_pose_at,
            base_port=self.base_port,
            camera_is_on=lambda: self._pv is not None,
        )
        while (parsed := await client.receive(rc.parse_call)) is not None:
            call, size = parsed
            client.discard(size)
            if (reply := answers.answer(call)) is not None:
                await client.send(reply)


def _why_not(config: pv.PvConfig) -> str:
    """Say why the encoder cannot serve this configuration, or nothing."""
    if config.divisor < 1 or config.bitrate_bps < 1:
        return "divisor and bit rate are at least 1"
    if config.profile not in VIDEO_PROFILES:
        return "video profiles are 0, 1, 2 (H264), 3 (HEVC) and 255 (raw)"
    return ""
