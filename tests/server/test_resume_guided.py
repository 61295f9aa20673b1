"""Servers that are killed while a bundle guides: the same step events, the same cues."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guided_session as cart
from keystep_capture.sender import Sender, Source
from keystep_server.features import read_ticks

KEYS = ("ordinal", "step_id", "kind", "frame_idx", "device_time_ns", "epoch", "confidence")


async def run_session(
    server: Any, packets: list[cart.Packet], kill_at: list[int]
) -> tuple[list[tuple[Any, ...]], Path]:
    """Stream a lossless replay; kill the server while packets of these numbers are sent."""
    source = Source(
        device="hl2", client="test", streams=cart.STREAMS, procedure=cart.NAME, replay=True
    )
    sender = Sender(source, server=server.wire, instance="one")
    link = asyncio.create_task(sender.run())
    killed: asyncio.Task[None] | None = None

    async def kill_and_start() -> None:
        await server.kill()
        await server.start()

    for number, (_, stream, packet) in enumerate(packets):
        if number in kill_at:
            if killed is not None:
                await killed
            killed = asyncio.create_task(kill_and_start())
        await sender.room(stream)
        assert sender.offer(stream, **packet)
        if killed is not None and not killed.done():
            await asyncio.sleep(0.002)
    if killed is not None:
        await killed
    await sender.finish(close=True, timeout_s=90)
    await link
    listed = await server.get(f"/sessions/{sender.session}/events?limit=1000")
    steps = [tuple(event[key] for key in KEYS) for event in listed["events"]]
    return steps, server.folder / "sessions" / str(sender.session)


@pytest.mark.timeout(300)  # three servers are started
@pytest.mark.slow  # fails now and then on a loaded machine, on a cue bit: not yet understood
async def test_a_killed_server_goes_on_with_the_same_step_events_and_cues(
    make_server: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    packets = [packet for packet in learned.packets if packet[0] < 18e9]
    calm = await check_kills(make_server, learned, packets, tmp_path)
    assert len(calm) >= 2


@pytest.mark.timeout(300)  # three servers are started
@pytest.mark.slow
async def test_a_killed_server_cuts_the_same_pictures_at_the_gaze_point(
    make_server: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    watched = cart.gazing_packets(learned.packets, holes=False)
    bundle = cart.make_gaze_bundle(watched, tmp_path / "made")
    packets = cart.gazing_packets(learned.packets, holes=True)
    gazing = cart.Learned(packets=packets, bundle=bundle)
    await check_kills(make_server, gazing, packets, tmp_path)


async def check_kills(
    make_server: Any, learned: cart.Learned, packets: list[cart.Packet], folder: Path
) -> list[tuple[Any, ...]]:
    """The step events of a calm session, which are those of one whose server is killed twice."""
    for name in ("calm", "killed"):
        learned.publish(folder / name)
    calm, calm_folder = await run_session(await make_server("calm"), packets, [])
    kill_at = [len(packets) // 3, 2 * len(packets) // 3]
    killed, killed_folder = await run_session(await make_server("killed"), packets, kill_at)
    rows = [(folder / "cues.rows").read_bytes() for folder in (calm_folder, killed_folder)]
    assert rows[0] == rows[1]
    ticks = [read_ticks(folder / "ticks.rows") for folder in (calm_folder, killed_folder)]
    for name in ("device_time_ns", "cues", "appearance"):
        assert np.array_equal(ticks[0][name], ticks[1][name]), name
    assert killed == calm
    return calm
