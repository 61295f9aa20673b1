"""Guest message queue (GMQ): messages from the headset's Unity app, which the client polls."""

from __future__ import annotations

import struct
from typing import NamedTuple

from keystep_capture.errors import ConfigError, DeviceError

POLL = 0xFFFFFFFF
"""Asks for the next message; as an id it says that there is none."""
HELLO = 0xFFFFFFFE
"""What the stand-alone app offers each time."""
HELLO_TEXT = b"Hello from HoloLens 2"
HEAD_SIZE = 8
MAX_GUEST_MESSAGE_SIZE = 4 * 2**20
_HEAD, _U32 = struct.Struct("<II"), struct.Struct("<I")


class GuestMessage(NamedTuple):
    """One message of the Unity app; what `message_id` means is the app's business."""

    message_id: int
    data: bytes = b""


def encode_word(word: int) -> bytes:
    """Return a poll, or the result of the message just handled.

    Raises:
        ConfigError: It is not a u32.
    """
    if not 0 <= word <= 0xFFFFFFFF:
        raise ConfigError(f"a GMQ result is a u32, got {word}")
    return _U32.pack(word)


def parse_word(data: bytes) -> int | None:
    """Read what a client sent next, None if incomplete."""
    return None if len(data) < _U32.size else int.from_bytes(data[: _U32.size], "little")


def encode_guest_message(message: GuestMessage | None) -> bytes:
    """Return the answer to a poll; None where there is no message."""
    if message is None:
        return _HEAD.pack(POLL, 0)
    return _HEAD.pack(message.message_id, len(message.data)) + message.data


def decode_guest_head(data: bytes | bytearray) -> tuple[int, int]:
    """Read the id and size before a message's data.

    Raises:
        DeviceError: It announces more than 4 MiB.
    """
    message_id, size = _HEAD.unpack(data)
    if size > MAX_GUEST_MESSAGE_SIZE:
        raise DeviceError(
            f"a GMQ message announces {size} bytes, at most {MAX_GUEST_MESSAGE_SIZE} fit"
        )
    return message_id, size
