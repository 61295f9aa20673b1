"""Faults of headset, bridge and detector, one after another on one server process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from fault_chain import Chain, Fault, chain_on
from fault_processes import Server
from fault_sources import Neighbour
from fault_table import Rows
from keystep_hololens.hl2ss.protocol import Port
from keystep_hololens.simulator import AppKind, Faults

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

VIDEO = frozenset({Port.PERSONAL_VIDEO})
SPATIAL = frozenset({Port.SPATIAL_INPUT})
WEARER = frozenset({Port.UNITY_MESSAGE_QUEUE, Port.VOICE_INPUT})
FAULT_S = 5.0
"""How long the faults last that last."""


@dataclass(slots=True)
class Site:
    """A server and a session on it that has nothing to do with the faults."""

    server: Server
    neighbour: Neighbour
    chain_count: int = 0

    def chain(self, streams: str | None = None) -> AbstractAsyncContextManager[Chain]:
        self.chain_count += 1
        device = f"headset-{self.chain_count}"
        return chain_on(self.server, device=device, streams=streams)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    server = Server(tmp_path_factory.mktemp("site"))
    await server.start()
    neighbour = Neighbour(server, None)
    try:
        yield Site(server, neighbour)
    finally:
        await neighbour.close()
        await server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def chain(site: Site) -> AsyncIterator[Chain]:
    async with site.chain() as running:
        yield running
    await site.neighbour.check()


async def sent_by(chain: Chain, stream: str) -> int:
    """Packets that the headset has sent of a stream on the bridge's first connection."""
    lane = (await chain.stats())["streams"][stream]
    return int(lane["packets"] + lane["lost"])


async def spoil_one(chain: Chain, stream: str, faults: Callable[[int], Faults]) -> None:
    """Let a fault befall one packet about a second from now; return when it has."""
    at = await sent_by(chain, stream) + 30
    chain.headset.set_faults(faults(at))
    async with asyncio.timeout(60):
        while await sent_by(chain, stream) < at:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    chain.headset.set_faults(Faults())


async def for_a_while(chain: Chain, faults: Faults) -> None:
    chain.headset.set_faults(faults)
    await asyncio.sleep(FAULT_S)
    chain.headset.set_faults(Faults())


def lost_since(fault: Fault, stream: str) -> int:
    lane = fault.after["streams"][stream]
    return int(lane["lost"] - fault.before["streams"][stream]["lost"])


# -- nothing, for comparison ---------------------------------------------------------------------


