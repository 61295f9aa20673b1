"""A video file as the simulated headset's PV camera: decoded, resampled, scaled, encoded again.

All of this blocks; the ports run it in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, VideoError
from keystep_hololens.hl2ss.conventions import pv_projection
from keystep_hololens.hl2ss.personal_video import (
    FocusState,
    PvCalibration,
    PvConfig,
    PvMetadata,
    VideoProfile,
    encode_raw_frame,
)
from keystep_hololens.hl2ss.picture_decoder import is_keyframe
from keystep_hololens.hl2ss.protocol import HNS_PER_SECOND, encode_packet
from keystep_hololens.simulator.encoder import EncoderSettings, PictureEncoder
from keystep_hololens.simulator.packets import TimedPacket

HORIZONTAL_FIELD_OF_VIEW_DEG = 64.69
"""Nominal, of HoloLens 2's video profiles (Microsoft, "Locatable camera overview")."""

_LONGEST_WALK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """A video file that plays once, or round and round."""

    path: Path
    duration_s: float
    frame_period_s: float
    loop: bool = False

    @classmethod
    def open(cls, path: Path, *, loop: bool = False) -> VideoSource:
        """Look at a video file.

        Raises:
            ConfigError: There is no such file.
            VideoError: It is not a video, or does not say how long it is.
        """
        if not path.is_file():
            raise ConfigError(f"there is no video file {path}")
        try:
            with av.open(path) as container:
                stream = container.streams.video[0]
                rate = stream.average_rate or stream.guessed_rate
                if stream.duration is not None and stream.time_base is not None:
                    duration = float(stream.duration * stream.time_base)
                else:
                    duration = (container.duration or 0) / av.time_base
        except (av.error.FFmpegError, IndexError) as error:
            raise VideoError(f"{path} is not a video that can be read: {error}") from error
        if not rate or duration <= 0:
            raise VideoError(f"{path} says neither its length nor its frame rate")
        return cls(path=path, duration_s=duration, frame_period_s=float(1 / rate), loop=loop)

    @property
    def duration_hns(self) -> int | None:
        """How long it plays in device time; None if it never ends."""
        return None if self.loop else round(self.duration_s * HNS_PER_SECOND)


class _Shown(NamedTuple):
    time_s: float
    picture: av.VideoFrame


