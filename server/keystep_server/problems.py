"""Every error of the REST side as problem+json (RFC 9457), mapped in this one place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from keystep_capture.errors import (
    ChangedError,
    ConfigError,
    DataError,
    KeystepError,
    NotFoundError,
    RefusedError,
    StateError,
)

# The first class that fits an error gives its status.
STATUS_OF: tuple[tuple[type[KeystepError], int], ...] = (
    (NotFoundError, 404),
    (ChangedError, 412),
    (StateError, 409),
    (RefusedError, 403),
    (ConfigError, 422),
    (DataError, 422),
)

log = structlog.get_logger(__name__)


class ProblemResponse(JSONResponse):
    """An error as RFC 9457 has it; ASCII only, since text from outside may not encode at all."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """The JSON, everything beyond ASCII escaped."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, Any]] | None = None,
) -> ProblemResponse:
    """A problem: the status' own title, and in `detail` what was expected and what to do."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors is not None:
        body["errors"] = list(errors)
    return ProblemResponse(body, status_code=status, headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of the app with a problem."""
    app.add_exception_handler(KeystepError, _keystep_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _keystep_error(request: Request, error: Exception) -> ProblemResponse:
    for kind, status in STATUS_OF:
        if isinstance(error, kind):
            return problem(status, _without_folder(str(error), request))
    return await _unexpected(request, error)


def _without_folder(detail: str, request: Request) -> str:
    """A detail without the path of the data directory: it is no client's business."""
    folder: Path = request.app.state.deps.config.data_dir
    for prefix in (str(folder.resolve()), str(folder)):
        if len(prefix) > 1:  # neither the present folder nor the root
            detail = detail.replace(prefix + os.sep, "")
    return detail


async def _invalid_request(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    # What came in is not sent back: it may be anything, and a mistyped secret is not for logs.
    errors = [
        {"where": ".".join(str(part) for part in item["loc"]), "message": item["msg"]}
        for item in error.errors()
    ]
    detail = "; ".join(f"{item['where']}: {item['message']}" for item in errors)
    return problem(422, detail[:2000], errors=errors[:50])


async def _http_error(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, headers=error.headers)


async def _unexpected(request: Request, error: Exception) -> ProblemResponse:
    log.error("a request failed", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "something unexpected went wrong; the server's log has the details")
