"""The headset's sensors by name, and the streams that a bridge can be asked to carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss.protocol import Port

VideoCodec = Literal["h264", "hevc"]

TRACKING_CAMERAS = {
    "vlc_left_front": Port.RM_VLC_LEFTFRONT,
    "vlc_left_left": Port.RM_VLC_LEFTLEFT,
    "vlc_right_front": Port.RM_VLC_RIGHTFRONT,
    "vlc_right_right": Port.RM_VLC_RIGHTRIGHT,
}
INERTIAL_SENSORS = {
    "accelerometer": Port.RM_IMU_ACCELEROMETER,
    "gyroscope": Port.RM_IMU_GYROSCOPE,
    "magnetometer": Port.RM_IMU_MAGNETOMETER,
}
SENSORS: Mapping[str, tuple[str, ...]] = {
    "personal_video": ("rgb",),
    "spatial_input": ("gaze", "head", "hands"),
    "depth_long_throw": ("depth", "depth_ab"),
    "depth_ahat": ("depth_ahat", "depth_ahat_ab"),
    **{name: (name,) for name in (*TRACKING_CAMERAS, *INERTIAL_SENSORS)},
    "eye_tracker": ("eye_tracking",),
    "microphone": ("microphone",),
}
"""The headset's sensors, each with a port of its own, and the streams that come of it."""
DEVICE_STREAMS = tuple(stream for streams in SENSORS.values() for stream in streams)
DEFAULT_STREAMS = ("rgb", "gaze", "head", "hands", "depth")
RESEARCH_MODE_SENSORS = frozenset(
    {"depth_long_throw", "depth_ahat", *TRACKING_CAMERAS, *INERTIAL_SENSORS}
)


def check_streams(streams: Iterable[str]) -> None:
    """Check the streams asked for.

    Raises:
        ConfigError: There are none, one is unknown, or both depth cameras are wanted.
    """
    wanted = frozenset(streams)
    unknown = sorted(wanted - set(DEVICE_STREAMS))
    if unknown or not wanted:
        raise ConfigError(
            f"the headset has no stream {', '.join(unknown) or '(none was named)'}; it has "
            + ", ".join(DEVICE_STREAMS)
        )
    if all(wanted.intersection(SENSORS[name]) for name in ("depth_long_throw", "depth_ahat")):
        raise ConfigError(
            "depth and depth_ahat cannot run together: a headset's depth sensors may crash until "
            "it is restarted; ask for one of them"
        )


def wire_streams(streams: Iterable[str]) -> tuple[str, ...]:
    """Return the streams to announce to the server; sensors with constants need one more."""
    wanted = frozenset(streams)
    calibrated = any(wanted.intersection(SENSORS[name]) for name in RESEARCH_MODE_SENSORS)
    known = tuple(stream for stream in DEVICE_STREAMS if stream in wanted)
    return (*known, "calibration") if calibrated else known
