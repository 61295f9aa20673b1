"""Imports a video file: its pictures as `rgb`, without encoding them again where that can be."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import msgspec
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from keystep_capture.errors import DataError, VideoError
from keystep_capture.recording.importing import (
    Imported,
    ImportedPacket,
    ImportPlan,
    describe_source,
)
from keystep_capture.streams import STREAMS
from keystep_capture.video import MAX_PIXELS, PacketDecoder, is_keyframe

JPEG_QUALITY = 95
_FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_NS = 1_000_000_000
_PROBED_PACKETS = 32
_UNKNOWN_RATE_HZ = 30.0
_MAX_SIDECAR_BYTES = 256 * 1024 * 1024


class _Times(msgspec.Struct):
    """What `keystep recording export --mp4` writes beside a video."""

    device_times_ns: list[int]


class VideoFileImporter:
    """Any video file that FFmpeg reads."""

    title = "any video file: its pictures as rgb"

    def plan(self, path: Path) -> ImportPlan:
        """Look at a video's head, and at all of its packets' times."""
        codec, why = _manner(path)
        with _opened(path) as container:
            stream = container.streams.video[0]
            rate_hz, is_timed = _rate_hz(stream), _is_timed(container, stream)
            count = stream.frames or None
            size = f"{stream.width}x{stream.height}"
        manner = f"{codec} as it is" if not why else f"decoded and stored as JPEG, since {why}"
        absent = ["every sensor but rgb", "sound", "camera intrinsics and poses"]
        if why:
            absent.append(f"the encoded video: pictures were encoded again, since {why}")
        if not _sidecar(path).is_file() and not is_timed:
            absent.append(f"times: the file has none, picture n is put at n / {rate_hz:g} Hz")
        elif not _sidecar(path).is_file():
            absent.append("device times: the file's own times are taken, to its time base")
        return ImportPlan(
            source=describe_source(path, "video"),
            streams={"rgb": f"{size}, {manner}"},
            absent=tuple(absent),
            packet_count=count,
        )

    def read(self, path: Path) -> Iterator[Imported]:
        """Give the pictures in order of time."""
        times = _device_times(path)
        codec, why = _manner(path)
        with _opened(path) as container:
            stream = container.streams.video[0]
            try:
                if why:
                    packets = _transcoded(container, stream)
                else:
                    packets = _remuxed(container, stream, codec)
                for number, (time_ns, payload, fields) in enumerate(packets):
                    if times is not None and number >= len(times):
                        raise DataError(f"{path}: has more pictures than its times beside it")
                    yield ImportedPacket(
                        stream="rgb",
                        device_time_ns=time_ns if times is None else times[number],
                        payload=payload,
                        encoding="jpeg" if why else codec,
                        fields=fields,
                    )
            except (av.error.FFmpegError, ValueError) as error:
                raise DataError(f"{path}: the video breaks: {_one_line(error)}") from None


def _opened(path: Path) -> InputContainer:
    if not path.is_file():
        raise DataError(f"{path}: expected a video file")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, ValueError) as error:
        raise DataError(f"{path}: expected a video file: {_one_line(error)}") from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: expected a video file, it has no video")
    stream = container.streams.video[0]
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        container.close()
        raise DataError(
            f"{path}: the video has {stream.width}x{stream.height} pixels, at most {MAX_PIXELS}"
        )
    return container


def _manner(path: Path) -> tuple[str, str]:
    """The codec, and why its packets cannot be taken as they are; "": they can."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context.name
        if codec not in _FILTERS:
            return codec, f"{codec} is neither H.264 nor HEVC"
        if codec not in STREAMS["rgb"].encodings:
            return codec, f"the wire has no {codec}"
        newest: int | None = None
        for packet in container.demux(stream):
            if packet.pts is None:
                if packet.size:
                    return codec, "it gives no times to some packets"
            elif newest is not None and packet.pts <= newest:
                return codec, "it has B frames"
            else:
                newest = packet.pts
    with _opened(path) as container:  # anew, since not every format can go back
        return codec, _why_not_decodable(container, container.streams.video[0], codec)


def _is_timed(container: InputContainer, stream: VideoStream) -> bool:
    """Whether its packets have times; those of a bare stream of a codec have none."""
    packets = (packet for packet in container.demux(stream) if packet.size)
    return any(packet.pts is not None or packet.dts is not None for packet in packets)


def _rate_hz(stream: VideoStream) -> float:
    rate = stream.guessed_rate or stream.average_rate
    return float(rate) if rate else _UNKNOWN_RATE_HZ


def _why_not_decodable(container: InputContainer, stream: VideoStream, codec: str) -> str:
    decoder = PacketDecoder(codec)
    first = True
    for number, (_, payload, fields) in enumerate(_remuxed(container, stream, codec)):
        if first and not fields["keyframe"]:
            return "it does not begin with a picture that stands alone"
        first = False
        if len(payload) > STREAMS["rgb"].encodings[codec].max_bytes:
            return "a packet is larger than the wire allows"
        try:
            decoder.decode(payload)
        except VideoError:
            return "its packets do not give a picture each"
        if number == _PROBED_PACKETS:
            break
    return ""


def _remuxed(
    container: InputContainer, stream: VideoStream, codec: str
) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    annex_b = BitStreamFilterContext(_FILTERS[codec], stream)
    first: int | None = None
    for packet in container.demux(stream):
        for part in annex_b.filter(packet if packet.size else None):
            payload = bytes(part)
            assert part.pts is not None
            first = part.pts if first is None else first
            fields = {
                "keyframe": is_keyframe(payload, codec),
                "width": stream.width,
                "height": stream.height,
            }
            yield _time_ns(part, first, stream), payload, fields


def _transcoded(
    container: InputContainer, stream: VideoStream
) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    first: int | None = None
    period_ns = round(_NS / _rate_hz(stream))
    time_ns = -period_ns
    for frame in container.decode(stream):
        if frame.pts is None:
            time_ns += period_ns
        else:
            first = frame.pts if first is None else first
            time_ns = _time_ns(frame, first, stream)
        done, jpeg = cv2.imencode(
            ".jpg", frame.to_ndarray(format="bgr24"), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        assert done
        fields = {"keyframe": True, "width": frame.width, "height": frame.height}
        yield time_ns, jpeg.tobytes(), fields


def _time_ns(timed: Packet[Any] | av.VideoFrame, first: int, stream: VideoStream) -> int:
    base = timed.time_base or stream.time_base or Fraction(1, 1000)
    assert timed.pts is not None
    return round((timed.pts - first) * base * _NS)


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".times.json")


def _device_times(path: Path) -> list[int] | None:
    """The exact times that an export wrote beside a video."""
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return None
    if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
        raise DataError(f"{sidecar}: has more than {_MAX_SIDECAR_BYTES} bytes")
    try:
        return msgspec.json.decode(sidecar.read_bytes(), type=_Times).device_times_ns
    except msgspec.DecodeError as error:
        raise DataError(f"{sidecar}: expected a list `device_times_ns`: {error}") from None


def _one_line(error: Exception) -> str:
    """What FFmpeg says is wrong, without the file or function that it names."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
