"""Devices and sessions."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from keystep_server.routes.deps import Deps, Limit, SessionId, problems
from keystep_server.schemas import (
    API,
    DeviceList,
    DeviceOut,
    LatenciesOut,
    RecordIn,
    RecordOut,
    SessionIn,
    SessionList,
    SessionOut,
    StatsOut,
)
from keystep_server.sessions import DEVICE_ID_PATTERN, SESSION_ID_PATTERN
from keystep_server.storage import SessionState

router = APIRouter(prefix=API, tags=["sessions"])


@router.get("/devices")
async def list_devices(
    deps: Deps,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=DEVICE_ID_PATTERN)] = None,
) -> DeviceList:
    """Headsets that were seen, by id."""
    found = await asyncio.to_thread(deps.store.devices, limit=limit + 1, after=cursor)
    return DeviceList(
        devices=[DeviceOut.model_validate(device) for device in found[:limit]],
        next_cursor=found[limit - 1].id if len(found) > limit else None,
    )


@router.post(
    "/sessions",
    status_code=201,
    responses=problems(
        s404="there is no such procedure",
        s409="the device has a session that is not closed",
        s422="no such method, or one that cannot run live",
    ),
)
async def create_session(deps: Deps, body: SessionIn, response: Response) -> SessionOut:
    """Open a session; the device's headset joins it when it connects."""
    session = await deps.registry.create(
        device_id=body.device_id,
        kind=body.kind,
        task=body.task,
        procedure=body.procedure,
        method=body.method,
        replay=body.replay,
        time_scale=body.time_scale,
        record=body.record,
    )
    response.headers["Location"] = f"{API}/sessions/{session.id}"
    return SessionOut.model_validate(session)


@router.get("/sessions")
async def list_sessions(
    deps: Deps,
    state: SessionState | None = None,
    device: Annotated[str | None, Query(pattern=DEVICE_ID_PATTERN)] = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
) -> SessionList:
    """Sessions, newest first."""
    sessions, next_cursor = await deps.registry.list_sessions(
        state=state, device_id=device, limit=limit, cursor=cursor
    )
    return SessionList(
        sessions=[SessionOut.model_validate(session) for session in sessions],
        next_cursor=next_cursor,
    )


@router.get("/sessions/{session_id}", responses=problems(s404="there is no such session"))
async def get_session(deps: Deps, session_id: SessionId) -> SessionOut:
    """One session."""
    return SessionOut.model_validate(await deps.registry.get(session_id))


@router.post("/sessions/{session_id}/close", responses=problems(s404="there is no such session"))
async def close_session(deps: Deps, session_id: SessionId) -> SessionOut:
    """Close a session: answers when all that came was worked off and its key steps are there.

    Closing a closed session changes nothing.
    """
    return SessionOut.model_validate(await deps.registry.close(session_id, "closed over REST"))


@router.put(
    "/sessions/{session_id}/recording",
    responses=problems(
        s404="there is no such session", s409="it is closed, or the disk does not take it"
    ),
)
async def set_recording(deps: Deps, session_id: SessionId, body: RecordIn) -> RecordOut:
    """Record every stream of a session from now on, or no longer; its headset need not be there."""
    on = await deps.registry.set_recording(session_id, body.on)
    return RecordOut(session_id=session_id, on=on)


@router.get("/sessions/{session_id}/stats", responses=problems(s404="there is no such session"))
async def get_stats(deps: Deps, session_id: SessionId) -> StatsOut:
    """What a session's streams and models have done since this server started."""
    session = await deps.registry.get(session_id)
    return StatsOut(
        session_id=session.id,
        state=session.state,
        epoch=session.epoch,
        stats=deps.registry.stats(session_id),
    )


@router.get("/sessions/{session_id}/latencies", responses=problems(s404="there is no such session"))
async def get_latencies(deps: Deps, session_id: SessionId) -> LatenciesOut:
    """Every latency that is still kept of a live session, oldest first; `stats` has the summary."""
    session = await deps.registry.get(session_id)
    return LatenciesOut.model_validate(
        {"session_id": session.id, "stretches": deps.registry.latencies(session_id)}
    )
