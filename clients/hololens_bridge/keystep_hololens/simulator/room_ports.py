"""The ports of the simulated room: Research Mode sensors, eye tracker, spatial input, microphone.

Each server takes a client's request, closes where the headset would, and streams or calibrates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.calibration import VLC_PORTS, encode_camera_calibration
from keystep_hololens.hl2ss.inertial import SAMPLES_PER_PACKET
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND, Port
from keystep_hololens.simulator import sensing
from keystep_hololens.simulator.clock import Playback
from keystep_hololens.simulator.faults import FaultSwitch
from keystep_hololens.simulator.packets import PacketStream
from keystep_hololens.simulator.ports import Client, Serve
from keystep_hololens.simulator.room import Room
from keystep_hololens.simulator.sound import PERIOD_HNS, SoundReading

_Constants = rm.CalibrationRequest | None
SPATIAL_INPUT_RATE_HZ = 60
VLC_CLOCK_IS_LATE_HNS = 125_000
_AHAT_HEAD_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomPorts:
    """Serves what a room's sensors say.

    Attributes:
        rig_pose_at, tracker_pose_at: In the headset's world of the moment.
        end_hns: Device time at which playback ends, None: never.
        stream: Sends a stream to a client.
    """

    room: Room
    playback: Playback
    switch: FaultSwitch
    rig_pose_at: sensing.PoseAt
    tracker_pose_at: sensing.PoseAt
    end_hns: Callable[[], int | None]
    stream: Callable[[Client, PacketStream], Awaitable[None]]

    def servers(self) -> Mapping[Port, Serve]:
        """Return what each port does, the microphone's apart."""
        servers: dict[Port, Serve] = {kind: partial(self._serve_vlc, kind) for kind in VLC_PORTS}
        servers |= {kind: partial(self._serve_imu, kind) for kind in SAMPLES_PER_PACKET}
        servers[Port.RM_DEPTH_LONGTHROW] = self._serve_long_throw
        servers[Port.RM_DEPTH_AHAT] = self._serve_ahat
        servers[Port.EXTENDED_EYE_TRACKER] = self._serve_eye_tracker
        return servers

    async def serve_microphone(self, client: Client) -> None:
        """Stream sound."""
        config = await client.receive(rm.parse_microphone_request)
        if config is None:
            return
        raw = config.profile == rm.AudioProfile.RAW
        known = config.profile in frozenset(rm.AudioProfile)
        expect(known and (raw or config.level in rm.MICROPHONE_LEVELS), config)
        await self._sense(client, SoundReading(config), lambda: PERIOD_HNS)

    async def serve_spatial_input(self, client: Client) -> None:
        """Stream head, eyes and hand."""
        reading = sensing.SpatialReading(self.room, self.tracker_pose_at)
        await self._sense(client, reading, lambda: HNS_PER_SECOND // SPATIAL_INPUT_RATE_HZ)

    async def _serve_vlc(self, kind: Port, client: Client) -> None:
        config: rm.VlcConfig | _Constants = await client.receive(rm.parse_vlc_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_camera_constants(client, kind)
        elif config is not None:
            expect_encoding(config)
            period_hns = HNS_PER_SECOND * config.divisor // rm.VLC_FPS
            await self._sense(
                client,
                sensing.VlcReading(self.room, kind, config),
                lambda: period_hns,
                mode=config.mode,
                time_shift_hns=VLC_CLOCK_IS_LATE_HNS + config.time_shift_hns(sensing.EXPOSURE_NS),
                key_frame=sensing.key_frame_test(config.profile),
            )

    async def _serve_long_throw(self, client: Client) -> None:
        config: rm.LongThrowConfig | _Constants = await client.receive(rm.parse_long_throw_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_camera_constants(client, Port.RM_DEPTH_LONGTHROW)
        elif config is not None:
            filters = range(rm.LOWEST_PNG_FILTER, rm.HIGHEST_PNG_FILTER + 1)
            expect(config.divisor >= 1 and config.png_filter in filters, config)
            divisor = config.divisor

            def period_hns() -> int:
                rate_hz = self.switch.faults.long_throw_rate_hz or rm.LONG_THROW_FPS
                return round(HNS_PER_SECOND * divisor / rate_hz)

            reading = sensing.LongThrowReading(self.room)
            await self._sense(client, reading, period_hns, mode=config.mode)

    async def _serve_ahat(self, client: Client) -> None:
        config: rm.AhatConfig | _Constants = await client.receive(rm.parse_ahat_request)
        if isinstance(config, rm.CalibrationRequest):
            await self._send_camera_constants(client, Port.RM_DEPTH_AHAT)
        elif config is not None:
            expect_encoding(config)
            if config.depth_profile == rm.DepthProfile.ZDEPTH:
                raise DeviceError(
                    "AHAT depth as a Zdepth blob needs the C++ library Zdepth (pyzdepth), which"
                    " the simulated headset lacks"
                )
            expect(config.depth_profile == rm.DepthProfile.SAME, config)
            divisor = config.divisor

            def period_hns() -> int:
                rate_hz = self.switch.faults.ahat_rate_hz or rm.AHAT_FPS
                return round(HNS_PER_SECOND * divisor / rate_hz)

            await self._sense(
                client,
                sensing.AhatReading(self.room, config),
                period_hns,
                mode=config.mode,
                key_frame=sensing.key_frame_test(config.profile, _AHAT_HEAD_SIZE),
            )

    async def _serve_imu(self, kind: Port, client: Client) -> None:
        config: rm.ImuConfig | _Constants = await client.receive(rm.parse_imu_request)
        if isinstance(config, rm.CalibrationRequest):
            expect(kind != Port.RM_IMU_MAGNETOMETER, config)  # it has no constants
            await client.send(self.room.rig.imu_extrinsics[kind].astype("<f4").tobytes())
        elif config is not None:
            expect(config.mode in (0, 1), config)
            period_hns = round(
                SAMPLES_PER_PACKET[kind] / sensing.IMU_RATES_HZ[kind] * HNS_PER_SECOND
            )
            await self._sense(
                client,
                sensing.ImuReading(self.room, kind),
                lambda: period_hns,
                mode=config.mode,
                covers_period=True,
            )

    async def _serve_eye_tracker(self, client: Client) -> None:
        rate_hz = await client.receive(rm.parse_eye_tracker_request)
        if rate_hz is not None:
            expect(rate_hz in rm.EYE_TRACKER_RATES_HZ, rate_hz)
            period_hns = HNS_PER_SECOND // rate_hz
            await self._sense(
                client,
                sensing.EyeReading(self.room),
                lambda: period_hns,
                pose_at=self.tracker_pose_at,
            )

    async def _send_camera_constants(self, client: Client, kind: Port) -> None:
        await client.send(encode_camera_calibration(kind, self.room.rig.cameras[kind]))

    async def _sense(
        self,
        client: Client,
        reading: sensing.Reading,
        period_hns: Callable[[], int],
        *,
        mode: int = 0,
        pose_at: sensing.PoseAt | None = None,
        covers_period: bool = False,
        time_shift_hns: int = 0,
        key_frame: Callable[[bytes], bool] = lambda payload: True,
    ) -> None:
        now_hns = self.playback.clock.now_hns()  # before playback begins, so frame 0 is sent
        origin_hns = self.playback.begin()
        stream = sensing.SensedStream(
            reading=reading,
            period_hns=period_hns,
            origin_hns=origin_hns,
            now_hns=now_hns,
            end_hns=self.end_hns(),
            pose_at=pose_at or (self.rig_pose_at if mode == 1 else None),
            covers_period=covers_period,
            time_shift_hns=time_shift_hns,
            key_frame=key_frame,
        )
        await self.stream(client, stream)


def expect_encoding(config: rm.VlcConfig | rm.AhatConfig) -> None:
    """Close the connection where the headset's encoder would refuse."""
    known = config.profile in frozenset(VideoProfile)
    expect(
        config.mode in (0, 1) and config.divisor >= 1 and config.bitrate_bps > 0 and known, config
    )


def expect(true: bool, asked: object) -> None:
    """Close the connection where the headset would."""
    if not true:
        raise DeviceError(f"the headset refuses {asked}")
