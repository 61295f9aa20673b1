"""A live session's recording: its video always, every stream of it where it is recorded.

All of it is written by a thread of its own behind a bounded queue; neither packets nor guidance
wait for the disk. What a checkpoint acknowledges is in the files, or was left out and counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog

from keystep_capture import wire
from keystep_capture.align import Tick
from keystep_capture.clock import Clock
from keystep_capture.peers import Buffer, Peer
from keystep_capture.recording import (
    Position,
    QueueMark,
    RecordingInfo,
    RecordingQueue,
    RecordingWriter,
    take_back,
)
from keystep_capture.recording.notes import (
    ClockNote,
    Note,
    SessionNote,
    StepEventNote,
    TickNote,
)
from keystep_server.checkpoint import VideoState, write_json
from keystep_server.storage import Session, SessionKind, StoredEvent

FOLDER: Final = "recording"
ASKED_FILE: Final = "recording.json"
"""Whether a session is to be recorded; where there is none, experts' sessions are."""
LOSSLESS_BACKLOG_BYTES = 32 * 1024 * 1024
LOSSLESS_WAIT_S = 10.0
"""A replay waits so long for the disk when that much waits to be written; then it drops, too,
until the disk has caught up: it holds a thread that live sessions need."""
CLOSE_WITHIN_S = 30.0
MAX_EARLY_NOTES = 64
CLOCK_EVERY_S = 5.0
_ALWAYS = frozenset({"rgb", "calibration"})
"""Recorded of every session: key steps are cut out of the video, and constants come only once."""

log = structlog.get_logger(__name__)


def ask_to_record(folder: Path, on: bool) -> None:
    """Write down in a session's folder whether it is to be recorded (blocks).

    Raises:
        OSError: The disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ASKED_FILE, {"on": on})


def is_to_be_recorded(folder: Path, kind: SessionKind) -> bool:
    """Whether all of a session is recorded: as it was asked for, else if it is an expert's."""
    try:
        asked = json.loads((folder / ASKED_FILE).read_text(encoding="utf-8"))
        return asked["on"] is True
    except FileNotFoundError:
        return kind is SessionKind.EXPERT
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.error("what was asked for cannot be read", file=ASKED_FILE, error=str(error))
        return kind is SessionKind.EXPERT


