"""A session's step events: as a list, or live as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from keystep_server.events import EndReason, Subscription
from keystep_server.routes.deps import Deps, Limit, SessionId, problems
from keystep_server.schemas import API, StepEventList, StepEventOut
from keystep_server.storage.records import INT64_MAX

router = APIRouter(prefix=API, tags=["step events"])

# What the last event of a stream is called. A client that sees another end than session_closed,
# or none, connects again with Last-Event-ID, as browsers do by themselves.
_END_EVENTS = {
    EndReason.CLOSED: "session_closed",
    EndReason.SLOW: "too_slow",
    EndReason.STOPPING: "server_stopping",
}
_STREAM_EXAMPLE = 'event: step_event\ndata: {"ordinal": 3, ...}\nid: 3\n\n'

Ordinal = Annotated[int, Query(ge=0, le=INT64_MAX)]


@router.get(
    "/sessions/{session_id}/events",
    response_model=StepEventList,
    responses={
        200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}},
        **problems(s404="there is no such session"),
    },
)
async def list_events(
    deps: Deps,
    request: Request,
    session_id: SessionId,
    after: Ordinal = 0,
    limit: Limit = 100,
    stream: bool = False,
    last_event_id: Annotated[int | None, Header(ge=0, le=INT64_MAX)] = None,
) -> Response:
    """Step events after an ordinal.

    With `Accept: text/event-stream` or `?stream=1` the answer is a stream: `step_event`s with their
    ordinal as id, from after `Last-Event-ID` (or `after`), comments to keep it alive, and at the
    end `session_closed`. The end `too_slow` or `server_stopping` asks to connect again.
    """
    session = await deps.registry.get(session_id)
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        start = after if last_event_id is None else last_event_id
        subscription = deps.events.subscribe(session.id, start)
        return EventSourceResponse(
            _encode(subscription, deps.keepalive_s),
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    found = await deps.events.read(session.id, after=after, limit=limit)
    page = StepEventList(
        events=[StepEventOut.model_validate(event) for event in found],
        next_after=found[-1].ordinal if len(found) == limit else None,
    )
    return JSONResponse(page.model_dump(mode="json"))


async def _encode(subscription: Subscription, keepalive_s: float) -> AsyncIterator[bytes]:
    with subscription:
        while True:
            try:
                event = await asyncio.wait_for(anext(subscription), keepalive_s)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            except StopAsyncIteration:
                break
            data = StepEventOut.model_validate(event).model_dump_json()
            yield format_sse_event(data_str=data, event="step_event", id=str(event.ordinal))
        if subscription.end_reason in _END_EVENTS:
            yield format_sse_event(data_str="{}", event=_END_EVENTS[subscription.end_reason])
