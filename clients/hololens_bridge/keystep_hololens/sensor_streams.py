"""One pump per sensor of the headset: it opens the sensor's port and sends what comes.

A pump raises DeviceError (or VideoError) when its sensor is missing or its connection breaks; who
runs it tries again. No pump waits for another.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from keystep_hololens import wire_packets
from keystep_hololens.camera_switch import CameraSwitch
from keystep_hololens.device_streams import (
    INERTIAL_SENSORS,
    SENSORS,
    TRACKING_CAMERAS,
    VideoCodec,
)
from keystep_hololens.hl2ss import client, sensor_client
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.calibration import CALIBRATED_IMU_PORTS
from keystep_hololens.hl2ss.personal_video import PvConfig, VideoProfile
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.uplink import Feed
from keystep_hololens.wire_packets import Mounting, Outgoing

Pump = Callable[[Feed], Awaitable[None]]

EYE_TRACKER_RATE_HZ = 30
AHAT_DIVISOR = 3
"""Of AHAT's 45 frames a second every third is asked for: each costs two 16-bit images."""
DEPTH_UNITS_PER_M = 1000.0
"""Where the headset's constants give no scale."""
_TRACKING_GROUP = rm.VLC_FPS // 2
_PROFILES = {"h264": VideoProfile.H264_MAIN, "hevc": VideoProfile.HEVC_MAIN}


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSettings:
    """How the sensors are asked.

    Attributes:
        host, base_port: The headset.
        video_codec: Of PV, tracking cameras and AHAT.
        width, height, fps: PV's format.
    """

    host: str
    base_port: int
    video_codec: VideoCodec
    width: int
    height: int
    fps: int


class _Constants(NamedTuple):
    """What a sensor says of itself once, ready to send, and where it sits."""

    packet: Outgoing
    mounting: Mounting
    depth_unit_m: float | None = None


