"""`keystep demo`: the whole live path on this machine, on the bundled samples."""

from __future__ import annotations

import asyncio
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
    from keystep_server.demo import Demo, DemoSettings  # every command loads this module

    asyncio.run(Demo(DemoSettings(speed=speed, keep=keep, out=out)).run())
