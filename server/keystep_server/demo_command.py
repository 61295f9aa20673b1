"""`keystep demo`: the whole live path on this machine, on the bundled samples."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer


def demo(
    speed: Annotated[
        float,
        typer.Option(
            min=0.5, max=32, help="How fast the 275 s assembly plays; the video plays at 1."
        ),
    ] = 8.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server running at the end, until Ctrl-C.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where data, logs and pictures go.")] = Path(
        "keystep-demo"
    ),
) -> None:
    """Server, simulated HoloLens 2 and bridge on this machine, on real samples; ends by itself.

    The headset is simulated (hl2ss's protocol on loopback). What it plays is real: a detector's
    output, head poses and gaze of an assembly (IndustReal), and a video of a person pouring coffee.
    """
    try:
        asyncio.run(_run(speed=speed, keep=keep, out=out))
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None


async def _run(*, speed: float, keep: bool, out: Path) -> None:
    from keystep_server.config import load_config  # every command loads this module
    from keystep_server.demo import Demo, DemoSettings

    token = load_config().token
    running = asyncio.current_task()
    assert running is not None
    # SIGTERM unwinds as Ctrl-C does, so that no child process is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    secret = None if token is None else token.get_secret_value()
    await Demo(DemoSettings(speed=speed, keep=keep, out=out, token=secret)).run()
