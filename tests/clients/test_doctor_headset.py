"""The bridge's part of `keystep doctor`, against real simulated headsets."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from importlib.metadata import entry_points

import pytest

from keystep_capture.findings import HEADSET_CHECKS, Finding
from keystep_capture.samples import find_sample
from keystep_hololens.doctor import check_headset
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import SimulatedHeadset

HOST = "127.0.0.1"
COFFEE = find_sample("pour-coffee")


@pytest.fixture
async def whole() -> AsyncIterator[SimulatedHeadset]:
    async with SimulatedHeadset.of_sample(COFFEE, whole=True, microphone=True) as headset:
        yield headset


@pytest.fixture
async def video_only() -> AsyncIterator[SimulatedHeadset]:
    async with SimulatedHeadset.of_sample(COFFEE) as headset:
        yield headset


async def findings_of(headset: SimulatedHeadset) -> dict[str, Finding]:
    found = await asyncio.to_thread(check_headset, HOST, headset.base_port)
    return {finding.name: finding for finding in found}


def name_of(kind: Port, headset: SimulatedHeadset) -> str:
    return f"{port(kind, headset.base_port)} {kind.name.lower()}"


async def test_a_headset_with_everything_on_is_well(whole: SimulatedHeadset) -> None:
    found = await findings_of(whole)
    off = [finding for finding in found.values() if finding.level != "ok"]
    assert {f.name for f in off} <= {name_of(Port.RM_DEPTH_AHAT, whole), "clock"}
    assert "answers" in found[name_of(Port.REMOTE_CONFIGURATION, whole)].detail
    assert "round trip" in found["clock"].detail


async def test_ports_that_are_off_say_what_to_switch_on(video_only: SimulatedHeadset) -> None:
    found = await findings_of(video_only)
    assert found[name_of(Port.PERSONAL_VIDEO, video_only)].level == "ok"
    spatial = found[name_of(Port.SPATIAL_INPUT, video_only)]
    assert (spatial.level, spatial.detail) == ("problem", "refuses connections")
    depth = found[name_of(Port.RM_DEPTH_LONGTHROW, video_only)]
    assert (depth.level, "Research mode" in depth.remedy) == ("warning", True)


async def test_looking_starts_nothing_and_leaves_every_port_free(whole: SimulatedHeadset) -> None:
    first, second = await findings_of(whole), await findings_of(whole)
    assert {n: f.level for n, f in first.items() if n != "clock"} == {
        n: f.level for n, f in second.items() if n != "clock"
    }
    assert not whole.finished.is_set()


def test_a_headset_whose_app_does_not_run_is_a_problem_on_every_port() -> None:
    with socket.create_server((HOST, 0)) as free:
        base_port = int(free.getsockname()[1]) - Port.EXTENDED_DEPTH - 10
    found = check_headset(HOST, base_port)
    assert found[0].level == "problem"
    assert "start the hl2ss app" in found[0].remedy
    assert all(finding.level != "ok" for finding in found)


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog is silent on Linux only")
def test_a_headset_that_does_not_answer_at_all_is_one_finding() -> None:
    with ExitStack() as stack:
        base_port = silent_ports(stack)
        (finding,) = check_headset(HOST, base_port)
    assert finding.level == "problem"
    assert "did not answer within" in finding.detail


def silent_ports(stack: ExitStack) -> int:
    """Remote configuration and video of a headset that lets every packet fall; their base."""
    base_port = random.randrange(20_000, 32_000)
    for kind in (Port.REMOTE_CONFIGURATION, Port.PERSONAL_VIDEO):
        address = (HOST, port(kind, base_port))
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(0)  # one connection more, and the kernel drops what comes
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(address)
    return base_port


def test_the_check_is_found_by_its_entry_point() -> None:
    (entry,) = entry_points(group=HEADSET_CHECKS)
    assert entry.load() is check_headset
