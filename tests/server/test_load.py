"""`keystep bench load`: its stored packets, its generator, its figures; and a server overloaded."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_capture.streams import STREAMS
from keystep_capture.video import PacketDecoder
from keystep_server.demo_processes import ProcessError
from keystep_server.load.bare import PARTS, BareParts
from keystep_server.load.generator import Joined, Played, Settings
from keystep_server.load.measure import (
    Counted,
    Generator,
    Plan,
    Round,
    Snapshot,
    Target,
    counted,
    measure,
    server_process,
    start_generator,
)
from keystep_server.load.packets import GROUP_FRAMES, StoredPackets, make_packets
from keystep_server.load.picture import Histogram, draw_histograms, write_picture
from keystep_server.load.report import round_report, table, whole_report


@pytest.fixture(scope="module")
def stored() -> StoredPackets:
    return make_packets(60)


@pytest.fixture(scope="module")
def packets(stored: StoredPackets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "packets.msgpack"
    stored.write(path)
    return path


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keystep_capture.cli", "bench", "load", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


# -- stored packets ------------------------------------------------------------------------------


def test_a_headsets_packets_come_at_their_streams_rates_in_order(stored: StoredPackets) -> None:
    counts = Counter(packet.stream for packet in stored.packets)
    seconds = stored.duration_ns / 1e9
    for stream, count in counts.items():
        assert count / seconds == STREAMS[stream].rate_hz, stream
    offsets = [packet.offset_ns for packet in stored.packets]
    assert offsets == sorted(offsets)
    assert offsets[-1] < stored.duration_ns


def test_its_video_can_be_decoded_round_and_round(stored: StoredPackets) -> None:
    video, decoder = stored.of("rgb"), PacketDecoder("h264")
    assert [packet.keyframe for packet in video[: GROUP_FRAMES + 1]] == [
        number % GROUP_FRAMES == 0 for number in range(GROUP_FRAMES + 1)
    ]
    for packet in video + video[:3]:
        frame = decoder.decode(packet.payload)
        assert (frame.width, frame.height) == (packet.width, packet.height)


def test_stored_packets_are_read_as_they_were_written(packets: Path, tmp_path: Path) -> None:
    assert StoredPackets.read(packets) == make_packets(60)
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(DataError, match="holds no stored packets"):
        StoredPackets.read(tmp_path / "other")


def test_playing_them_goes_on_where_they_end(stored: StoredPackets) -> None:
    count = len(stored.packets)
    played = [time_ns for _, (time_ns, _) in zip(range(2 * count), stored.endless(), strict=False)]
    assert played == sorted(played)
    assert played[count] == stored.duration_ns


def test_bare_parts_cost_cpu_each(stored: StoredPackets) -> None:
    parts_ms = BareParts(stored.of("rgb")).measure(speed=1000)
    assert set(parts_ms) == set(PARTS)
    assert parts_ms["inference"] > parts_ms["preprocess"] > 0


# -- a round -------------------------------------------------------------------------------------


async def test_a_round_counts_every_session_of_a_real_server(packets: Path) -> None:
    plan = Plan(headsets=2, seconds=2.0, warm_up_s=1.0)
    async with server_process(plan) as target:
        measured = await measure(plan, target, packets)
    assert len(measured.after.sessions) == 2
    for device, after in measured.after.sessions.items():
        assert after.features > measured.before.sessions[device].features
    report = round_report(measured, {"decode": 1.0, "preprocess": 0.5, "inference": 8.0})
    written = report["latency_ms"]["arrival_to_written"]
    assert written["count"] == sum(
        after.latency_counts["arrival_to_written"]
        - measured.before.sessions[device].latency_counts["arrival_to_written"]
        for device, after in measured.after.sessions.items()
    )
    assert 0 < written["p50"] <= written["p95"] <= written["p99"] <= written["max"]
    assert report["server_cores"] > 0
    (played,) = measured.played
    assert all(streams["hands"] > streams["rgb"] > 0 for streams in played.sent.values())
    json.dumps(whole_report([report]))
    assert table([report]).row_count == 1


async def test_a_generator_that_cannot_work_says_why(tmp_path: Path) -> None:
    settings = Settings(
        packets=str(tmp_path / "none"), server="tcp://127.0.0.1:9", devices=["a"], phases=[0.0]
    )
    async with AsyncExitStack() as stack:
        generator = await start_generator(stack, settings)
        with pytest.raises(ProcessError, match="holds no stored packets"):
            await generator.read(Joined)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--headsets 0", "--headsets expects numbers from 1 to 60"),
        ("--headsets many", "--headsets expects numbers"),
        ("--server tcp://127.0.0.1:9", "belong together"),
        (
            "--server tcp://127.0.0.1:9 --rest http://127.0.0.1:9 --inference-threads 1,2",
            "threads of a running server",
        ),
        ("--headsets 1 --seconds 0", "--seconds"),
    ],
)
def test_wrong_usage_is_one_line(arguments: str, said: str) -> None:
    done = bench(*arguments.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


@pytest.mark.slow
def test_the_command_writes_its_figures_and_draws_them(tmp_path: Path) -> None:
    json_file, picture = tmp_path / "load.json", tmp_path / "load.png"
    files = ("--json", str(json_file), "--picture", str(picture))
    done = bench("--headsets", "1,2", "--seconds", "3", "--warm-up", "1", *files)
    assert done.returncode == 0, done.stderr
    assert [found["headsets"] for found in json.loads(json_file.read_text())["rounds"]] == [1, 2]
    assert cv2.imread(str(picture)) is not None


# -- figures -------------------------------------------------------------------------------------


def snapshot(time_s: float, cpu_s: float, features: list[int], decoded: int = 0) -> Snapshot:
    return Snapshot(
        time_s=time_s,
        server_cpu_s=cpu_s,
        generator_cpu_s=0.0,
        sessions={
            str(number): Counted(
                time_s=time_s,
                features=count,
                decoded=decoded,
                left_out={"superseded": 10 * count},
                dropped={},
                sender_dropped={"rgb": count},
                latency_counts={},
                newest_ms={},
            )
            for number, count in enumerate(features)
        },
    )


def test_figures_are_differences_between_the_two_snapshots() -> None:
    measured = Round(
        plan=Plan(headsets=2, seconds=10),
        before=snapshot(100, 5.0, [10, 10], decoded=100),
        after=snapshot(110, 7.0, [110, 70], decoded=400),
        latencies_ms={"arrival_to_written": [], "capture_to_written": [1.0, 2.0, 3.0]},
        played=[Played(sent={}, dropped={}, late_p95_ms=1.0, late_max_ms=2.0)],
    )
    report = round_report(measured, {"decode": 2.0, "preprocess": 1.0, "inference": 7.0})
    assert (report["features"], report["ticks_due"]) == (160, 200)
    assert report["server_ms_per_frame"] == 12.5
    assert report["ratio"] == 1.25
    # 600 frames decoded at 2/3 ms, 160 ticks at 8 ms
    assert report["ratio_to_work_done"] == round(2.0 / (0.4 + 1.28), 3)
    assert report["fairness"] == 0.75
    assert report["left_out"] == {"superseded": 1600}
    assert report["dropped_by_senders"] == {"rgb": 160}
    assert report["latency_ms"]["capture_to_written"]["p50"] == 2.0
    assert report["latency_ms"]["arrival_to_written"]["p50"] is None


def test_the_picture_shows_each_round_and_refuses_a_path_it_cannot_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        Histogram(label=f"{n} headsets", latencies_ms=list(rng.gamma(4, 5 * n, 400)))
        for n in (1, 4)
    ]
    one, two = draw_histograms("title", rows[:1]), draw_histograms("title", rows)
    assert two.shape[0] > one.shape[0]
    assert len(np.unique(two.reshape(-1, 3), axis=0)) > 5
    with pytest.raises(DataError, match="cannot write the picture"):
        write_picture(tmp_path / "picture.frobnicate", "title", rows)


# -- overload and relief -------------------------------------------------------------------------


class Overload:
    """A server that extracts every frame, one steady headset, and many more for a while."""

    def __init__(self, stack: AsyncExitStack, target: Target, packets: Path) -> None:
        self._stack, self._target, self._packets = stack, target, packets
        self._rest = httpx.AsyncClient(base_url=target.rest, timeout=60)
        stack.push_async_callback(self._rest.aclose)

    async def start(self, name: str, count: int) -> Generator:
        settings = Settings(
            packets=str(self._packets),
            server=self._target.wire,
            devices=[f"{name}-{number}" for number in range(count)],
            phases=[number / 30 / count for number in range(count)],
        )
        generator = await start_generator(self._stack, settings)
        generator.sessions = (await generator.read(Joined)).sessions
        return generator

    async def count(self, *generators: Generator) -> dict[str, Counted]:
        return {
            device: await counted(self._rest, session)
            for generator in generators
            for device, session in generator.sessions.items()
        }

    async def during(self, seconds: float, *generators: Generator) -> dict[str, dict[str, float]]:
        """Features a second, and ticks left out, of each headset meanwhile."""
        before = await self.count(*generators)
        await asyncio.sleep(seconds)
        after = await self.count(*generators)
        return {
            device: {
                "rate_hz": (end.features - before[device].features)
                / (end.time_s - before[device].time_s),
                "left_out": sum(end.left_out.values()) - sum(before[device].left_out.values()),
                "unsent": end.sender_dropped["rgb"] - before[device].sender_dropped["rgb"],
            }
            for device, end in after.items()
        }


@pytest.fixture
async def overload(packets: Path) -> AsyncIterator[Any]:
    plan = Plan(headsets=1, seconds=1.0)
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(
            server_process(plan, more={"feature_rate_hz": 30.0})
        )
        yield Overload(stack, target, packets)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_overloaded_server_serves_all_fairly_and_recovers_by_itself(overload: Any) -> None:
    steady = await overload.start("steady", 1)
    crowd = await overload.start("crowd", 11)
    await asyncio.sleep(4)  # queues fill
    found = await overload.during(10, steady, crowd)
    assert sum(one["left_out"] + one["unsent"] for one in found.values()) > 0  # it is overloaded
    rates_hz = [one["rate_hz"] for one in found.values()]
    mean_hz = sum(rates_hz) / len(rates_hz)
    assert 0 < mean_hz < 30
    assert min(rates_hz) >= 0.8 * mean_hz, found
    crowd.stop()
    await crowd.read(Played)
    async with asyncio.timeout(120):
        while True:
            alone = (await overload.during(3, steady))["steady-0"]
            if alone["left_out"] == alone["unsent"] == 0 and alone["rate_hz"] > 27:
                break


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_long_session_takes_no_more_memory_at_its_end() -> None:
    script = Path(__file__).parents[1] / "bench" / "bench_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--hours", "0.1", "--every-s", "15"],
        capture_output=True,
        text=True,
        timeout=580,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["data_s"] >= 360
    assert found["memory_spread"] <= found["target"], found["rss_mib"]
