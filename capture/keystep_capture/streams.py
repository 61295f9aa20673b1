"""The table of streams: what the device sends, at what rate and under which policy.

docs/wire.md prints this table; sender, receiver, server and tests read it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

MAX_DETECTIONS = 256
DETECTION_BYTES = 6 * 8
HAND_JOINTS = 26
HAND_JOINT_VALUES = 9
IMU_SAMPLE_VALUES = 5
EYE_VALUES = 21
VLC_WIDTH, VLC_HEIGHT = 640, 480
MAX_IMAGE_PIXELS = 512 * 1024
"""Largest depth or brightness image, and largest table of rays; AHAT has half as many pixels."""

Policy = Literal["newest", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a payload's bytes are to be read.

    Attributes:
        name: The name in the packet header.
        row_bytes: The payload is a whole number of rows of this many bytes; 1 for free size.
        min_rows: Fewest rows of a valid payload.
        max_rows: Most rows of a payload.
        numeric: numpy dtype of the values, or None for compressed data.
        video: Whether packets depend on earlier ones, as an encoded video's do.
    """

    name: str
    row_bytes: int = 1
    min_rows: int = 1
    max_rows: int
    numeric: str | None = None
    video: bool = False

    @property
    def max_bytes(self) -> int:
        """Largest payload, bytes."""
        return self.row_bytes * self.max_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """One sensor stream.

    Attributes:
        name: The stream's name on the wire.
        rate_hz: Nominal; a stream silent for three periods and more than a second is stale.
        policy: What a sender does when credit is short: `newest` drops, `all` keeps.
        window_packets: Packets in flight or waiting to be consumed, at most.
        max_age_s: For `all`: how long a packet is kept for want of credit.
        lateness_s: How long a tick waits for this stream, in data time.
        hold_s: How old a value may be to still stand in a tick; older is missing.
        encodings: By name.
    """

    name: str
    rate_hz: float
    policy: Policy
    window_packets: int
    max_age_s: float
    lateness_s: float
    hold_s: float
    encodings: Mapping[str, Encoding] = field(repr=False)

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload of any of its encodings, bytes."""
        return max(encoding.max_bytes for encoding in self.encodings.values())


def _encodings(*encodings: Encoding) -> Mapping[str, Encoding]:
    return MappingProxyType({encoding.name: encoding for encoding in encodings})


_IMAGES_16_BIT = _encodings(
    Encoding(name="png16", max_rows=2 * MAX_IMAGE_PIXELS),
    Encoding(name="u16", row_bytes=2, max_rows=MAX_IMAGE_PIXELS),
)


def _depth(name: str, rate_hz: float, window_packets: int) -> StreamSpec:
    """A depth camera's plane. Ticks never wait for one: these cameras slow down as they like."""
    return StreamSpec(
        name=name,
        rate_hz=rate_hz,
        policy="newest",
        window_packets=window_packets,
        max_age_s=0.0,
        lateness_s=0.0,
        hold_s=0.4,
        encodings=_IMAGES_16_BIT,
    )


def _grey_camera(name: str) -> StreamSpec:
    return StreamSpec(
        name=name,
        rate_hz=30.0,
        policy="newest",
        window_packets=32,
        max_age_s=0.0,
        lateness_s=0.0,
        hold_s=0.2,
        encodings=_encodings(
            Encoding(name="h264", max_rows=512 * 1024, video=True),
            Encoding(name="hevc", max_rows=512 * 1024, video=True),
            Encoding(name="grey8", row_bytes=VLC_WIDTH * VLC_HEIGHT, max_rows=1),
        ),
    )


def _kept(
    name: str, rate_hz: float, *encodings: Encoding, window_packets: int, max_age_s: float = 10.0
) -> StreamSpec:
    """A small stream that is kept and that ticks do not hold."""
    return StreamSpec(
        name=name,
        rate_hz=rate_hz,
        policy="all",
        window_packets=window_packets,
        max_age_s=max_age_s,
        lateness_s=0.0,
        hold_s=0.2,
        encodings=_encodings(*encodings),
    )


