"""Recordings: listed, opened, given out, deleted."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from keystep_server.ranges import file_response
from keystep_server.recordings import Recordings
from keystep_server.routes.deps import Limit, SessionId, problems
from keystep_server.schemas import (
    API,
    RecordedStreamOut,
    RecordingDetailOut,
    RecordingList,
    RecordingOut,
)
from keystep_server.sessions import DEVICE_ID_PATTERN, SESSION_ID_PATTERN
from keystep_server.storage import SessionKind

T = TypeVar("T")

router = APIRouter(prefix=f"{API}/recordings", tags=["recordings"])


def _recordings_of(request: Request) -> Recordings:
    recordings: Recordings = request.app.state.recordings
    return recordings


async def _run(access: Recordings, call: Callable[..., T], *values: object) -> T:
    """Run what takes long in the thread for that."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(access.worker, functools.partial(call, *values))


Access = Annotated[Recordings, Depends(_recordings_of)]
Range = Annotated[str | None, Header(description="one range: bytes=FIRST-LAST")]
PartName = Annotated[str, Path(pattern=r"^part-[0-9]{3,6}\.mcap$")]
_NONE = "there is no such session, or nothing is recorded of it"
_OPEN = "its session is not closed"


def _bytes_of(media_type: str, **others: str) -> dict[int | str, dict[str, object]]:
    binary = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"content": binary, "description": "the whole file"},
        206: {"content": binary, "description": "the range that was asked for"},
        **problems(s416="the range lies outside of the file", **others),
    }


@router.get("")
async def list_recordings(
    access: Access,
    device: Annotated[str | None, Query(pattern=DEVICE_ID_PATTERN)] = None,
    kind: SessionKind | None = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
) -> RecordingList:
    """Recordings, newest session first; also of sessions of which only the video is kept."""
    found = await asyncio.to_thread(
        access.page, device_id=device, kind=kind, limit=limit + 1, before=cursor
    )
    return RecordingList(
        recordings=[RecordingOut.of(one) for one in found[:limit]],
        next_cursor=found[limit - 1].session.id if len(found) > limit else None,
    )


@router.get("/{session_id}", responses=problems(s404=_NONE, s422="no part of it can be read"))
async def get_recording(access: Access, session_id: SessionId) -> RecordingDetailOut:
    """One recording and what its index says."""
    opened = await _run(access, access.open, session_id)
    return RecordingDetailOut(
        **RecordingOut.of(opened.found).model_dump(),
        streams=[
            RecordedStreamOut(stream=lane.stream, epoch=lane.epoch, encodings=list(lane.encodings))
            for lane in opened.lanes
        ],
        finished=opened.finished,
        damage=list(opened.damage),
    )


@router.get(
    "/{session_id}/files/{name}",
    response_class=Response,
    responses=_bytes_of("application/octet-stream", s404="there is no such part"),
)
async def get_file(
    access: Access, session_id: SessionId, name: PartName, range: Range = None
) -> Response:
    """A part as MCAP; one that is being written, up to where it is now."""
    path = await asyncio.to_thread(access.file, session_id, name)
    return await asyncio.to_thread(file_response, path, "application/octet-stream", range)


@router.get(
    "/{session_id}/video",
    response_class=Response,
    responses=_bytes_of("video/mp4", s404="it has no video", s409=_OPEN),
)
async def get_video(
    access: Access,
    session_id: SessionId,
    epoch: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    range: Range = None,
) -> Response:
    """The video of a closed session as MP4, as it came; the first request makes the file."""
    path = await _run(access, access.video, session_id, epoch)
    return await asyncio.to_thread(file_response, path, "video/mp4", range)


@router.get(
    "/{session_id}/thumbnail",
    response_class=Response,
    responses=_bytes_of("image/jpeg", s404="it has no picture", s409=_OPEN),
)
async def get_thumbnail(access: Access, session_id: SessionId, range: Range = None) -> Response:
    """A picture from the middle of the video, 320 pixels wide."""
    path = await _run(access, access.thumbnail, session_id)
    return await asyncio.to_thread(file_response, path, "image/jpeg", range)


@router.delete(
    "/{session_id}",
    status_code=204,
    response_class=Response,
    responses=problems(s404="there is no such session", s409=_OPEN),
)
async def delete_recording(access: Access, session_id: SessionId) -> Response:
    """Delete a closed session: files, exports, ticks, pictures, key steps, step events, itself."""
    await _run(access, access.delete, session_id)
    return Response(status_code=204)
