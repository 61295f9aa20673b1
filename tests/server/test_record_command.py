"""`keystep record` as a user calls it: real servers, real sources."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.recording import Recording

POSE = np.eye(4, dtype="<f4").tobytes()
TOKEN = "an-example-of-a-token-with-enough-letters"


def poses(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"device_time_ns": number * 10**8 // 3, "payload": POSE, "encoding": "pose_f32"}
        for number in range(first, first + count)
    ]


class Command:
    """`keystep record` as a child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""

    async def until(self, text: str) -> None:
        """Read on until it has said something."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while text not in self.out:
                block = await self.process.stdout.read(4096)
                assert block, self.out
                self.out += block.decode()

    async def ended(self) -> tuple[int, str, str]:
        """Exit code and all that it said."""
        async with asyncio.timeout(100):
            out, error = await self.process.communicate()
        assert self.process.returncode is not None
        self.out += out.decode()
        return self.process.returncode, self.out, error.decode()


@asynccontextmanager
async def running(*words: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "record", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def keystep_record(*words: str) -> tuple[int, str, str]:
    async with running(*words) as command:
        return await command.ended()


def refused(told: tuple[int, str, str], code: int, said: str) -> None:
    assert (told[0], len(told[2].splitlines())) == (code, 1), told
    assert said in told[2]


async def test_a_headsets_session_is_recorded_until_it_is_interrupted(
    live: Any, tmp_path: Path
) -> None:
    words = ("--device", "hl2", "--task", "bike", "--server", live.server.rest_url)
    async with running(*words) as command:
        await command.until("waiting for the headset")
        sender = await live.join("hl2", "head", "gaze")  # as a guided wearer's bridge would
        await live.send(sender, "head", poses(60))
        await live.worked_off(sender, "head", 60)
        command.process.send_signal(signal.SIGINT)
        code, out, error = await command.ended()
    assert (code, error) == (0, "")
    session = await live.get(f"/sessions/{sender.session}")
    assert (session["kind"], session["task"], session["state"]) == ("expert", "bike", "closed")
    assert f"recording {session['id']}: 60 packets" in out
    assert f"URL   {live.server.rest_url}/api/v1/recordings/{session['id']}" in out
    assert re.search(r"^health (good|usable)$", out, re.MULTILINE)
    with Recording(tmp_path / "sessions" / session["id"] / "recording") as recording:
        assert len(list(recording.packets())) == 60


async def test_a_session_that_was_there_before_goes_on(live: Any) -> None:
    sender = await live.join("hl2", "head", kind="expert")
    await live.send(sender, "head", poses(30))
    await live.worked_off(sender, "head", 30)
    code, out, _ = await keystep_record(
        *("--device", "hl2", "--for", "0.5", "--server", live.server.rest_url)
    )
    assert code == 0
    assert f"session {sender.session} goes on, recorded no longer" in out
    assert (await live.get(f"/sessions/{sender.session}"))["state"] == "open"
    assert not (await live.stats(sender))["recording"]["everything"]


async def test_a_recording_is_begun_ended_and_looked_at_by_session(live: Any) -> None:
    at = ("--server", live.server.rest_url)
    sender = await live.join("hl2", "head")
    assert (await keystep_record("start", sender.session, *at))[0] == 0
    await live.send(sender, "head", poses(30))
    await live.worked_off(sender, "head", 30)
    await live.until_stats(sender, lambda stats: stats["recording"]["packets"] == 30)
    code, out, _ = await keystep_record("status", sender.session, *at)
    assert (code, "30 packets" in out) == (0, True), out
    assert (await keystep_record("stop", sender.session, *at))[0] == 0
    assert "video only" in (await keystep_record("status", sender.session, *at))[1]
    await live.close_session(sender)
    refused(await keystep_record("start", sender.session, *at), 1, "is closed")


async def test_what_cannot_be_recorded_is_one_line(live: Any) -> None:
    at = ("--server", live.server.rest_url)
    guided = await live.join("guided", "head")
    refused(await keystep_record("--device", "guided", *at), 1, "which is guided, not expert")
    await live.join("bike", "head", kind="expert", task="bike")
    told = await keystep_record("--device", "bike", "--task", "cart", *at)
    refused(told, 1, "of task 'bike', not 'cart'")
    refused(await keystep_record("--device", "a b", *at), 2, "the server refuses")
    none = await keystep_record("--device", "nobody", "--for", "0.2", *at)
    refused(none, 1, "nothing was recorded")
    missing = "ses_01kx5m3v0g8q2m4t6w8y0a2c4e"
    refused(await keystep_record("status", missing, *at), 1, "there is no session")
    refused(await keystep_record("stop", "../sessions", *at), 2, "is no session")
    assert (await live.get(f"/sessions/{guided.session}"))["state"] == "open"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "expected --device ID"),
        (("--device", "a", "--server", "ftp://x"), 2, "expected http://HOST:8040"),
        (("--device", "a", "--server", "http://127.0.0.1:9"), 1, "does not answer"),
        (("--device", "a", "--for", "0"), 2, "--for"),
        (("--device", "a", "start", "ses_01kx5m3v0g8q2m4t6w8y0a2c4e"), 2, "either --device"),
    ],
)
async def test_wrong_usage_is_one_line(words: tuple[str, ...], code: int, said: str) -> None:
    refused(await keystep_record(*words), code, said)


async def test_a_server_with_tokens_asks_for_one(tools: Any, tmp_path: Path) -> None:
    async with tools.live_server(tmp_path, token=TOKEN) as live:
        at = ("--device", "a", "--server", live.server.rest_url)
        refused(await keystep_record(*at), 2, "KEYSTEP_TOKEN")
        refused(await keystep_record(*at, "--token", TOKEN, "--for", "0.2"), 1, "no packet came")


async def test_it_goes_on_when_the_server_was_killed_and_is_back(
    make_server: Any, tools: Any
) -> None:
    server = await make_server("killed")
    port = server.rest.rsplit(":", 1)[1]
    async with running("--device", "hl2", "--server", server.rest) as command:
        await command.until("waiting for the headset")
        await server.kill()
        await asyncio.sleep(2.5)  # it asks each second
        await server.start(rest_port=port)
        command.process.send_signal(signal.SIGINT)
        code, out, error = await command.ended()
    assert (code, "nothing was recorded" in error) == (1, True), (out, error)
