"""`keystep demo` as a child process, from its first line to the end of its children."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import av
import httpx
import pytest

from keystep_capture.errors import ConfigError
from keystep_capture.samples import find_sample, load_truth
from keystep_server.demo import Demo
from keystep_server.demo_base import DemoSettings

EVENT = re.compile(r"^ +(\d+)  (Install .*?) +(\d+)  ([+-]\d+\.\d s)$", re.MULTILINE)


class RunningDemo:
    """The demo and its children, a process group of their own."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path) -> None:
        self.process, self.out = process, out
        self.said = ""

    async def says(self, text: str) -> None:
        """Read what it prints up to a text."""
        assert self.process.stdout is not None
        while text not in self.said:
            line = await self.process.stdout.readline()
            assert line, f"ended before it said {text!r}:\n{self.said}"
            self.said += line.decode()

    async def ended(self) -> int:
        """Read the rest; the exit code."""
        assert self.process.stdout is not None
        self.said += (await self.process.stdout.read()).decode()
        return await self.process.wait()

    def has_children_left(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


@asynccontextmanager
async def running(out: Path, *arguments: str) -> AsyncIterator[RunningDemo]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "demo", "--speed", "32"),
        *("--out", str(out), *arguments),
        env={**os.environ, "COLUMNS": "80", "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    demo = RunningDemo(process, out)
    try:
        yield demo
    finally:
        if demo.has_children_left():
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_it_plays_both_samples_and_ends_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path / "demo") as demo:
        assert await demo.ended() == 0, demo.said
        assert not demo.has_children_left()
    truth = load_truth(find_sample("industreal-03"))
    true_frames = {step.id: step.frame for step in truth.ground_truth}
    events = [(int(frame), int(true)) for frame, _, true, _ in EVENT.findall(demo.said)]
    assert events == [(step.frame, true_frames[step.id]) for step in truth.expected_b3]
    assert all(
        delay == f"{(int(frame) - int(true)) / 10:+.1f} s"
        for frame, _, true, delay in EVENT.findall(demo.said)
    )
    assert "All 9 step events equal the published B3 logic's, frame for frame." in demo.said
    assert re.search(r"capture to step event stored +9( +\d+\.\d){4}", demo.said)
    assert re.search(r"capture to appearance features +\d+( +\d+\.\d){4}", demo.said)
    assert re.search(r"^REST docs: http://127\.0\.0\.1:\d+/docs$", demo.said, re.MULTILINE)
    assert demo.said.count("simulated headset") >= 2
    assert "Traceback" not in demo.said
    # 80 columns: only what is for copying (paths, URLs) may be longer.
    assert all(len(line) <= 80 or "/" in line for line in demo.said.splitlines())
    with av.open(demo.out / "key_steps.jpg") as sheet:
        picture = next(sheet.decode(video=0))
    assert picture.width > 400
    assert picture.height > 200


@pytest.mark.slow
async def test_with_keep_its_server_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    async with running(tmp_path / "demo", "--keep") as demo:
        await demo.says("Ctrl-C ends it.")
        urls = re.findall(r"(http://\S+/(?:docs|image))$", demo.said, re.MULTILINE)
        async with httpx.AsyncClient() as rest:
            answers = [await rest.get(url) for url in urls]
        kinds = [answer.headers["content-type"].split(";")[0] for answer in answers]
        assert sorted(kinds) == ["image/jpeg", "text/html"]
        demo.process.send_signal(signal.SIGINT)
        assert await demo.ended() == 0
        assert not demo.has_children_left()
    assert "Traceback" not in demo.said


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [(signal.SIGINT, False, 130), (signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
)
async def test_interrupted_in_the_middle_it_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, to_all: bool, code: int
) -> None:
    async with running(tmp_path / "demo") as demo:
        await demo.says("Install rear chassis")
        if to_all:  # as a terminal's Ctrl-C does
            os.killpg(demo.process.pid, number)
        else:
            demo.process.send_signal(number)
        assert await demo.ended() == code, demo.said
        assert not demo.has_children_left()
    assert "Traceback" not in demo.said
    assert "keystep:" not in demo.said


async def test_it_has_the_token_that_its_server_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYSTEP_TOKEN", "0123456789" * 4)
    async with running(tmp_path / "demo") as demo:
        await demo.says("Install rear chassis")


async def test_a_folder_of_other_data_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no earlier demo; choose another --out"):
        await Demo(DemoSettings(speed=32, keep=False, out=tmp_path)).run()
    assert (tmp_path / "data" / "thesis.txt").exists()
