"""Extraction jobs: asked for, followed, cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from keystep_server.feed import Notice, key_steps_notice
from keystep_server.ranges import file_response
from keystep_server.routes.deps import AppDeps, Deps, Limit, SessionId, problems
from keystep_server.routes.recordings import AskedBytes
from keystep_server.schemas import API, ExtractionIn, JobList, JobOut
from keystep_server.schemas.jobs import JOB_ID_PATTERN
from keystep_server.sessions import SESSION_ID_PATTERN
from keystep_server.storage import Job, JobState

router = APIRouter(prefix=API, tags=["jobs"])

_STREAM_EXAMPLE = 'event: job\ndata: {"id": "job_...", "state": "running", ...}\n\n'
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}}
}
_NONE = "there is no such job"

JobId = Annotated[str, Path(pattern=JOB_ID_PATTERN)]


@router.post(
    "/sessions/{session_id}/extraction",
    status_code=202,
    responses=problems(
        s404="there is no such session, or nothing is recorded of it",
        s409="torch is not installed, a session is not closed, the session has an unfinished job, "
        "or too many wait",
        s422="the choices do not go together",
    ),
)
async def extract(
    deps: Deps, session_id: SessionId, body: ExtractionIn, response: Response
) -> JobOut:
    """Extract key steps from a closed session's recording by a job: training on just this.

    The result is a new revision of the session's key steps.
    """
    session = await deps.registry.get(session_id)
    job = await deps.jobs.submit(session.id, body.recordings, body.flags(), body.chosen())
    response.headers["Location"] = f"{API}/jobs/{job.id}"
    return JobOut.of(job)


@router.get("/jobs", response_model=JobList, responses=_STREAM)
async def list_jobs(
    deps: Deps,
    request: Request,
    session: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    state: JobState | None = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=JOB_ID_PATTERN)] = None,
    stream: bool = False,
) -> Response:
    """Jobs, newest first.

    With `Accept: text/event-stream` or `?stream=1` the answer is a stream: a `job` for each
    unfinished job, then one whenever a job changes (progress at most once a second), and
    `key_steps` whenever a session has a new revision. `session` keeps to one session. Who falls
    behind misses states in between, never the newest. `server_stopping` asks to connect again.
    """
    if stream or _wants_stream(request):
        return _stream(deps, session, None)
    found = await asyncio.to_thread(
        deps.store.jobs.page, session_id=session, state=state, limit=limit + 1, before=cursor
    )
    page = JobList(
        jobs=[JobOut.of(job) for job in found[:limit]],
        next_cursor=found[limit - 1].id if len(found) > limit else None,
    )
    return JSONResponse(page.model_dump(mode="json"))


@router.get(
    "/jobs/{job_id}",
    response_model=JobOut,
    responses={**_STREAM, **problems(s404=_NONE)},
)
async def get_job(deps: Deps, request: Request, job_id: JobId, stream: bool = False) -> Response:
    """One job; as a stream (see the list) until it has ended."""
    job = await asyncio.to_thread(deps.store.jobs.get, job_id)
    if stream or _wants_stream(request):
        return _stream(deps, job.session_id, job_id)
    return JSONResponse(JobOut.of(job).model_dump(mode="json"))


@router.delete("/jobs/{job_id}", responses=problems(s404=_NONE, s409="it has ended otherwise"))
async def delete_job(deps: Deps, job_id: JobId) -> JobOut:
    """Cancel a job: as `cancel`. It stays in the list, as `cancelled`."""
    return await cancel_job(deps, job_id)


@router.post("/jobs/{job_id}/cancel", responses=problems(s404=_NONE, s409="it has ended otherwise"))
async def cancel_job(deps: Deps, job_id: JobId) -> JobOut:
    """Cancel a job: answers when its process has ended. A second call changes nothing.

    What it has computed stays with its session and is used by the next one.
    """
    return JobOut.of(await deps.jobs.cancel(job_id))


@router.get(
    "/jobs/{job_id}/log",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "what it said so far, up to 1 MiB"},
        **problems(s404="there is no such job, or it was never begun"),
    },
)
async def get_log(deps: Deps, job_id: JobId, asked: AskedBytes) -> Response:
    """A job's log: its stages and all that its process wrote to stderr."""
    job = await asyncio.to_thread(deps.store.jobs.get, job_id)
    path = deps.jobs.log_path(job)
    return await asyncio.to_thread(file_response, path, "text/plain; charset=utf-8", asked)


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _stream(deps: AppDeps, session_id: str | None, job_id: str | None) -> Response:
    return EventSourceResponse(
        _encode(deps, session_id, job_id),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _encode(
    deps: AppDeps, session_id: str | None, job_id: str | None
) -> AsyncIterator[bytes]:
    """What is, then what changes, of all sessions or of one; of one job until it has ended."""

    def wanted(notice: Notice) -> bool:
        if job_id is not None:
            return notice.key == job_id
        return session_id in (None, notice.session_id)

    with deps.feed.follow(wanted) as follower:
        follower.begin_with(await asyncio.to_thread(_present, deps, session_id, job_id))
        while True:
            try:
                notice = await asyncio.wait_for(anext(follower), deps.keepalive_s)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            except StopAsyncIteration:
                yield format_sse_event(data_str="{}", event="server_stopping")
                return
            yield format_sse_event(data_str=json.dumps(notice.data), event=notice.kind)
            if job_id is not None and JobState(notice.data["state"]).is_final:
                return


def _present(deps: AppDeps, session_id: str | None, job_id: str | None) -> Sequence[Notice]:
    """Where things stand (blocks): the job; else unfinished jobs and one session's key steps."""
    if job_id is not None:
        return [job_notice(deps.store.jobs.get(job_id))]
    jobs = deps.store.jobs.unfinished()
    notices = [job_notice(job) for job in jobs if session_id in (None, job.session_id)]
    newest = None if session_id is None else deps.store.revisions.find(session_id)
    return notices if newest is None else [*notices, key_steps_notice(newest)]


def job_notice(job: Job) -> Notice:
    """That a job has changed."""
    data = JobOut.of(job).model_dump(mode="json")
    return Notice(kind="job", key=job.id, session_id=job.session_id, data=data)