class _FrameReader:
    """Finds the frame shown at a position of the video; cheap when positions ascend."""

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._container: InputContainer = av.open(source.path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._time_base = self._stream.time_base or Fraction(1, av.time_base)
        self._start_pts = self._stream.start_time or 0
        self._frames: Iterator[_Shown] = iter(())
        self._current: _Shown | None = None
        self._next: _Shown | None = None
        self._restart()

    def frame_at(self, position_s: float) -> av.VideoFrame:
        """Return the frame nearest to `position_s`."""
        latest_s = position_s + self._source.frame_period_s / 2
        behind = self._current is None or self._current.time_s > latest_s
        far = self._next is not None and self._next.time_s < latest_s - _LONGEST_WALK_S
        if behind or far:
            target = self._start_pts + int(position_s / self._time_base)
            self._container.seek(target, stream=self._stream, backward=True)
            self._restart()
        while self._next is not None and self._next.time_s <= latest_s:
            self._current, self._next = self._next, next(self._frames, None)
        if self._current is None:
            raise VideoError(f"{self._source.path} has no picture at {position_s:.3f} s")
        return self._current.picture

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _restart(self) -> None:
        self._frames = self._decode()
        self._current = next(self._frames, None)
        self._next = next(self._frames, None)

    def _decode(self) -> Iterator[_Shown]:
        for frame in self._container.decode(self._stream):
            if frame.pts is not None:
                yield _Shown(float((frame.pts - self._start_pts) * self._time_base), frame)


class PvPacketStream:
    """What one client is sent: frames from `first_frame` on, beginning with a key frame.

    Frame k is due k / fps after `origin_hns`. The level asked for is left to the encoder.
    """

    def __init__(
        self,
        source: VideoSource,
        config: PvConfig,
        *,
        origin_hns: int,
        now_hns: int,
        pose_at: Callable[[float], NDArray[np.float32]] | None = None,
    ) -> None:
        """Describe the stream; `pose_at` gives the camera's pose over playback time, if known."""
        elapsed_hns = max(0, now_hns - origin_hns)
        self._source, self._config, self._origin_hns = source, config, origin_hns
        self._frame_idx = -(-elapsed_hns * config.fps // HNS_PER_SECOND)
        self._reader: _FrameReader | None = None
        self._encoder: PictureEncoder | None = None
        self._metadata = nominal_metadata(config.width, config.height).encode()
        self._pose_at = pose_at or (lambda time_s: np.zeros((4, 4), np.float32))

    def next(self) -> TimedPacket | None:
        """Make the next packet; None after the video's end. Blocks.

        Raises:
            VideoError: The file cannot be decoded, or the encoder refuses its settings.
        """
        time_s = position_s = self._frame_idx / self._config.fps
        if self._source.loop:
            position_s %= self._source.duration_s
        elif position_s >= self._source.duration_s:
            return None
        timestamp_hns = self._origin_hns + self._frame_idx * HNS_PER_SECOND // self._config.fps
        try:
            encoded = self._encode(position_s)
        except av.error.FFmpegError as error:
            raise VideoError(f"cannot make frame {self._frame_idx}: {error}") from error
        self._frame_idx += self._config.divisor
        pose = self._pose_at(time_s) if self._config.mode == 1 else None
        return TimedPacket(
            timestamp_hns,
            encode_packet(timestamp_hns, encoded + self._metadata, pose),
            is_keyframe(encoded, self._config.profile),
        )

    def close(self) -> None:
        """Close the video file."""
        if self._reader is not None:
            self._reader.close()

    def _encode(self, position_s: float) -> bytes:
        config = self._config
        self._reader = self._reader or _FrameReader(self._source)
        picture = self._reader.frame_at(position_s)
        if config.profile == VideoProfile.RAW:
            nv12 = picture.reformat(width=config.width, height=config.height, format="nv12")
            return encode_raw_frame(nv12.to_ndarray().view(np.uint8))
        self._encoder = self._encoder or PictureEncoder(_encoder_settings(config))
        return self._encoder.encode(
            picture.reformat(width=config.width, height=config.height, format="yuv420p")
        )


def _encoder_settings(config: PvConfig) -> EncoderSettings:
    return EncoderSettings(
        profile=VideoProfile(config.profile),
        width=config.width,
        height=config.height,
        frame_rate_hz=Fraction(config.fps, config.divisor),
        bitrate_bps=config.bitrate_bps,
        gop_size=config.gop_size,
    )


def nominal_focal_length_px(width: int) -> float:
    """Focal length at a picture width, from the camera's nominal field of view."""
    return width / 2 / math.tan(math.radians(HORIZONTAL_FIELD_OF_VIEW_DEG) / 2)


def nominal_metadata(width: int, height: int) -> PvMetadata:
    """Frame metadata: nominal intrinsics and constant, invented exposure; all simulated."""
    focal = nominal_focal_length_px(width)
    return PvMetadata(
        focal_length_px=(focal, focal),
        principal_point_px=(width / 2, height / 2),
        width=width,
        height=height,
        exposure_time_hns=166_667,
        focus_state=FocusState.FOCUSED,
        lens_position=600,
        iso_speed=200,
        white_balance_k=4500,
        iso_gains=(1.0, 1.0),
        white_balance_gains=(1.0, 1.0, 1.0),
    )


def nominal_calibration(
    width: int, height: int, extrinsics: NDArray[np.float32] | None = None
) -> PvCalibration:
    """Mode-2 constants: nominal lens without distortion; all simulated.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.
        extrinsics: Rig node -> PV camera, (4, 4), row vectors; None: at the rig node.
    """
    focal = nominal_focal_length_px(width)
    focals, centre = (focal, focal), (width / 2, height / 2)
    return PvCalibration(
        focal_length_px=np.array(focals, np.float32),
        principal_point_px=np.array(centre, np.float32),
        radial_distortion=np.zeros(3, np.float32),
        tangential_distortion=np.zeros(2, np.float32),
        projection=pv_projection(focals, centre),
        extrinsics=np.eye(4, dtype=np.float32) if extrinsics is None else extrinsics,
        intrinsics_mf=np.array((*focals, *centre), np.float32),
        extrinsics_mf=np.array((0, 0, 0, 0, 0, 0, 1), np.float32),
    )
