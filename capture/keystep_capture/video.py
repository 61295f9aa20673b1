"""Decoding a stream's encoded video, packet by packet, safely.

A decoder that is fed a broken group of pictures returns wrong pictures without any error, so after
any gap, failure or change nothing is decoded before the next key frame.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from keystep_capture.errors import VideoError

MAX_PIXELS = 4096 * 2304
_CODECS = {"h264": "h264", "hevc": "hevc", "jpeg": "mjpeg"}
_HEAD_BYTES = 4096
_START_CODE = b"\x00\x00\x01"
_JPEG_END = b"\xff\xd9"
_JPEG_PADDING_BYTES = 1024  # cameras may leave that much behind the end


class GapFilter:
    """Says which packets of a video may be decoded: none between a gap and a key frame."""

    def __init__(self, *, independent: bool = False) -> None:
        """Start; `independent`: every packet is a picture of its own (JPEG)."""
        self._independent = independent
        self._next_sequence: int | None = None
        self._intact = False

    def admit(self, sequence: int, *, keyframe: bool) -> bool:
        """Whether the packet with this sequence may be decoded."""
        if self._independent:
            return True
        follows = self._next_sequence == sequence
        self._next_sequence = sequence + 1
        self._intact = keyframe or (self._intact and follows)
        return self._intact

    def break_off(self) -> None:
        """Wait for a key frame: what was decoded last went wrong."""
        self._intact = False


class PacketDecoder:
    """Decodes one video stream; each packet gives its picture at once."""

    def __init__(self, encoding: str) -> None:
        """Open a decoder.

        Args:
            encoding: `h264` or `hevc` (Annex B, one access unit a packet, no B frames), or
                `jpeg`.

        Raises:
            VideoError: The encoding is unknown.
        """
        if encoding not in _CODECS:
            raise VideoError(f"video encoding {encoding!r} is unknown; known: {sorted(_CODECS)}")
        self._encoding = encoding
        self._codec = self._open()

    def decode(self, payload: bytes | memoryview) -> VideoFrame:
        """Decode one packet.

        Raises:
            VideoError: It cannot be decoded, is damaged or holds no picture; the decoder was
                opened anew and needs a key frame next.
        """
        try:
            frames = self._codec.decode(av.Packet(payload))  # type: ignore[arg-type]
        except (av.error.FFmpegError, ValueError) as error:
            self._codec = self._open()
            raise VideoError(
                f"{self._encoding} packet of {len(payload)} bytes: {error.args[-1]}"
            ) from None
        if len(frames) != 1:
            self._codec = self._open()
            raise VideoError(
                f"{self._encoding} packet of {len(payload)} bytes gave {len(frames)} pictures, "
                "expected one: packets hold one access unit, without B frames"
            )
        if frames[0].is_corrupt or self._is_cut_off(payload):  # what was missing is invented
            self._codec = self._open()
            raise VideoError(
                f"{self._encoding} packet of {len(payload)} bytes is damaged or cut off"
            )
        return frames[0]

    def _is_cut_off(self, payload: bytes | memoryview) -> bool:
        """Whether a JPEG lacks its end, of which its decoder says nothing."""
        return self._encoding == "jpeg" and _JPEG_END not in bytes(payload[-_JPEG_PADDING_BYTES:])

    def _open(self) -> VideoCodecContext:
        codec = av.CodecContext.create(_CODECS[self._encoding], "r")
        assert isinstance(codec, VideoCodecContext)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        codec.flags |= av.codec.context.Flags.low_delay
        return codec


def is_keyframe(access_unit: bytes | memoryview, encoding: str) -> bool:
    """Whether decoding can start at a packet of this encoding; always, where none needs another."""
    if encoding == "h264":
        return is_h264_keyframe(access_unit)
    if encoding == "hevc":
        return is_hevc_keyframe(access_unit)
    return True


def is_h264_keyframe(access_unit: bytes | bytearray | memoryview) -> bool:
    """Whether an Annex B access unit can be decoded without those before it (an IDR picture)."""
    for first_byte in _nal_unit_heads(access_unit):
        unit_type = first_byte & 0x1F
        if 1 <= unit_type <= 5:
            return unit_type == 5
    return False


def is_hevc_keyframe(access_unit: bytes | bytearray | memoryview) -> bool:
    """Whether an Annex B access unit begins with a random access picture (H.265, table 7-1)."""
    for first_byte in _nal_unit_heads(access_unit):
        unit_type = first_byte >> 1 & 0x3F
        if unit_type < 32:  # a slice; the others are parameter sets, delimiters and the like
            return 16 <= unit_type <= 23
    return False


def _nal_unit_heads(access_unit: bytes | bytearray | memoryview) -> Iterator[int]:
    """The first byte of each NAL unit that begins near the access unit's start."""
    head = bytes(memoryview(access_unit)[:_HEAD_BYTES])
    position = head.find(_START_CODE)
    while 0 <= position < len(head) - 3:
        yield head[position + 3]
        position = head.find(_START_CODE, position + 3)
