"""Where headsets meet sessions: answers hellos, routes packets, closes sessions cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from keystep_capture import wire
from keystep_capture.access import Guard
from keystep_capture.clock import Clock
from keystep_capture.errors import (
    DataError,
    KeystepError,
    RefusedError,
    StateError,
    WireError,
)
from keystep_capture.peers import Admission, Buffer, Lane, Peer
from keystep_capture.receiver import Receiver
from keystep_capture.streams import STREAMS
from keystep_server.commands import (
    CommandDesk,
    CommandOutcome,
    command_result,
)
from keystep_server.events import EventLog
from keystep_server.feed import Feed, key_steps_notice
from keystep_server.guidance import Guide
from keystep_server.inference import InferenceEngine
from keystep_server.key_steps import ExtractionSettings, ModelIdentity, extracted_key_steps
from keystep_server.live import LiveServices, LiveSession
from keystep_server.method_choice import MethodChooser
from keystep_server.metrics import Metrics
from keystep_server.pictures import step_pictures
from keystep_server.pipeline import SessionPipeline
from keystep_server.publish import Publisher
from keystep_server.recorder import SessionRecorder, ask_to_record, is_to_be_recorded
from keystep_server.sessions import SessionRegistry
from keystep_server.storage import (
    Session,
    SessionKind,
    SessionState,
    Store,
)

FINISH_LIMIT_S = 30.0
"""Nor is one that goes on and on."""
FINISH_SILENCE_S = 3.0
"""A peer that was asked to finish and sends nothing for this long is not waited for."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestParts:
    """What ingest stands on."""

    store: Store
    events: EventLog
    metrics: Metrics
    publisher: Publisher
    engine: InferenceEngine
    model_key: str
    model: ModelIdentity
    data_dir: Path
    chooser: MethodChooser
    feature_rate_hz: float
    settings: ExtractionSettings
    worker_count: int
    feed: Feed
    clock: Clock = time.monotonic_ns


