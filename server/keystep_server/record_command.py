"""`keystep record`: records a headset's session on a running server, over its REST side.

What it needs is imported when it runs: every `keystep` command loads this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_server.rest_client import RestClient

DEFAULT_SERVER = "http://127.0.0.1:8040"

record = typer.Typer(
    help="Record a headset's session on a running server.", invoke_without_command=True
)

_Server = Annotated[str, typer.Option(help="The server's REST address.")]
_Token = Annotated[
    str | None, typer.Option(envvar="KEYSTEP_TOKEN", help="A token of its REST side.")
]
_Session = Annotated[str, typer.Argument(help="The session's id, ses_...")]


@record.callback()
def _record(
    context: typer.Context,
    device: Annotated[str | None, typer.Option(help="The headset's id.")] = None,
    task: Annotated[str | None, typer.Option(help="What is done.")] = None,
    procedure: Annotated[
        str | None, typer.Option(help="The procedure whose steps are to be recognised.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0.1, help="End it after so many seconds.")
    ] = None,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", help="End the recording, but not the session.")
    ] = False,
    server: _Server = DEFAULT_SERVER,
    token: _Token = None,
) -> None:
    """Record all streams of an expert's session until Ctrl-C, or for some seconds.

    The device's open session is taken, or one is opened, which its headset joins when it connects.
    A session that was opened here is closed at the end; one that was there before goes on, no
    longer recorded.
    """
    if context.invoked_subcommand is not None:
        if device is not None or seconds is not None:
            raise ConfigError("give either --device or one of start, stop and status")
        return
    if device is None:
        raise ConfigError("expected --device ID, or one of start, stop and status")
    from keystep_server.record_run import RecordRun, WantedSession

    wanted = WantedSession(device_id=device, task=task, procedure=procedure)
    with _client(server, token) as client:
        RecordRun(client, wanted, seconds=seconds, keep_open=keep_open).run()


@record.command("start")
def start(session: _Session, server: _Server = DEFAULT_SERVER, token: _Token = None) -> None:
    """Record all streams of an open session from now on."""
    _set(session, server, token, on=True)


@record.command("stop")
def stop(session: _Session, server: _Server = DEFAULT_SERVER, token: _Token = None) -> None:
    """Record no longer; the session goes on, and its video is kept as ever."""
    _set(session, server, token, on=False)


@record.command("status")
def status(session: _Session, server: _Server = DEFAULT_SERVER, token: _Token = None) -> None:
    """Say how a session's recording stands."""
    from keystep_server.record_run import read_progress
    from keystep_server.rest_client import checked_session

    checked_session(session)
    with _client(server, token) as client:
        progress = read_progress(client, session)
        typer.echo(f"session {session} is {progress.state}: {progress.line()}")
        if progress.size_bytes:
            typer.echo(client.url(f"/recordings/{session}"))


def _set(session: str, server: str, token: str | None, *, on: bool) -> None:
    from keystep_server.rest_client import checked_session

    checked_session(session)
    with _client(server, token) as client:
        client.send("PUT", f"/sessions/{session}/recording", body={"on": on})
        done = "is recorded from now on" if on else "is recorded no longer"
        typer.echo(f"session {session} {done}: {client.url(f'/recordings/{session}')}")


def _client(server: str, token: str | None) -> RestClient:
    from keystep_server.rest_client import RestClient

    return RestClient(server, token)
