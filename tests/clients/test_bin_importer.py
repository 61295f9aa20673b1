"""hl2ss's `.bin` recordings become our recordings; every generation of payloads is told apart."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.recording import RecordedPacket, Recording
from keystep_capture.recording.importing import run_import
from keystep_capture.recording.pictures import read_frames
from keystep_hololens.bin_importer import BinFolderImporter
from keystep_hololens.hl2ss import depth, inertial
from keystep_hololens.hl2ss import personal_video as pv
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.bin_file import (
    MAGIC,
    Generation,
    cut_off_bytes,
    open_bin,
    read_packets,
)
from keystep_hololens.hl2ss.eye_tracker import EYE_TRACKER_SIZE
from keystep_hololens.hl2ss.protocol import Port, encode_packet, port
from keystep_hololens.hl2ss.spatial_input import SPATIAL_INPUT_SIZE
from keystep_hololens.hl2ss.vlc import VlcMetadata
from keystep_hololens.simulator import DeviceClock, Room, SimulatedHeadset

HOST = "127.0.0.1"
PV_CONFIG = pv.PvConfig.live(width=320, height=180, fps=30)
PV_REQUEST = pv.encode_pv_request(pv.PvRequest(stream=PV_CONFIG))
VLC_CONFIG = rm.VlcConfig.live()
POSE = np.eye(4, dtype=np.float32)


def write_bin(path: Path, kind: Port, request: bytes, packets: list[bytes]) -> Path:
    """A file as hl2ss's writer makes it."""
    head = MAGIC + struct.pack("<HI", port(kind), 5) + b"hello"
    path.write_bytes(head + request + b"".join(packets))
    return path


