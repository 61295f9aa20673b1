"""The simulated microphone: a quiet tone, in AAC or raw. All of it blocks, in a thread."""

from __future__ import annotations

from collections import deque

import av
import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss import microphone
from keystep_hololens.hl2ss import research_mode as rm
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND

BYTES_PER_SECOND = {
    rm.AudioProfile.AAC_12000: 12_000,
    rm.AudioProfile.AAC_16000: 16_000,
    rm.AudioProfile.AAC_20000: 20_000,
    rm.AudioProfile.AAC_24000: 24_000,
}
TONE_HZ, LOUDNESS = 440.0, 0.1
PERIOD_HNS = microphone.SAMPLES_PER_FRAME * HNS_PER_SECOND // microphone.SAMPLE_RATE_HZ


class SoundReading:
    """What the microphone says: frames of 1024 samples (raw ones too, a choice of ours)."""

    def __init__(self, config: rm.MicrophoneConfig) -> None:
        self._config = config
        self._encoded: deque[bytes] = deque()
        raw = config.profile == rm.AudioProfile.RAW
        self._encoder = None if raw else _open(rm.AudioProfile(config.profile))

    def payload(self, frame_idx: int, time_hns: int, time_s: float) -> bytes:
        """Make one frame; an AAC encoder's first frames run behind the sound."""
        if self._encoder is None:
            return self._raw(frame_idx)
        while not self._encoded:
            sound = np.ascontiguousarray(np.repeat(_tone(frame_idx)[None], 2, axis=0))
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
            frame.sample_rate = microphone.SAMPLE_RATE_HZ
            for packet in self._encoder.encode(frame):
                body = bytes(packet)
                self._encoded.append(microphone.adts_header(len(body)) + body)
        return self._encoded.popleft()

    def _raw(self, frame_idx: int) -> bytes:
        tone = _tone(frame_idx)[:, None]
        if microphone.is_array(self._config):
            return np.repeat(tone, microphone.ARRAY_CHANNEL_COUNT, axis=1).tobytes()
        stereo = np.repeat(tone * 32767, microphone.CHANNEL_COUNT, axis=1)
        return stereo.astype("<i2").tobytes()


def _tone(frame_idx: int) -> NDArray[np.float32]:
    first = frame_idx * microphone.SAMPLES_PER_FRAME
    samples = first + np.arange(microphone.SAMPLES_PER_FRAME)
    wave = LOUDNESS * np.sin(2 * np.pi * TONE_HZ * samples / microphone.SAMPLE_RATE_HZ)
    return wave.astype(np.float32)


def _open(profile: rm.AudioProfile) -> av.AudioCodecContext:
    encoder = av.AudioCodecContext.create("aac", "w")
    encoder.sample_rate = microphone.SAMPLE_RATE_HZ
    encoder.layout = "stereo"
    encoder.format = "fltp"
    encoder.bit_rate = BYTES_PER_SECOND[profile] * 8
    return encoder
