"""The personal video (PV) port's messages: configuration, camera switch, metadata, calibration.

No sockets here; see `protocol` for framing.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss.protocol import Bytes, NeedMoreError, Reader

PV_METADATA_SIZE = 80
PV_CALIBRATION_SIZE = 208
PV_MAX_PAYLOAD_SIZE = 8 * 2**20
GOP_SIZE_OPTION = 10


class VideoProfile(enum.IntEnum):
    """Encoder profiles of the video streams."""

    H264_BASE = 0
    H264_MAIN = 1
    H264_HIGH = 2
    HEVC_MAIN = 3
    RAW = 255


DEFAULT_LEVEL = 255

_OPTION = struct.Struct("<QQ")


def encode_options(options: tuple[tuple[int, int], ...]) -> bytes:
    """Return encoder options (key, value) as any video stream's configuration ends with."""
    return b"".join(_OPTION.pack(key, value) for key, value in options)


def read_options(reader: Reader, count: int) -> tuple[tuple[int, int], ...]:
    """Read so many encoder options off a configuration."""
    return tuple(_OPTION.iter_unpack(reader.take(_OPTION.size * count)))


_SIZES_AT_15_AND_30 = (
    (1952, 1100), (1920, 1080), (1504, 846), (1280, 720), (1128, 636),
    (960, 540), (760, 428), (640, 360), (500, 282), (424, 240),
)  # fmt: skip
PV_FORMATS: frozenset[tuple[int, int, int]] = frozenset(
    (width, height, fps) for width, height in _SIZES_AT_15_AND_30 for fps in (15, 30)
) | {(1504, 846, 60), (1504, 846, 5), (1952, 1100, 60)}
"""Every (width, height, frames per second) the PV camera offers outside shared mode."""

# --- client to headset ---------------------------------------------------------------------------

_PV_FORMAT = struct.Struct("<HHB")
_PV_ENCODING = struct.Struct("<BBBIB")
_PV_START = struct.Struct("<7B3f2I")
_MODE_BITS, _START_BIT, _STOP_BIT = 3, 4, 8


def default_bitrate_bps(width: int, height: int, fps: int, profile: VideoProfile) -> int:
    """Bit rate hl2ss's own client asks for."""
    return int(width * height * fps * 12 / (150 if profile is VideoProfile.HEVC_MAIN else 75))


@dataclass(frozen=True, slots=True, kw_only=True)
class PvConfig:
    """What a client asks of the PV stream.

    Attributes:
        mode: 0 video, 1 video and camera pose per frame.
        divisor: The headset keeps one frame in this many.
        level: H264 or HEVC level, 255 leaves it to the encoder.
        options: Encoder options (key, value); key 10 is the length of a group of pictures.
    """

    mode: int
    width: int
    height: int
    fps: int
    bitrate_bps: int
    profile: int = VideoProfile.H264_MAIN
    divisor: int = 1
    level: int = DEFAULT_LEVEL
    options: tuple[tuple[int, int], ...] = ()

    @classmethod
    def live(
        cls,
        *,
        width: int,
        height: int,
        fps: int,
        mode: int = 1,
        profile: VideoProfile = VideoProfile.H264_MAIN,
        gop_size: int | None = None,
        bitrate_bps: int | None = None,
    ) -> PvConfig:
        """Make a configuration with the bit rate and key frames hl2ss's client asks for."""
        return cls(
            mode=mode,
            width=width,
            height=height,
            fps=fps,
            profile=profile,
            bitrate_bps=bitrate_bps or default_bitrate_bps(width, height, fps, profile),
            options=((GOP_SIZE_OPTION, gop_size or fps),),
        )

    @property
    def gop_size(self) -> int:
        """Frames from key frame to key frame: option 10, else one second."""
        return max(1, dict(self.options).get(GOP_SIZE_OPTION, self.fps))


