"""What clients ask of the Research Mode ports, the eye tracker and the microphone.

Cameras take a configuration in mode 0 (stream) or 1 (stream with the rig's pose); one byte, mode
2, asks for a sensor's constants instead (see `calibration`). No sockets here.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss.personal_video import (
    DEFAULT_LEVEL,
    GOP_SIZE_OPTION,
    VideoProfile,
    default_bitrate_bps,
    encode_options,
    read_options,
)
from keystep_hololens.hl2ss.protocol import Bytes, NeedMoreError, Reader

VLC_WIDTH, VLC_HEIGHT, VLC_FPS = 640, 480, 30
LONG_THROW_WIDTH, LONG_THROW_HEIGHT, LONG_THROW_FPS = 320, 288, 5
AHAT_WIDTH, AHAT_HEIGHT, AHAT_FPS = 512, 512, 45
VLC_OFFSET_OPTION = 2**64 - 2
"""Constant added to a VLC packet's time, hns, as a signed 64-bit value."""
VLC_EXPOSURE_FACTOR_OPTION = 2**64 - 1
"""Part of the exposure added to a VLC packet's time, as the bits of a float64."""
VLC_CLOCK_OFFSET_HNS = -125_000
"""What hl2ss's own client adds: the VLC clock reads about 12.5 ms late."""
MICROPHONE_LEVELS = frozenset({0x29, 0x2A, 0x2B, 0x2C, 0x2E, 0x2F, 0x30, 0x31, 0x32, 0x33})
EYE_TRACKER_RATES_HZ = frozenset({30, 60, 90})
LOWEST_PNG_FILTER, HIGHEST_PNG_FILTER = 0, 6

_ENCODING = struct.Struct("<BBIB")  # profile, level, bit rate, number of options
_MODE_BITS = 3


class DepthProfile(enum.IntEnum):
    """How AHAT's depth travels: inside the AB picture, or as a Zdepth blob."""

    SAME = 0
    ZDEPTH = 1


class AudioProfile(enum.IntEnum):
    """Encoder profiles of the microphone: AAC at so many bytes per second, or raw."""

    AAC_12000 = 0
    AAC_16000 = 1
    AAC_20000 = 2
    AAC_24000 = 3
    RAW = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class VlcConfig:
    """What a client asks of a grey tracking camera (VLC), 640x480 at 30 frames per second.

    Attributes:
        mode: 0 video, 1 video and the rig's pose per frame.
        divisor: The headset keeps one frame in this many.
        options: Encoder options; the two largest keys shift the packets' times.
    """

    mode: int
    bitrate_bps: int
    profile: int = VideoProfile.H264_MAIN
    divisor: int = 1
    level: int = DEFAULT_LEVEL
    options: tuple[tuple[int, int], ...] = ()

    @classmethod
    def live(
        cls,
        *,
        mode: int = 1,
        profile: VideoProfile = VideoProfile.H264_MAIN,
        gop_size: int = VLC_FPS,
    ) -> VlcConfig:
        """Make the configuration hl2ss's own client asks for, with its clock correction."""
        return cls(
            mode=mode,
            profile=profile,
            bitrate_bps=default_bitrate_bps(VLC_WIDTH, VLC_HEIGHT, VLC_FPS, profile),
            options=(
                (GOP_SIZE_OPTION, gop_size),
                (VLC_EXPOSURE_FACTOR_OPTION, _bits_of(0.0)),
                (VLC_OFFSET_OPTION, VLC_CLOCK_OFFSET_HNS % 2**64),
            ),
        )

    @property
    def gop_size(self) -> int:
        """Frames from key frame to key frame: option 10, else one second."""
        return max(1, dict(self.options).get(GOP_SIZE_OPTION, VLC_FPS))

    def time_shift_hns(self, exposure_ns: int) -> int:
        """Return what the two options add to the time of a frame with this exposure."""
        options = dict(self.options)
        constant = options.get(VLC_OFFSET_OPTION, 0)
        constant -= 2**64 * (constant >= 2**63)
        bits = options.get(VLC_EXPOSURE_FACTOR_OPTION, 0)
        (factor,) = struct.unpack("<d", struct.pack("<Q", bits))
        return int(factor * exposure_ns / 100) + constant


@dataclass(frozen=True, slots=True, kw_only=True)
class AhatConfig:
    """What a client asks of the near depth camera (AHAT), 512x512 at up to 45 frames a second."""

    mode: int
    bitrate_bps: int
    depth_profile: int = DepthProfile.SAME
    profile: int = VideoProfile.H264_MAIN
    divisor: int = 1
    level: int = DEFAULT_LEVEL
    options: tuple[tuple[int, int], ...] = ()

    @classmethod
    def live(
        cls,
        *,
        mode: int = 1,
        profile: VideoProfile = VideoProfile.H264_MAIN,
        gop_size: int = AHAT_FPS,
    ) -> AhatConfig:
        """Make the configuration hl2ss's own client asks for: depth inside the picture."""
        return cls(
            mode=mode,
            profile=profile,
            bitrate_bps=16 * default_bitrate_bps(AHAT_WIDTH, AHAT_HEIGHT, AHAT_FPS, profile),
            options=((GOP_SIZE_OPTION, gop_size),),
        )

    @property
    def gop_size(self) -> int:
        """Frames from key frame to key frame: option 10, else one second."""
        return max(1, dict(self.options).get(GOP_SIZE_OPTION, AHAT_FPS))


