"""A live session: packets into its pipeline, step events and guidance out of it.

Lives on the event loop; the pipeline's work runs in a thread, one batch at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from keystep_capture import wire
from keystep_capture.clock import Clock
from keystep_capture.errors import DataError, KeystepError
from keystep_capture.peers import Lane, Peer
from keystep_capture.streams import STREAMS
from keystep_server.batches import Change, Item, Outcome, Sighting
from keystep_server.checkpoint import Checkpoint, GuideState, SourceState, set_aside
from keystep_server.commands import CommandMemory
from keystep_server.events import EventLog
from keystep_server.guidance import Guide
from keystep_server.keeper import SOURCES_FILE, STATE_FILE, Draft, Keeper
from keystep_server.key_steps import progress_key_steps
from keystep_server.latency import DisplayLatencies, Evidence, LatencyWindow
from keystep_server.metrics import Metrics
from keystep_server.pictures import StepPicture
from keystep_server.pipeline import SessionPipeline
from keystep_server.pipeline_mark import PipelineMark
from keystep_server.recorder import SessionRecorder
from keystep_server.standing import StandingReports
from keystep_server.step_changes import store_change
from keystep_server.storage import (
    Session,
    Store,
    StoredEvent,
)

BATCH_PACKETS = 64
LIVE_BATCH_PACKETS = 256
"""Of a live session more are looked at together: in an overload old frames are passed over."""
WRITTEN_WITHIN_S = 5.0
"""A command is answered after this even if the disk does not take it."""
PUT_OFF_PACKETS = 64
"""So many packets may wait together for one that needs work at once: waking a thread for each
frame between two ticks costs as much CPU as decoding it."""
SPARE_REVISIONS = 1_000_000
"""So many revisions may be given out before the next is written down; a restart skips them."""
BLIND_AFTER_S = 3.0
"""The wearer is told "I can't see" when the evidence has been silent for this long."""
_SENSORS = frozenset(STREAMS) - {"detections"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServices:
    """What all live sessions share."""

    store: Store
    events: EventLog
    metrics: Metrics
    executor: Executor
    clock: Clock
    consumed: Callable[[Lane], None]
    acknowledge: Callable[[Lane, int], None]
    send_guidance: Callable[[Peer, wire.Guidance], None]
    publish_guidance: Callable[[str, wire.Guidance], None]


@dataclass(slots=True, kw_only=True, eq=False)
class LiveSession:
    """One open session in this process."""

    session: Session
    folder: Path
    pipeline: SessionPipeline
    guide: Guide | None
    services: LiveServices
    lanes: dict[str, Lane] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    peers: set[Peer] = field(default_factory=set)
    latencies: LatencyWindow = field(default_factory=LatencyWindow)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    epoch: int = 0
    acknowledged_revision: int = 0
    first_device_time_ns: int | None = None
    last_error: str | None = None
    refused_before: Counter[str] = field(default_factory=Counter)
    pictures: dict[int, StepPicture] = field(default_factory=dict)
    commands: CommandMemory = field(default_factory=CommandMemory)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by a batch, or by a command
    paused: bool = False
    display: str | None = None  # "showing", or the word for why not; None before the first word
    _displays: DisplayLatencies = field(default_factory=DisplayLatencies)
    _display_told_ns: int = 0
    _inbox: deque[Item] = field(default_factory=deque)
    _worker: asyncio.Task[None] | None = None
    _woken: bool = False
    _evidence_ns: int | None = None
    _counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    _finished: bool = False
    _unstored: deque[Change] = field(default_factory=deque)
    _written_commands: frozenset[str] = frozenset()
    _keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self._keeper = Keeper(
            self.folder,
            self.pipeline,
            lossless=self.session.replay,
            clock=self.services.clock,
            on_written=self._acknowledge,
        )

    @property
    def recorder(self) -> SessionRecorder:
        """Where the session is recorded."""
        return self.pipeline.recorder

    # -- packets ---------------------------------------------------------------------------------

    def take(self, lane: Lane, header: wire.PacketHeader, payload: bytes | memoryview) -> bool:
        """Queue a checked packet; its credit comes back when it has been worked off.

        Returns:
            False if the session is finished: the packet came too late and is counted as dropped.
        """
        if self._finished:
            self._count_dropped(header.stream, "session_closing", 1)
            return False
        now_ns = self.services.clock()
        if header.stream == self.pipeline.evidence_stream:
            self._evidence_ns = now_ns
        if self.first_device_time_ns is None:
            self.first_device_time_ns = header.device_time_ns
        self._inbox.append(Item(lane, header, payload, now_ns))
        if self._is_idle and not (
            len(self._inbox) < PUT_OFF_PACKETS and self.pipeline.may_wait(header)
        ):
            self.work()
        return True

    @property
    def _is_idle(self) -> bool:
        return self._worker is None or self._worker.done()

    def wake(self) -> None:
        """A tick's features are there: write it, and work off what was put off meanwhile."""
        if self._finished or (self._is_idle and not self._has_urgent_work()):
            return
        self._woken = True
        self.work()

    def _has_urgent_work(self) -> bool:
        may_wait = self.pipeline.may_wait
        return self.pipeline.has_ticks or not all(may_wait(item.header) for item in self._inbox)

    def work(self) -> None:
        """Work off what is queued, or begin to, unless that is being done."""
        if not (self._inbox or self._woken) or not self._is_idle:
            return
        if self._can_work_here():
            self._work_here()
        else:
            self._worker = asyncio.get_running_loop().create_task(
                self._work(), name=f"pipeline {self.session.id}"
            )

    def _can_work_here(self) -> bool:
        """Whether what is queued takes so little that no thread is to be woken for it."""
        return (
            len(self._inbox) <= BATCH_PACKETS
            and not self._unstored
            and not self.turn.locked()
            and self.pipeline.is_light(item.header for item in self._inbox)
        )

    def _work_here(self) -> None:
        """Work off a few sensors' packets, and write the ticks whose features are there."""
        self._woken = False
        batch = list(self._inbox)
        self._inbox.clear()
        try:
            self._count_all_dropped(self.pipeline.process(batch))
            self._note_features()
        except Exception as error:  # one session's trouble must not end the others
            self._note_failure(error)
        self._let_go(batch)

    async def drained(self) -> None:
        """Wait until every packet taken so far is worked off."""
        self.work()
        while self._worker is not None and not self._worker.done():
            await asyncio.shield(self._worker)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is taken."""
        return self._finished

    async def finish(self, *, flush: bool = True) -> None:
        """Work off what is queued, wait for the models, write all down and close the files.

        Takes no more then. With `flush`, ticks that are not complete are made too: nothing more
        will come. Without, a restarted server goes on with them.

        Raises:
            OSError: The disk did not take it.
        """
        self._finished = True
        await self.drained()
        loop = asyncio.get_running_loop()
        outcome = Outcome()
        finish = functools.partial(self.pipeline.finish, outcome, flush=flush)
        async with self.turn:
            try:
                try:
                    await loop.run_in_executor(self.services.executor, finish)
                finally:
                    self._unstored.extend(outcome.changes)
                self._note_features()
                await self._store_changes()
                self.recorder.session_note("closed" if flush else "server stopped")
                await self._keeper.finish(functools.partial(self._draft, spare_revisions=1))
            finally:
                await asyncio.to_thread(self.pipeline.close)  # writes, and waits for the disk

    async def _work(self, *, settle: bool = False) -> None:
        loop = asyncio.get_running_loop()
        if settle:
            async with self.turn:
                await self._settle()
        while self._inbox or self._woken:
            async with self.turn:
                await self._work_batch(loop)

    async def _work_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._woken = False
        limit = BATCH_PACKETS if self.session.replay else LIVE_BATCH_PACKETS
        batch = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
        try:
            outcome = await loop.run_in_executor(
                self.services.executor, self.pipeline.process, batch
            )
            await self._act_on(outcome)
        except Exception as error:  # one session's trouble must not end the others
            self._note_failure(error)
        self._let_go(batch)

    def _note_failure(self, error: Exception) -> None:
        trouble = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if trouble != self.last_error:  # once: a full disk fails every batch
            log.error("a batch of packets failed", session=self.session.id, exc_info=error)
        self.last_error = trouble

    def _let_go(self, batch: list[Item]) -> None:
        """Give back the credit of packets that were worked off, and write down what is due."""
        for item in batch:
            self._keeper.note(item.header, len(item.payload))
            self.services.consumed(item.lane)
        self._keep_up()

    async def _act_on(self, outcome: Outcome) -> None:
        self._count_all_dropped(outcome)
        self._unstored.extend(outcome.changes)
        news = await self._store_changes()
        self._note_features()
        if news or self.guide is None or outcome.newest is None:
            return
        was_blind = self.guide.latest is not None and self.guide.latest.severity == "cannot_see"
        if was_blind or not self.guide.logic.can_see:
            self.tell(device_time_ns=outcome.newest.device_time_ns)

    async def _store_changes(self) -> bool:
        """Commit the step events and tell the wearer; whether there were any.

        One that fails stays, and nothing is acknowledged until it is stored.
        """
        if not self._unstored or self.guide is None:
            return False
        newest = self._unstored[-1].seen
        while self._unstored:
            await self._store_change(self._unstored[0])
            self._unstored.popleft()
        self.guide.looking_at = None
        self.tell(device_time_ns=newest.device_time_ns, epoch=newest.epoch)
        await asyncio.to_thread(self.store_progress)
        self._keeper.hurry()
        return True

    async def _settle(self) -> None:
        """Store what was held up or has come since the last packet."""
        loop = asyncio.get_running_loop()
        outcome = Outcome()
        settle = functools.partial(self.pipeline.settle, outcome)
        try:
            try:
                await loop.run_in_executor(self.services.executor, settle)
            finally:
                await self._act_on(outcome)
        except Exception as error:  # it is tried again in a while
            self.last_error = f"{type(error).__name__}: {error}"
            log.error("a session is held up", session=self.session.id, error=str(error))
            return
        self._keep_up()

    def _count_all_dropped(self, outcome: Outcome) -> None:
        for (stream, reason), count in outcome.dropped.items():
            self._count_dropped(stream, reason, count)

    def _count_dropped(self, stream: str, reason: str, count: int) -> None:
        self.dropped[stream, reason] += count
        self.services.metrics.packets_dropped(stream, reason, count)

    async def _store_change(self, change: Change) -> None:
        """Store what a method reports or takes back; the log publishes it then."""
        assert self.guide is not None
        stored = await store_change(self.session.id, change, self.guide, self.services.events)
        if stored is None:
            return
        self.recorder.step_event(stored)
        if not stored.retracted:
            self._note_event(change.seen, stored)

    def _note_event(self, seen: Sighting, stored: StoredEvent) -> None:
        now_ns = self.services.clock()
        self.services.metrics.step_event_stored(stored.branch.value, stored.kind.value)
        self.services.metrics.event_latency((now_ns - seen.received_ns) / 1e9)
        self.latencies.add("arrival_to_event", now_ns - seen.received_ns)
        self._note_from_capture(seen.stream, seen.device_time_ns, {"capture_to_event": now_ns})

    def store_progress(self) -> None:
        """Write down how far the procedure is; blocks. Without a procedure there is nothing."""
        if self.guide is None:
            return
        store, session_id = self.services.store, self.session.id
        events = store.events(session_id, limit=10_000)
        current = self.guide.current_step
        steps = progress_key_steps(
            session_id,
            self.guide.procedure,
            events,
            first_device_time_ns=self.first_device_time_ns,
            current_step_id=current.id if current is not None else None,
        )
        store.replace_progress(session_id, steps)

    # -- guidance --------------------------------------------------------------------------------

    def tell(
        self,
        *,
        device_time_ns: int,
        blind: bool = False,
        epoch: int | None = None,
    ) -> None:
        """Work out the guidance of this moment and send it where it is new.

        Args:
            device_time_ns: When the evidence was captured, on the device's clock.
            blind: Whether the evidence is missing.
            epoch: Of evidence that came just now: how long it takes to the display is measured.
        """
        if self.guide is None:
            return
        guidance = self.guide.update(device_time_ns=device_time_ns, blind=blind)
        if guidance is None:
            return
        if epoch is not None:
            evidence = Evidence(
                device_time_ns=device_time_ns, epoch=epoch, sent_ns=self.services.clock()
            )
            self._displays.expect(guidance.revision, evidence)
        self.send_latest()

    def send_latest(self) -> None:
        """Send the newest guidance to all who are to have it."""
        if self.guide is None or self.guide.latest is None:
            return
        latest = self.guide.latest
        self.recorder.note(latest, device_time_ns=latest.device_time_ns)
        self.services.publish_guidance(self.session.id, latest)
        for peer in list(self.peers):  # sending to one that is gone takes it out
            self.show(peer)

    def show(self, peer: Peer) -> None:
        """Send the newest guidance to a peer that speaks for a headset."""
        if self.guide is None or self.guide.latest is None:
            return
        if _SENSORS.intersection(peer.hello.streams):
            self.services.send_guidance(peer, self.guide.latest)

    def look_for_silence(self) -> None:
        """Tell the wearer when the evidence has stopped coming."""
        if self._evidence_ns is None or self.guide is None or self.guide.latest is None:
            return
        if self.paused or self.guide.looking_at is not None:
            return  # nothing is looked for, or the wearer looks something up
        silent_ns = self.services.clock() - self._evidence_ns
        if silent_ns > BLIND_AFTER_S * 1e9 and self.guide.latest.severity != "cannot_see":
            self.tell(device_time_ns=self.guide.latest.device_time_ns, blind=True)

    def take_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        """Note which revision has arrived, whether it is on show, and how long that took."""
        if self.guide is None or self.guide.latest is None:
            return
        if ack.revision > self.guide.latest.revision:
            return
        self.acknowledged_revision = max(self.acknowledged_revision, ack.revision)
        self.recorder.note(ack, device_time_ns=self.guide.latest.device_time_ns)
        now_ns = self.services.clock()
        display = "showing" if ack.displayed else ack.reason or "not_displayed"
        if display != self.display:
            self.display = display
            if now_ns - self._display_told_ns > 1e9:  # a peer must not fill the log
                self._display_told_ns = now_ns
                log.info("the headset's display", session=self.session.id, display=display)
        latency = self._displays.close(peer, ack, now_ns)
        if latency is not None:
            self.latencies.add(
                "capture_to_display", latency.latency_ms * 1e6, latency.uncertainty_ms * 1e6
            )
            self.services.metrics.display_latency(latency.latency_ms / 1e3)

    def picture(self, picture_id: str) -> StepPicture | None:
        """The procedure's picture of an id."""
        return next((one for one in self.pictures.values() if one.id == picture_id), None)

    def set_paused(self, paused: bool) -> None:
        """Look at no detections until told otherwise; only in `turn`."""
        self.paused = self.pipeline.paused = paused
        if self.guide is not None:
            self.guide.paused = paused

    def set_recording(self, on: bool) -> None:
        """Record all streams and notes from now on, or only what always is."""
        recorder = self.recorder
        if on:
            recorder.everything = True
        recorder.session_note("recording started" if on else "recording stopped")
        recorder.everything = on

    def newest_moment(self) -> tuple[int, int]:
        """Device time, ns, of the newest packet and its epoch; time 0 before the first."""
        times = [
            (lane.epoch, lane.newest_device_time_ns)
            for lane in self.lanes.values()
            if lane.newest_device_time_ns is not None
        ]
        epoch, time_ns = max(times, default=(self.epoch, 0))
        return time_ns, epoch

    def leave(self, peer: Peer) -> None:
        """Let a connection go; what was refused of it stays counted."""
        if peer in self.peers:
            self.peers.discard(peer)
            self.refused_before.update(peer.dropped)

    # -- latencies and counters ------------------------------------------------------------------

    def _note_features(self) -> None:
        timings = self.pipeline.timings
        while timings:
            timing = timings.popleft()
            took_ns = timing.done_ns - timing.received_ns
            self.services.metrics.features_extracted("appearance", took_ns / 1e9)
            self.latencies.add("arrival_to_feature", took_ns)
            self.latencies.add("arrival_to_written", timing.written_ns - timing.received_ns)
            moments_ns = {
                "capture_to_arrival": timing.received_ns,
                "capture_to_feature": timing.done_ns,
                "capture_to_written": timing.written_ns,
            }
            self._note_from_capture("rgb", timing.device_time_ns, moments_ns)

    def _note_from_capture(
        self, stream: str, device_time_ns: int, moments_ns: Mapping[str, int]
    ) -> None:
        """Note how long after its capture a packet came to each of some moments."""
        lane = self.lanes.get(stream)
        if lane is None or lane.peer is None:
            return
        now_ns = max(moments_ns.values())
        reading = lane.peer.device_reading(now_ns)
        if reading is None:
            return
        captured_ns, uncertainty_ns = (
            reading.to_local(device_time_ns),
            reading.uncertainty_at(now_ns),
        )
        for stretch, moment_ns in moments_ns.items():
            self.latencies.add(stretch, moment_ns - captured_ns, uncertainty_ns)

    def count_packets(self) -> None:
        """Bring the process's packet counters up to date with the lanes."""
        for name, lane in self.lanes.items():
            packets, byte_count = self._counted.get(name, (0, 0))
            total = lane.taken_count
            self.services.metrics.packets_taken(name, total - packets, lane.byte_count - byte_count)
            self._counted[name] = (total, lane.byte_count)
        written, dropped = self.recorder.new_counts()
        self.services.metrics.packets_recorded(written)
        for stream, count in dropped.items():
            self.services.metrics.recording_dropped(stream, count)
        if dropped:
            log.warning("the disk does not follow", session=self.session.id, lost=dict(dropped))

    def stats(self) -> dict[str, Any]:
        """What `/stats` shows, JSON-ready."""
        now_ns = self.services.clock()
        streams = {name: _lane_stats(lane) for name, lane in sorted(self.lanes.items())}
        dropped = {f"{stream}/{reason}": n for (stream, reason), n in sorted(self.dropped.items())}
        refused = Counter(self.refused_before)
        for peer in self.peers:
            refused.update(peer.dropped)
        clocks = [clock for peer in self.peers if (clock := self._clock_stats(peer, now_ns))]
        latest = self.guide.latest if self.guide else None
        return {
            "live": True,
            "streams": streams,
            "dropped": dropped,
            "refused": dict(refused),
            "late": self.pipeline.late_counts,
            "decoded_frames": self.pipeline.decoded_count,
            "passed_over_frames": self.pipeline.passed_over_count,
            "size_changes": self.pipeline.size_changes,
            "ticks": self.pipeline.ticks.row_count,
            "appearance_features": self.pipeline.ticks.feature_count,
            "tick_cues": dict(self.pipeline.ticks.cue_counts),
            "calibrated": sorted(self.pipeline.calibrated),
            "features_left_out": self.pipeline.features_left_out,
            "latency": self.latencies.summary(),
            "clocks": clocks,
            "recording": self.recorder.stats(),
            "connections": len(self.peers),
            "display": self.display,
            "guidance": {
                "revision": latest.revision if latest else 0,
                "acknowledged_revision": self.acknowledged_revision,
            },
            "last_error": self.last_error
            or self._keeper.error
            or self.recorder.disk_error
            or self.pipeline.disk_error,
        }

    def _clock_stats(self, peer: Peer, now_ns: int) -> dict[str, Any]:
        """What is known of a source's clock and of its headset's, each as read here."""
        readings = {
            "bridge": (peer.clock.reading(now_ns), 1.0),
            "device": (peer.device_reading(now_ns), self.session.time_scale),
        }
        stats: dict[str, Any] = {}
        for name, (reading, nominal_rate) in readings.items():
            if reading is not None:
                stats[f"{name}_uncertainty_ms"] = round(reading.uncertainty_at(now_ns) / 1e6, 3)
                stats[f"{name}_drift_ppm"] = round(reading.drift_ppm(nominal_rate), 1)
        if stats:
            stats |= {"client": peer.hello.client, "steps": peer.clock.step_count}
        return stats

    # -- resume ----------------------------------------------------------------------------------

    def restore(self) -> None:
        """Go on where a stopped or killed server wrote down that it was, if any did (blocks).

        What cannot be read is set aside and said: the session then goes on from the procedure's
        initial state.
        """
        with self._setting_aside(SOURCES_FILE):
            for name, source in self._keeper.read_sources().items():
                self.instances[name] = source.instance
                self.lanes[name] = Lane(spec=STREAMS[name], epoch=source.epoch)
        with self._setting_aside(STATE_FILE):
            outcome = Outcome()
            checkpoint = self._keeper.restore(self._restore_guide, outcome)
            self._unstored.extend(outcome.changes)
            if checkpoint is not None:
                self.first_device_time_ns = checkpoint.first_device_time_ns
                self.commands = CommandMemory(checkpoint.commands)
                self._restore_lanes(checkpoint)
        with self._surviving_a_full_disk():
            self._keeper.write(self._draft(self.pipeline.mark())())

    @contextlib.contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """Guidance goes on without a disk; only nothing is acknowledged then."""
        try:
            yield
        except OSError as error:
            self.last_error = f"the session's state is not written: {error}"
            log.error("a session is not written down", session=self.session.id, error=str(error))

    @contextlib.contextmanager
    def _setting_aside(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, KeystepError) as error:
            set_aside(self.folder / name)
            self.last_error = f"{name} could not be read, its state is lost: {error}"
            log.error("a session's state is lost", session=self.session.id, error=str(error))

    def _restore_guide(self, state: GuideState | None) -> None:
        if (self.guide is None) != (state is None):
            raise DataError("a guided session's state has guidance, another's has none")
        if self.guide is not None and state is not None:
            standing = StandingReports(procedure=self.guide.procedure)
            standing.restore(state.standing)
            self.guide.logic.restore(state.logic)  # last: what fails leaves all as it was
            self.guide.standing = standing
            self.guide.looking_at = state.looking_at
            self.guide.said = state.said
            self.guide.update(device_time_ns=0, revision=state.revision)

    def _restore_lanes(self, checkpoint: Checkpoint) -> None:
        for name, state in checkpoint.lanes.items():
            place = state.resume or state
            epoch = self.lanes[name].epoch if name in self.lanes else state.epoch
            sequence = place.sequence if epoch == state.epoch else -1
            self.instances.setdefault(name, state.instance)
            self.lanes[name] = Lane(
                spec=STREAMS[name],
                epoch=epoch,
                received_sequence=sequence,
                acknowledged_sequence=sequence,
                taken_before=place.packets,
                lost=place.lost,
                byte_count=place.bytes,
            )

    def write_sources(self) -> None:
        """Write down who sends what (blocks)."""
        sources = {
            name: SourceState(instance=self.instances[name], epoch=lane.epoch)
            for name, lane in self.lanes.items()
        }
        with self._surviving_a_full_disk():
            self._keeper.write_sources(sources)

    def keep_up(self) -> None:
        """Bring a session that rests to the disk, if something of it is not there."""
        if self._is_idle and not self._finished and (self._keeper.is_behind or self._unstored):
            if not self._inbox:
                self._keeper.hurry()
            self._worker = asyncio.get_running_loop().create_task(
                self._work(settle=True), name=f"pipeline {self.session.id}"
            )

    def save_soon(self) -> None:
        """Write down what was taken so far as soon as it is worked off: its source is waiting."""
        self._keeper.hurry()
        self.keep_up()

    def _keep_up(self) -> None:
        if not self._unstored:  # else nothing may be acknowledged
            self._keeper.keep_up(self._draft)

    async def written_down(self, command_id: str) -> None:
        """Wait until a command's outcome is on the disk, if the disk takes it; not in `turn`."""
        deadline_ns = self.services.clock() + int(WRITTEN_WITHIN_S * 1e9)
        self._keeper.hurry()
        while command_id not in self._written_commands and not self._finished:
            if self.services.clock() > deadline_ns:
                log.error("a command is not written down", session=self.session.id)
                return
            self.keep_up()
            await asyncio.sleep(0.01)

    def _acknowledge(self, checkpoint: Checkpoint) -> None:
        self._written_commands = frozenset(name for name, _, _ in checkpoint.commands)
        for name, state in checkpoint.lanes.items():
            lane = self.lanes.get(name)
            if lane is not None and lane.epoch == state.epoch:
                self.services.acknowledge(lane, (state.resume or state).sequence)

    def _draft(self, mark: PipelineMark, *, spare_revisions: int = SPARE_REVISIONS) -> Draft:
        """This moment's checkpoint, all but the features that are still to come."""
        finished = frozenset(name for peer in self.peers if peer.finished for name in peer.lanes)
        guide = None
        if self.guide is not None:
            revision = self.guide.latest.revision if self.guide.latest else 0
            guide = GuideState(
                logic=dict(self.guide.logic.snapshot()),
                standing=self.guide.standing.snapshot(),
                revision=revision + spare_revisions,
                looking_at=self.guide.looking_at,
                said=self.guide.said,
            )
        commands = self.commands.snapshot()
        lanes = self._keeper.lanes(self.instances, finished=finished)
        first_ns = self.first_device_time_ns
        return lambda: Checkpoint(
            guide=guide,
            first_device_time_ns=first_ns,
            lanes=lanes,
            pipeline=mark.state(),
            commands=commands,
        )


def _lane_stats(lane: Lane) -> dict[str, Any]:
    sender_dropped = lane.peer.sender_dropped.get(lane.spec.name, 0) if lane.peer else 0
    newest_ns = lane.newest_device_time_ns
    return {
        "packets": lane.taken_count,
        "bytes": lane.byte_count,
        "lost": lane.lost,
        "dropped_by_sender": sender_dropped,
        "waiting": lane.accepted - lane.consumed,
        "epoch": lane.epoch,
        "last_sequence": lane.received_sequence,
        "newest_device_time_ns": None if newest_ns is None else str(newest_ns),
        "connected": lane.peer is not None,
    }
