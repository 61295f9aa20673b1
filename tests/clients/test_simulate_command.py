from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

from keystep_capture.errors import ConfigError
from keystep_hololens.hl2ss.client import RemoteConfigurationClient
from keystep_hololens.simulate_command import choose_sample, simulate

PROGRAM = (
    "import typer; from keystep_hololens.simulate_command import simulate; typer.run(simulate)"
)


def test_exactly_one_of_sample_and_video_is_wanted() -> None:
    for name, video in ((None, None), ("pour-coffee", Path("x.mp4"))):
        with pytest.raises(ConfigError, match="either --sample NAME or --video FILE"):
            choose_sample(name, video)


def test_a_missing_video_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no video file"):
        simulate(video=tmp_path / "missing.mp4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_says_when_it_is_ready_and_stops_cleanly(number: int) -> None:
    arguments = ("--sample", "pour-coffee", "--base-port", "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert b"Simulated HoloLens 2" in await process.stdout.readline()
        ready = re.fullmatch(rb"READY base_port=(\d+)\n", await process.stdout.readline())
        assert ready is not None
        headset = RemoteConfigurationClient(host="127.0.0.1", base_port=int(ready[1]))
        assert await headset.version() == (1, 0, 37, 0)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