@dataclass(frozen=True, slots=True, kw_only=True)
class LongThrowConfig:
    """What a client asks of the far depth camera, 320x288 at 1 to 5 frames per second.

    Attributes:
        png_filter: 0 auto, 1 none, 2 sub, 3 up, 4 average, 5 Paeth, 6 adaptive.
    """

    mode: int = 1
    divisor: int = 1
    png_filter: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ImuConfig:
    """What a client asks of accelerometer, gyroscope or magnetometer."""

    mode: int = 1


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """Mode 2: ask for a sensor's constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrophoneConfig:
    """What a client asks of the microphone; level 0x2B with raw is an array of five."""

    profile: int = AudioProfile.AAC_24000
    level: int = 0x29


CameraRequest = VlcConfig | AhatConfig | LongThrowConfig | ImuConfig | CalibrationRequest


def encode_request(request: CameraRequest | MicrophoneConfig) -> bytes:
    """Return the bytes a client sends right after connecting.

    Raises:
        ConfigError: A field does not fit its place on the wire.
    """
    try:
        return _encode(request)
    except struct.error as error:
        raise ConfigError(f"a setting does not fit the wire: {error}; got {request}") from error


def _encode(request: CameraRequest | MicrophoneConfig) -> bytes:
    match request:
        case CalibrationRequest():
            return b"\x02"
        case MicrophoneConfig(profile=profile, level=level):
            return struct.pack("<BB", profile, level)
        case ImuConfig(mode=mode):
            return _streaming(mode)
        case LongThrowConfig(mode=mode):
            return _streaming(mode) + struct.pack("<BI", request.divisor, request.png_filter)
        case VlcConfig(mode=mode):
            return _streaming(mode) + struct.pack("<B", request.divisor) + _encoding(request)
        case AhatConfig(mode=mode):
            head = struct.pack("<BB", request.divisor, request.depth_profile)
            return _streaming(mode) + head + _encoding(request)


def _streaming(mode: int) -> bytes:
    if mode not in (0, 1):
        raise ConfigError(f"a sensor streams in mode 0 or 1, got {mode}")
    return bytes((mode,))


def _encoding(config: VlcConfig | AhatConfig) -> bytes:
    head = _ENCODING.pack(config.profile, config.level, config.bitrate_bps, len(config.options))
    return head + encode_options(config.options)


def encode_eye_tracker_request(rate_hz: int) -> bytes:
    """Return the one byte that asks for eye tracking at 30, 60 or 90 Hz.

    Raises:
        ConfigError: Another rate.
    """
    if rate_hz not in EYE_TRACKER_RATES_HZ:
        raise ConfigError(f"the eye tracker runs at 30, 60 or 90 Hz, got {rate_hz}")
    return bytes((rate_hz,))


def parse_vlc_request(data: Bytes) -> VlcConfig | CalibrationRequest | None:
    """Read what a client sent on a VLC port, None if incomplete. Values are not judged."""
    reader = Reader(data)
    try:
        if (mode := reader.take(1)[0] & _MODE_BITS) == 2:
            return CalibrationRequest()
        divisor = reader.take(1)[0]
        profile, level, bitrate, count = _ENCODING.unpack(reader.take(_ENCODING.size))
        options = read_options(reader, count)
    except NeedMoreError:
        return None
    return VlcConfig(
        mode=mode,
        divisor=divisor,
        profile=profile,
        level=level,
        bitrate_bps=bitrate,
        options=options,
    )


def parse_ahat_request(data: Bytes) -> AhatConfig | CalibrationRequest | None:
    """Read what a client sent on the AHAT port, None if incomplete. Values are not judged."""
    reader = Reader(data)
    try:
        if (mode := reader.take(1)[0] & _MODE_BITS) == 2:
            return CalibrationRequest()
        divisor, depth_profile = reader.take(2)
        profile, level, bitrate, count = _ENCODING.unpack(reader.take(_ENCODING.size))
        options = read_options(reader, count)
    except NeedMoreError:
        return None
    return AhatConfig(
        mode=mode,
        divisor=divisor,
        depth_profile=depth_profile,
        profile=profile,
        level=level,
        bitrate_bps=bitrate,
        options=options,
    )


def parse_long_throw_request(data: Bytes) -> LongThrowConfig | CalibrationRequest | None:
    """Read what a client sent on the long-throw port, None if incomplete."""
    reader = Reader(data)
    try:
        if (mode := reader.take(1)[0] & _MODE_BITS) == 2:
            return CalibrationRequest()
        divisor, png_filter = struct.unpack("<BI", reader.take(5))
    except NeedMoreError:
        return None
    return LongThrowConfig(mode=mode, divisor=divisor, png_filter=png_filter)


def parse_imu_request(data: Bytes) -> ImuConfig | CalibrationRequest | None:
    """Read what a client sent on an IMU port, None if incomplete."""
    if not data:
        return None
    mode = data[0] & _MODE_BITS
    return CalibrationRequest() if mode == 2 else ImuConfig(mode=mode)


def parse_eye_tracker_request(data: Bytes) -> int | None:
    """Read the rate a client asks for, None if incomplete."""
    return data[0] if data else None


def parse_microphone_request(data: Bytes) -> MicrophoneConfig | None:
    """Read what a client sent on the microphone port, None if incomplete."""
    return MicrophoneConfig(profile=data[0], level=data[1]) if len(data) >= 2 else None


def _bits_of(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")
