"""The wearer's commands, sent over REST."""

from __future__ import annotations

import secrets

from fastapi import APIRouter

from keystep_server.routes.deps import Deps, SessionId, problems
from keystep_server.schemas import API, CommandIn, CommandOut

router = APIRouter(prefix=API, tags=["sessions"])


@router.post(
    "/sessions/{session_id}/commands",
    responses=problems(
        s404="there is no such session",
        s409="the session is closed, or its headset has not connected to this server",
    ),
)
async def run_command(deps: Deps, session_id: SessionId, body: CommandIn) -> CommandOut:
    """Do what the wearer could say: answers when it is done, or with why it cannot be.

    The same `command_id` again gets the same answer and does nothing.
    """
    command_id = body.command_id or secrets.token_hex(8)
    outcome = await deps.command(session_id, body.command, command_id)
    return CommandOut(
        command=body.command,
        command_id=command_id,
        accepted=outcome.accepted,
        text=outcome.text,
    )
