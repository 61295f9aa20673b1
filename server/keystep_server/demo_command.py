"""`keystep demo`: the whole live path on this machine, on the bundled samples."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer


def demo(
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=32, help="How fast it plays: 8, with --story 3; the real video plays at 1."
        ),
    ] = None,
    story: Annotated[
        bool,
        typer.Option(
            "--story",
            help="From an expert's simulated session to another wearer's guidance; minutes.",
        ),
    ] = False,
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
    With --story it is simulated too: an expert's session is recorded, its key steps are extracted
    and published, and another wearer is guided by them.
    """
    try:
        asyncio.run(_run(speed=speed, story=story, keep=keep, out=out))
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None


async def _run(*, speed: float | None, story: bool, keep: bool, out: Path) -> None:
    from keystep_server.config import load_config  # every command loads this module
    from keystep_server.demo import Demo
    from keystep_server.demo_base import DemoSettings
    from keystep_server.demo_story import Story

    token = load_config().token
    running = asyncio.current_task()
    assert running is not None
    # SIGTERM unwinds as Ctrl-C does, so that no child process is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    secret = None if token is None else token.get_secret_value()
    chosen = speed or (3.0 if story else 8.0)
    settings = DemoSettings(speed=chosen, keep=keep, out=out, token=secret)
    await (Story if story else Demo)(settings).run()
