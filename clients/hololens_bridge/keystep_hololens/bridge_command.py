"""`keystep bridge`: a headset's streams to a server.

What it needs is imported when it runs: every `keystep` command loads this module.
"""

from __future__ import annotations

import asyncio
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError
from keystep_capture.logs import set_up_logs
from keystep_hololens.device_streams import DEFAULT_STREAMS, DEVICE_STREAMS
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT

if TYPE_CHECKING:
    from keystep_capture import wire
    from keystep_hololens.bridge import BridgeConfig


MAX_TIME_SCALE = 1000.0
"""As the wire allows it."""
MAX_SPOOL_GB = 100_000


class Kind(StrEnum):
    """What a session is for."""

    GUIDED = "guided"
    EXPERT = "expert"


class Codec(StrEnum):
    """Of the headset's video."""

    H264 = "h264"
    HEVC = "hevc"


def bridge(
    device: Annotated[str, typer.Option(help="Address of the headset that runs hl2ss.")],
    server: Annotated[
        str | None,
        typer.Option(help="The server's wire endpoint; the key's, or tcp://127.0.0.1:8041."),
    ] = None,
    device_id: Annotated[
        str | None,
        typer.Option(help="Id of the headset; the key's, or made from its address."),
    ] = None,
    base_port: Annotated[
        int, typer.Option(min=1, max=65514, help="Port of the headset's first service.")
    ] = DEFAULT_BASE_PORT,
    kind: Annotated[Kind, typer.Option(help="Of a new session.")] = Kind.GUIDED,
    task: Annotated[str | None, typer.Option(help="Task of a new session.")] = None,
    procedure: Annotated[
        str | None, typer.Option(help="Procedure to guide a new session by.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Step recognition of a new session: b1, b2, b3, tracker; else the server's choice."
        ),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Session to continue.")] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Key file from `keystep device add`; needed off loopback."),
    ] = None,
    streams: Annotated[
        str, typer.Option(help=f"What to carry, by commas, of: {', '.join(DEVICE_STREAMS)}.")
    ] = ",".join(DEFAULT_STREAMS),
    video_codec: Annotated[
        Codec, typer.Option(help="What the headset encodes video with.")
    ] = Codec.H264,
    size: Annotated[
        str, typer.Option(help="Video format WIDTHxHEIGHT@FPS; one that hl2ss offers.")
    ] = "640x360@30",
    time_scale: Annotated[
        float, typer.Option(help="Only with a simulated headset that plays faster.")
    ] = 1.0,
    spool: Annotated[
        bool | None,
        typer.Option(
            "--spool/--no-spool",
            help="Keep on this disk what the server cannot take now, and send it later; "
            "by default with --kind expert.",
        ),
    ] = None,
    spool_dir: Annotated[Path, typer.Option(help="Where that is kept; a local disk.")] = Path(
        "keystep-spool"
    ),
    spool_limit_gb: Annotated[
        float, typer.Option(help="The most that is kept there for this headset.")
    ] = 20.0,
    exit_when_silent: Annotated[
        float | None,
        typer.Option(help="End after this many seconds without any packet, in a session."),
    ] = None,
    display: Annotated[
        bool, typer.Option("--display/--no-display", help="Show guidance on the headset.")
    ] = True,
    voice: Annotated[
        bool, typer.Option("--voice/--no-voice", help="Listen for spoken commands.")
    ] = True,
    close: Annotated[
        bool, typer.Option("--close", help="Close the session at the end; else it stays open.")
    ] = False,
) -> None:
    """Carry a HoloLens 2's streams (hl2ss) to a server and its guidance back, until Ctrl-C."""
    from keystep_hololens.backlog import SpoolConfig
    from keystep_hololens.bridge import BridgeConfig
    from keystep_hololens.target import load_key

    set_up_logs("info")
    width, height, fps = _parse_size(size)
    if exit_when_silent is not None and not exit_when_silent > 0:
        raise ConfigError(f"--exit-when-silent is {exit_when_silent}, expected seconds above 0")
    if not 0 < time_scale <= MAX_TIME_SCALE:
        raise ConfigError(
            f"--time-scale is {time_scale}, expected more than 0 and at most {MAX_TIME_SCALE:g}"
        )
    if spool is None:
        spool = kind is Kind.EXPERT and time_scale == 1.0
    if not 0 < spool_limit_gb <= MAX_SPOOL_GB:
        raise ConfigError(
            f"--spool-limit-gb is {spool_limit_gb}, expected more than 0 and at most {MAX_SPOOL_GB}"
        )
    spooled = SpoolConfig(folder=spool_dir, limit_bytes=int(spool_limit_gb * 1e9))
    device_key, endpoint, named = load_key(key, server=server, device=device_id)
    config = BridgeConfig(
        host=device,
        base_port=base_port,
        server=endpoint,
        device=named or _device_id(device),
        kind=kind.value,
        task=task,
        procedure=procedure,
        method=method,
        session=session,
        key=device_key,
        streams=tuple(name.strip() for name in streams.split(",") if name.strip()),
        video_codec=video_codec.value,
        width=width,
        height=height,
        fps=fps,
        time_scale=time_scale,
        spool=spooled if spool else None,
        exit_when_silent_s=exit_when_silent,
        close_at_end=close,
        display=display,
        voice=voice,
    )
    asyncio.run(_run(config))


def _device_id(address: str) -> str:
    """An id for the headset at an address."""
    return ("hololens2-" + "".join(c if c.isalnum() and c.isascii() else "-" for c in address))[:64]


async def _run(config: BridgeConfig) -> None:
    from keystep_hololens.bridge import Bridge

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
    if (left := running.backlog.left()) is not None:
        typer.echo(left, err=True)


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
