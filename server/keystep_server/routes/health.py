"""Is it alive, can it work, what has it counted."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from keystep_server.routes.deps import AppDeps, Check, Deps
from keystep_server.schemas import CheckOut, HealthOut, ReadinessOut

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def get_health() -> HealthOut:
    """Alive: the process answers. Open to all."""
    return HealthOut(status="alive")


@router.get("/readyz", responses={503: {"model": ReadinessOut, "description": "not yet"}})
async def get_readiness(deps: Deps, response: Response) -> ReadinessOut:
    """Ready: the database answers, models are loaded, the wire is bound."""
    checks = [await _check_database(deps), *deps.readiness()]
    ready = all(check.ok for check in checks)
    response.status_code = 200 if ready else 503
    return ReadinessOut(ready=ready, checks=[CheckOut.model_validate(check) for check in checks])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
)
async def get_metrics(deps: Deps) -> Response:
    """Counters for Prometheus."""
    deps.metrics.set_sessions_open(await asyncio.to_thread(deps.store.unclosed_session_count))
    return Response(deps.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _check_database(deps: AppDeps) -> Check:
    try:
        await asyncio.to_thread(deps.store.ping)
    except SQLAlchemyError as error:
        return Check(name="database", ok=False, detail=type(error).__name__)
    return Check(name="database", ok=True, detail="answers")
