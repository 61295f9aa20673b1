"""`keystep bridge`: a headset's streams to a server."""

from __future__ import annotations

import asyncio
import signal
from enum import StrEnum
from typing import Annotated

import typer

from keystep_capture import wire
from keystep_capture.errors import ConfigError
from keystep_hololens.bridge import Bridge, BridgeConfig
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT


class Kind(StrEnum):
    """What a session is for."""

    GUIDED = "guided"
    EXPERT = "expert"


def bridge(
    device: Annotated[str, typer.Option(help="Address of the headset that runs hl2ss.")],
    server: Annotated[
        str, typer.Option(help="The server's wire endpoint.")
    ] = "tcp://127.0.0.1:8041",
    device_id: Annotated[
        str | None, typer.Option(help="Id of the headset; by default made from its address.")
    ] = None,
    base_port: Annotated[
        int, typer.Option(min=1, max=65514, help="Port of the headset's first service.")
    ] = DEFAULT_BASE_PORT,
    kind: Annotated[Kind, typer.Option(help="Of a new session.")] = Kind.GUIDED,
    task: Annotated[str | None, typer.Option(help="Task of a new session.")] = None,
    procedure: Annotated[
        str | None, typer.Option(help="Procedure to guide a new session by.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Session to continue.")] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="KEYSTEP_TOKEN", help="The server's token; needed off loopback."),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Video format WIDTHxHEIGHT@FPS; one that hl2ss offers.")
    ] = "640x360@30",
    time_scale: Annotated[
        float, typer.Option(help="Only with a simulated headset that plays faster.")
    ] = 1.0,
    exit_when_silent: Annotated[
        float | None, typer.Option(help="End after this many seconds without any packet.")
    ] = None,
    close: Annotated[
        bool, typer.Option("--close", help="Close the session at the end; else it stays open.")
    ] = False,
) -> None:
    """Carry a HoloLens 2's streams (hl2ss) to a server and its guidance back, until Ctrl-C."""
    width, height, fps = _parse_size(size)
    config = BridgeConfig(
        host=device,
        base_port=base_port,
        server=server,
        device=device_id or "hololens2-" + "".join(c if c.isalnum() else "-" for c in device),
        kind=kind.value,
        task=task,
        procedure=procedure,
        session=session,
        token=token,
        width=width,
        height=height,
        fps=fps,
        time_scale=time_scale,
        exit_when_silent_s=exit_when_silent,
        close_at_end=close,
    )
    asyncio.run(_run(config))


async def _run(config: BridgeConfig) -> None:
    running = Bridge(config, on_guidance=_show)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.stop)
    await running.run()
    sent, dropped = running.sender.sent(), running.sender.dropped()
    typer.echo(
        "Sent "
        + ", ".join(f"{name} {count} (dropped {dropped[name]})" for name, count in sent.items())
    )


def _show(guidance: wire.Guidance) -> None:
    following = f" Next: {guidance.next_step.title}." if guidance.next_step else ""
    done, total = guidance.progress
    typer.echo(f"[{guidance.severity}] {guidance.text}{following} ({done}/{total})")


def _parse_size(size: str) -> tuple[int, int, int]:
    try:
        picture, fps = size.split("@")
        width, height = picture.split("x")
        return int(width), int(height), int(fps)
    except ValueError:
        raise ConfigError(f"--size is {size!r}, expected e.g. 640x360@30") from None
