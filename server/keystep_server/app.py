"""The REST application, put together from its parts; nothing here is global."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keystep_server.access import AccessMiddleware
from keystep_server.key_step_editor import KeyStepEditor
from keystep_server.metrics import Metrics
from keystep_server.problems import install_problem_handlers
from keystep_server.recordings import Recordings
from keystep_server.routes import (
    bundles,
    commands,
    docs,
    events,
    health,
    jobs,
    key_steps,
    recordings,
    sessions,
)
from keystep_server.routes.deps import (
    AppDeps,
    Check,
    problems,
    refuse_unknown_parameters,
)
from keystep_server.sessions import utc_now

__all__ = ["AppDeps", "Check", "create_app"]

_AREAS = (sessions, commands, events, key_steps, bundles, jobs, recordings, health, docs)
_UNMATCHED = "unmatched"  # label of requests that no route takes
_DESCRIPTION = (
    "Sessions of headsets, the step events found in them, and their key steps. "
    "Errors are application/problem+json (RFC 9457); nanoseconds are decimal strings."
)


def create_app(deps: AppDeps) -> FastAPI:
    """The application; it owns nothing of what it is given, and starts and stops none of it."""
    app = FastAPI(
        title="Keystep",
        version=version("keystep"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems(s422="the request is not as documented"),
    )
    app.state.deps = deps
    recordings_access = Recordings(deps.store, deps.config.data_dir)
    app.state.recordings = recordings_access
    app.state.key_step_editor = KeyStepEditor(
        deps.store, recordings_access, deps.config.data_dir, utc_now
    )
    for module in _AREAS:
        app.include_router(module.router, dependencies=[Depends(refuse_unknown_parameters)])
    install_problem_handlers(app)
    app.add_middleware(AccessMiddleware, tokens=deps.tokens)
    app.add_middleware(_CountingMiddleware, metrics=deps.metrics)
    return app


class _CountingMiddleware:
    """Count each request by its route's template and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path or method of nobody's would make a label of every guess.
                route = getattr(scope.get("route"), "path", _UNMATCHED)
                method = scope["method"] if route != _UNMATCHED else "any"
                self._metrics.rest_answered(method, route, message["status"])
            await send(message)

        await self._app(scope, receive, counting_send)
