"""What all schemas share: types, the form of an example, and values that stand in examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainSerializer, WithJsonSchema

from keystep_server.sessions import DEVICE_ID_PATTERN, NAME_MAX_CHARS

API = "/api/v1"

Nanoseconds = Annotated[
    int,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^-?[0-9]+$"}),
]
DeviceId = Annotated[str, Field(pattern=DEVICE_ID_PATTERN)]
CommandId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]

EXAMPLE_AT = "2026-03-02T09:15:04.120000Z"
EXAMPLE_SESSION_ID = "ses_01kx5m3v0g8q2m4t6w8y0a2c4e"


def config_of(example: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a schema with an example of it."""
    return ConfigDict(
        extra="forbid", from_attributes=True, json_schema_extra={"examples": [dict(example)]}
    )
