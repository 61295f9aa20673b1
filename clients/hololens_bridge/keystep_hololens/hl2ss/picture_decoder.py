"""Decoding VLC and AHAT pictures on the client's side, and telling key frames."""

from __future__ import annotations

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, VideoError
from keystep_capture.video import is_h264_keyframe, is_hevc_keyframe
from keystep_hololens.hl2ss.personal_video import VideoProfile
from keystep_hololens.hl2ss.protocol import Bytes

_MAX_PIXELS = 4096 * 2304


def is_keyframe(access_unit: Bytes, profile: int) -> bool:
    """Whether a frame of this profile can be decoded without those before it."""
    if profile == VideoProfile.RAW:
        return True
    if profile == VideoProfile.HEVC_MAIN:
        return is_hevc_keyframe(access_unit)
    return is_h264_keyframe(access_unit)


class PictureDecoder:
    """Decodes one camera's access units, each to one picture of a known size.

    After an error the next frame must be a key frame.
    """

    def __init__(self, profile: int, *, width: int, height: int) -> None:
        """Open a decoder.

        Raises:
            ConfigError: The profile is none of H264 or HEVC.
        """
        if profile not in VideoProfile.__members__.values() or profile == VideoProfile.RAW:
            raise ConfigError(f"there is no decoder for video profile {profile}")
        self._profile, self._width, self._height = profile, width, height
        self._codec = self._open()
        self._needs_key = True

    def decode(self, access_unit: Bytes) -> NDArray[np.uint8]:
        """Decode one frame: yuv420p, shape (H * 3 / 2, W), uint8; the first H rows are luma.

        Raises:
            VideoError: It cannot be decoded, is damaged, has another size, or follows an error
                without being a key frame.
        """
        if self._needs_key and not is_keyframe(access_unit, self._profile):
            raise VideoError("a video begins with a key frame; this frame is none")
        self._needs_key = True  # until it went well
        try:
            frames = self._codec.decode(av.Packet(bytes(access_unit)))
        except (av.error.FFmpegError, ValueError) as error:
            self._codec = self._open()
            raise VideoError(f"a frame cannot be decoded: {error}") from error
        if len(frames) != 1 or frames[0].is_corrupt:
            self._codec = self._open()
            raise VideoError(f"a frame gave {len(frames)} intact pictures, expected one")
        frame = frames[0]
        if (frame.width, frame.height) != (self._width, self._height):
            raise VideoError(
                f"a picture has {frame.width}x{frame.height} pixels, expected"
                f" {self._width}x{self._height}"
            )
        self._needs_key = False
        return _planes(frame)

    def _open(self) -> VideoCodecContext:
        name = "hevc" if self._profile == VideoProfile.HEVC_MAIN else "h264"
        codec = av.VideoCodecContext.create(name, "r")
        assert isinstance(codec, VideoCodecContext)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(_MAX_PIXELS)}
        return codec


def _planes(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Take the planes as they are: a conversion would also stretch their range."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        raise VideoError(f"a picture is {frame.format.name}, expected yuv420p")
    parts = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        parts.append(rows[:, : plane.width].reshape(-1))
    return np.concatenate(parts).reshape(-1, frame.width)