@pytest.mark.slow
async def test_without_a_fault_nothing_is_lost(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await asyncio.sleep(FAULT_S)
    reliability.add("none, for comparison", fault)
    assert fault.seen == "the step"


# -- processes -----------------------------------------------------------------------------------


async def test_a_killed_bridge_begins_a_new_epoch_of_the_same_session(
    chain: Chain, reliability: Rows
) -> None:
    async with chain.fault(epoch_growth=1) as fault:
        await chain.bridge.kill()
        await asyncio.sleep(FAULT_S)
        await chain.start_bridge()
    reliability.add("bridge killed (-9), started again after 5 s", fault)
    assert fault.after["guidance"]["revision"] >= fault.before["guidance"]["revision"]


@pytest.mark.slow
async def test_a_headset_that_restarts_begins_a_new_epoch(chain: Chain, reliability: Rows) -> None:
    async with chain.fault(epoch_growth=1) as fault:
        await chain.headset.reboot(FAULT_S)
    reliability.add("headset restarts, 5 s", fault)


async def test_a_lost_detector_is_told_to_the_wearer(chain: Chain, reliability: Rows) -> None:
    async with chain.fault(epoch_growth=1) as fault:
        await chain.detector.hang_up()
        await asyncio.sleep(FAULT_S)
        chain.detector.dial()
    reliability.add("detector killed, started again after 5 s", fault)
    assert "I can't see" in fault.seen


# -- connections to the headset ------------------------------------------------------------------


@pytest.mark.slow
async def test_one_stream_that_is_cut_off_comes_back(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        chain.headset.disconnect(VIDEO)
    reliability.add("the video's connection is cut off", fault)


@pytest.mark.slow
async def test_all_streams_that_are_cut_off_come_back(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        chain.headset.disconnect()
    reliability.add("all connections to the headset are cut off", fault)


@pytest.mark.slow
async def test_a_stalled_video_is_told_to_the_wearer(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        chain.detector.playing = False  # it has no pictures either
        await for_a_while(chain, Faults(stall=True, ports=VIDEO))
        chain.detector.playing = True
    reliability.add("video stalls for 5 s", fault)
    assert "I can't see" in fault.seen


@pytest.mark.slow
async def test_a_stalled_sensor_leaves_the_others_alone(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(stall=True, ports=SPATIAL))
    reliability.add("head, gaze and hands stall for 5 s", fault)
    assert fault.seen == "the step"


@pytest.mark.slow
async def test_a_slow_link_costs_pictures_only(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(bytes_per_s=20_000, ports=VIDEO))
    reliability.add("slow link: 20 kB/s for the video, 5 s", fault)
    for stream in ("head", "gaze", "hands"):
        assert lost_since(fault, stream) == 0


# -- packets -------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_packets_in_the_wrong_order_cost_at_most_themselves(
    chain: Chain, reliability: Rows
) -> None:
    async with chain.fault() as fault:
        await spoil_one(chain, "head", lambda at: Faults(reorder_at=at, ports=SPATIAL))
    reliability.add("a packet of head and gaze comes after the next", fault)
    assert fault.seen == "the step"


@pytest.mark.slow
async def test_garbage_costs_one_connection(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await spoil_one(chain, "rgb", lambda at: Faults(garbage_at=at, ports=VIDEO))
    reliability.add("garbage in place of a picture", fault)


@pytest.mark.slow
async def test_a_corrupt_picture_costs_no_more_than_its_group(
    chain: Chain, reliability: Rows
) -> None:
    async with chain.fault() as fault:
        await spoil_one(chain, "rgb", lambda at: Faults(corrupt_at=at, ports=VIDEO))
    reliability.add("a picture's payload is corrupt", fault)


@pytest.mark.slow
async def test_lost_tails_of_groups_leave_the_key_pictures(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(gop_kept=3, ports=VIDEO))
    reliability.add("of each group of pictures only 3 arrive, 5 s", fault)
    assert fault.after["appearance_features"] > fault.before["appearance_features"]


# -- rates and clocks ----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_drifting_clock_is_followed(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(clock_drift_ppm=100))
    clocks = [clock for clock in fault.after["clocks"] if "hololens" in clock["client"]]
    bound = f"clock known to ±{clocks[0]['device_uncertainty_ms']:.1f} ms"
    reliability.add("the headset's clock runs 100 ppm fast, 5 s", fault, note=bound)
    assert fault.seen == "the step"
    assert clocks[0]["steps"] == 0


@pytest.mark.slow
async def test_slow_long_throw_depth_leaves_ticks_alone(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(long_throw_rate_hz=0.5))
    reliability.add("long-throw depth falls to 0.5 Hz, 5 s", fault)
    assert fault.seen == "the step"


@pytest.mark.slow
async def test_slow_ahat_depth_leaves_ticks_alone(site: Site, reliability: Rows) -> None:
    async with (
        site.chain(streams="rgb,gaze,head,hands,depth_ahat") as chain,
        chain.fault() as fault,
    ):
        await for_a_while(chain, Faults(ahat_rate_hz=2))
    reliability.add("AHAT depth falls to 2 Hz, 5 s", fault)
    assert fault.seen == "the step"


# -- display and voice ---------------------------------------------------------------------------


async def test_a_headset_without_a_scene_is_noticed(chain: Chain, reliability: Rows) -> None:
    app = chain.headset.app
    async with chain.fault() as fault:
        app.kind = AppKind.STAND_ALONE
        app.restart()
        await chain.until_display("no_scene")
        app.kind = AppKind.SCENE
    reliability.add("no scene on the headset", fault)
    assert "nothing" in fault.seen


@pytest.mark.slow
async def test_display_and_voice_come_back(chain: Chain, reliability: Rows) -> None:
    async with chain.fault() as fault:
        await for_a_while(chain, Faults(stall=True, ports=WEARER))
        chain.headset.disconnect(WEARER)
    reliability.add("display and voice stall for 5 s, then are cut off", fault)
    assert "nothing" in fault.seen or "the step" in fault.seen