_IMU_SAMPLES = Encoding(
    name="samples_f32", row_bytes=4 * IMU_SAMPLE_VALUES, max_rows=1024, numeric="<f4"
)

_SPECS = (
    StreamSpec(
        name="rgb",
        rate_hz=30.0,
        policy="newest",
        window_packets=32,
        max_age_s=0.0,
        lateness_s=0.5,
        hold_s=0.2,
        encodings=_encodings(
            Encoding(name="h264", max_rows=4 * 1024 * 1024, video=True),
            Encoding(name="hevc", max_rows=4 * 1024 * 1024, video=True),
            Encoding(name="jpeg", max_rows=4 * 1024 * 1024),
        ),
    ),
    StreamSpec(
        name="gaze",
        rate_hz=60.0,
        policy="all",
        window_packets=512,
        max_age_s=10.0,
        lateness_s=0.15,
        hold_s=0.1,
        encodings=_encodings(Encoding(name="ray_f32", row_bytes=24, max_rows=1, numeric="<f4")),
    ),
    StreamSpec(
        name="head",
        rate_hz=60.0,
        policy="all",
        window_packets=512,
        max_age_s=10.0,
        lateness_s=0.15,
        hold_s=0.1,
        encodings=_encodings(Encoding(name="pose_f32", row_bytes=64, max_rows=1, numeric="<f4")),
    ),
    StreamSpec(
        name="hands",
        rate_hz=60.0,
        policy="all",
        window_packets=512,
        max_age_s=10.0,
        lateness_s=0.15,
        hold_s=0.1,
        encodings=_encodings(
            Encoding(
                name="joints_f32",
                row_bytes=2 * HAND_JOINTS * HAND_JOINT_VALUES * 4,
                max_rows=1,
                numeric="<f4",
            )
        ),
    ),
    StreamSpec(
        name="detections",
        rate_hz=10.0,
        policy="all",
        window_packets=512,
        max_age_s=60.0,
        lateness_s=0.5,
        hold_s=0.2,
        encodings=_encodings(
            Encoding(
                name="detections_f64",
                row_bytes=DETECTION_BYTES,
                min_rows=0,
                max_rows=MAX_DETECTIONS,
                numeric="<f8",
            )
        ),
    ),
    _depth("depth", 5.0, 8),
    _depth("depth_ab", 5.0, 8),
    _depth("depth_ahat", 45.0, 16),
    _depth("depth_ahat_ab", 45.0, 16),
    _grey_camera("vlc_left_front"),
    _grey_camera("vlc_left_left"),
    _grey_camera("vlc_right_front"),
    _grey_camera("vlc_right_right"),
    _kept("accelerometer", 12.0, _IMU_SAMPLES, window_packets=128),
    _kept("gyroscope", 21.0, _IMU_SAMPLES, window_packets=128),
    _kept("magnetometer", 4.5, _IMU_SAMPLES, window_packets=64),
    _kept(
        "eye_tracking",
        30.0,
        Encoding(name="eyes_f32", row_bytes=4 * EYE_VALUES, max_rows=1, numeric="<f4"),
        window_packets=512,
    ),
    _kept(
        "microphone",
        47.0,
        Encoding(name="aac_adts", max_rows=16 * 1024),
        Encoding(name="pcm_s16", row_bytes=4, max_rows=16 * 1024),
        window_packets=256,
    ),
    _kept(
        "calibration",
        0.01,
        Encoding(name="rays_f32", row_bytes=8, max_rows=MAX_IMAGE_PIXELS, numeric="<f4"),
        Encoding(name="none", min_rows=0, max_rows=0),
        window_packets=16,
        max_age_s=24 * 3600.0,
    ),
)

STREAMS: Mapping[str, StreamSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})

MAX_PAYLOAD_BYTES = max(spec.max_payload_bytes for spec in _SPECS)
