"""The ports of a headset that plays a recording: what each does with a client.

Requests are taken, and refused by closing, as the headset does; but a recording is sent as it is:
what a client asks of size, rate and bit rate of video changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial

from keystep_capture.errors import DeviceError
from keystep_capture.recording import RecordedPacket
from keystep_hololens.device_streams import INERTIAL_SENSORS, TRACKING_CAMERAS
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.calibration import CameraCalibration, encode_camera_calibration
from keystep_hololens.hl2ss.microphone import is_array
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import recorded_payloads as payloads
from keystep_hololens.simulator import recorded_streams as streams
from keystep_hololens.simulator.packets import TimedPacket
from keystep_hololens.simulator.ports import Client, Serve
from keystep_hololens.simulator.recorded import RecordedEpoch
from keystep_hololens.simulator.recorded_constants import PORT_OF_SENSOR
from keystep_hololens.simulator.room_ports import VLC_CLOCK_IS_LATE_HNS, expect, expect_encoding

Packets = Callable[[int | None], Iterator[TimedPacket]]
"""From the device time of the first packet wanted (None: the beginning) to packets to send."""
Play = Callable[[Client, Packets], Awaitable[None]]


class RecordedPorts:
    """Serves one epoch of a recording.

    Attributes:
        camera_is_on: Whether the PV camera was switched on.
    """

    def __init__(self, epoch: RecordedEpoch, play: Play) -> None:
        """Serve `epoch`; `play` sends packets to a client from where it is to begin."""
        self.camera_is_on = False
        self._epoch, self._play = epoch, play

    @property
    def cameras(self) -> Mapping[Port, CameraCalibration] | None:
        """Constants of the cameras; None: there are no Research Mode sensors."""
        if not self._epoch.has_research_mode:
            return None
        known = {kind: one.camera for kind, one in self._epoch.constants.items()}
        return {kind: camera for kind, camera in known.items() if camera is not None}

    def servers(self) -> Mapping[Port, Serve]:
        """What each port does that has something to play."""
        serves: dict[str, Serve] = {
            "personal_video": self._serve_personal_video,
            "spatial_input": self._serve_spatial_input,
            "depth_long_throw": self._serve_long_throw,
            "depth_ahat": self._serve_ahat,
            "eye_tracker": self._serve_eye_tracker,
            "microphone": self._serve_microphone,
        }
        serves |= {name: partial(self._serve_vlc, name) for name in TRACKING_CAMERAS}
        serves |= {name: partial(self._serve_imu, name) for name in INERTIAL_SENSORS}
        return {PORT_OF_SENSOR[sensor]: serves[sensor] for sensor in self._epoch.sensors}

    async def _serve_personal_video(self, client: Client) -> None:
        request = await client.receive(pv.parse_pv_request)
        if request is None:
            return
        self.camera_is_on = self.camera_is_on or request.start is not None
        try:
            if isinstance(request.stream, pv.PvCalibrationRequest):
                raise DeviceError("the PV camera's constants are not recorded")
            if request.stream is not None:
                await self._stream_video(client, request.stream)
        finally:
            if request.stop:
                self.camera_is_on = False

    async def _stream_video(self, client: Client, config: pv.PvConfig) -> None:
        if not self.camera_is_on:
            raise DeviceError("PV is off")
        expect(config.mode in (0, 1) and config.bitrate_bps > 0, config)
        encoding = self._encoding("rgb", config.profile, config.divisor)
        video = payloads.PersonalVideo()
        pose = (lambda packet: payloads.pv_camera_pose(packet.header)) if config.mode else None
        await self._play(
            client,
            lambda start_hns: streams.each(
                streams.intact_video(self._epoch.packets("rgb", start_hns=start_hns), encoding),
                video.payload,
                pose,
            ),
        )

    async def _serve_spatial_input(self, client: Client) -> None:
        there = self._epoch.sensors["spatial_input"]
        await self._play(
            client,
            lambda start_hns: streams.spatial_input(
                self._epoch.packets(*there, start_hns=start_hns)
            ),
        )

    async def _serve_vlc(self, stream: str, client: Client) -> None:
        kind = TRACKING_CAMERAS[stream]
        config: rm.VlcConfig | rm.CalibrationRequest | None
        config = await client.receive(rm.parse_vlc_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_constants(client, kind)
        elif config is not None:
            expect_encoding(config)
            encoding = self._encoding(stream, config.profile, config.divisor)
            shift_hns = VLC_CLOCK_IS_LATE_HNS + config.time_shift_hns(0)
            pose = self._rig_pose(kind, config.mode)
            await self._play(
                client,
                lambda start_hns: streams.each(
                    streams.intact_video(
                        self._epoch.packets(stream, start_hns=start_hns), encoding
                    ),
                    payloads.tracking_picture,
                    pose,
                    time_shift_hns=shift_hns,
                ),
            )

    async def _serve_long_throw(self, client: Client) -> None:
        config: rm.LongThrowConfig | rm.CalibrationRequest | None
        config = await client.receive(rm.parse_long_throw_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_constants(client, Port.RM_DEPTH_LONGTHROW)
        elif config is not None:
            filters = range(rm.LOWEST_PNG_FILTER, rm.HIGHEST_PNG_FILTER + 1)
            expect(config.divisor >= 1 and config.png_filter in filters, config)
            await self._play(
                client,
                self._depth(
                    "depth_long_throw",
                    lambda: streams.long_throw_payload,
                    mode=config.mode,
                    divisor=config.divisor,
                    sensor_hz=rm.LONG_THROW_FPS,
                ),
            )

    async def _serve_ahat(self, client: Client) -> None:
        config: rm.AhatConfig | rm.CalibrationRequest | None
        config = await client.receive(rm.parse_ahat_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_constants(client, Port.RM_DEPTH_AHAT)
        elif config is not None:
            expect_encoding(config)
            if config.depth_profile != rm.DepthProfile.SAME:
                raise DeviceError("the simulated headset sends no AHAT depth as a Zdepth blob")
            await self._play(
                client,
                self._depth(
                    "depth_ahat",
                    partial(streams.AhatEncoder, config),
                    mode=config.mode,
                    divisor=config.divisor,
                    sensor_hz=rm.AHAT_FPS,
                ),
            )

    async def _serve_imu(self, stream: str, client: Client) -> None:
        kind = INERTIAL_SENSORS[stream]
        config: rm.ImuConfig | rm.CalibrationRequest | None
        config = await client.receive(rm.parse_imu_request)
        if isinstance(config, rm.CalibrationRequest):
            if kind == Port.RM_IMU_MAGNETOMETER or kind not in self._epoch.constants:
                raise DeviceError(f"{stream}: it has no constants, or they are not recorded")
            await client.send(self._epoch.constants[kind].extrinsics.astype("<f4").tobytes())
        elif config is not None:
            expect(config.mode in (0, 1), config)
            pose = self._rig_pose(kind, config.mode)
            await self._play(
                client,
                lambda start_hns: streams.each(
                    self._epoch.packets(stream, start_hns=start_hns),
                    payloads.inertial,
                    pose,
                    spanned_hns=payloads.spanned_hns,
                ),
            )

    async def _serve_eye_tracker(self, client: Client) -> None:
        rate_hz = await client.receive(rm.parse_eye_tracker_request)
        if rate_hz is None:
            return
        expect(rate_hz in rm.EYE_TRACKER_RATES_HZ, rate_hz)

        def packets(start_hns: int | None) -> Iterator[TimedPacket]:
            keep_one_in = streams.thinning(self._epoch.rate_hz("eye_tracking"), rate_hz)
            recorded = self._epoch.packets("eye_tracking", start_hns=start_hns)
            yield from streams.each(
                streams.one_in(recorded, keep_one_in),
                payloads.eye_tracking,
                lambda packet: payloads.SAME_PLACE,
            )

        await self._play(client, packets)

    async def _serve_microphone(self, client: Client) -> None:
        config = await client.receive(rm.parse_microphone_request)
        if config is None:
            return
        raw = config.profile == rm.AudioProfile.RAW
        known = config.profile in frozenset(rm.AudioProfile) and not is_array(config)
        expect(known and (raw or config.level in rm.MICROPHONE_LEVELS), config)
        encoding = "pcm_s16" if raw else "aac_adts"
        self._expect_recorded("microphone", encoding)
        await self._play(
            client,
            lambda start_hns: streams.each(
                (
                    packet
                    for packet in self._epoch.packets("microphone", start_hns=start_hns)
                    if packet.header.encoding == encoding
                ),
                lambda packet: packet.payload,
            ),
        )

    # --- shared ----------------------------------------------------------------------------------

    def _encoding(self, stream: str, profile: int, divisor: int) -> str:
        """The encoding of a recorded video, if it is what was asked for."""
        if divisor != 1:
            raise DeviceError(f"{stream}: a recorded video is sent whole, divisor {divisor} is not")
        if profile == VideoProfile.RAW:
            encoding = "grey8"
        elif profile in frozenset(VideoProfile):
            encoding = "hevc" if profile == VideoProfile.HEVC_MAIN else "h264"
        else:
            raise DeviceError(f"{stream}: there is no video profile {profile}")
        self._expect_recorded(stream, encoding)
        return encoding

    def _expect_recorded(self, stream: str, encoding: str) -> None:
        recorded = self._epoch.first[stream].header.encoding
        if recorded != encoding:
            raise DeviceError(f"{stream} is recorded as {recorded}, the client asks for {encoding}")

    def _rig_pose(self, kind: Port, mode: int) -> streams.PoseOf | None:
        if mode == 0:
            return None
        constants = self._epoch.constants.get(kind)
        sensor_from_rig = None if constants is None else constants.sensor_from_rig

        def pose(packet: RecordedPacket) -> payloads.Pose:
            return payloads.rig_pose(packet.header, sensor_from_rig)

        return pose

    def _depth(
        self,
        sensor: str,
        make_encoder: Callable[[], streams.EncodeDepth],
        *,
        mode: int,
        divisor: int,
        sensor_hz: float,
    ) -> Packets:
        pose = self._rig_pose(PORT_OF_SENSOR[sensor], mode)

        def packets(start_hns: int | None) -> Iterator[TimedPacket]:
            keep_one_in = 1
            if divisor > 1:
                recorded_hz = self._epoch.rate_hz(self._epoch.sensors[sensor][0])
                keep_one_in = streams.thinning(recorded_hz, sensor_hz / divisor)
            yield from streams.depth_frames(
                self._epoch,
                sensor,
                make_encoder(),
                pose,
                start_hns=start_hns,
                keep_one_in=keep_one_in,
            )

        return packets

    async def _send_constants(self, client: Client, kind: Port) -> None:
        constants = self._epoch.constants.get(kind)
        if constants is None or constants.camera is None:
            raise DeviceError(f"the constants of {kind.name.lower()} are not recorded")
        await client.send(encode_camera_calibration(kind, constants.camera))
