"""Finds chunks in an MCAP file whose records do not lead from one to the next any more."""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, Final

from mcap.opcode import Opcode

HEAD: Final = struct.Struct("<BQQQQII")  # opcode, length, times, size, CRC, length of a name
"""The beginning of a chunk's record."""
_BLOCK_BYTES: Final = 1024 * 1024
_MAX_NAME_BYTES: Final = 16
HEAD_BYTES: Final = HEAD.size + _MAX_NAME_BYTES + 8
"""Up to here stands all that tells a chunk's length."""
_MAX_CANDIDATES: Final = 100_000
"""What looks like a chunk and is none; a file made to be slow to search has more."""
# A chunk of less than 128 MiB, looked for at every byte.
_CANDIDATE: Final = re.compile(rb"(?=\x06[\x00-\xff]{3}[\x00-\x07]\x00{4})", re.DOTALL)
_RECORD_BYTES: Final = 1 + 8


def is_chunk(head: bytes, *, offset: int, file_bytes: int, limit_bytes: int) -> bool:
    """Whether a chunk's lengths agree with each other and with the file.

    Args:
        head: The file's bytes from the chunk on, `HEAD_BYTES` of them or up to its end.
        offset: Where that is in the file.
        file_bytes: The file's size.
        limit_bytes: The longest chunk.
    """
    if len(head) < HEAD.size:
        return False
    opcode, length, _, _, _, _, name_length = HEAD.unpack_from(head)
    stored_at = HEAD.size + name_length
    if opcode != Opcode.CHUNK or name_length > _MAX_NAME_BYTES or len(head) < stored_at + 8:
        return False
    (stored,) = struct.unpack_from("<Q", head, stored_at)
    return bool(
        stored_at + 8 + stored == _RECORD_BYTES + length <= limit_bytes
        and offset + _RECORD_BYTES + length <= file_bytes
    )


def find_chunk(
    file: BinaryIO, start: int, *, stop: int, file_bytes: int, limit_bytes: int
) -> int | None:
    """Where the next chunk begins, at `start` or behind it and before `stop`; None: there is none.

    Reads on in blocks of a megabyte. Of what is found, two lengths agree in all of their 16 bytes.

    Raises:
        OSError: The file cannot be read.
    """
    candidates = 0
    for offset in range(start, stop, _BLOCK_BYTES):
        file.seek(offset)
        block = file.read(_BLOCK_BYTES + HEAD_BYTES)
        for match in _CANDIDATE.finditer(block):
            found = match.start()
            head, here = block[found : found + HEAD_BYTES], offset + found
            if found >= _BLOCK_BYTES or here >= stop:
                break
            if is_chunk(head, offset=here, file_bytes=file_bytes, limit_bytes=limit_bytes):
                return here
            candidates += 1
            if candidates == _MAX_CANDIDATES:
                return None
    return None