@dataclass(frozen=True, slots=True, kw_only=True)
class PvCalibrationRequest:
    """Mode 2: ask for the camera's constants at one format."""

    width: int
    height: int
    fps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PvStart:
    """How the camera is switched on; the defaults are those of hl2ss's own client.

    `shared` joins a capture that another app controls: sizes and rates asked for are ignored.
    """

    enable_mrc: bool = False
    hologram_composition: bool = True
    recording_indicator: bool = False
    video_stabilization: bool = False
    blank_protected: bool = False
    show_mesh: bool = False
    shared: bool = False
    global_opacity: float = float(np.float32(0.9))
    output_width: float = 0.0
    output_height: float = 0.0
    stabilization_length: int = 0
    hologram_perspective: int = 1

    def encode(self) -> bytes:
        """Return the 27 bytes of the wire."""
        return _PV_START.pack(
            self.enable_mrc,
            self.hologram_composition,
            self.recording_indicator,
            self.video_stabilization,
            self.blank_protected,
            self.show_mesh,
            self.shared,
            self.global_opacity,
            self.output_width,
            self.output_height,
            self.stabilization_length,
            self.hologram_perspective,
        )

    @classmethod
    def decode(cls, data: Bytes) -> PvStart:
        """Read 27 bytes; any non-zero flag byte is true."""
        flags = _PV_START.unpack(data)
        return cls(
            enable_mrc=bool(flags[0]),
            hologram_composition=bool(flags[1]),
            recording_indicator=bool(flags[2]),
            video_stabilization=bool(flags[3]),
            blank_protected=bool(flags[4]),
            show_mesh=bool(flags[5]),
            shared=bool(flags[6]),
            global_opacity=flags[7],
            output_width=flags[8],
            output_height=flags[9],
            stabilization_length=flags[10],
            hologram_perspective=flags[11],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PvRequest:
    """All that one connection to the PV port asks: switch on, stream or calibrate, switch off."""

    start: PvStart | None = None
    stop: bool = False
    stream: PvConfig | PvCalibrationRequest | None = None


def encode_pv_request(request: PvRequest) -> bytes:
    """Return the bytes a client sends on the PV port right after connecting.

    Raises:
        ConfigError: A field does not fit its place on the wire.
    """
    mode, tail = 3, b""
    try:
        match request.stream:
            case PvConfig() as config:
                mode, tail = config.mode, _encode_pv_config_tail(config)
            case PvCalibrationRequest(width=width, height=height, fps=fps):
                mode, tail = 2, _PV_FORMAT.pack(width, height, fps)
        mode |= _START_BIT * (request.start is not None) | _STOP_BIT * request.stop
        start = request.start.encode() if request.start is not None else b""
    except struct.error as error:
        raise ConfigError(f"a PV setting does not fit the wire: {error}; got {request}") from error
    return bytes((mode,)) + start + tail


def _encode_pv_config_tail(config: PvConfig) -> bytes:
    if config.mode not in (0, 1):
        raise ConfigError(f"PV streams in mode 0 or 1, got {config.mode}")
    encoding = _PV_ENCODING.pack(
        config.divisor, config.profile, config.level, config.bitrate_bps, len(config.options)
    )
    options = encode_options(config.options)
    return _PV_FORMAT.pack(config.width, config.height, config.fps) + encoding + options


def parse_pv_request(data: Bytes) -> PvRequest | None:
    """Read what a client sent on the PV port, None if incomplete. Values are not judged."""
    reader = Reader(data)
    try:
        mode = reader.take(1)[0]
        start = PvStart.decode(reader.take(_PV_START.size)) if mode & _START_BIT else None
        stream = _read_pv_stream(reader, mode & _MODE_BITS)
    except NeedMoreError:
        return None
    return PvRequest(start=start, stop=bool(mode & _STOP_BIT), stream=stream)


def _read_pv_stream(reader: Reader, mode: int) -> PvConfig | PvCalibrationRequest | None:
    if mode == 3:  # reserved: only the camera's switch
        return None
    width, height, fps = _PV_FORMAT.unpack(reader.take(_PV_FORMAT.size))
    if mode == 2:
        return PvCalibrationRequest(width=width, height=height, fps=fps)
    divisor, profile, level, bitrate, count = _PV_ENCODING.unpack(reader.take(_PV_ENCODING.size))
    options = read_options(reader, count)
    return PvConfig(
        mode=mode,
        width=width,
        height=height,
        fps=fps,
        divisor=divisor,
        profile=profile,
        level=level,
        bitrate_bps=bitrate,
        options=options,
    )


# --- headset to client ---------------------------------------------------------------------------

_PV_METADATA = struct.Struct("<4fQ2Q4I2f3f2H")
assert _PV_METADATA.size == PV_METADATA_SIZE


class FocusState(enum.IntEnum):
    """What the PV camera's autofocus is doing."""

    UNINITIALISED = 0
    LOST = 1
    SEARCHING = 2
    FOCUSED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PvMetadata:
    """What the camera says of one frame: the last 80 bytes of a PV payload.

    Focal length and principal point are in pixels of this frame and move with the autofocus.
    `width` and `height` are the real size, which in shared mode differs from the one asked for.
    """

    focal_length_px: tuple[float, float]
    principal_point_px: tuple[float, float]
    width: int
    height: int
    exposure_time_hns: int = 0
    exposure_compensation: tuple[int, int] = (0, 0)
    lens_position: int = 0
    focus_state: int = FocusState.UNINITIALISED
    iso_speed: int = 0
    white_balance_k: int = 0
    iso_gains: tuple[float, float] = (0.0, 0.0)
    white_balance_gains: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def encode(self) -> bytes:
        """Return the 80 bytes of the wire."""
        return _PV_METADATA.pack(
            *self.focal_length_px,
            *self.principal_point_px,
            self.exposure_time_hns,
            *self.exposure_compensation,
            self.lens_position,
            self.focus_state,
            self.iso_speed,
            self.white_balance_k,
            *self.iso_gains,
            *self.white_balance_gains,
            self.width,
            self.height,
        )

    @classmethod
    def decode(cls, data: Bytes) -> PvMetadata:
        """Read the last 80 bytes of a PV payload."""
        values = _PV_METADATA.unpack(data)
        return cls(
            focal_length_px=values[0:2],
            principal_point_px=values[2:4],
            exposure_time_hns=values[4],
            exposure_compensation=values[5:7],
            lens_position=values[7],
            focus_state=values[8],
            iso_speed=values[9],
            white_balance_k=values[10],
            iso_gains=values[11:13],
            white_balance_gains=values[13:16],
            width=values[16],
            height=values[17],
        )


_CALIBRATION_PARTS = (
    ("focal_length_px", 2),
    ("principal_point_px", 2),
    ("radial_distortion", 3),
    ("tangential_distortion", 2),
    ("projection", 16),
    ("extrinsics", 16),
    ("intrinsics_mf", 4),
    ("extrinsics_mf", 7),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PvCalibration:
    """The PV camera's constants (mode 2), 52 float32 in this order on the wire.

    Matrices have shape (4, 4), row-vector convention: `projection` takes camera points (x right,
    y up, looking along -z) to pixels times z; `extrinsics` is rig node -> camera.
    `intrinsics_mf` is fx, fy, cx, cy; `extrinsics_mf` is a translation and a quaternion.
    """

    focal_length_px: NDArray[np.float32]
    principal_point_px: NDArray[np.float32]
    radial_distortion: NDArray[np.float32]
    tangential_distortion: NDArray[np.float32]
    projection: NDArray[np.float32]
    extrinsics: NDArray[np.float32]
    intrinsics_mf: NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))
    extrinsics_mf: NDArray[np.float32] = field(default_factory=lambda: np.zeros(7, np.float32))

    def encode(self) -> bytes:
        """Return the 208 bytes of the wire."""
        parts = [np.ravel(getattr(self, name)) for name, _ in _CALIBRATION_PARTS]
        return np.concatenate([np.ravel(part) for part in parts]).astype("<f4").tobytes()

    @classmethod
    def decode(cls, data: Bytes) -> PvCalibration:
        """Read a mode-2 reply.

        Raises:
            DeviceError: It does not have 208 bytes.
        """
        if len(data) != PV_CALIBRATION_SIZE:
            raise DeviceError(f"a PV calibration has {PV_CALIBRATION_SIZE} bytes, got {len(data)}")
        values = np.frombuffer(data, "<f4")
        cuts = np.cumsum([size for _, size in _CALIBRATION_PARTS])[:-1]
        parts = zip(_CALIBRATION_PARTS, np.split(values, cuts), strict=True)
        return cls(
            **{name: part.reshape(4, 4) if size == 16 else part for (name, size), part in parts}
        )


