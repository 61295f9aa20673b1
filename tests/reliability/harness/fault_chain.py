"""The whole chain in one session, and a fault put into it while the wearer's display is watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fault_processes import HUNG_S, Server, until
from fault_sources import TRUTH, Detector, worn_headset
from keystep_hololens.simulator import (
    SimulatedHeadset,
)
from keystep_server.demo_processes import KeystepProcess

STEPS = [(step.frame, step.id) for step in TRUTH.expected_b3]
"""(frame, step id) of the published logic: what an undisturbed session finds."""
MOMENT = 1277 - 25
"""Frame at which a fault begins: two steps are completed 2.5 s later, in the middle of it."""
PROCEDURE = ("--procedure", "industreal-assy", "--method", "b3")
FRESH_S = 3.5
"""Guidance on older evidence than this is stale: `live.BLIND_AFTER_S` and the look for it."""
MEMORY_MB = 200
"""A process may grow by this much over a fault; a leak of packets grows by more."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """What was to be seen at one moment."""

    time_s: float
    text: str
    is_fresh: bool


def seen(samples: list[Sample]) -> str:
    """What was on show, in order: steps by the word "step", other texts as they were."""
    said: list[str] = []
    stale_s, since_s = 0.0, None
    for sample in samples:
        blind = sample.text.startswith("I can't see")
        word = f'"{sample.text}"' if blind else "the step" if sample.text else "nothing"
        if not said or said[-1] != word:
            said.append(word)
        is_stale = bool(sample.text) and not blind and not sample.is_fresh
        since_s = (since_s or sample.time_s) if is_stale else None
        stale_s = max(stale_s, sample.time_s - since_s if since_s else 0.0)
    text = ", then ".join(said)
    return f"{text} (stale for {stale_s:.1f} s)" if stale_s > 1 else text


@dataclass(slots=True, kw_only=True)
class Fault:
    """One fault and what came of it; `ended` is called when its cause is gone."""

    chain: Chain
    began_s: float
    before: dict[str, Any]
    epoch: int
    ended_s: float | None = None
    first: dict[str, Any] | None = None
    after: dict[str, Any] = field(default_factory=dict)
    normal_s: float = 0.0
    seen: str = ""

    async def ended(self) -> None:
        """The cause is gone: what comes from now on counts as recovery."""
        self.ended_s = time.monotonic()
        self.first = await until(self.chain.stats, bool)


class Chain:
    """A headset, its bridge and its detector in one session of a server."""

    def __init__(self, server: Server, headset: SimulatedHeadset, device: str) -> None:
        self.server, self.headset, self.device = server, headset, device
        self.key: Path | None = None
        self.streams = "rgb,gaze,head,hands,depth"
        self.kind = "guided"
        self.session = ""
        self.may_lack = ""  # a word of the error that the session's close may end with
        self.samples: list[Sample] = []
        self._bridges = 0
        self._bridge: KeystepProcess | None = None
        self._detector: Detector | None = None
        self._evidence = (-1, 0.0)  # detections worked off, and when there were more

    @property
    def bridge(self) -> KeystepProcess:
        assert self._bridge is not None
        return self._bridge

    @property
    def detector(self) -> Detector:
        assert self._detector is not None
        return self._detector

    async def start_bridge(self) -> None:
        self._bridges += 1
        who = ("--device-id", self.device) if self.key is None else ("--key", str(self.key))
        self._bridge = await KeystepProcess.start(
            f"bridge-{self.device}-{self._bridges}",
            self.server.folder / "logs",
            *("bridge", "--device", "127.0.0.1", "--base-port", str(self.headset.base_port)),
            *("--server", self.server.wire, "--streams", self.streams, *who, *PROCEDURE),
            *("--kind", self.kind, "--spool-dir", str(self.server.folder / "spool")),
        )

    def use_key(self, key: Path) -> None:
        """Have bridge and detector use this key from their next start on."""
        self.key = self.detector.key = key

    def start_detector(self) -> None:
        self._detector = Detector(self.device, self.server, self.headset, self.key, self.kind)

    async def settle(self) -> None:
        """Begin, and wait until all streams come in and the wearer is guided by fresh evidence."""
        self.start_detector()
        await self.start_bridge()
        await self.detector.jump(STEPS[0][0] + 20)
        self.session = str(self.detector.sender.session)
        self.detector.playing = True
        start = await until(self.stats, bool)
        await until(self.look, lambda stats: stats and self.is_normal(stats, start))
        self.samples.clear()
        await self.detector.jump(MOMENT)

    async def stats(self) -> dict[str, Any] | None:
        """The session's counters; None while there is no server to ask."""
        with suppress(httpx.TransportError, AssertionError):
            path = f"/sessions/{self.session}/stats"
            found: dict[str, Any] = (await self.server.get(path, timeout_s=1.0))["stats"]
            return found if found["live"] else None  # a restarted server has not taken it up yet
        return None

    async def look(self) -> dict[str, Any] | None:
        """Note what the wearer sees, and whether that is fresh; the counters."""
        stats, now_s = await self.stats(), time.monotonic()
        app = self.headset.app
        assert app is not None
        text = " ".join(app.texts_on_show[0].split()) if app.texts_on_show else ""
        is_fresh = stats is not None and self._is_fresh(stats, now_s)
        self.samples.append(Sample(time_s=now_s, text=text, is_fresh=is_fresh))
        return stats

    def _is_fresh(self, stats: dict[str, Any], now_s: float) -> bool:
        lane = stats["streams"].get("detections", {"packets": 0, "waiting": 0})
        worked_off = lane["packets"] - lane["waiting"]
        if worked_off > self._evidence[0]:
            self._evidence = (worked_off, now_s)
        guidance = stats["guidance"]
        return (
            now_s - self._evidence[1] < FRESH_S
            and guidance["acknowledged_revision"] == guidance["revision"]
            and bool(stats["streams"].get("head", {"connected": False})["connected"])
        )

    def is_normal(self, stats: dict[str, Any], since: dict[str, Any]) -> bool:
        """Whether every stream and new ticks came in since, and fresh guidance is on show."""
        streams = set(self.streams.split(",")) | {"detections"}
        newest = {name: lane["packets"] for name, lane in stats["streams"].items()}
        older = {name: lane["packets"] for name, lane in since["streams"].items()}
        shown = self.samples[-1]
        return (
            all(newest.get(name, 0) > older.get(name, 0) for name in streams)
            and stats["ticks"] > since["ticks"]
            and stats["appearance_features"] > since["appearance_features"]
            and stats["display"] == "showing"
            and shown.is_fresh
            and bool(shown.text)
            and not shown.text.startswith("I can't see")
        )

    async def until_display(self, state: str) -> None:
        """Wait until the server knows this of the headset's display."""
        await until(self.stats, lambda stats: stats and stats["display"] == state)

    @asynccontextmanager
    async def fault(
        self, epoch_growth: int = 0, memory_mb: float = MEMORY_MB
    ) -> AsyncIterator[Fault]:
        """Put in a fault, watch until all is normal again, and check what must always hold.

        `epoch_growth`: so many restarts of a bridge, headset or detector are in it; `memory_mb`:
        the server may take so much more.
        """
        before = await until(self.stats, bool)
        epoch = (await self.server.get(f"/sessions/{self.session}"))["epoch"]
        resident_mb = self.server.memory_mb()
        fault = Fault(chain=self, began_s=time.monotonic(), before=before, epoch=epoch)
        watching = asyncio.create_task(self._watch(fault))
        try:
            yield fault
            if fault.ended_s is None:
                await fault.ended()
            async with asyncio.timeout(HUNG_S):
                await watching
        except TimeoutError:
            raise AssertionError(
                f"not normal again: {await self.stats()}, {self.samples[-1]}"
            ) from None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert self.bridge.is_running
        if self.server.keeper is None:
            assert self.server.process.is_running
            assert self.server.memory_mb() < resident_mb + memory_mb
        answer = await self._ask()
        assert (answer["state"], answer["epoch"]) == ("open", epoch + epoch_growth)
        await self._goes_on(epoch + epoch_growth)

    async def _watch(self, fault: Fault) -> None:
        while True:
            stats = await self.look()
            if stats and fault.first and fault.ended_s and self.is_normal(stats, fault.first):
                fault.after, fault.normal_s = stats, time.monotonic() - fault.ended_s
                fault.seen = seen(self.samples)
                return
            await asyncio.sleep(0.1)

    async def _goes_on(self, epoch: int) -> None:
        """The rest of the work is recognised in the same session, each step once."""
        app = self.headset.app
        assert app is not None
        await self.detector.jump(STEPS[4][0] + 1)
        await until(self.stats, lambda _: "5 of" in " ".join(app.texts_on_show))
        await self.detector.jump(STEPS[5][0] + 1)
        await until(self.stats, lambda _: "6 of" in " ".join(app.texts_on_show))
        await self.detector.jump(TRUTH.frame_count)
        await self.detector.sender.finish(close=True, timeout_s=HUNG_S)
        found = await self._ask("/events?limit=1000")
        assert [(event["frame_idx"], event["step_id"]) for event in found["events"]] == STEPS
        answer = await self._ask()
        assert (answer["state"], answer["epoch"]) == ("closed", epoch), answer
        assert answer["error"] is None or (self.may_lack and self.may_lack in answer["error"]), (
            answer
        )
        lane = (await self._ask("/stats"))["stats"]["streams"]
        assert (lane["detections"]["packets"], lane["detections"]["lost"]) == (
            TRUTH.frame_count,
            0,
        ), lane["detections"]

    async def _ask(self, path: str = "") -> Any:
        return await until(lambda: self.server.get(f"/sessions/{self.session}{path}"), bool)

    async def close(self) -> None:
        if self._detector is not None:
            await self._detector.hang_up()
        if self._bridge is not None:
            await self._bridge.kill()


@asynccontextmanager
async def chain_on(
    server: Server,
    *,
    device: str,
    key: Path | None = None,
    streams: str | None = None,
    kind: str = "guided",
) -> AsyncIterator[Chain]:
    """A chain in its steady state."""
    async with worn_headset() as headset:
        chain = Chain(server, headset, device)
        chain.key, chain.streams, chain.kind = key, streams or chain.streams, kind
        try:
            await chain.settle()
            yield chain
        finally:
            await chain.close()
