"""A file over HTTP, whole or one range of it (RFC 9110, 14); also one that grows meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from keystep_capture.errors import NotFoundError
from keystep_server.entity_tags import matches
from keystep_server.problems import problem

_BLOCK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request says of the bytes it wants; None: nothing.

    Attributes:
        range: `Range`.
        if_range: `If-Range`: the range is of that entity tag, else the whole file is wanted.
        if_none_match: `If-None-Match`.
    """

    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None


def file_response(path: Path, media_type: str, asked: Asked) -> Response:
    """Answer with a file's bytes: 200, 206 where one range is asked for, or 304 (blocks).

    What is not one range of bytes is ignored, as the RFC allows: the whole file is the answer.

    Args:
        path: The file; what is added to it while it is sent is not.
        media_type: Its type.
        asked: What the request says.

    Raises:
        NotFoundError: It is not there any more.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"{path.name} is no longer there") from None
    about = os.fstat(file.fileno())
    size, tag = about.st_size, f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", "ETag": tag}
    if matches(asked.if_none_match, tag):
        file.close()
        return Response(status_code=304, headers=headers)
    wanted = None
    if asked.range is not None and asked.if_range in (None, tag):
        wanted = _RANGE.fullmatch(asked.range.strip())
    start, end = (0, size) if wanted is None else _span(wanted, size)
    if start >= end and wanted is not None:
        file.close()
        return problem(
            416,
            f"the range lies outside of the file, which has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(
        _blocks(file, start, end),
        status_code=200 if wanted is None else 206,
        media_type=media_type,
        headers=headers,
        background=BackgroundTask(file.close),
    )


def _span(wanted: re.Match[str], size: int) -> tuple[int, int]:
    """First byte and the one after the last; empty where none of it is there."""
    first, last, suffix = wanted.groups()
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