def raw_frame_size(width: int, height: int) -> int:
    """Bytes of a raw frame (profile 255): NV12 with rows padded to a multiple of 64."""
    return raw_row_stride(width) * height * 3 // 2


def raw_row_stride(width: int) -> int:
    """Bytes from row to row of a raw frame."""
    return -(-width // 64) * 64


def decode_raw_frame(data: Bytes, width: int, height: int) -> NDArray[np.uint8]:
    """View a raw PV frame as NV12 without its padding, shape (height * 3 / 2, width), uint8.

    Raises:
        DeviceError: It does not have the bytes of this size.
    """
    if len(data) != raw_frame_size(width, height):
        raise DeviceError(
            f"a raw {width}x{height} frame has {raw_frame_size(width, height)} bytes,"
            f" got {len(data)}"
        )
    rows = np.frombuffer(data, np.uint8).reshape(height * 3 // 2, raw_row_stride(width))
    return rows[:, :width]


def encode_raw_frame(nv12: NDArray[np.uint8]) -> bytes:
    """Return an NV12 picture of shape (height * 3 / 2, width) as a raw frame, rows padded."""
    rows, width = nv12.shape
    padded = np.zeros((rows, raw_row_stride(width)), np.uint8)
    padded[:, :width] = nv12
    return padded.tobytes()
