"""`keystep serve`, `demo`, `doctor` and `bench`; other commands have modules of their own.

What the commands need is imported when they run: every `keystep` command loads this module.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import StateError
from keystep_server.access_commands import device, token
from keystep_server.demo_command import demo
from keystep_server.doctor.command import doctor
from keystep_server.load.command import load
from keystep_server.record_command import record

if TYPE_CHECKING:
    from keystep_server.config import ServerConfig


def register(app: typer.Typer) -> None:
    """Add the server's subcommands to the `keystep` command."""
    app.command("serve")(serve)
    app.command("demo")(demo)
    app.add_typer(device, name="device")
    app.add_typer(token, name="token")
    app.add_typer(record, name="record")
    app.command("doctor")(doctor)
    bench = typer.Typer(help="Measure a server.", no_args_is_help=True)
    bench.callback()(_bench)
    bench.command("load")(load)
    app.add_typer(bench, name="bench")


def _bench() -> None:
    """Measure a server."""


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
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate (chain) of REST.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of REST.")] = None,
    memory_limit_mb: Annotated[
        int | None,
        typer.Option(help="Hard limit of memory, MiB; half the machine's by default; 0: none."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the server until Ctrl-C. Settings: --config file, then KEYSTEP_* variables, then flags.

    Off loopback headsets need keys (`keystep device add`), REST clients tokens (`keystep token
    add`); docs/security.md.
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
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "memory_limit_mb": memory_limit_mb,
            "log_level": log_level,
        },
    )
    set_up_logs(settings.log_level)
    asyncio.run(_serve(settings))


async def _serve(settings: ServerConfig) -> None:
    from keystep_server.limits import limit_memory, raise_file_limit
    from keystep_server.serving import running_server

    limit = limit_memory(settings.memory_limit_mb)
    raise_file_limit()
    stop = asyncio.Event()
    starved = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            starved.set()
            stop.set()
        loop.default_exception_handler(context)

    loop.set_exception_handler(on_error)
    async with running_server(settings) as server:
        typer.echo(f"REST    {server.rest_url}/docs")
        typer.echo(f"wire    {server.wire_endpoint}")
        typer.echo(f"publish {server.publish_endpoint}")
        if limit:
            typer.echo(f"memory  at most {limit >> 20} MiB")
        typer.echo(
            f"READY rest={server.rest_url} wire={server.wire_endpoint} "
            f"publish={server.publish_endpoint}"
        )
        await stop.wait()
        typer.echo("Stopping: open sessions are written down and stay open.")
    if starved.is_set():
        raise StateError(
            f"the memory limit of {limit >> 20} MiB was reached; sessions go on after a restart "
            "(memory_limit_mb sets another)"
        )
