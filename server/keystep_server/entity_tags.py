"""Entity tags: a client that has the newest is told so in no bytes (RFC 9110, 8.8.3 and 13)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

from fastapi import Header, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[str | None, Header(description="entity tags that the client has")]
IfMatch = Annotated[str | None, Header(description="entity tags of what was seen")]
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {
    304: {"description": "what If-None-Match names is still right"}
}
_CACHE_CONTROL = "private, no-cache"


def tag_of(content: bytes) -> str:
    """The strong entity tag of these bytes."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a request's `If-None-Match` names a tag."""
    if if_none_match is None:
        return False
    given = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return "*" in given or tag in given


def still_matches(if_match: str | None, tag: str) -> bool:
    """Whether a request's `If-Match` names a tag (strongly), or there is none."""
    if if_match is None:
        return True
    given = {part.strip() for part in if_match.split(",")}
    return "*" in given or tag in given


def tagged_json(body: BaseModel, if_none_match: str | None) -> Response:
    """A body as JSON with its tag, or 304 where the client has it."""
    content = body.model_dump_json().encode()
    tag = tag_of(content)
    headers = {"ETag": tag, "Cache-Control": _CACHE_CONTROL}
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)
