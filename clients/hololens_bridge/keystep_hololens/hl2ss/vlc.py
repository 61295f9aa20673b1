"""The payload of the grey tracking cameras (RM VLC): a picture and 24 bytes of metadata."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes
from keystep_hololens.hl2ss.research_mode import VLC_HEIGHT, VLC_WIDTH

VLC_METADATA_SIZE = 24
VLC_MAX_PAYLOAD_SIZE = 2**20
_METADATA = struct.Struct("<QQII")
assert _METADATA.size == VLC_METADATA_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class VlcMetadata:
    """What the sensor says of one frame: its own clock and the exposure, both nanoseconds."""

    sensor_ticks_ns: int
    exposure_ns: int
    gain: int

    def encode(self) -> bytes:
        """Return the 24 bytes of the wire."""
        return _METADATA.pack(self.sensor_ticks_ns, self.exposure_ns, self.gain, 0)

    @classmethod
    def decode(cls, data: Bytes) -> VlcMetadata:
        """Read the last 24 bytes of a VLC payload."""
        ticks, exposure, gain, _ = _METADATA.unpack(data)
        return cls(sensor_ticks_ns=ticks, exposure_ns=exposure, gain=gain)


def decode_raw_vlc(data: Bytes) -> NDArray[np.uint8]:
    """View a raw frame as grey values, shape (480, 640), uint8, sensor-oriented (sideways).

    Raises:
        DeviceError: It does not have 307200 bytes.
    """
    if len(data) != VLC_WIDTH * VLC_HEIGHT:
        raise DeviceError(f"a raw VLC frame has {VLC_WIDTH * VLC_HEIGHT} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(VLC_HEIGHT, VLC_WIDTH)