def access_units(width: int, height: int, count: int) -> list[bytes]:
    """H.264 as a headset encodes it: Annex B, no B frames, each packet one picture."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = 5, 0, 1
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": "aud=1:repeat-headers=1:scenecut=0",
    }
    units = []
    for number in range(count):
        picture = np.full((height, width, 3), number * 11 % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.pict_type = number, PictureType.NONE
        (unit,) = encoder.encode(frame)
        units.append(bytes(unit))
    return units


def pv_metadata(*, resolution: tuple[int, int] = (320, 180)) -> bytes:
    return pv.PvMetadata(
        focal_length_px=(250.5, 251.0),
        principal_point_px=(160.0, 90.0),
        width=resolution[0],
        height=resolution[1],
        iso_gains=(1.5, 1.5),
        white_balance_gains=(1.8, 1.0, 2.1),
    ).encode()


PV_GENERATIONS: dict[Generation, Callable[[], bytes]] = {
    Generation.PV_16: lambda: pv_metadata()[:16],
    Generation.PV_80: lambda: pv_metadata(resolution=(0, 0)),
    Generation.PV_80_RESOLUTION: pv_metadata,
}


def imported(source: Path, out: Path) -> dict[str, list[RecordedPacket]]:
    run_import(BinFolderImporter(), source, out)
    found: dict[str, list[RecordedPacket]] = {}
    with Recording(out) as recording:
        for packet in recording.packets():
            found.setdefault(packet.header.stream, []).append(packet)
    return found


# --- generations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", sorted(PV_GENERATIONS, key=str))
def test_every_generation_of_pv_gives_the_same_pictures(
    tmp_path: Path, generation: Generation
) -> None:
    units, metadata = access_units(320, 180, 12), PV_GENERATIONS[generation]()
    packets = [
        encode_packet(1000 + n * 333_333, unit + metadata, POSE) for n, unit in enumerate(units)
    ]
    path = write_bin(tmp_path / "personal_video.bin", Port.PERSONAL_VIDEO, PV_REQUEST, packets)
    recorded = open_bin(path)
    assert recorded.generation is generation
    assert recorded.user == b"hello"
    rgb = imported(path, tmp_path / "r")["rgb"]
    assert [packet.payload for packet in rgb] == units
    assert [packet.header.keyframe for packet in rgb] == [n % 5 == 0 for n in range(12)]
    assert rgb[1].header.device_time_ns == (1000 + 333_333) * 100
    assert rgb[0].header.intrinsics == (250.5, 251.0, 160.0, 90.0)
    assert (rgb[0].header.width, rgb[0].header.height) == (320, 180)
    assert rgb[0].header.pose is not None
    moments = [(1, packet.header.device_time_ns) for packet in rgb]
    assert len(list(read_frames([tmp_path / "r"], moments))) == 12


def test_a_shared_camera_s_own_resolution_is_taken(tmp_path: Path) -> None:
    request = pv.encode_pv_request(
        pv.PvRequest(stream=pv.PvConfig.live(width=1920, height=1080, fps=30))
    )
    packets = [
        encode_packet(n, unit + pv_metadata(), POSE)
        for n, unit in enumerate(access_units(320, 180, 3))
    ]
    path = write_bin(tmp_path / "personal_video.bin", Port.PERSONAL_VIDEO, request, packets)
    rgb = imported(path, tmp_path / "r")["rgb"]
    assert (rgb[0].header.width, rgb[0].header.height) == (320, 180)


@pytest.mark.parametrize("with_metadata", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_grey_cameras_are_read_with_and_without_metadata(
    tmp_path: Path, with_metadata: bool, raw: bool
) -> None:
    units = [bytes((n,)) * (640 * 480) for n in range(4)] if raw else access_units(640, 480, 4)
    tail = VlcMetadata(sensor_ticks_ns=7, exposure_ns=9, gain=3).encode() if with_metadata else b""
    profile = pv.VideoProfile.RAW if raw else pv.VideoProfile.H264_MAIN
    config = rm.VlcConfig(mode=1, profile=profile, bitrate_bps=1000)
    packets = [encode_packet(n, unit + tail, POSE) for n, unit in enumerate(units)]
    request = rm.encode_request(config)
    path = write_bin(tmp_path / "rm_vlc_leftfront.bin", Port.RM_VLC_LEFTFRONT, request, packets)
    wanted = Generation.VLC_24 if with_metadata else Generation.PLAIN
    assert open_bin(path).generation is wanted
    grey = imported(path, tmp_path / "r")["vlc_left_front"]
    assert [packet.payload for packet in grey] == units
    assert {packet.header.encoding for packet in grey} == {"grey8" if raw else "h264"}
    assert {packet.header.upright_turns for packet in grey} == {1}
    assert grey[0].header.pose is None  # a .bin file does not say where the camera sits


@pytest.mark.parametrize("with_ticks", [False, True])
def test_long_throw_depth_is_read_with_and_without_ticks(tmp_path: Path, with_ticks: bool) -> None:
    generator = np.random.default_rng(4)
    frames = [
        depth.DepthFrame(*generator.integers(0, 4000, (2, 288, 320), np.uint16)) for _ in range(2)
    ]
    payloads = [depth.encode_long_throw(frame, 7) for frame in frames]
    payloads = payloads if with_ticks else [payload[: -depth.TICKS_SIZE] for payload in payloads]
    request = rm.encode_request(rm.LongThrowConfig(mode=1))
    packets = [encode_packet(n, payload, POSE) for n, payload in enumerate(payloads)]
    path = write_bin(tmp_path / "rm_depth_longthrow.bin", Port.RM_DEPTH_LONGTHROW, request, packets)
    found = imported(path, tmp_path / "r")
    for packet, frame in zip(found["depth"], frames, strict=True):
        np.testing.assert_array_equal(read_image(packet.header, packet.payload), frame.depth_mm)
        assert packet.header.depth_unit_m == 0.001
    for packet, frame in zip(found["depth_ab"], frames, strict=True):
        picture = read_image(packet.header, packet.payload)
        np.testing.assert_array_equal(picture, frame.active_brightness)


@pytest.mark.parametrize("with_ticks", [False, True])
def test_raw_ahat_depth_is_read_with_and_without_ticks(tmp_path: Path, with_ticks: bool) -> None:
    generator = np.random.default_rng(5)
    frame = depth.DepthFrame(*generator.integers(0, 1000, (2, 512, 512), np.uint16))
    payload = depth.encode_ahat_payload(depth.encode_raw_ahat(frame), 7)
    payload = payload if with_ticks else payload[: -depth.TICKS_SIZE]
    config = rm.AhatConfig(mode=0, profile=pv.VideoProfile.RAW, bitrate_bps=1)
    request = rm.encode_request(config)
    path = write_bin(
        tmp_path / "rm_depth_ahat.bin", Port.RM_DEPTH_AHAT, request, [encode_packet(3, payload)]
    )
    (packet,) = imported(path, tmp_path / "r")["depth_ahat"]
    np.testing.assert_array_equal(read_image(packet.header, packet.payload), frame.depth_mm)


def test_small_sensors_are_read_in_order_of_time(tmp_path: Path) -> None:
    samples = inertial.ImuSamples(
        sensor_ticks_ns=np.arange(3, dtype=np.uint64),
        device_time_hns=np.arange(50, 53, dtype=np.uint64),
        values=np.ones((3, 3), np.float32),
        temperatures=np.zeros(3, np.float32),
    )
    imu = [encode_packet(n * 40 + 5, inertial.encode_imu(samples), POSE) for n in range(5)]
    request = rm.encode_request(rm.ImuConfig(mode=1))
    write_bin(tmp_path / "rm_imu_gyroscope.bin", Port.RM_IMU_GYROSCOPE, request, imu)
    inputs = [encode_packet(n * 10, bytes(SPATIAL_INPUT_SIZE)) for n in range(20)]
    write_bin(tmp_path / "spatial_input.bin", Port.SPATIAL_INPUT, b"", inputs)
    eyes = [encode_packet(n * 20, bytes(EYE_TRACKER_SIZE), POSE) for n in range(10)]
    eye_request = rm.encode_eye_tracker_request(30)
    write_bin(tmp_path / "extended_eye_tracker.bin", Port.EXTENDED_EYE_TRACKER, eye_request, eyes)
    sound = [encode_packet(n * 21, b"\xff\xf1" + bytes(20)) for n in range(9)]
    sound_request = rm.encode_request(rm.MicrophoneConfig())
    write_bin(tmp_path / "microphone.bin", Port.MICROPHONE, sound_request, sound)
    plan = BinFolderImporter().plan(tmp_path)
    found = imported(tmp_path, tmp_path / "r")
    counts = {stream: len(packets) for stream, packets in found.items()}
    assert counts == {
        "head": 20,
        "gaze": 20,
        "hands": 20,
        "gyroscope": 5,
        "eye_tracking": 10,
        "microphone": 9,
    }
    assert plan.packet_count == sum(counts.values())
    assert any(line.startswith("calibration: a .bin file holds none") for line in plan.absent)
    turning = read_array(found["gyroscope"][0].header, found["gyroscope"][0].payload)
    np.testing.assert_allclose(turning[:, 1:4], np.radians(1.0), rtol=1e-6)
    with Recording(tmp_path / "r") as recording:
        times = [packet.header.device_time_ns for packet in recording.packets()]
    assert all(before <= after for before, after in pairwise(times))


# --- what a simulated headset sent ----------------------------------------------------------------


async def record_port(path: Path, address: int, kind: Port, request: bytes, size: int) -> Path:
    """Record a port's bytes as they come, as hl2ss's writer does; the end may cut a packet off."""
    reader, writer = await asyncio.open_connection(HOST, address)
    writer.write(request)
    data = await reader.readexactly(size)
    writer.close()
    return write_bin(path, kind, request, [data])


async def test_recorded_ports_of_a_simulated_headset_are_imported(tmp_path: Path) -> None:
    wanted = {
        "rm_vlc_leftfront.bin": (Port.RM_VLC_LEFTFRONT, rm.encode_request(VLC_CONFIG), 60_000),
        "rm_depth_longthrow.bin": (
            Port.RM_DEPTH_LONGTHROW,
            rm.encode_request(rm.LongThrowConfig(mode=1)),
            300_000,
        ),
        "spatial_input.bin": (Port.SPATIAL_INPUT, b"", 20_000),
        "rm_imu_accelerometer.bin": (
            Port.RM_IMU_ACCELEROMETER,
            rm.encode_request(rm.ImuConfig(mode=1)),
            10_000,
        ),
    }
    clock = DeviceClock(time_scale=20)
    async with SimulatedHeadset(room=Room(), clock=clock) as headset:
        for name, (kind, request, size) in wanted.items():
            address = port(kind, headset.base_port)
            await record_port(tmp_path / name, address, kind, request, size)
    assert open_bin(tmp_path / "rm_vlc_leftfront.bin").generation is Generation.VLC_24
    assert open_bin(tmp_path / "rm_depth_longthrow.bin").generation is Generation.TICKS_8
    plan = BinFolderImporter().plan(tmp_path)
    assert sum("the last packet is cut off" in line for line in plan.absent) >= 3
    found = await asyncio.to_thread(imported, tmp_path, tmp_path / "r")
    streams = {"vlc_left_front", "depth", "depth_ab", "head", "gaze", "hands", "accelerometer"}
    assert found.keys() == streams
    assert len(found["head"]) == 20_000 // 1948
    height, width = read_image(found["depth"][0].header, found["depth"][0].payload).shape
    assert (width, height) == (320, 288)


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "at byte 0: expected a recording of hl2ss"),
        (b"MCAP0" * 9, "at byte 0: expected a recording of hl2ss"),
        (b"X38HL2SS" + bytes(40), "recorded by hl2ss of March 2023, whose layout is not known"),
        (MAGIC + struct.pack("<HI", 80, 0), "port 80 is none that can be imported"),
        (MAGIC + struct.pack("<HI", 3809, 0), "port 3809 is none that can be imported"),
        (MAGIC + struct.pack("<HI", 3810, 1 << 31), "user data of 2147483648 bytes"),
        (MAGIC + struct.pack("<HI", 3810, 0), "expected the configuration of PERSONAL_VIDEO"),
        (MAGIC + struct.pack("<HIB", 3806, 0, 2), "expected the configuration of RM_IMU"),
        (
            MAGIC + struct.pack("<HI", 3812, 0) + struct.pack("<QI", 5, 1 << 31),
            "at byte 14: a packet of 2147483648 bytes",
        ),
    ],
)
def test_what_is_no_recording_is_told_in_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        BinFolderImporter().plan(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_packet_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    inputs = [encode_packet(n * 10, bytes(SPATIAL_INPUT_SIZE)) for n in range(3)]
    path = write_bin(tmp_path / "spatial_input.bin", Port.SPATIAL_INPUT, b"", inputs)
    path.write_bytes(path.read_bytes()[:-100])
    recorded = open_bin(path)
    assert len(list(read_packets(recorded))) == 2
    assert cut_off_bytes(recorded) == SPATIAL_INPUT_SIZE + 12 - 100


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_give_more_than_an_error(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(Port)))
    tail = data.draw(st.binary(max_size=300))
    path = tmp_path / "x.bin"
    path.write_bytes(MAGIC + struct.pack("<HI", port(kind), 0) + tail)
    said: Any = None
    try:
        list(BinFolderImporter().read(path))
    except DataError as error:
        said = str(error)
    assert said is None or (str(path) in said and "\n" not in said)
