"""Recordings: listed, opened, given out, deleted."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AwareDatetime

from keystep_server.entity_tags import NOT_MODIFIED, IfNoneMatch, tagged_json
from keystep_server.ranges import Asked, file_response
from keystep_server.recording_list import (
    CURSOR_PATTERN,
    HealthFilter,
    RecordingFilter,
    RecordingOrder,
)
from keystep_server.recordings import Recordings
from keystep_server.routes.deps import Deps, Limit, SessionId, problems
from keystep_server.schemas import API
from keystep_server.schemas.recordings import (
    RecordedStreamOut,
    RecordingDetailOut,
    RecordingHealthOut,
    RecordingList,
    RecordingOut,
)
from keystep_server.sessions import DEVICE_ID_PATTERN, NAME_MAX_CHARS, SESSION_ID_PATTERN
from keystep_server.storage import SessionKind

T = TypeVar("T")

router = APIRouter(prefix=f"{API}/recordings", tags=["recordings"])


def _recordings_of(request: Request) -> Recordings:
    recordings: Recordings = request.app.state.recordings
    return recordings


async def run_in_worker(access: Recordings, call: Callable[..., T], *values: object) -> T:
    """Run what takes long in the thread for that."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(access.worker, functools.partial(call, *values))


def _asked(
    range: Annotated[str | None, Header(description="one range: bytes=FIRST-LAST")] = None,
    if_range: Annotated[str | None, Header(description="the entity tag it is of")] = None,
    if_none_match: IfNoneMatch = None,
) -> Asked:
    return Asked(range=range, if_range=if_range, if_none_match=if_none_match)


Access = Annotated[Recordings, Depends(_recordings_of)]
AskedBytes = Annotated[Asked, Depends(_asked)]
PartName = Annotated[str, Path(pattern=r"^part-[0-9]{3,6}\.mcap$")]
_NONE = "there is no such session, or nothing is recorded of it"
_OPEN = "its session is not closed"


def bytes_of(media_type: str, **others: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of a file that takes ranges, and of its other problems."""
    binary = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"content": binary, "description": "the whole file"},
        206: {"content": binary, "description": "the range that was asked for"},
        **NOT_MODIFIED,
        **problems(s416="the range lies outside of the file", **others),
    }


@router.get("", response_model=RecordingList, responses={**NOT_MODIFIED})
async def list_recordings(
    access: Access,
    device: Annotated[str | None, Query(pattern=DEVICE_ID_PATTERN)] = None,
    kind: SessionKind | None = None,
    task: Annotated[str | None, Query(min_length=1, max_length=NAME_MAX_CHARS)] = None,
    session: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    begun_from: Annotated[
        AwareDatetime | None,
        Query(alias="from", description="of sessions opened then or later: 2026-03-02T09:15:00Z"),
    ] = None,
    begun_before: Annotated[
        AwareDatetime | None, Query(alias="to", description="of sessions opened before")
    ] = None,
    finished: bool | None = None,
    health: HealthFilter | None = None,
    sort: RecordingOrder = RecordingOrder.NEWEST,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=CURSOR_PATTERN)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Recordings; also of sessions of which only the video is kept.

    `health` filters by the verdicts that were asked for; `unknown`: of which none was.
    """
    wanted = RecordingFilter(
        session_id=session,
        device_id=device,
        kind=kind,
        task=task,
        begun_from=begun_from,
        begun_before=begun_before,
        finished=finished,
        health=health,
        order=sort,
    )
    page = await asyncio.to_thread(access.page, wanted, limit=limit, cursor=cursor)
    body = RecordingList(
        recordings=[RecordingOut.of(one) for one in page.recordings],
        next_cursor=page.next_cursor,
    )
    return tagged_json(body, if_none_match)


@router.get(
    "/{session_id}",
    response_model=RecordingDetailOut,
    responses={**NOT_MODIFIED, **problems(s404=_NONE, s422="no part of it can be read")},
)
async def get_recording(
    access: Access, session_id: SessionId, if_none_match: IfNoneMatch = None
) -> Response:
    """One recording and what its index says."""
    opened = await run_in_worker(access, access.open, session_id)
    body = RecordingDetailOut(
        **RecordingOut.of(opened.found).model_dump(),
        streams=[
            RecordedStreamOut(stream=lane.stream, epoch=lane.epoch, encodings=list(lane.encodings))
            for lane in opened.lanes
        ],
        damage=list(opened.damage),
    )
    return tagged_json(body, if_none_match)


@router.get(
    "/{session_id}/health",
    response_model=RecordingHealthOut,
    responses={
        **NOT_MODIFIED,
        **problems(s404=_NONE, s409=_OPEN, s422="no part of it can be read"),
    },
)
async def get_health(
    access: Access, session_id: SessionId, if_none_match: IfNoneMatch = None
) -> Response:
    """The verdict on a closed session's recording; the first request reads all of it."""
    found = await run_in_worker(access, access.health, session_id)
    return tagged_json(RecordingHealthOut.of(session_id, found), if_none_match)


@router.get(
    "/{session_id}/files/{name}",
    response_class=Response,
    responses=bytes_of("application/octet-stream", s404="there is no such part"),
)
async def get_file(
    access: Access, session_id: SessionId, name: PartName, asked: AskedBytes
) -> Response:
    """A part as MCAP; one that is being written, up to where it is now."""
    path = await asyncio.to_thread(access.file, session_id, name)
    return await asyncio.to_thread(file_response, path, "application/octet-stream", asked)


@router.get(
    "/{session_id}/video",
    response_class=Response,
    responses=bytes_of("video/mp4", s404="it has no video", s409=_OPEN),
)
async def get_video(
    access: Access,
    session_id: SessionId,
    asked: AskedBytes,
    epoch: Annotated[int | None, Query(ge=0, le=2**31)] = None,
) -> Response:
    """The video of a closed session as MP4, as it came; the first request makes the file."""
    path = await run_in_worker(access, access.video, session_id, epoch)
    return await asyncio.to_thread(file_response, path, "video/mp4", asked)


@router.get(
    "/{session_id}/thumbnail",
    response_class=Response,
    responses=bytes_of("image/jpeg", s404="it has no picture", s409=_OPEN),
)
async def get_thumbnail(access: Access, session_id: SessionId, asked: AskedBytes) -> Response:
    """A picture from the middle of the video, 320 pixels wide."""
    path = await run_in_worker(access, access.thumbnail, session_id)
    return await asyncio.to_thread(file_response, path, "image/jpeg", asked)


@router.delete(
    "/{session_id}",
    status_code=204,
    response_class=Response,
    responses=problems(s404="there is no such session", s409=_OPEN),
)
async def delete_recording(deps: Deps, access: Access, session_id: SessionId) -> Response:
    """Delete a closed session: files, exports, ticks, pictures, key steps, step events, itself.

    Extraction jobs that read its recording are cancelled first.
    """
    async with deps.jobs.deleting(session_id):
        await run_in_worker(access, access.delete, session_id)
    return Response(status_code=204)
