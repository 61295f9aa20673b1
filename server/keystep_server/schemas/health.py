"""The server's state, and problems."""

from __future__ import annotations

from pydantic import BaseModel, Field

from keystep_server.schemas.common import EXAMPLE_SESSION_ID, config_of

_CHECK = {"name": "database", "ok": True, "detail": "answers"}


class HealthOut(BaseModel):
    """The process answers."""

    model_config = config_of({"status": "alive"})

    status: str


class CheckOut(BaseModel):
    """One thing the server needs before it can work."""

    model_config = config_of(_CHECK)

    name: str
    ok: bool
    detail: str


class ReadinessOut(BaseModel):
    """Whether the server can work, and what is missing."""

    model_config = config_of({"ready": True, "checks": [_CHECK]})

    ready: bool
    checks: list[CheckOut]


class ProblemOut(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = config_of(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": f"there is no session {EXAMPLE_SESSION_ID}",
        }
    )

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = Field(None, description="one entry per invalid field")