class Ingest:
    """Owns the live sessions; the wire's `Handler`. All methods belong to the event loop."""

    def __init__(self, parts: IngestParts) -> None:
        self._parts = parts
        self._live: dict[str, LiveSession] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._executor = ThreadPoolExecutor(parts.worker_count, thread_name_prefix="pipeline")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._registry: SessionRegistry | None = None
        self._desk: CommandDesk | None = None
        self._receiver: Receiver | None = None
        self._watch: asyncio.Task[None] | None = None
        self._refused_counted: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    def start(self, registry: SessionRegistry, bind: str, guard: Guard | None) -> Receiver:
        """Bind the wire and begin to take packets.

        Raises:
            ConfigError: The endpoint is in use, malformed, or off loopback without a guard.
        """
        self._registry = registry
        self._desk = CommandDesk(
            registry=registry,
            live_of=self._live.get,
            announce=self._parts.publisher.session,
            set_recording=self._set_recording,
        )
        self._receiver = Receiver(self, bind=bind, guard=guard, clock=self._parts.clock)
        self._watch = asyncio.get_running_loop().create_task(self._look_around())
        return self._receiver

    async def stop(self) -> None:
        """Stop taking packets; open sessions are written down and stay open."""
        if self._receiver is not None:
            await self._receiver.close()
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(
            *(live.finish(flush=False) for live in self._live.values()), return_exceptions=True
        )
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._executor.shutdown)

    # -- the wire's Handler ----------------------------------------------------------------------

    async def admit(self, hello: wire.Hello) -> Admission:
        """Find or open the session of a hello and give it its lanes."""
        session = await self._session_of(hello)
        async with self._opening.setdefault(session.id, asyncio.Lock()):
            await self._refuse_ended(session.id)
            live = self._live.get(session.id)
            fresh = live is None
            if live is None:
                live = await asyncio.to_thread(self._open, session)
            epoch = await self._epoch_of(live, hello, fresh=fresh)
            await self._refuse_ended(session.id)  # it may have been closed while this waited
            self._live[session.id] = live
            lanes = {}
            for name in hello.streams:
                if name not in STREAMS:
                    continue  # not granted: the welcome shows it, and its packets are refused
                old = live.lanes.get(name)
                lane = old.handed_over(epoch=epoch) if old else Lane(STREAMS[name], epoch)
                live.lanes[name] = lanes[name] = lane
                live.instances[name] = hello.instance
            await asyncio.to_thread(live.write_sources)
        return Admission(session_id=session.id, epoch=epoch, lanes=lanes)

    def on_joined(self, peer: Peer) -> None:
        """Show a new peer what the wearer should see."""
        live = self._live.get(peer.session_id)
        if live is None:
            if self._receiver is not None:
                self._receiver.dismiss(peer)
            return
        live.peers.add(peer)
        if live.guide is not None and live.guide.latest is None:
            live.tell(device_time_ns=0)
        else:
            live.show(peer)
        self._parts.publisher.session(peer.session_id, "paused" if live.paused else "open")
        live.recorder.session_note("joined", source=peer.hello.client, epoch=peer.epoch)
        log.info(
            "source joined",
            session=peer.session_id,
            device=peer.hello.device,
            client=peer.hello.client,
            streams=list(peer.lanes),
            epoch=peer.epoch,
        )

    def on_packet(self, peer: Peer, lane: Lane, header: wire.PacketHeader, payload: Buffer) -> bool:
        """Hand a packet to its session."""
        live = self._live.get(peer.session_id)
        if live is None:
            return True
        return not live.take(lane, header, payload)

    def on_guidance_ack(self, peer: Peer, ack: wire.GuidanceAck) -> None:
        """Note which revision has arrived at the headset."""
        live = self._live.get(peer.session_id)
        if live is not None:
            live.take_ack(peer, ack)

    def on_command(self, peer: Peer, command: wire.Command) -> None:
        """Have a command run and its outcome sent back."""
        assert self._desk is not None
        run = self._desk.run(peer.session_id, command.command, command.command_id)
        self._spawn(self._answer_command(peer, command, run))

    async def _answer_command(
        self, peer: Peer, command: wire.Command, run: Awaitable[CommandOutcome]
    ) -> None:
        try:
            outcome = await run
        except KeystepError as error:
            log.info("command refused", session=peer.session_id, error=str(error))
            outcome = CommandOutcome(accepted=False, text="That can't be done now.")
        if self._receiver is not None:
            self._receiver.send(peer, command_result(command.command_id, outcome))

    async def command(self, session_id: str, command: str, command_id: str) -> CommandOutcome:
        """Run a command that came over REST; as `CommandDesk.run`."""
        assert self._desk is not None
        return await self._desk.run(session_id, command, command_id)

    async def ask_to_record(self, session_id: str, on: bool) -> None:
        """Record all of a session from now on, or only its video, whatever its default is.

        Raises:
            StateError: It is being closed, or the disk does not take it.
        """
        async with self._opening.setdefault(session_id, asyncio.Lock()):
            live = self._live.get(session_id)
            if live is not None and live.is_finished:
                raise StateError(f"session {session_id} is being closed; open a new one")
            try:
                await asyncio.to_thread(ask_to_record, self._folder(session_id), on)
            except OSError as error:
                raise StateError(
                    f"session {session_id} is open, but whether to record it was not written "
                    f"({error.strerror}); make room on the disk and say it again"
                ) from None
            if live is not None:
                async with live.turn:
                    if live.recorder.everything != on and not live.is_finished:
                        live.set_recording(on)

    async def _set_recording(self, session_id: str, on: bool) -> CommandOutcome:
        """Begin or end the recording of a live session, between two of its batches."""
        live = self._live[session_id]
        if live.recorder.everything == on:
            text = "This is being recorded already." if on else "This is not being recorded."
            return CommandOutcome(accepted=False, text=text)
        try:
            await asyncio.to_thread(ask_to_record, live.folder, on)
        except OSError as error:
            log.error("not recorded as asked", session=session_id, error=str(error))
            return CommandOutcome(accepted=False, text="The server's disk is full or broken.")
        live.set_recording(on)
        return CommandOutcome(accepted=True, text="Recording." if on else "Recording stopped.")

    def picture(self, peer: Peer, picture: str) -> tuple[wire.PictureEncoding, bytes] | None:
        """A picture of the procedure of a peer's session."""
        live = self._live.get(peer.session_id)
        found = live.picture(picture) if live is not None else None
        return None if found is None else (found.encoding, found.image)

    def on_finished(self, peer: Peer, finished: wire.Finished) -> None:
        """A peer has sent all; close the session if it asks for that."""
        if (live := self._live.get(peer.session_id)) is not None:
            live.save_soon()
        if finished.close and self._registry is not None:
            self._spawn(self._registry.close(peer.session_id, "finished by its device"))

    def on_left(self, peer: Peer) -> None:
        """Forget a connection; its session waits for it."""
        live = self._live.get(peer.session_id)
        if live is not None:
            live.leave(peer)
            live.recorder.session_note("left", source=peer.hello.client, epoch=peer.epoch)
        log.info("source left", session=peer.session_id, device=peer.hello.device)

    # -- the registry's hooks --------------------------------------------------------------------

    async def close_session(self, session_id: str) -> None:
        """Let the peers finish, drain the pipeline, extract the key steps."""
        live = self._live.get(session_id)
        try:
            if live is not None:
                await self._finish(live)
            await self._extract(session_id)
        finally:
            self._live.pop(session_id, None)
            self._opening.pop(session_id, None)
            if live is not None and self._receiver is not None:
                for peer in list(live.peers):
                    self._receiver.dismiss(peer)
            self._parts.engine.forget(session_id)
            self._parts.publisher.session(session_id, "closed")

    async def _finish(self, live: LiveSession) -> None:
        """Take what the sources still hold, work it off and write the session's counters."""
        await self._let_finish(live)
        try:
            await live.finish()
        except OSError as error:  # key steps may still be had from what is on the disk
            live.last_error = f"not all of it could be written: {error}"
            log.error("a session could not be written", session=live.session.id, error=str(error))
        live.count_packets()
        with contextlib.suppress(OSError):
            self._write_stats(live)

    def stats_of(self, session_id: str) -> dict[str, Any]:
        """Counters of a live session, or those written when it was closed."""
        live = self._live.get(session_id)
        if live is not None:
            return live.stats()
        path = self._folder(session_id) / "stats.json"
        if not path.exists():
            return {"live": False, "streams": {}}
        try:
            stats: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            return {"live": False, "streams": {}, "last_error": f"{path.name}: {error}"}
        return stats

    def latencies_of(self, session_id: str) -> dict[str, Any]:
        """Newest latencies of a live session by stretch; empty for another."""
        live = self._live.get(session_id)
        return live.latencies.values() if live is not None else {}

    # -- sessions --------------------------------------------------------------------------------

    async def _session_of(self, hello: wire.Hello) -> Session:
        assert self._registry is not None
        if hello.session is None:
            return await self._registry.session_for_device(
                device_id=hello.device,
                kind=SessionKind(hello.kind),
                task=hello.task,
                procedure=hello.procedure,
                method=hello.method,
                replay=hello.replay,
                time_scale=hello.time_scale,
                client=hello.client,
            )
        session = await self._registry.get(hello.session)
        if session.device_id != hello.device:
            raise RefusedError(
                f"session {session.id} belongs to another device than {hello.device!r}",
                "other_device",
            )
        return session

    async def _refuse_ended(self, session_id: str) -> None:
        """Refuse a hello for a session that is being closed (for now) or is closed (for good)."""
        assert self._registry is not None
        if self._registry.is_closing(session_id):
            raise WireError(f"session {session_id} is being closed", "session_closing")
        if (await self._registry.get(session_id)).state is SessionState.CLOSED:
            raise RefusedError(f"session {session_id} is closed; open a new one", "session_closed")

    async def _epoch_of(self, live: LiveSession, hello: wire.Hello, *, fresh: bool) -> int:
        """The epoch of a hello: a stream that another instance sent begins a new one.

        A source that is known stays in its epoch, whatever others of the session have begun since.
        """
        known = [name for name in hello.streams if name in live.instances]
        if any(live.instances[name] != hello.instance for name in known):
            return await self._begin_epoch(live)
        if len(epochs := {live.lanes[name].epoch for name in known}) == 1:
            return epochs.pop()
        if fresh and not live.instances:
            return await self._begin_epoch(live)
        return live.epoch

    async def _begin_epoch(self, live: LiveSession) -> int:
        assert self._registry is not None
        live.epoch = await self._registry.begin_epoch(live.session.id)
        return live.epoch

    def _open(self, session: Session) -> LiveSession:
        """Make a session live, with the component state it had before a restart (blocks)."""
        parts, folder = self._parts, self._folder(session.id)
        folder.mkdir(parents=True, exist_ok=True)
        guide, pictures, rate_hz = None, {}, parts.feature_rate_hz
        detector, clips = None, None
        if session.procedure is not None:
            chosen = parts.chooser.begin(session.procedure, session.method, folder)
            rate_hz = chosen.rate_hz or rate_hz
            detector, clips = chosen.detector, chosen.clips
            pictures = step_pictures(parts.chooser.procedures.folder, chosen.logic.procedure)
            guide = Guide(
                logic=chosen.logic,
                picture_ids={step_id: picture.id for step_id, picture in pictures.items()},
            )
        pipeline = SessionPipeline(
            session_id=session.id,
            folder=folder,
            engine=parts.engine,
            appearance_model=parts.model_key,
            lossless=session.replay,
            rate_hz=rate_hz,
            logic=guide.logic if guide else None,
            detector=detector,
            clips=clips,
            recorder=SessionRecorder(
                folder,
                session,
                everything=is_to_be_recorded(folder, session.kind),
                clock=parts.clock,
            ),
            clock=parts.clock,
            on_feature=lambda: self._wake(session.id),
        )
        live = LiveSession(
            session=session,
            folder=folder,
            pipeline=pipeline,
            guide=guide,
            pictures=pictures,
            services=LiveServices(
                store=parts.store,
                events=parts.events,
                metrics=parts.metrics,
                executor=self._executor,
                clock=parts.clock,
                consumed=self._consumed,
                acknowledge=self._acknowledge,
                send_guidance=self._send_guidance,
                publish_guidance=parts.publisher.guidance,
            ),
        )
        live.epoch = session.epoch
        live.set_paused(session.state is SessionState.PAUSED)
        try:
            live.restore()
            live.store_progress()
        except BaseException:
            pipeline.close()
            raise
        return live

    def _wake(self, session_id: str) -> None:
        """Called in the engine's thread: a session's features are there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the session
            self._loop.call_soon_threadsafe(self._wake_on_loop, session_id)

    def _wake_on_loop(self, session_id: str) -> None:
        if (live := self._live.get(session_id)) is not None:
            live.wake()

    def _consumed(self, lane: Lane) -> None:
        if self._receiver is not None:
            self._receiver.consumed(lane)

    def _acknowledge(self, lane: Lane, sequence: int) -> None:
        if self._receiver is not None:
            self._receiver.acknowledge(lane, sequence)

    def _send_guidance(self, peer: Peer, guidance: wire.Guidance) -> None:
        if self._receiver is not None:
            self._receiver.send(peer, guidance)

    async def _let_finish(self, live: LiveSession) -> None:
        """Ask the peers to send what they hold; wait while they do."""
        if self._receiver is None:
            return
        finish = wire.Finish(protocol=wire.PROTOCOL, reason="the session is being closed")
        for peer in list(live.peers):
            if not peer.finished:
                self._receiver.send(peer, finish)
        began_ns = silent_since_ns = self._parts.clock()
        seen = -1
        while any(not peer.finished for peer in live.peers):
            taken = sum(lane.accepted for lane in live.lanes.values())
            if taken != seen:
                seen, silent_since_ns = taken, self._parts.clock()
            now_ns = self._parts.clock()
            silent = now_ns - silent_since_ns > FINISH_SILENCE_S * 1e9
            if silent or now_ns - began_ns > FINISH_LIMIT_S * 1e9:
                log.warning("a source did not finish", session=live.session.id)
                return
            await asyncio.sleep(0.02)

    async def _extract(self, session_id: str) -> None:
        """Extract key steps from a closed session's features."""
        parts = self._parts
        call: Callable[..., Any] = extracted_key_steps
        revision = await asyncio.to_thread(
            call,
            session_id,
            folder=self._folder(session_id),
            data_dir=parts.data_dir,
            model=parts.model,
            settings=parts.settings,
        )
        if revision is not None and revision.key_steps:
            stored = await asyncio.to_thread(
                parts.store.revisions.add, session_id, revision, datetime.now(UTC)
            )
            if stored is not None:
                parts.feed.publish(key_steps_notice(stored))

    def _write_stats(self, live: LiveSession) -> None:
        stats = {**live.stats(), "live": False}
        (live.folder / "stats.json").write_text(json.dumps(stats))

    def _folder(self, session_id: str) -> Path:
        return self._parts.data_dir / "sessions" / session_id

    # -- background ------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for live in list(self._live.values()):
                live.work()
                live.keep_up()
                live.look_for_silence()
                live.count_packets()
                live.recorder.note_clocks(live.peers)
            waiting = sum(live.recorder.waiting_bytes for live in self._live.values())
            self._parts.metrics.set_recording_backlog(waiting)
            self._count_refused()

    def _count_refused(self) -> None:
        """Bring the process's counters up to date with what the wire has refused."""
        assert self._receiver is not None
        for reason, count in self._receiver.dropped.items():
            self._parts.metrics.packets_dropped(
                "any", reason, count - self._refused_counted[reason]
            )
            self._refused_counted[reason] = count
        for socket, counts in (
            ("wire", self._receiver.entrance.counts),
            ("publish", self._parts.publisher.entrance.counts),
        ):
            self._parts.metrics.set_connections(socket, counts)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), StateError | DataError):
            log.warning("a session was not closed", error=str(error))
