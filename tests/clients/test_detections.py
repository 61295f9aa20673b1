"""The publisher of a sample's detections, against the real receiver."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, RefusedError
from keystep_capture.samples import find_sample, load_detection_rows, load_truth
from keystep_hololens.detections import procedure_of, publish_detections
from keystep_hololens.simulator import SimulatedHeadset

if TYPE_CHECKING:
    from conftest import RecordingServer

COFFEE, INDUSTREAL = find_sample("pour-coffee"), find_sample("industreal-03")


async def test_every_frame_is_one_packet_at_its_device_time_even_when_empty(
    server: RecordingServer,
) -> None:
    assert INDUSTREAL.detections_path is not None
    count = load_truth(INDUSTREAL).frame_count
    rows = load_detection_rows(INDUSTREAL.detections_path, frame_count=count)
    async with SimulatedHeadset.of_sample(
        INDUSTREAL, time_scale=200, start_at_once=True
    ) as headset:
        async with asyncio.timeout(60):
            await publish_detections(INDUSTREAL, headset, server=server.endpoint, device="hl2")
        origin_hns = headset.playback_origin_hns
    assert origin_hns is not None
    await server.has("detections", count)
    headers = [header for header, _ in server.of("detections")]
    assert [header.frame_idx for header in headers] == list(range(count))
    assert [header.sequence for header in headers] == list(range(count))
    expected_ns = [(origin_hns + n * 1_000_000) * 100 for n in range(count)]
    assert [header.device_time_ns for header in headers] == expected_ns
    sent = [np.frombuffer(payload, "<f8").reshape(-1, 6) for _, payload in server.of("detections")]
    assert [[tuple(row) for row in frame] for frame in sent] == rows
    assert sum(not frame for frame in rows) > 2000  # most frames are empty, and were sent


async def test_the_session_is_a_replay_of_the_samples_procedure_and_stays_open(
    server: RecordingServer,
) -> None:
    async with SimulatedHeadset.of_sample(
        INDUSTREAL, time_scale=400, start_at_once=True
    ) as headset:
        await publish_detections(INDUSTREAL, headset, server=server.endpoint, device="hl2")
    (hello,) = server.hellos
    assert (hello.device, hello.streams) == ("hl2", ["detections"])
    assert (hello.replay, hello.time_scale) == (True, 400)
    assert hello.procedure == procedure_of(INDUSTREAL) == "industreal-assy"
    await server.until(lambda: server.finished)
    assert not server.finished[0].close


async def test_it_waits_for_the_playback_and_knows_the_headsets_clock(
    server: RecordingServer,
) -> None:
    async with SimulatedHeadset.of_sample(INDUSTREAL, time_scale=50) as headset:
        publishing = asyncio.create_task(
            publish_detections(INDUSTREAL, headset, server=server.endpoint, device="hl2")
        )
        await server.until(lambda: server.peers)
        assert not server.headers
        headset.playback.begin()
        await server.has("detections", 100)
        await server.until(lambda: server.peers[0].device_clock)
        told = server.peers[0].device_clock
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    assert told is not None
    assert told.rate == 50


async def test_a_refusal_for_good_ends_it(server: RecordingServer) -> None:
    server.refusal = RefusedError("no such procedure here", "not_found")
    async with SimulatedHeadset.of_sample(INDUSTREAL, time_scale=50) as headset:
        with pytest.raises(RefusedError, match="no such procedure"):
            await publish_detections(INDUSTREAL, headset, server=server.endpoint, device="hl2")


async def test_a_sample_without_detections_is_refused(server: RecordingServer) -> None:
    async with SimulatedHeadset.of_sample(COFFEE) as headset:
        with pytest.raises(ConfigError, match="'pour-coffee' has no detections"):
            await publish_detections(COFFEE, headset, server=server.endpoint, device="hl2")
