"""Imports folders of hl2ss's own recordings (`.bin` files); see docs/recordings.md."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from keystep_capture.errors import DataError, DeviceError, VideoError
from keystep_capture.recording.importing import (
    Imported,
    ImportedPacket,
    ImportPlan,
    describe_source,
)
from keystep_hololens import wire_packets
from keystep_hololens.device_streams import INERTIAL_SENSORS, TRACKING_CAMERAS
from keystep_hololens.hl2ss import conventions, depth, eye_tracker, inertial, microphone
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.bin_file import (
    BinFile,
    Generation,
    cut_off_bytes,
    open_bin,
    read_packets,
)
from keystep_hololens.hl2ss.client import PvPacket
from keystep_hololens.hl2ss.personal_video import PV_METADATA_SIZE, PvMetadata, VideoProfile
from keystep_hololens.hl2ss.picture_decoder import PictureDecoder
from keystep_hololens.hl2ss.protocol import Packet, Port
from keystep_hololens.hl2ss.sensor_client import VlcPacket
from keystep_hololens.hl2ss.spatial_input import decode_spatial_input
from keystep_hololens.hl2ss.vlc import VLC_METADATA_SIZE, VlcMetadata
from keystep_hololens.wire_packets import Outgoing

DEPTH_UNIT_M = 0.001
_STREAM_OF = {kind: name for name, kind in (TRACKING_CAMERAS | INERTIAL_SENSORS).items()}
_ABSENT = (
    "calibration: a .bin file holds none, so grey cameras, depth and inertial sensors have no pose "
    "and no table of rays",
    "UTC: a .bin file holds no offset, times are the headset's",
)

Convert = Callable[[Packet], list[Outgoing]]


class BinFolderImporter:
    """A folder of hl2ss `.bin` files, or one of them."""

    title = "hl2ss .bin recordings: every sensor that was recorded"

    def plan(self, path: Path) -> ImportPlan:
        """Look at each file's head and first packets, and count packets."""
        streams, absent, count = {}, list(_ABSENT), 0
        for recorded in _opened(path):
            name = recorded.path.name
            reason = _why_not(recorded)
            if reason:
                absent.append(f"{name}: {reason}")
                continue
            packets = sum(1 for _ in read_packets(recorded))
            told = f"{name}: {packets} packets, {recorded.generation.value}"
            for stream in _streams(recorded.kind):
                streams[stream] = told
                count += packets
            if cut_off := cut_off_bytes(recorded):
                absent.append(f"{name}: the last packet is cut off ({cut_off} bytes)")
        return ImportPlan(
            source=describe_source(path, "hl2ss"),
            streams=streams,
            absent=tuple(absent),
            packet_count=count,
        )

    def read(self, path: Path) -> Iterator[Imported]:
        """Give the packets of all files in order of time."""
        files = [recorded for recorded in _opened(path) if not _why_not(recorded)]
        merged = heapq.merge(*map(_timed, files), key=lambda one: one[0])
        for timestamp_hns, outgoing in merged:
            yield _imported(timestamp_hns, outgoing)


def _opened(path: Path) -> list[BinFile]:
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected hl2ss recordings (*.bin)")
    return [open_bin(file) for file in files]


def _streams(kind: Port) -> tuple[str, ...]:
    if kind in _STREAM_OF:
        return (_STREAM_OF[kind],)
    return {
        Port.PERSONAL_VIDEO: ("rgb",),
        Port.SPATIAL_INPUT: ("head", "gaze", "hands"),
        Port.RM_DEPTH_LONGTHROW: ("depth", "depth_ab"),
        Port.RM_DEPTH_AHAT: ("depth_ahat", "depth_ahat_ab"),
        Port.EXTENDED_EYE_TRACKER: ("eye_tracking",),
        Port.MICROPHONE: ("microphone",),
    }[kind]


def _why_not(recorded: BinFile) -> str:
    """Why a file's packets have no place on the wire; "": they have."""
    request = recorded.request
    if recorded.kind is Port.PERSONAL_VIDEO and request.profile == VideoProfile.RAW:
        return "raw NV12 pictures are not imported"
    if recorded.kind is Port.RM_DEPTH_AHAT and request.depth_profile != rm.DepthProfile.SAME:
        return "depth as a Zdepth blob needs a library that is not part of Keystep"
    if recorded.kind is Port.MICROPHONE and microphone.is_array(request):
        return "sound of the microphone array is not imported"
    return ""


def _timed(recorded: BinFile) -> Iterator[tuple[int, Outgoing]]:
    convert = _converter(recorded)
    for number, packet in enumerate(read_packets(recorded)):
        try:
            outgoing = convert(packet)
        except VideoError:
            continue  # pictures before the first key frame, or a damaged one: a gap
        except (DeviceError, struct.error, ValueError) as error:
            raise DataError(f"{recorded.path}: packet {number}: {error}") from None
        for one in outgoing:
            yield packet.timestamp_hns, one


def _imported(timestamp_hns: int, outgoing: Outgoing) -> ImportedPacket:
    names = ("keyframe", "width", "height", "intrinsics", "pose", "valid")
    more = ("depth_unit_m", "upright_turns", "calibrates", "rig_from_sensor")
    return ImportedPacket(
        stream=outgoing.stream,
        device_time_ns=conventions.device_time_ns(timestamp_hns),
        payload=bytes(outgoing.payload),
        encoding=outgoing.encoding,
        fields={name: getattr(outgoing, name) for name in (*names, *more)},
    )


