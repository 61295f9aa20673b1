"""The subscriber of docs/examples, run as a user runs it, beside a real server."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_capture.sender import Sender, Source
from keystep_server.config import ServerConfig
from keystep_server.credentials import add_key, server_keys
from keystep_server.serving import RunningServer, running_server
from keystep_server.storage import Store

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "follow_session.py"
SAMPLE = find_sample("industreal-03")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    config = ServerConfig(
        data_dir=tmp_path,
        rest_port=0,
        wire_bind="tcp://127.0.0.1:*",
        publish_bind="tcp://127.0.0.1:*",
    )
    async with running_server(config) as running:
        yield running


class Follower:
    """The example as a child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def read_until(self, text: str) -> None:
        """Read lines up to one that holds the text."""
        assert self.process.stdout is not None
        while not self.lines or text not in self.lines[-1]:
            line = await self.process.stdout.readline()
            assert line, f"ended before it said {text!r}: {self.lines}"
            self.lines.append(line.decode().strip())


@asynccontextmanager
async def following(server: RunningServer, *arguments: str) -> AsyncIterator[Follower]:
    """The example, interrupted at the end as by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        *("--endpoint", server.publish_endpoint, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Follower(process)
        process.send_signal(signal.SIGINT)
        _, trouble = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, trouble) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def sending(server: RunningServer, device: str, method: str = "b3") -> AsyncIterator[Sender]:
    """A source of a device's detections, in session."""
    source = Source(
        device=device,
        client="test",
        streams=("detections",),
        procedure="industreal-assy",
        method=method,
        replay=True,
    )
    sender = Sender(source, server=server.wire_endpoint, instance="i1")
    running = asyncio.create_task(sender.run())
    await sender.room("detections")
    try:
        yield sender
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def is_heard(server: RunningServer, follower: Follower, device: str) -> None:
    """Join again and again until the follower says so: a subscription takes time to arrive."""
    hearing = asyncio.create_task(follower.read_until("is open"))
    async with asyncio.timeout(30):
        while not hearing.done():
            async with sending(server, device):
                await asyncio.wait([hearing], timeout=0.3)
    await hearing


async def send_all(sender: Sender) -> None:
    """Send the sample's detections, as fast as the server takes them."""
    assert SAMPLE.detections_path is not None
    count = load_truth(SAMPLE).frame_count
    frames = load_detection_rows(SAMPLE.detections_path, frame_count=count)
    await send_frames(sender, frames)


async def send_frames(sender: Sender, frames: Sequence[Sequence[Any]]) -> None:
    """Send frames of detections and have the session closed."""
    for frame_idx, rows in enumerate(frames):
        await sender.room("detections")
        payload = np.array(rows, "<f8").tobytes()
        sender.offer(
            "detections",
            frame_idx * 100_000_000,
            payload,
            encoding="detections_f64",
            frame_idx=frame_idx,
        )
    await sender.finish(close=True)


async def test_it_prints_the_steps_and_guidance_of_all_sessions(server: RunningServer) -> None:
    async with following(server) as follower:
        await is_heard(server, follower, "hl2")
        async with sending(server, "hl2") as sender:
            await send_all(sender)
            session = sender.session
        await follower.read_until("is closed")
    steps = [line for line in follower.lines if line.startswith(f"{session} step")]
    assert len(steps) == len(load_truth(SAMPLE).expected_b3) == 9
    assert steps[0] == f"{session} step completed Install rear chassis (1.00)"
    assert f"{session} guidance info All steps are done." in follower.lines
    assert follower.lines[-1] == f"{session} is closed"


async def test_it_says_what_is_taken_back(server: RunningServer) -> None:
    """Simulated: class 6 shows the rear rear pin, class 7 after it does not."""
    frames = [
        rows
        for seen in (1, 5, 6, 7)
        for rows in [[(seen, 0.85, 600.0, 300.0, 200.0, 100.0)]] * 30 + [[]] * 300
    ]
    async with following(server) as follower:
        await is_heard(server, follower, "another")
        async with sending(server, "hl2", method="tracker") as sender:
            session = sender.session
            await send_frames(sender, frames)
        await follower.read_until("is closed")
    steps = [line for line in follower.lines if line.startswith(f"{session} step")]
    (gone,) = [line for line in steps if " retracted " in line]
    assert gone.replace("retracted", "completed") in steps[: steps.index(gone)]
    assert any(" cannot_see I can't see the work" in line for line in follower.lines)


async def test_it_follows_one_session_only_where_one_is_named(server: RunningServer) -> None:
    async with sending(server, "followed") as sender:
        wanted = sender.session
    assert wanted is not None
    async with following(server, "--session", wanted) as follower:
        await is_heard(server, follower, "followed")
        async with sending(server, "another") as other:
            await send_all(other)
        async with sending(server, "followed") as sender:
            await sender.finish(close=True)
        await follower.read_until("is closed")
    assert {line.split()[0] for line in follower.lines} == {wanted}


async def test_it_follows_with_a_key_where_one_is_asked_for(tmp_path: Path) -> None:
    config = ServerConfig(
        data_dir=tmp_path,
        rest_port=0,
        wire_bind="tcp://127.0.0.1:*",
        publish_bind="tcp://127.0.0.1:*",
    )
    store = Store.open(config.resolved_database_url)
    add_key(
        store,
        name="andon",
        role="follower",
        server_public=server_keys(tmp_path, store).public,
        server=None,
        path=tmp_path / "andon.key",
        now=datetime.now(UTC),
    )
    store.close()
    async with (
        running_server(config) as server,
        following(server, "--key", str(tmp_path / "andon.key")) as follower,
    ):
        await is_heard(server, follower, "hl2")
