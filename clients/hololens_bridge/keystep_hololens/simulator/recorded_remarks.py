"""What a headset that plays a recording cannot tell, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from keystep_capture.recording import RecordedPacket
from keystep_hololens.device_streams import RESEARCH_MODE_SENSORS, SENSORS, TRACKING_CAMERAS
from keystep_hololens.hl2ss.calibration import CALIBRATED_IMU_PORTS, CAMERA_SHAPES
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator.recorded_constants import PORT_OF_SENSOR, SensorConstants
from keystep_hololens.simulator.recorded_payloads import (
    DELIMITER,
    SPATIAL_PARTS,
    VIDEO_ENCODINGS,
)


def why_not(packet: RecordedPacket) -> str:
    """Why hl2ss has no place for a stream; "": it has."""
    header = packet.header
    if header.stream not in {name for streams in SENSORS.values() for name in streams}:
        return "hl2ss has no port for it; `keystep replay` carries it to a server"
    if header.stream == "rgb" and header.encoding not in VIDEO_ENCODINGS:
        return f"hl2ss sends H.264 or HEVC, it is recorded as {header.encoding}"
    for sensor in ("depth_long_throw", "depth_ahat"):
        if header.stream in SENSORS[sensor]:
            height, width = CAMERA_SHAPES[PORT_OF_SENSOR[sensor]]
            if (header.width, header.height) != (width, height):
                return (
                    f"hl2ss sends {width}x{height}, it is recorded as "
                    f"{header.width}x{header.height}"
                )
    return ""


def remarks_on(
    first: Mapping[str, RecordedPacket], constants: Mapping[Port, SensorConstants]
) -> Iterator[str]:
    """What is recorded, but not all that hl2ss would tell, of streams that are played.

    Args:
        first: Each stream's first packet.
        constants: Of Research Mode sensors, where they are known.
    """
    if "rgb" in first:
        yield from _video_remarks(first["rgb"])
    yield from _spatial_remarks(first)
    for sensor, recordable in SENSORS.items():
        streams = [name for name in recordable if name in first]
        if streams and sensor in RESEARCH_MODE_SENSORS:
            yield from _sensor_remarks(sensor, streams, first, constants)
    if "eye_tracking" in first:
        yield (
            "eye_tracking: the tracker's place was not recorded: rays are sent in the world, with "
            "the identity as the tracker's pose"
        )
    if "microphone" in first and first["microphone"].header.encoding == "pcm_s16":
        yield "microphone: recorded raw, so only a client that asks for raw sound is served"


def _video_remarks(packet: RecordedPacket) -> Iterator[str]:
    header = packet.header
    size = f"{header.width}x{header.height}" if header.width and header.height else "its own size"
    yield (
        f"rgb: sent as recorded, {header.encoding} of {size}, whatever size and rate is asked "
        f"for; ask for {header.encoding} (keystep bridge --video-codec {header.encoding})"
    )
    missing = [name for name in ("intrinsics", "pose") if getattr(header, name) is None]
    lacking = " and ".join([*missing, "exposure, focus and white balance"])
    yield f"rgb: {lacking} not recorded, sent as zeros"
    if header.encoding == "h264" and not packet.payload.startswith(DELIMITER):
        yield "rgb: recorded without access unit delimiters, which hl2ss's client needs: put before"


def _spatial_remarks(first: Mapping[str, RecordedPacket]) -> Iterator[str]:
    there = [name for name in SPATIAL_PARTS if name in first]
    if not there:
        return
    if missing := [name for name in SPATIAL_PARTS if name not in first]:
        yield f"{', '.join(missing)}: not recorded, sent as not valid"
    if len({first[name].header.device_time_ns for name in there}) > 1:
        yield (
            f"{', '.join(there)}: recorded at different times, but hl2ss sends them together: "
            "each packet repeats those parts of the last 50 ms that have no newer value"
        )


def _sensor_remarks(
    sensor: str,
    streams: list[str],
    first: Mapping[str, RecordedPacket],
    constants: Mapping[Port, SensorConstants],
) -> Iterator[str]:
    kind, names = PORT_OF_SENSOR[sensor], ", ".join(streams)
    if len(streams) < len(SENSORS[sensor]):
        (missing,) = set(SENSORS[sensor]) - set(streams)
        yield f"{missing}: not recorded, sent as zeros beside {names}"
    if kind in TRACKING_CAMERAS.values():
        encoding = first[sensor].header.encoding
        asked = "raw pictures" if encoding == "grey8" else encoding
        yield f"{names}: sent as recorded, only to a client that asks for {asked}"
    if kind in constants and constants[kind].camera is not None:
        yield f"{names}: the table that undistorts was not recorded, sent as zeros"
    elif kind in CAMERA_SHAPES or kind in CALIBRATED_IMU_PORTS:
        yield (
            f"{names}: its constants were not recorded: a client that asks for them is closed, "
            "as `keystep bridge` does; poses are sent as not known"
        )
