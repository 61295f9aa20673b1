"""`keystep serve` and `keystep demo`.

What the commands need is imported when they run: every `keystep` command loads this module.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_server.demo_command import demo

if TYPE_CHECKING:
    from keystep_server.config import ServerConfig


def register(app: typer.Typer) -> None:
    """Add the server's subcommands to the `keystep` command."""
    app.command("serve")(serve)
    app.command("demo")(demo)


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is stored.")] = None,
    rest_host: Annotated[str | None, typer.Option(help="Address REST listens on.")] = None,
    rest_port: Annotated[int | None, typer.Option(help="Port of REST; 0 takes a free one.")] = None,
    wire_bind: Annotated[str | None, typer.Option(help="Endpoint that bridges dial.")] = None,
    publish_bind: Annotated[str | None, typer.Option(help="Endpoint others follow.")] = None,
    default_method: Annotated[
        str | None,
        typer.Option(help="Step recognition where none is asked for: auto, b1, b2, b3, tracker."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the server until Ctrl-C. Settings: --config file, then KEYSTEP_* variables, then flags.

    Off loopback a token of 32 characters or more is needed (KEYSTEP_TOKEN).
    """
    from keystep_capture.logs import set_up_logs
    from keystep_server.config import load_config

    settings = load_config(
        config,
        {
            "data_dir": data_dir,
            "rest_host": rest_host,
            "rest_port": rest_port,
            "wire_bind": wire_bind,
            "publish_bind": publish_bind,
            "default_method": default_method,
            "log_level": log_level,
        },
    )
    set_up_logs(settings.log_level)
    asyncio.run(_serve(settings))


async def _serve(settings: ServerConfig) -> None:
    from keystep_server.serving import running_server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings) as server:
        typer.echo(f"REST    {server.rest_url}/docs")
        typer.echo(f"wire    {server.wire_endpoint}")
        typer.echo(f"publish {server.publish_endpoint}")
        typer.echo(
            f"READY rest={server.rest_url} wire={server.wire_endpoint} "
            f"publish={server.publish_endpoint}"
        )
        await stop.wait()
        typer.echo("Stopping: open sessions are written down and stay open.")