# --- a packet's payload as packets of the wire ---------------------------------------------------


def _converter(recorded: BinFile) -> Convert:
    kind, request = recorded.kind, recorded.request
    if kind is Port.PERSONAL_VIDEO:
        return partial(_personal_video, recorded)
    if kind in TRACKING_CAMERAS.values():
        return partial(_tracking_picture, recorded)
    if kind in INERTIAL_SENSORS.values():
        return partial(_inertial, _STREAM_OF[kind])
    if kind is Port.RM_DEPTH_LONGTHROW:
        return partial(_long_throw, recorded.generation)
    if kind is Port.RM_DEPTH_AHAT:
        return _ahat(recorded)
    if kind is Port.SPATIAL_INPUT:
        return lambda packet: wire_packets.spatial_input(decode_spatial_input(packet.payload))
    if kind is Port.EXTENDED_EYE_TRACKER:
        return _eyes
    return partial(_sound, "pcm_s16" if request.profile == rm.AudioProfile.RAW else "aac_adts")


def _encoding(profile: int) -> str:
    return "hevc" if profile == VideoProfile.HEVC_MAIN else "h264"


def _personal_video(recorded: BinFile, packet: Packet) -> list[Outgoing]:
    request, payload = recorded.request, packet.payload
    if recorded.generation is Generation.PV_16:
        cut = 16
        metadata = _early_metadata(payload[-cut:], request.width, request.height)
    else:
        cut = PV_METADATA_SIZE
        metadata = PvMetadata.decode(payload[-cut:])
        if recorded.generation is Generation.PV_80:
            metadata = _early_metadata(payload[-cut:][:16], request.width, request.height)
    if len(payload) <= cut:
        return []
    known = packet.pose is not None and packet.pose[3, 3] != 0
    taken = PvPacket(
        timestamp_hns=packet.timestamp_hns,
        encoded=payload[:-cut],
        metadata=metadata,
        pose=packet.pose if known else None,
    )
    return [wire_packets.personal_video(taken, _encoding(request.profile))]


def _early_metadata(data: memoryview, width: int, height: int) -> PvMetadata:
    fx, fy, cx, cy = struct.unpack("<4f", data)
    return PvMetadata(
        focal_length_px=(fx, fy), principal_point_px=(cx, cy), width=width, height=height
    )


def _tracking_picture(recorded: BinFile, packet: Packet) -> list[Outgoing]:
    payload = packet.payload
    metadata = VlcMetadata(sensor_ticks_ns=0, exposure_ns=0, gain=0)
    if recorded.generation is Generation.VLC_24:
        metadata = VlcMetadata.decode(payload[-VLC_METADATA_SIZE:])
        payload = payload[:-VLC_METADATA_SIZE]
    if not len(payload):
        return []
    profile = recorded.request.profile
    encoding = "grey8" if profile == VideoProfile.RAW else _encoding(profile)
    taken = VlcPacket(packet.timestamp_hns, payload, metadata, None)
    stream = _STREAM_OF[recorded.kind]
    return [wire_packets.tracking_picture(stream, recorded.kind, taken, encoding, None)]


def _inertial(stream: str, packet: Packet) -> list[Outgoing]:
    samples = inertial.decode_imu(packet.payload)
    return [wire_packets.inertial(stream, packet.timestamp_hns, samples, None)]


def _long_throw(generation: Generation, packet: Packet) -> list[Outgoing]:
    payload = packet.payload
    if generation is Generation.PLAIN:  # before the sensor's ticks came
        payload = memoryview(bytes(payload) + bytes(depth.TICKS_SIZE))
    frame, _ = depth.decode_long_throw(payload)
    return _planes("depth", frame)


def _ahat(recorded: BinFile) -> Convert:
    profile, with_ticks = recorded.request.profile, recorded.generation is Generation.TICKS_8
    pictures = None
    if profile != VideoProfile.RAW:
        pictures = PictureDecoder(profile, width=rm.AHAT_WIDTH, height=rm.AHAT_HEIGHT)

    def convert(packet: Packet) -> list[Outgoing]:
        payload = packet.payload
        if not with_ticks:
            payload = memoryview(bytes(payload) + bytes(depth.TICKS_SIZE))
        parts = depth.split_ahat_payload(payload)
        if not len(parts.encoded):
            return []
        if pictures is None:
            return _planes("depth_ahat", depth.decode_raw_ahat(parts.encoded))
        return _planes("depth_ahat", depth.unpack_ahat_picture(pictures.decode(parts.encoded)))

    return convert


def _planes(stream: str, frame: depth.DepthFrame) -> list[Outgoing]:
    return [
        wire_packets.depth_plane(stream, frame.depth_mm, pose=None, depth_unit_m=DEPTH_UNIT_M),
        wire_packets.depth_plane(f"{stream}_ab", frame.active_brightness, pose=None),
    ]


def _eyes(packet: Packet) -> list[Outgoing]:
    pose = packet.pose if packet.pose is not None and packet.pose[3, 3] != 0 else None
    return [wire_packets.eye_tracking(eye_tracker.decode_eye_sample(packet.payload), pose)]


def _sound(encoding: str, packet: Packet) -> list[Outgoing]:
    return [Outgoing(stream="microphone", payload=packet.payload, encoding=encoding)]