class SensorStreams:
    """The pumps of one headset; constants are read once and kept over reconnections."""

    def __init__(self, settings: SensorSettings, camera: CameraSwitch) -> None:
        """Prepare; nothing is opened before a pump runs."""
        self._settings = settings
        self._camera = camera
        self._profile = _PROFILES[settings.video_codec]
        self._constants: dict[str, _Constants] = {}

    def pumps(self, streams: frozenset[str]) -> dict[str, Pump]:
        """The pumps that these streams need, by sensor."""
        pumps: dict[str, Pump] = {
            "personal_video": self._personal_video,
            "spatial_input": self._spatial_input,
            "depth_long_throw": self._long_throw,
            "depth_ahat": self._ahat,
            "eye_tracker": self._eye_tracker,
            "microphone": self._microphone,
        }
        for name, kind in TRACKING_CAMERAS.items():
            pumps[name] = partial(self._tracking_camera, name, kind)
        for name, kind in INERTIAL_SENSORS.items():
            pumps[name] = partial(self._inertial, name, kind)
        return {name: pump for name, pump in pumps.items() if streams.intersection(SENSORS[name])}

    async def _personal_video(self, feed: Feed) -> None:
        settings = self._settings
        await self._camera.on()
        config = PvConfig.live(
            width=settings.width,
            height=settings.height,
            fps=settings.fps,
            profile=self._profile,
            gop_size=settings.fps // 2,
        )
        packets = client.open_pv(settings.host, config, base_port=settings.base_port)
        async with aclosing(packets):
            async for packet in packets:
                sent = wire_packets.personal_video(packet, settings.video_codec)
                await feed.send(packet.timestamp_hns, sent)

    async def _spatial_input(self, feed: Feed) -> None:
        settings = self._settings
        packets = client.open_spatial_input(settings.host, base_port=settings.base_port)
        async with aclosing(packets):
            async for packet in packets:
                for sent in wire_packets.spatial_input(packet.sample):
                    await feed.send(packet.timestamp_hns, sent)

    async def _long_throw(self, feed: Feed) -> None:
        settings = self._settings
        constants = await self._camera_constants("depth", Port.RM_DEPTH_LONGTHROW)
        packets = sensor_client.open_long_throw(
            settings.host, rm.LongThrowConfig(), base_port=settings.base_port
        )
        async with aclosing(packets):
            async for packet in packets:
                await _send_depth(feed, packet, constants)

    async def _ahat(self, feed: Feed) -> None:
        settings = self._settings
        constants = await self._camera_constants("depth_ahat", Port.RM_DEPTH_AHAT)
        config = dataclasses.replace(
            rm.AhatConfig.live(profile=self._profile), divisor=AHAT_DIVISOR
        )
        packets = sensor_client.open_ahat(settings.host, config, base_port=settings.base_port)
        async with aclosing(packets):
            async for packet in packets:
                await _send_depth(feed, packet, constants)

    async def _tracking_camera(self, stream: str, kind: Port, feed: Feed) -> None:
        settings = self._settings
        constants = await self._camera_constants(stream, kind)
        config = rm.VlcConfig.live(profile=self._profile, gop_size=_TRACKING_GROUP)
        packets = sensor_client.open_vlc(
            settings.host, config, kind=kind, base_port=settings.base_port
        )
        async with aclosing(packets):
            async for packet in packets:
                await feed.calibrate(packet.timestamp_hns, constants.packet)
                pose = constants.mounting.pose(packet.pose)
                sent = wire_packets.tracking_picture(
                    stream, kind, packet, settings.video_codec, pose
                )
                await feed.send(packet.timestamp_hns, sent)

    async def _inertial(self, stream: str, kind: Port, feed: Feed) -> None:
        settings = self._settings
        constants = await self._imu_constants(stream, kind)
        packets = sensor_client.open_imu(settings.host, kind, base_port=settings.base_port)
        async with aclosing(packets):
            async for packet in packets:
                pose = None
                if constants is not None:
                    await feed.calibrate(packet.timestamp_hns, constants.packet)
                    pose = constants.mounting.pose(packet.pose)
                sent = wire_packets.inertial(stream, packet.timestamp_hns, packet.samples, pose)
                await feed.send(packet.timestamp_hns, sent)

    async def _eye_tracker(self, feed: Feed) -> None:
        settings = self._settings
        packets = sensor_client.open_eye_tracker(
            settings.host, EYE_TRACKER_RATE_HZ, base_port=settings.base_port
        )
        async with aclosing(packets):
            async for packet in packets:
                sent = wire_packets.eye_tracking(packet.sample, packet.pose)
                await feed.send(packet.timestamp_hns, sent)

    async def _microphone(self, feed: Feed) -> None:
        settings = self._settings
        packets = sensor_client.open_microphone(settings.host, base_port=settings.base_port)
        async with aclosing(packets):
            async for packet in packets:
                sent = Outgoing(stream="microphone", payload=packet.encoded, encoding="aac_adts")
                await feed.send(packet.timestamp_hns, sent)

    async def _camera_constants(self, stream: str, kind: Port) -> _Constants:
        if stream not in self._constants:
            settings = self._settings
            calibration = await sensor_client.read_camera_calibration(
                settings.host, kind, base_port=settings.base_port
            )
            self._constants[stream] = _Constants(
                wire_packets.camera_calibration(stream, calibration),
                Mounting(calibration.extrinsics),
                1 / (calibration.scale or DEPTH_UNITS_PER_M),
            )
        return self._constants[stream]

    async def _imu_constants(self, stream: str, kind: Port) -> _Constants | None:
        """The constants of a sensor that has some; None: the magnetometer."""
        if kind in CALIBRATED_IMU_PORTS and stream not in self._constants:
            settings = self._settings
            extrinsics = await sensor_client.read_imu_calibration(
                settings.host, kind, base_port=settings.base_port
            )
            mounting = Mounting(extrinsics)
            packet = wire_packets.imu_calibration(stream, mounting)
            self._constants[stream] = _Constants(packet, mounting)
        return self._constants.get(stream)


async def _send_depth(feed: Feed, packet: sensor_client.DepthPacket, constants: _Constants) -> None:
    """Send the wanted planes of a frame; compressed in a thread, since that takes a while."""
    await feed.calibrate(packet.timestamp_hns, constants.packet)
    depth = constants.packet.calibrates
    pose, frame = constants.mounting.pose(packet.pose), packet.frame
    for stream, plane, unit_m in (
        (f"{depth}", frame.depth_mm, constants.depth_unit_m),
        (f"{depth}_ab", frame.active_brightness, None),
    ):
        if feed.wants(stream):
            sent = await asyncio.to_thread(
                wire_packets.depth_plane, stream, plane, pose=pose, depth_unit_m=unit_m
            )
            await feed.send(packet.timestamp_hns, sent)
