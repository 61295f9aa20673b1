"""Streams of the Research Mode sensors, the eye tracker and the microphone, and their constants.

Like `client.open_pv`: every generator ends when the headset closes between two packets, and is to
be wrapped in `contextlib.aclosing` where it is left early. Poses are the wire's row-vector
matrices, rig node (cameras, IMU) or eye tracker -> world, None where not asked for or not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss import calibration as constants
from keystep_hololens.hl2ss import depth, eye_tracker, inertial, microphone, vlc
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.connection import connect, packets
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.picture_decoder import PictureDecoder
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT, Packet, Port

Pose = NDArray[np.float32] | None
_NO_RESEARCH_MODE = "switch Research Mode on in the Device Portal, and ask for what it offers"


class VlcPacket(NamedTuple):
    """One frame of a grey tracking camera; `encoded` is an access unit, or raw bytes."""

    timestamp_hns: int
    encoded: memoryview
    metadata: vlc.VlcMetadata
    pose: Pose


class DepthPacket(NamedTuple):
    """One frame of a depth camera, decoded."""

    timestamp_hns: int
    frame: depth.DepthFrame
    sensor_ticks_ns: int
    pose: Pose


class ImuPacket(NamedTuple):
    """One batch of samples."""

    timestamp_hns: int
    samples: inertial.ImuSamples
    pose: Pose


class EyeTrackerPacket(NamedTuple):
    """One sample of the extended eye tracker, in tracker space."""

    timestamp_hns: int
    sample: eye_tracker.EyeSample
    pose: Pose


class MicrophonePacket(NamedTuple):
    """One packet of sound: an ADTS frame of AAC, or raw samples."""

    timestamp_hns: int
    encoded: memoryview


async def open_vlc(
    host: str,
    config: rm.VlcConfig,
    *,
    kind: Port = Port.RM_VLC_LEFTFRONT,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[VlcPacket, None]:
    """Stream a grey tracking camera; pictures are sensor-oriented (see `conventions`).

    Packets with metadata but no picture are skipped.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
        ConfigError: `config` does not fit the wire.
    """
    stream = _stream(
        host,
        kind,
        rm.encode_request(config),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=config.mode == 1,
        smallest=0,
        largest=vlc.VLC_MAX_PAYLOAD_SIZE,
    )
    async with aclosing(stream):
        async for packet in stream:
            if len(packet.payload) > vlc.VLC_METADATA_SIZE:
                yield VlcPacket(
                    packet.timestamp_hns,
                    packet.payload[: -vlc.VLC_METADATA_SIZE],
                    vlc.VlcMetadata.decode(packet.payload[-vlc.VLC_METADATA_SIZE :]),
                    _known(packet.pose),
                )


async def open_long_throw(
    host: str,
    config: rm.LongThrowConfig,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[DepthPacket, None]:
    """Stream the far depth camera, planes of shape (288, 320).

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step, cut off or corrupt.
        ConfigError: `config` does not fit the wire.
    """
    stream = _stream(
        host,
        Port.RM_DEPTH_LONGTHROW,
        rm.encode_request(config),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=config.mode == 1,
        smallest=depth.TICKS_SIZE,
        largest=depth.LONG_THROW_MAX_PAYLOAD_SIZE,
    )
    async with aclosing(stream):
        async for packet in stream:
            frame, ticks = await asyncio.to_thread(depth.decode_long_throw, packet.payload)
            yield DepthPacket(packet.timestamp_hns, frame, ticks, _known(packet.pose))


async def open_ahat(
    host: str,
    config: rm.AhatConfig,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[DepthPacket, None]:
    """Stream the near depth camera, planes of shape (512, 512); empty packets are skipped.

    From H264 or HEVC depth comes in steps of 4 mm and blurred by the encoder; raw is exact. Beside
    long throw, open it only after long throw's first frame: the headset's sensors may crash
    otherwise.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step, cut off; or depth
            comes as a Zdepth blob, for which there is no library.
        VideoError: A picture cannot be decoded.
        ConfigError: `config` does not fit the wire, or asks for a Zdepth blob.
    """
    if config.depth_profile != rm.DepthProfile.SAME:
        raise ConfigError(
            "AHAT depth as a Zdepth blob needs the C++ library Zdepth (pyzdepth), which is not"
            " part of Keystep: ask for depth profile 0 (same)"
        )
    decode = _ahat_decoder(config.profile)
    stream = _stream(
        host,
        Port.RM_DEPTH_AHAT,
        rm.encode_request(config),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=config.mode == 1,
        smallest=0,
        largest=depth.AHAT_MAX_PAYLOAD_SIZE,
    )
    async with aclosing(stream):
        async for packet in stream:
            parts = depth.split_ahat_payload(packet.payload)
            depth.check_no_zdepth(parts)
            if len(parts.encoded):
                frame = await asyncio.to_thread(decode, parts.encoded)
                yield DepthPacket(
                    packet.timestamp_hns, frame, parts.sensor_ticks_ns, _known(packet.pose)
                )


async def open_imu(
    host: str,
    kind: Port,
    config: rm.ImuConfig | None = None,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[ImuPacket, None]:
    """Stream accelerometer, gyroscope or magnetometer in batches.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
    """
    config = config or rm.ImuConfig()
    stream = _stream(
        host,
        kind,
        rm.encode_request(config),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=config.mode == 1,
        smallest=0,
        largest=inertial.IMU_MAX_PAYLOAD_SIZE,
    )
    async with aclosing(stream):
        async for packet in stream:
            samples = inertial.decode_imu(packet.payload)
            yield ImuPacket(packet.timestamp_hns, samples, _known(packet.pose))


async def open_eye_tracker(
    host: str,
    rate_hz: int = 30,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[EyeTrackerPacket, None]:
    """Stream the extended eye tracker at 30, 60 or 90 Hz; `conventions` takes rays to the world.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
        ConfigError: It has no such rate.
    """
    stream = _stream(
        host,
        Port.EXTENDED_EYE_TRACKER,
        rm.encode_eye_tracker_request(rate_hz),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=True,
        smallest=eye_tracker.EYE_TRACKER_SIZE,
        largest=eye_tracker.EYE_TRACKER_SIZE,
        why_closed="it may lack this rate, or the wearer's permission",
    )
    async with aclosing(stream):
        async for packet in stream:
            sample = eye_tracker.decode_eye_sample(packet.payload)
            yield EyeTrackerPacket(packet.timestamp_hns, sample, _known(packet.pose))


async def open_microphone(
    host: str,
    config: rm.MicrophoneConfig | None = None,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
) -> AsyncGenerator[MicrophonePacket, None]:
    """Stream sound. Nothing else in this package opens the microphone.

    Raises:
        DeviceError: Not reachable, silent, closed without data, out of step or cut off.
        ConfigError: `config` does not fit the wire.
    """
    stream = _stream(
        host,
        Port.MICROPHONE,
        rm.encode_request(config or rm.MicrophoneConfig()),
        base_port=base_port,
        read_timeout_s=read_timeout_s,
        connect_timeout_s=connect_timeout_s,
        with_pose=False,
        smallest=1,
        largest=microphone.MICROPHONE_MAX_PAYLOAD_SIZE,
        why_closed="it may lack this profile or level, or the wearer's permission",
    )
    async with aclosing(stream):
        async for packet in stream:
            yield MicrophonePacket(packet.timestamp_hns, packet.payload)


async def read_camera_calibration(
    host: str,
    kind: Port,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 10.0,
    connect_timeout_s: float = 5.0,
) -> constants.CameraCalibration:
    """Read the constants (mode 2) of a VLC or depth camera.

    Raises:
        DeviceError: Not reachable, silent, or closed before all bytes were there.
    """
    data = await _constants(
        host,
        kind,
        constants.camera_calibration_size(kind),
        base_port,
        read_timeout_s,
        connect_timeout_s,
    )
    return constants.decode_camera_calibration(kind, data)


async def read_imu_calibration(
    host: str,
    kind: Port,
    *,
    base_port: int = DEFAULT_BASE_PORT,
    read_timeout_s: float = 10.0,
    connect_timeout_s: float = 5.0,
) -> NDArray[np.float32]:
    """Read the extrinsics (mode 2) of accelerometer or gyroscope; the magnetometer has none.

    Returns:
        Rig node -> sensor, shape (4, 4), float32, row-vector convention.

    Raises:
        DeviceError: Not reachable, silent, or closed before all bytes were there.
    """
    data = await _constants(
        host,
        kind,
        constants.IMU_CALIBRATION_SIZE,
        base_port,
        read_timeout_s,
        connect_timeout_s,
    )
    return constants.decode_imu_calibration(data)


# --- shared --------------------------------------------------------------------------------------


async def _stream(
    host: str,
    kind: Port,
    request: bytes,
    *,
    base_port: int,
    read_timeout_s: float,
    connect_timeout_s: float,
    with_pose: bool,
    smallest: int,
    largest: int,
    why_closed: str = _NO_RESEARCH_MODE,
) -> AsyncGenerator[Packet, None]:
    async with connect(
        host,
        kind,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(request)
        async for packet in packets(
            connection,
            with_pose=with_pose,
            smallest=smallest,
            largest=largest,
            why_closed=why_closed,
        ):
            yield packet


async def _constants(
    host: str,
    kind: Port,
    size: int,
    base_port: int,
    read_timeout_s: float,
    connect_timeout_s: float,
) -> bytearray:
    async with connect(
        host,
        kind,
        base_port,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    ) as connection:
        await connection.send(rm.encode_request(rm.CalibrationRequest()))
        return await connection.read(size)


class _AhatDecoder:
    """Decodes AHAT frames of one connection."""

    def __init__(self, profile: int) -> None:
        self._pictures = PictureDecoder(profile, width=rm.AHAT_WIDTH, height=rm.AHAT_HEIGHT)

    def __call__(self, encoded: memoryview) -> depth.DepthFrame:
        return depth.unpack_ahat_picture(self._pictures.decode(encoded))


def _ahat_decoder(profile: int) -> Callable[[memoryview], depth.DepthFrame]:
    return depth.decode_raw_ahat if profile == VideoProfile.RAW else _AhatDecoder(profile)


def _known(pose: Pose) -> Pose:
    return pose if pose is not None and pose[3, 3] != 0 else None
