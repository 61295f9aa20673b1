"""hl2ss's conventions against the wire's, fact by fact of its protocol."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keystep_capture.errors import DeviceError
from keystep_capture.payloads import read_image
from keystep_capture.wire import PROTOCOL, PacketHeader
from keystep_hololens import wire_packets
from keystep_hololens.hl2ss.calibration import CameraCalibration
from keystep_hololens.hl2ss.eye_tracker import EyeSample
from keystep_hololens.hl2ss.inertial import ImuSamples
from keystep_hololens.hl2ss.spatial_input import EyeRay
from keystep_hololens.wire_packets import Mounting

HOUR_HNS = 36_000_000_000


def row_vectors(x: float, y: float, z: float) -> np.ndarray:
    """A quarter turn about y and a shift as hl2ss sends them: the shift is the last row."""
    return np.array([[0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [x, y, z, 1]], np.float32)


def moved(pose: list[float] | None, point: tuple[float, float, float]) -> list[float]:
    """A point through a pose of the wire: column vectors."""
    assert pose is not None
    values: list[float] = (np.array(pose).reshape(4, 4) @ [*point, 1])[:3].tolist()
    return values


def test_a_sensors_pose_is_its_place_on_the_rig_and_the_rigs_in_the_world() -> None:
    extrinsics, rig_pose = row_vectors(0.25, 0, 0), row_vectors(10, 20, 30)
    mounting = Mounting(extrinsics)
    on_rig = np.array([1.0, 2.0, 3.0, 1.0])
    in_sensor = tuple((on_rig @ extrinsics)[:3].tolist())  # rig node -> camera
    assert moved(mounting.rig_from_sensor, in_sensor) == pytest.approx(on_rig[:3])
    in_world = (on_rig @ rig_pose)[:3]  # rig node -> world
    assert moved(mounting.pose(rig_pose), in_sensor) == pytest.approx(in_world)
    assert mounting.pose(None) is None


@pytest.mark.parametrize("extrinsics", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_extrinsics_that_are_no_transform_are_the_headsets_fault(extrinsics: np.ndarray) -> None:
    with pytest.raises(DeviceError, match="no transform"):
        Mounting(extrinsics.astype(np.float32))


def samples_of(values: list[list[float]], first_hns: int) -> ImuSamples:
    count = len(values)
    return ImuSamples(
        sensor_ticks_ns=np.arange(count, dtype=np.uint64),
        device_time_hns=first_hns + 5_000 * np.arange(count, dtype=np.uint64),
        values=np.array(values, np.float32).reshape(count, 3),
        temperatures=np.full(count, 31.5, np.float32),
    )


@pytest.mark.parametrize(
    ("stream", "factor", "temperature"),
    [("accelerometer", 1.0, 31.5), ("gyroscope", np.pi / 180, 31.5), ("magnetometer", 1.0, 0.0)],
)
def test_inertial_samples_have_times_units_and_temperature(
    stream: str, factor: float, temperature: float
) -> None:
    samples = samples_of([[180, -90, 0], [0, 0, 9.8]], HOUR_HNS - 5_000)  # the first is older
    packet = wire_packets.inertial(stream, HOUR_HNS, samples, None)
    rows = np.frombuffer(packet.payload, "<f4").reshape(-1, 5)
    assert rows[:, 0] == pytest.approx([-0.0005, 0.0])
    assert rows[:, 1:4] == pytest.approx(np.array([[180, -90, 0], [0, 0, 9.8]]) * factor)
    assert rows[:, 4].tolist() == [temperature] * 2


def test_a_packet_without_samples_is_not_valid() -> None:
    packet = wire_packets.inertial("gyroscope", HOUR_HNS, samples_of([], 0), None)
    assert (packet.valid, packet.payload) == (0, b"")


@given(plane=arrays(np.uint16, (5, 7)), unit_m=st.none() | st.floats(1e-4, 1e-2, allow_nan=False))
@settings(deadline=None)
def test_a_depth_plane_keeps_every_value(plane: np.ndarray, unit_m: float | None) -> None:
    packet = wire_packets.depth_plane("depth", plane, pose=None, depth_unit_m=unit_m)
    header = PacketHeader(
        protocol=PROTOCOL,
        session="s",
        epoch=1,
        stream="depth",
        sequence=0,
        device_time_ns=0,
        send_time_ns=0,
        encoding=packet.encoding,
        width=packet.width,
        height=packet.height,
    )
    np.testing.assert_array_equal(read_image(header, bytes(packet.payload)), plane)
    assert packet.depth_unit_m == unit_m


def ray(*direction: float) -> EyeRay:
    return EyeRay(
        origin=np.array([0.5, 0, 0], np.float32), direction=np.array(direction, np.float32)
    )


def test_eyes_come_into_the_world_with_a_bit_for_each_part() -> None:
    sample = EyeSample(
        calibrated=True, combined=ray(0, 0, -2), right=ray(0, 1, 0), vergence_distance_m=0.75
    )
    packet = wire_packets.eye_tracking(sample, row_vectors(1, 2, 3))
    values = np.frombuffer(packet.payload, "<f4")
    assert packet.valid == 0b1100101
    assert values[:6] == pytest.approx([1, 2, 2.5, -1, 0, 0], abs=1e-6)  # unit, in the world
    assert not values[6:12].any()
    assert values[15:18] == pytest.approx([0, 1, 0], abs=1e-6)
    assert values[20] == 0.75


@pytest.mark.parametrize(
    ("sample", "pose", "valid"),
    [
        (EyeSample(calibrated=True), row_vectors(0, 0, 0), 0),
        (EyeSample(combined=ray(0, 0, -1)), None, 0),  # where the tracker is, is not known
        (EyeSample(combined=ray(0, 0, 0)), row_vectors(0, 0, 0), 0),  # looks nowhere
        (EyeSample(left_openness=0.5), None, 8),
    ],
)
def test_parts_that_do_not_hold_are_left_out(
    sample: EyeSample, pose: np.ndarray | None, valid: int
) -> None:
    packet = wire_packets.eye_tracking(sample, pose)
    assert packet.valid == valid
    assert bool(packet.payload) == bool(valid)


def test_a_cameras_constants_give_a_ray_for_each_pixel() -> None:
    rays = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    calibration = CameraCalibration(
        uv2xy=rays,
        extrinsics=row_vectors(0, 0, 1),
        undistort_map=rays,
        undistorted_intrinsics=np.ones(4, np.float32),
        scale=1000.0,
    )
    packet = wire_packets.camera_calibration("depth", calibration)
    assert (packet.width, packet.height, packet.depth_unit_m) == (3, 2, 0.001)
    np.testing.assert_array_equal(np.frombuffer(packet.payload, "<f4").reshape(2, 3, 2), rays)
