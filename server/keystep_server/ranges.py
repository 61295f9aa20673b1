"""A file over HTTP, whole or one range of it (RFC 9110, 14); also one that grows meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from keystep_capture.errors import NotFoundError
from keystep_server.problems import problem

_BLOCK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")


def file_response(path: Path, media_type: str, range_header: str | None) -> Response:
    """Answer with a file's bytes: 200, or 206 where one range is asked for (blocks).

    What is not one range of bytes is ignored, as the RFC allows: the whole file is the answer.

    Args:
        path: The file; what is added to it while it is sent is not.
        media_type: Its type.
        range_header: The request's `Range`.

    Raises:
        NotFoundError: It is not there any more.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"{path.name} is no longer there") from None
    size = os.fstat(file.fileno()).st_size
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    asked = _RANGE.fullmatch(range_header.strip()) if range_header is not None else None
    start, end = (0, size) if asked is None else _span(asked, size)
    if start >= end and asked is not None:
        file.close()
        return problem(
            416,
            f"the range lies outside of the file, which has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    headers["Content-Length"] = str(end - start)
    if asked is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(
        _blocks(file, start, end),
        status_code=200 if asked is None else 206,
        media_type=media_type,
        headers=headers,
        background=BackgroundTask(file.close),
    )


def _span(asked: re.Match[str], size: int) -> tuple[int, int]:
    """First byte and the one after the last; empty where none of it is there."""
    first, last, suffix = asked.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size if int(suffix) else 0
    end = size if last is None else min(size, int(last) + 1)
    return int(first), end


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(_BLOCK_BYTES, end - start))):
            start += len(block)
            yield block
