"""Procedures."""

from __future__ import annotations

from pydantic import BaseModel

from keystep_server.schemas.common import config_of

_PROCEDURE = {
    "name": "toy-bike",
    "title": "Assemble the toy bike",
    "steps": [{"step_id": 7, "title": "Fit the front wheel"}],
}


class ProcedureStepOut(BaseModel):
    """One step of a procedure."""

    model_config = config_of(_PROCEDURE["steps"][0])  # type: ignore[arg-type]

    step_id: int
    title: str


class ProcedureOut(BaseModel):
    """A procedure that sessions can be guided through."""

    model_config = config_of(_PROCEDURE)

    name: str
    title: str
    steps: list[ProcedureStepOut]


class ProcedureList(BaseModel):
    """All procedures."""

    model_config = config_of({"procedures": [_PROCEDURE]})

    procedures: list[ProcedureOut]
