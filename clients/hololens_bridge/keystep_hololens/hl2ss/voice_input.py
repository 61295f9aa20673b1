"""Voice input (VI): the phrases to listen for, and what was heard."""

from __future__ import annotations

import codecs
import enum
import struct
from dataclasses import dataclass

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss.protocol import Bytes, NeedMoreError, Reader

POLL, STOP = b"\x01", b"\x00"
COUNT_SIZE, RESULT_SIZE = 4, 32
MAX_RESULT_COUNT = 10_000
MAX_PHRASE_COUNT, MAX_PHRASES_SIZE = 0xFFFF, 2**20
_U16, _U32, _RESULT = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<IIQQd")
assert _RESULT.size == RESULT_SIZE


class Confidence(enum.IntEnum):
    """How sure the headset is of a phrase."""

    HIGH = 0
    MEDIUM = 1
    LOW = 2
    REJECTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardPhrase:
    """One phrase that was heard.

    Attributes:
        phrase_idx: Its place in the list of phrases; equal to their count if unknown.
        start_filetime_hns: When it began, UTC FILETIME (not the streams' clock), 100 ns.
    """

    phrase_idx: int
    confidence: int
    duration_hns: int
    start_filetime_hns: int
    raw_confidence: float

    def encode(self) -> bytes:
        """Return the 32 bytes of the wire."""
        return _RESULT.pack(
            self.phrase_idx,
            self.confidence,
            self.duration_hns,
            self.start_filetime_hns,
            self.raw_confidence,
        )

    @classmethod
    def decode(cls, data: Bytes) -> HeardPhrase:
        """Read 32 bytes."""
        phrase_idx, confidence, duration, start, raw = _RESULT.unpack(data)
        return cls(
            phrase_idx=phrase_idx,
            confidence=confidence,
            duration_hns=duration,
            start_filetime_hns=start,
            raw_confidence=raw,
        )


def encode_phrases(phrases: tuple[str, ...], *, with_mark: bool = True) -> bytes:
    """Return the list of phrases, UTF-16LE.

    Args:
        phrases: What to listen for.
        with_mark: Lead each phrase with a byte order mark, as hl2ss's own client does.

    Raises:
        ConfigError: There is none, or one or all of them are too long for the wire.
    """
    if not phrases:
        raise ConfigError("voice input needs phrases to listen for")
    mark = codecs.BOM_UTF16_LE if with_mark else b""
    encoded = [mark + phrase.encode("utf-16-le") for phrase in phrases]
    try:
        parts = [_U16.pack(len(one)) + one for one in encoded]
        return _U16.pack(len(parts)) + b"".join(parts)
    except struct.error as error:
        raise ConfigError(f"the phrases do not fit the wire: {error}") from error


def parse_phrases(data: Bytes) -> tuple[tuple[str, ...], int] | None:
    """Take a list of phrases off the front, marks left out: it and the bytes used.

    Returns None while more is needed.

    Raises:
        DeviceError: A phrase is not UTF-16, or the list is absurdly long.
    """
    if len(data) > MAX_PHRASES_SIZE:
        raise DeviceError(f"a list of phrases has at most {MAX_PHRASES_SIZE} bytes")
    reader, used, phrases = Reader(data), _U16.size, []
    try:
        for _ in range(_U16.unpack(reader.take(_U16.size))[0]):
            (size,) = _U16.unpack(reader.take(_U16.size))
            encoded = bytes(reader.take(size))
            used += _U16.size + size
            phrases.append(encoded.removeprefix(codecs.BOM_UTF16_LE).decode("utf-16-le"))
    except NeedMoreError:
        return None
    except UnicodeDecodeError as error:
        raise DeviceError(f"a phrase is not UTF-16LE: {error}") from error
    return tuple(phrases), used


def encode_heard(heard: list[HeardPhrase]) -> bytes:
    """Return the answer to a poll."""
    return _U32.pack(len(heard)) + b"".join(one.encode() for one in heard)


def decode_heard_count(data: Bytes) -> int:
    """Read how many results follow.

    Raises:
        DeviceError: The count is absurd.
    """
    (count,) = _U32.unpack(data)
    if count > MAX_RESULT_COUNT:
        raise DeviceError(f"voice input announces {count} phrases, at most {MAX_RESULT_COUNT}")
    return int(count)
