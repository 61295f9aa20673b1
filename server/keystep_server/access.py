"""Who may use REST.

Off loopback, or once a token was made: whoever sends one (`Authorization: Bearer`). Else the server
listens on loopback only and every local program may use it, but not a web page of elsewhere that a
local browser shows: the Host must be a loopback name (a page could have its own name resolve to
127.0.0.1), a foreign Origin is refused. /healthz is open to all. Bodies that an HTML form could
send, or that are too large, are refused always.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keystep_server.config import is_loopback
from keystep_server.credentials import TokenBook
from keystep_server.problems import ProblemResponse, problem

MAX_BODY_BYTES = 64 * 1024
OPEN_PATHS = frozenset({"/healthz"})
_TOO_LARGE = f"expected a body of at most {MAX_BODY_BYTES} bytes"
_READING_METHODS = frozenset({"GET", "HEAD"})


class AccessMiddleware:
    """Let a request through, or answer it with the problem it has.

    Args:
        app: What is guarded.
        tokens: Those that are taken now.
    """

    def __init__(self, app: ASGIApp, *, tokens: TokenBook) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            if self._tokens.required:
                refusal = _refuse_stranger(scope["method"], headers, self._tokens)
            else:
                refusal = _refuse_cross_site(headers)
            refusal = refusal or _refuse_body(scope["method"], headers)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, _limited(receive), send)


def _limited(receive: Receive) -> Receive:
    """Give a body on until it is too large; Starlette's own limit answers in plain text."""
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receive_some


def _refuse_stranger(method: str, headers: Headers, tokens: TokenBook) -> ProblemResponse | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # Header text is latin-1; what the token's UTF-8 bytes became is turned back into them.
    grant = tokens.grant_of(given.strip().encode("latin-1"))
    if scheme.lower() != "bearer" or grant is None:
        return problem(
            401,
            "this server needs a token: send the header `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": 'Bearer realm="keystep"'},
        )
    if grant.read_only and method not in _READING_METHODS:
        return problem(403, f"the token {grant.name!r} is for reading only")
    return None


def _refuse_cross_site(headers: Headers) -> ProblemResponse | None:
    host = headers.get("host", "")
    if not is_loopback(_name_of(f"//{host}")):
        return problem(403, "the Host header is not a loopback name; use 127.0.0.1 or localhost")
    origin = headers.get("origin")
    if origin is not None and _netloc_of(origin) != host.lower():
        return problem(403, "requests from pages of other origins are refused")
    return None


def _refuse_body(method: str, headers: Headers) -> ProblemResponse | None:
    length = headers.get("content-length", "0")
    # What does not say its length is cut off while it is read (`_limited`).
    if length.isdecimal() and (len(length) > 20 or int(length) > MAX_BODY_BYTES):
        return problem(413, _TOO_LARGE)
    if method in _READING_METHODS:
        return None
    kind = headers.get("content-type")
    has_body = length != "0" or "transfer-encoding" in headers
    if kind is None and not has_body:
        return None
    if (kind or "").partition(";")[0].strip().lower() == "application/json":
        return None
    return problem(415, "expected a body of Content-Type: application/json")


def _netloc_of(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