class SessionRecorder:
    """Records one session; `take` and `mark` belong to its pipeline, notes come from any thread."""

    def __init__(
        self,
        folder: Path,
        session: Session,
        *,
        everything: bool,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Prepare; file and thread are begun by the first packet.

        Args:
            folder: The session's.
            session: What is recorded.
            everything: Whether all streams and notes are, or only what always is.
            clock: The arrival clock, ns.
        """
        self._folder = folder / FOLDER
        self._info = RecordingInfo(
            session=session.id,
            device=session.device_id,
            kind=session.kind.value,
            task=session.task or "",
            procedure=session.procedure or "",
        )
        self._clock = clock
        self._opening = threading.Lock()
        self._queue: RecordingQueue | None = None
        self._writer: RecordingWriter | None = None
        self._before: Position | None = None  # where a run before this one was written down
        self._disk_hangs = False
        self._newest_ns: int | None = None  # device time of the newest packet
        self._early: list[tuple[Note, int]] = []  # notes from before the first, with their arrival
        self._clocks_ns = clock()
        self._counted: Counter[str] = Counter()
        self._counted_written = 0
        self.everything = everything

    # -- packets ---------------------------------------------------------------------------------

    def take(self, header: wire.PacketHeader, payload: Buffer, received_ns: int) -> None:
        """Record a checked packet, if it is to be; never waits for the disk."""
        if self._newest_ns is None:
            self._place_early_notes(header.device_time_ns)
        self._newest_ns = header.device_time_ns
        if self.everything or header.stream in _ALWAYS:
            self._open().offer(header, payload, receive_time_ns=received_ns)

    def wait_for_room(self) -> None:
        """Let the disk catch up; for replays, which need not hurry and shall lose nothing."""
        queue = self._queue
        if queue is None or queue.queued_bytes <= LOSSLESS_BACKLOG_BYTES:
            self._disk_hangs = False
        elif not self._disk_hangs:
            self._disk_hangs = not queue.drain(LOSSLESS_WAIT_S)

    def mark(self) -> RecordedMoment:
        """Note this moment; only between two packets."""
        if self._queue is None:
            return RecordedMoment(None, self._before)
        return RecordedMoment(self._queue.mark(), self._before)

    def sync(self) -> None:
        """Wait until what was flushed is on the disk."""
        if self._writer is not None:
            self._writer.sync()

    def take_back(self, video: VideoState | None) -> None:
        """Cut off what will be sent and recorded again; before the first packet."""
        written = None
        if video is not None:
            written = Position(part=video.part, size_bytes=video.size_bytes)
        self._before = written
        take_back(self._folder, written)

    def go_on_after(self, video: VideoState | None) -> None:
        """Keep all that is there; what is sent again stands in it twice, and is read once."""
        if video is not None:
            self._before = Position(part=video.part, size_bytes=video.size_bytes)

    def close(self) -> None:
        """Write what waits and end the part; says it in the log where the disk does not follow."""
        if self._queue is not None and not self._queue.close(CLOSE_WITHIN_S):
            log.error("a recording is not ended, the disk hangs", session=self._info.session)

    # -- notes -----------------------------------------------------------------------------------

    def note(self, note: Note, *, device_time_ns: int = 0) -> None:
        """Record what is no packet; only where everything is.

        Args:
            note: What happened.
            device_time_ns: When; where that is not known (0), it goes with the newest packet.
        """
        if not self.everything:
            return
        arrival_ns = self._clock()
        with self._opening:
            at_ns = device_time_ns if device_time_ns > 0 else self._newest_ns
            if at_ns is None:
                if len(self._early) < MAX_EARLY_NOTES:
                    self._early.append((note, arrival_ns))
                return
        self._open().offer_note(note, device_time_ns=max(0, at_ns), receive_time_ns=arrival_ns)

    def _place_early_notes(self, device_time_ns: int) -> None:
        """Record what came before the first packet with its time: zero would be another's."""
        with self._opening:
            self._newest_ns = device_time_ns
            early, self._early = self._early, []
        for note, arrival_ns in early:
            self._open().offer_note(
                note, device_time_ns=max(0, device_time_ns), receive_time_ns=arrival_ns
            )

    def session_note(self, event: str, *, source: str | None = None, epoch: int = 0) -> None:
        """Record a change of the session."""
        self.note(SessionNote(event=event, source=source, epoch=epoch or None))

    def step_event(self, event: StoredEvent) -> None:
        """Record a step event that was stored, or taken back."""
        if not self.everything:
            return
        note = StepEventNote(
            id=event.id,
            kind=event.kind.value,
            step_id=event.step_id,
            device_time_ns=event.device_time_ns,
            confidence=event.confidence,
            branch=event.branch.value,
            retracted=event.retracted,
            evidence=dict(event.evidence),
        )
        self.note(note, device_time_ns=event.device_time_ns)

    def tick(
        self, tick: Tick, epoch: int, embedding: npt.NDArray[np.float32] | None, model: str
    ) -> None:
        """Record a tick and its features, (D,) float32, made by the model of that key."""
        if not self.everything:
            return
        cues = [name for name, sample in tick.samples.items() if _is_there(sample)]
        features = {} if embedding is None else {"appearance": embedding.astype("<f4").tobytes()}
        note = TickNote(
            epoch=epoch,
            index=tick.index,
            device_time_ns=tick.device_time_ns,
            cues=cues,
            features=features,
            models=dict.fromkeys(features, model),
        )
        self.note(note, device_time_ns=tick.device_time_ns)

    def note_clocks(self, peers: set[Peer]) -> None:
        """Record how the clocks of the sources and their headset stand, every few seconds."""
        now_ns = self._clock()
        if not self.everything or now_ns - self._clocks_ns < CLOCK_EVERY_S * 1e9:
            return
        self._clocks_ns = now_ns
        for peer in peers:
            readings = {
                "bridge": peer.clock.reading(now_ns),
                "device": peer.device_reading(now_ns),
            }
            for remote, reading in readings.items():
                if reading is None:
                    continue
                note = ClockNote(
                    remote=remote,  # type: ignore[arg-type]  # one of the two above
                    local="server",
                    epoch=peer.epoch,
                    remote_time_ns=reading.remote_ns,
                    local_time_ns=reading.local_ns,
                    uncertainty_ns=reading.uncertainty_ns,
                    rate=reading.rate,
                )
                at_ns = reading.remote_ns if remote == "device" else 0
                self.note(note, device_time_ns=at_ns)

    # -- how it stands ---------------------------------------------------------------------------

    @property
    def disk_error(self) -> str | None:
        """What the disk said, while nothing can be recorded."""
        error = self._queue.state().disk_error if self._queue is not None else None
        return None if error is None else f"the recording is not written: {error}"

    @property
    def waiting_bytes(self) -> int:
        """What waits to be written."""
        return self._queue.queued_bytes if self._queue is not None else 0

    def stats(self) -> dict[str, Any]:
        """What `/stats` shows, JSON-ready."""
        shown: dict[str, Any] = {"everything": self.everything, "packets": 0, "dropped": {}}
        if self._queue is None:
            return shown | {"waiting_bytes": 0, "disk_error": None}
        state = self._queue.state()
        return shown | {
            "packets": state.written_count,
            "dropped": dict(sorted(state.dropped.items())),
            "waiting_bytes": state.queued_bytes,
            "disk_error": state.disk_error,
        }

    def new_counts(self) -> tuple[int, Counter[str]]:
        """Packets written since this was asked last, and those dropped, by stream."""
        if self._queue is None:
            return 0, Counter()
        state = self._queue.state()
        written = state.written_count - self._counted_written
        dropped = Counter(state.dropped) - self._counted
        self._counted_written, self._counted = state.written_count, Counter(state.dropped)
        return written, dropped

    def _open(self) -> RecordingQueue:
        if self._queue is None:
            with self._opening:
                if self._queue is None:
                    self._writer = RecordingWriter(self._folder, self._info, clock=self._clock)
                    self._queue = RecordingQueue(self._writer, clock=self._clock)
        return self._queue


class RecordedMoment:
    """A moment between two packets, in the recording's terms."""

    def __init__(self, mark: QueueMark | None, before: Position | None) -> None:
        self._mark = mark
        self._before = before

    @property
    def is_reached(self) -> bool:
        """Whether all that was taken before it is in the files, or was left out and counted."""
        return self._mark is None or self._mark.is_reached

    def wait(self) -> bool:
        """Wait until then (blocks); False where the disk does not follow."""
        return self._mark is None or self._mark.wait(CLOSE_WITHIN_S)

    def when_reached(self, call: Callable[[], None]) -> None:
        """Call something then, from any thread; at once if it is so."""
        if self._mark is None:
            call()
        else:
            self._mark.when_reached(call)

    def state(self) -> VideoState | None:
        """Where the recording ended then; only when it is reached."""
        position = (self._mark.position if self._mark else None) or self._before
        if position is None:
            return None
        return VideoState(part=position.part, size_bytes=position.size_bytes)


def _is_there(sample: Any) -> bool:
    return sample is not None and sample.value is not None
