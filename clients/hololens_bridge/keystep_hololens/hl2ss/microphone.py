"""The microphone's payloads: AAC in ADTS frames, or raw samples, 48 kHz."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.protocol import Bytes
from keystep_hololens.hl2ss.research_mode import AudioProfile, MicrophoneConfig

SAMPLE_RATE_HZ = 48_000
SAMPLES_PER_FRAME = 1024
CHANNEL_COUNT = 2
ARRAY_LEVEL, ARRAY_CHANNEL_COUNT = 0x2B, 5
MICROPHONE_MAX_PAYLOAD_SIZE = 2**20
ADTS_HEADER_SIZE = 7
_RATE_INDEX_48_KHZ, _LOW_COMPLEXITY, _VARIABLE_RATE = 3, 1, 0x7FF


def adts_header(frame_size: int) -> bytes:
    """Return the 7 bytes before an AAC-LC frame of 48 kHz stereo (ISO/IEC 13818-7, 6.2).

    Args:
        frame_size: Bytes of the frame without this header.
    """
    bits = 0xFFF  # sync word
    for value, width in (
        (0, 1),  # MPEG-4
        (0, 2),  # layer
        (1, 1),  # no checksum
        (_LOW_COMPLEXITY, 2),
        (_RATE_INDEX_48_KHZ, 4),
        (0, 1),  # private
        (CHANNEL_COUNT, 3),
        (0, 4),  # original, home, copyright bits
        (frame_size + ADTS_HEADER_SIZE, 13),
        (_VARIABLE_RATE, 11),
        (0, 2),  # one block
    ):
        bits = bits << width | value
    return bits.to_bytes(ADTS_HEADER_SIZE, "big")


def is_array(config: MicrophoneConfig) -> bool:
    """Whether the five microphones come apart, as float32."""
    return config.profile == AudioProfile.RAW and config.level == ARRAY_LEVEL


def decode_raw_audio(data: Bytes, config: MicrophoneConfig) -> NDArray[np.int16 | np.float32]:
    """View raw samples, shape (N, channels): int16 stereo, or float32 of five microphones.

    Raises:
        DeviceError: It does not hold whole samples.
    """
    dtype, channels = ("<f4", ARRAY_CHANNEL_COUNT) if is_array(config) else ("<i2", CHANNEL_COUNT)
    size = np.dtype(dtype).itemsize * channels
    if len(data) % size:
        raise DeviceError(f"raw audio holds samples of {size} bytes, got {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(-1, channels)
