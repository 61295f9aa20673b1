"""When a session's state is written down, and what is acknowledged by that.

Between two batches of packets a moment is marked; when the features that were on their way have
come, it becomes a checkpoint on the disk; then, and only then, its packets are acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from keystep_capture.clock import Clock
from keystep_capture.streams import STREAMS
from keystep_capture.wire import PacketHeader
from keystep_server.batches import Outcome
from keystep_server.checkpoint import (
    Checkpoint,
    GuideState,
    LaneState,
    SourceState,
    read_checkpoint,
    read_sources,
    write_json,
)
from keystep_server.pipeline import SessionPipeline
from keystep_server.pipeline_mark import PipelineMark
from keystep_server.progress import StreamProgress

WRITE_EVERY_S = 1.0
WRITE_EVERY_PACKETS = 1024
"""A session is written down, and acknowledged, after the sooner of these."""
STATE_FILE, SOURCES_FILE = "tracker.json", "sources.json"

log = structlog.get_logger(__name__)

Draft = Callable[[], Checkpoint]


class Keeper:
    """Writes one session down; belongs to the event loop."""

    def __init__(
        self,
        folder: Path,
        pipeline: SessionPipeline,
        *,
        lossless: bool,
        clock: Clock,
        on_written: Callable[[Checkpoint], None],
    ) -> None:
        """Start before the first packet.

        Args:
            folder: The session's.
            pipeline: What its packets go through.
            lossless: Its sources keep their video too, until it is acknowledged.
            clock: Monotonic clock, ns.
            on_written: Told of each checkpoint that is on the disk.
        """
        self._folder = folder
        self._pipeline = pipeline
        self._lossless = lossless
        self._clock = clock
        self._on_written = on_written
        self._progress: dict[str, StreamProgress] = {}
        self._pending: tuple[PipelineMark, Draft] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._written_ns = 0
        self._unwritten_packets = 0
        self._at_once = False
        self.error: str | None = None

    @property
    def is_behind(self) -> bool:
        """Whether something that was worked off is not on its way to the disk."""
        return self._unwritten_packets > 0 or self._pending is not None

    def note(self, header: PacketHeader, payload_bytes: int) -> None:
        """A packet was worked off."""
        progress = self._progress.get(header.stream)
        if progress is None:
            spec = STREAMS[header.stream]
            progress = StreamProgress(spec, kept_by_source=self._lossless)
            self._progress[header.stream] = progress
        progress.note(header, payload_bytes)
        self._unwritten_packets += 1

    def hurry(self) -> None:
        """Write down at the next opportunity: something happened that people wait for."""
        self._at_once = True
        self._unwritten_packets = max(self._unwritten_packets, 1)

    def keep_up(self, draft: Callable[[PipelineMark], Draft]) -> None:
        """Mark this moment if that is due; write a marked one down when its features have come.

        Only between two batches: `draft` notes what else belongs to this moment.
        """
        waited_ns = self._clock() - self._written_ns
        due = self._unwritten_packets and (
            self._at_once
            or waited_ns > WRITE_EVERY_S * 1e9
            or self._unwritten_packets >= WRITE_EVERY_PACKETS
        )
        if due and self._pending is None:
            mark = self._pipeline.mark()
            self._pending = mark, draft(mark)
            self._written_ns, self._unwritten_packets = self._clock(), 0
            self._at_once = False
            loop = asyncio.get_running_loop()
            mark.recorded.when_reached(functools.partial(self._wake, loop))
        self._commit_pending()

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called in the recording's thread: a marked moment is in its files."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the session
            loop.call_soon_threadsafe(self._commit_pending)

    def _commit_pending(self) -> None:
        """Write the marked moment down, if all of it has come."""
        if self._pending is None or not self._pipeline.is_written(self._pending[0]):
            return
        if self._writer is None or self._writer.done():
            checkpoint, self._pending = self._pending[1](), None
            self._writer = asyncio.get_running_loop().create_task(self._commit(checkpoint))

    async def finish(self, draft: Callable[[PipelineMark], Draft]) -> None:
        """Write the end down, when nothing is on its way any more.

        Raises:
            OSError: The disk did not take it.
        """
        self._pending = None
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        mark = self._pipeline.mark()
        if not await asyncio.to_thread(mark.recorded.wait):
            raise OSError("the disk does not take the recording")
        checkpoint = draft(mark)()
        await asyncio.to_thread(self.write, checkpoint)
        self._on_written(checkpoint)

    def lanes(
        self, instances: Mapping[str, str], *, finished: frozenset[str]
    ) -> dict[str, LaneState]:
        """Each stream's place at this moment."""
        return {
            name: progress.state(instances[name], finished=name in finished)
            for name, progress in self._progress.items()
        }

    def write(self, checkpoint: Checkpoint) -> None:
        """Bring a checkpoint to the disk, after all that it counts on (blocks).

        Raises:
            OSError: The disk did not take it.
        """
        self._pipeline.sync()
        write_json(self._folder / STATE_FILE, checkpoint)

    def write_sources(self, sources: Mapping[str, SourceState]) -> None:
        """Write down who sends what, before a welcome: no epoch is given out twice (blocks)."""
        write_json(self._folder / SOURCES_FILE, sources)

    def read_sources(self) -> dict[str, SourceState]:
        """Who sent what before a restart (blocks).

        Raises:
            DataError: The file cannot be read.
        """
        return read_sources(self._folder / SOURCES_FILE)

    def restore(
        self, restore_guide: Callable[[GuideState | None], None], outcome: Outcome
    ) -> Checkpoint | None:
        """Bring the session to where it was written down, if it was (blocks).

        Args:
            restore_guide: Restores what guidance stands on.
            outcome: Gets what is found on the way.

        Raises:
            DataError: The file cannot be read, or does not fit the session's files.
        """
        checkpoint = read_checkpoint(self._folder / STATE_FILE)
        if checkpoint is None:
            return None
        restore_guide(checkpoint.guide)
        taken = {name: (lane.epoch, lane.sequence) for name, lane in checkpoint.lanes.items()}
        self._pipeline.restore(checkpoint.pipeline, taken, outcome)
        for name, state in checkpoint.lanes.items():
            self._progress[name] = StreamProgress.from_state(
                STREAMS[name], state, kept_by_source=self._lossless
            )
        return checkpoint

    async def _commit(self, checkpoint: Checkpoint) -> None:
        try:
            await asyncio.to_thread(self.write, checkpoint)
        except OSError as error:  # nothing is acknowledged; the next one may succeed
            self.error = f"the session's state is not written: {error}"
            log.error("a session is not written down", folder=self._folder.name, error=str(error))
            self._unwritten_packets = max(self._unwritten_packets, 1)
            return
        self._on_written(checkpoint)
