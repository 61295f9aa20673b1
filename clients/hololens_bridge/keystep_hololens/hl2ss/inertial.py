"""The payload of accelerometer, gyroscope and magnetometer: batched samples of 32 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes, Port

SAMPLE_SIZE = 32
IMU_MAX_PAYLOAD_SIZE = 64 * 2**10
SAMPLES_PER_PACKET = {
    Port.RM_IMU_ACCELEROMETER: 93,
    Port.RM_IMU_GYROSCOPE: 315,
    Port.RM_IMU_MAGNETOMETER: 11,
}
_SAMPLE = np.dtype([("sensor", "<u8"), ("soc", "<u8"), ("value", "<f4", 3), ("temperature", "<f4")])
assert _SAMPLE.itemsize == SAMPLE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImuSamples:
    """One packet's samples, oldest first.

    Attributes:
        sensor_ticks_ns: The sensor's own clock, shape (N,), uint64.
        device_time_hns: The headset's clock, shape (N,), uint64.
        values: Shape (N, 3), float32, in the sensor's axes: m/s^2 (accelerometer), degrees per
            second (gyroscope); the magnetometer's unit is not documented.
        temperatures: Shape (N,), float32; the magnetometer has none (padding).
    """

    sensor_ticks_ns: NDArray[np.uint64]
    device_time_hns: NDArray[np.uint64]
    values: NDArray[np.float32]
    temperatures: NDArray[np.float32]


def encode_imu(samples: ImuSamples) -> bytes:
    """Return a payload."""
    records: NDArray[Any] = np.zeros(len(samples.values), _SAMPLE)
    records["sensor"] = samples.sensor_ticks_ns
    records["soc"] = samples.device_time_hns
    records["value"] = samples.values
    records["temperature"] = samples.temperatures
    return records.tobytes()


def decode_imu(data: Bytes) -> ImuSamples:
    """Read a payload; where all device times are equal they are spread by the sensor's clock.

    Raises:
        DeviceError: It does not hold whole samples.
    """
    if len(data) % SAMPLE_SIZE:
        raise DeviceError(f"an IMU payload holds samples of 32 bytes, got {len(data)} bytes")
    records = np.frombuffer(data, _SAMPLE)
    sensor, soc = records["sensor"], records["soc"]
    if len(soc) > 1 and (soc == soc[0]).all():
        soc = soc + (sensor - sensor[0]) // np.uint64(100)
    return ImuSamples(
        sensor_ticks_ns=sensor,
        device_time_hns=soc,
        values=records["value"],
        temperatures=records["temperature"],
    )
