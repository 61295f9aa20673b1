from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

from keystep_capture.errors import ConfigError
from keystep_capture.samples import find_sample
from keystep_hololens.hl2ss.client import RemoteConfigurationClient
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulate_command import choose_sample, make_headset, simulate

NOT_SIMULATED = {
    "SPATIAL_MAPPING",
    "SCENE_UNDERSTANDING",
    "EXTENDED_AUDIO",
    "EXTENDED_VIDEO",
    "EXTENDED_DEPTH",
}
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


def test_sound_is_simulated_with_the_room_only() -> None:
    with pytest.raises(ConfigError, match="give --whole too"):
        simulate(sample="pour-coffee", microphone=True)


async def test_a_whole_headset_offers_every_sensor_it_can_simulate() -> None:
    sample = find_sample("pour-coffee")
    options = {"host": "127.0.0.1", "base_port": 0, "time_scale": 1.0, "loop": False}
    for chosen, video in ((sample, None), (None, sample.video_path)):
        made = make_headset(chosen, video, **options, whole=True, microphone=True)  # type: ignore[arg-type]
        async with made as headset:
            missing = {kind.name for kind in Port} - {n.upper() for n in headset.open_ports}
        assert missing == NOT_SIMULATED
        async with make_headset(chosen, video, **options) as headset:  # type: ignore[arg-type]
            assert headset.open_ports.keys() == {
                "remote_configuration",
                "personal_video",
                "voice_input",
                "unity_message_queue",
                "guest_message_queue",
            }


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
