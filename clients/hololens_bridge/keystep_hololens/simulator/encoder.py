"""Video encoders that give one access unit per picture, as the headset's do."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from keystep_hololens.hl2ss.personal_video import VideoProfile

H264_PROFILES = {
    VideoProfile.H264_BASE: "baseline",
    VideoProfile.H264_MAIN: "main",
    VideoProfile.H264_HIGH: "high",
}
VIDEO_PROFILES = frozenset(VideoProfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """What a client asked for; the level is left to the encoder."""

    profile: VideoProfile
    width: int
    height: int
    frame_rate_hz: Fraction
    bitrate_bps: int
    gop_size: int


class PictureEncoder:
    """Encodes pictures one by one; every packet is whole, and H264 begins with a delimiter."""

    def __init__(self, settings: EncoderSettings) -> None:
        """Open an H264 or HEVC encoder."""
        self._encoder = _open(settings)
        self._count = 0

    def encode(self, picture: av.VideoFrame) -> bytes:
        """Encode a yuv420p picture; every `gop_size`-th is a key frame, the first one too.

        Raises:
            av.error.FFmpegError: The encoder refuses its settings.
        """
        picture.pts, picture.time_base = self._count, self._encoder.time_base
        picture.pict_type = av.video.frame.PictureType.NONE
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(picture))

    def encode_planes(self, yuv420p: NDArray[np.uint8]) -> bytes:
        """Encode planes of shape (H * 3 / 2, W), uint8."""
        return self.encode(av.VideoFrame.from_ndarray(yuv420p, format="yuv420p"))


def _open(settings: EncoderSettings) -> av.VideoCodecContext:
    hevc = settings.profile is VideoProfile.HEVC_MAIN
    encoder = av.VideoCodecContext.create("libx265" if hevc else "libx264", "w")
    encoder.width, encoder.height = settings.width, settings.height
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = settings.frame_rate_hz, 1 / settings.frame_rate_hz
    encoder.bit_rate = settings.bitrate_bps
    encoder.gop_size = settings.gop_size
    encoder.max_b_frames = 0
    encoder.thread_count = 1
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency"} | (
        {"x265-params": "log-level=none:repeat-headers=1:scenecut=0"}
        if hevc
        else {
            "profile": H264_PROFILES[settings.profile],
            "x264-params": "aud=1:repeat-headers=1:scenecut=0",
        }
    )
    return encoder
