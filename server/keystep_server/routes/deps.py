"""What the routes are given, and how they get at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from keystep_server.commands import CommandOutcome
from keystep_server.config import ServerConfig
from keystep_server.credentials import TokenBook
from keystep_server.events import EventLog
from keystep_server.feed import Feed
from keystep_server.jobs.runner import JobRunner
from keystep_server.method_choice import MethodChooser
from keystep_server.metrics import Metrics
from keystep_server.procedure_publishing import ProcedurePublisher
from keystep_server.schemas import ProblemOut
from keystep_server.sessions import SESSION_ID_PATTERN, SessionRegistry
from keystep_server.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing the server needs before it can work: models loaded, the wire bound."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDeps:
    """All that REST stands on.

    Attributes:
        readiness: What the server needs beside the database, each with whether it is there.
        tokens: Who may use REST.
        feed: What jobs and key steps are now.
        jobs: Extracts key steps.
        chooser: Knows procedures and bundles.
        publisher: Makes procedures of key steps.
        command: Runs a command of the wearer's: session id, command, command id.
        keepalive_s: Longest silence of an event stream before a comment is sent.
    """

    config: ServerConfig
    store: Store
    registry: SessionRegistry
    events: EventLog
    metrics: Metrics
    tokens: TokenBook
    feed: Feed
    jobs: JobRunner
    readiness: Callable[[], Sequence[Check]]
    chooser: MethodChooser
    publisher: ProcedurePublisher
    command: Callable[[str, str, str], Awaitable[CommandOutcome]]
    keepalive_s: float = 15.0


def _deps_of(request: Request) -> AppDeps:
    deps: AppDeps = request.app.state.deps
    return deps


Deps = Annotated[AppDeps, Depends(_deps_of)]
SessionId = Annotated[str, Path(pattern=SESSION_ID_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries on a page")]


def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a query parameter that the route does not have: a misspelt filter filters nothing.

    Raises:
        RequestValidationError: There is one.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    # Every query parameter of ours stands in its route's own signature.
    known = sorted(str(field.alias) for field in route.dependant.query_params)
    unknown = sorted(request.query_params.keys() - set(known))
    if unknown:
        message = f"unknown parameter; this route has: {', '.join(known) or 'none'}"
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name), "msg": message, "input": None}
                for name in unknown
            ]
        )


def problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems a route answers with: `problems(s404="why")`."""
    content = {"application/problem+json": {"schema": ProblemOut.model_json_schema()}}
    return {
        int(status.removeprefix("s")): {"description": text, "content": content}
        for status, text in statuses.items()
    }
