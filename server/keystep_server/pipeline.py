"""One session's streams through the models: decode, align, extract, recognise.

`process` is called with packets in their order of arrival, by one thread at a time (never two for
one session), and touches nothing outside its session. Inference runs in the engine's threads.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import numpy.typing as npt

from keystep_capture.align import AlignerState, Tick, TickAligner
from keystep_capture.clock import Clock
from keystep_capture.errors import (
    DataError,
    KeystepError,
    ShapeError,
    StateError,
    VideoError,
    WireError,
)
from keystep_capture.payloads import check_image, read_array
from keystep_capture.peers import Buffer, Lane
from keystep_capture.streams import STREAMS
from keystep_capture.video import GapFilter, PacketDecoder, is_keyframe
from keystep_capture.wire import PacketHeader
from keystep_models.cues.appearance_cue import CROP, AppearancePreprocessing
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.recogniser import Recogniser, Retraction
from keystep_server.checkpoint import (
    ArrayState,
    FrameState,
    PipelineState,
    ValueState,
    aligner_fields,
    aligner_state,
)
from keystep_server.features import TickStore
from keystep_server.inference import InferenceEngine
from keystep_server.recorder import RecordedMoment, SessionRecorder

_LEADING = ("rgb", "detections", "head", "gaze", "hands")
_OTHERS = ("gaze", "head", "hands", "depth", "depth_ahat")
_IN_ROWS = frozenset({"gaze", "head"})
_DEPTH = ("depth", "depth_ahat")
_LIGHT = frozenset({"gaze", "head", "hands", *_DEPTH})
_READ = frozenset({*_LEADING, *_OTHERS, "calibration"})
"""Streams that something is made of; the others are checked and counted."""
MAX_TICKS_IN_ENGINE = 8
LATE_NS = 250_000_000
"""A live session's frame that has waited for longer is not decoded if a key frame follows."""
MAX_TICKS_WAITING = 600
"""So many ticks, a minute's, are held for a disk that does not take them."""


@dataclass(frozen=True, slots=True)
class Item:
    """A checked packet as it came."""

    lane: Lane
    header: PacketHeader
    payload: Buffer
    received_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """A step reported or taken back, with the packet that it was seen in."""

    change: StepCompletion | Retraction
    header: PacketHeader
    received_ns: int


@dataclass(slots=True)
class Outcome:
    """What a batch of packets led to."""

    changes: list[Change] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class FeatureTiming:
    """When a frame was captured (device), came in, had its features and had its tick written, ns.

    All but the first by the server's clock.
    """

    device_time_ns: int
    received_ns: int
    done_ns: int
    written_ns: int


@dataclass(slots=True)
class _Frame:
    """The leading value of a tick: an embedding on its way."""

    received_ns: int
    future: Future[npt.NDArray[Any]] | None = None
    done_ns: int = 0

    @property
    def is_done(self) -> bool:
        return self.future is None or self.future.done()

    @property
    def has_embedding(self) -> bool:
        return self.future is not None and self.future.exception() is None


@dataclass(frozen=True, slots=True)
class PipelineMark:
    """A moment between two packets, to be written down when what was on its way has come.

    `waiting` are the ticks whose rows were not written, `aligned` the aligner and its epoch.
    """

    row_count: int
    feature_count: int
    detection_count: int
    waiting: tuple[_Frame | None, ...]
    aligned: tuple[AlignerState, int] | None
    recorded: RecordedMoment

    @property
    def needed_rows(self) -> int:
        """Rows of ticks that must be on the disk first."""
        return self.row_count + len(self.waiting)

    @property
    def has_come(self) -> bool:
        """Whether all features that were on their way are there, or will never be."""
        leading = self.aligned[0].waiting if self.aligned else ()
        frames = (sample.value for sample in leading)
        return all(frame.is_done for frame in frames if isinstance(frame, _Frame))

    def state(self) -> PipelineState:
        """What to write down; only when the features have come."""
        found = sum(frame is not None and frame.has_embedding for frame in self.waiting)
        aligner = aligner_fields(*self.aligned, _encode) if self.aligned else None
        return PipelineState(
            row_count=self.needed_rows,
            feature_count=self.feature_count + found,
            detection_count=self.detection_count,
            aligner=aligner,
            video=self.recorded.state(),
        )


class SessionPipeline:
    """All state between a session's packets and its step events and features."""

    def __init__(
        self,
        *,
        session_id: str,
        folder: Path,
        engine: InferenceEngine,
        appearance_model: str,
        lossless: bool,
        rate_hz: float,
        logic: Recogniser | None,
        recorder: SessionRecorder,
        clock: Clock = time.monotonic_ns,
        on_feature: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the session's files.

        Args:
            session_id: The session.
            folder: Where its video and ticks are kept.
            engine: Where extractors run.
            appearance_model: The engine's key of the appearance extractor.
            lossless: Wait for the engine rather than let a newer frame replace an older one.
            rate_hz: Ticks a second.
            logic: Step recognition from detections; None where there is no procedure.
            recorder: Where packets and ticks are recorded; closed with this.
            clock: Monotonic clock, ns.
            on_feature: Told, in the engine's thread, when a frame's features are there or will
                never be: a tick may be written now.
        """
        self._on_feature = on_feature
        self._session_id = session_id
        self._folder = folder
        self._engine = engine
        self._model = appearance_model
        self._lossless = lossless
        self._rate_hz = rate_hz
        self._clock = clock
        self.logic = logic
        self.paused = False  # set between two batches: detections are then not looked at
        self.ticks = TickStore(folder / "ticks.rows")
        self.timings: deque[FeatureTiming] = deque(maxlen=4096)
        self.decoded_count = 0
        self.passed_over_count = 0  # frames that needed no decoding
        self.size_changes = 0
        self.left_out: Counter[str] = Counter()  # ticks without an embedding, by reason
        self.recorder = recorder
        self._preprocessing = AppearancePreprocessing()
        self._decoder: tuple[tuple[int, str], PacketDecoder, GapFilter] | None = None
        self._size: tuple[int, int] | None = None
        self._aligner: TickAligner | None = None
        self._leading: str | None = None
        self._epoch = 0
        self._newest_tick: tuple[int, int] | None = None  # epoch and device time, ns
        self._waiting: deque[tuple[Tick, int]] = deque()
        self.disk_error: str | None = None
        self._in_engine: deque[Future[npt.NDArray[Any]]] = deque(maxlen=MAX_TICKS_IN_ENGINE)
        self.detection_count = 0
        self._taken: dict[str, tuple[int, int]] = {}  # before a restart: (epoch, sequence)
        self.calibrated: set[str] = set()  # streams whose sensor's constants have come
        self._readers: dict[str, Callable[[Item, Outcome], None]] = {
            **dict.fromkeys(STREAMS, self._take_unused),
            "rgb": self._take_rgb,
            "detections": self._take_detections,
            **dict.fromkeys(("gaze", "head", "hands"), self._take_array),
            **dict.fromkeys(_DEPTH, self._take_depth),
            "calibration": self._take_calibration,
        }

    @property
    def late_counts(self) -> dict[str, int]:
        """Packets that came too late for their tick, per stream."""
        return dict(self._aligner.late_counts) if self._aligner else {}

    def may_wait(self, header: PacketHeader) -> bool:
        """Whether nothing hangs on working a packet off before the next.

        So it is with a sensor's packet that neither makes a tick nor lets one be written, and with
        streams of which nothing is made. Only to be asked while no packet is being processed.
        """
        aligner, stream = self._aligner, header.stream
        if stream not in _READ:
            return True
        if aligner is None or header.epoch != self._epoch or stream not in aligner.late_counts:
            return False
        if stream == "detections":
            return False
        if stream == self._leading:
            return not aligner.wants(header.device_time_ns)
        first = aligner.first_waiting
        if first is None or header.device_time_ns < first.device_time_ns:
            return True
        future = first.value.future if isinstance(first.value, _Frame) else None
        return future is not None and not future.done()  # then `on_feature` is told

    @staticmethod
    def is_light(header: PacketHeader) -> bool:
        """Whether working a packet off takes no longer than handing it to another thread."""
        return header.stream in _LIGHT

    @property
    def has_ticks(self) -> bool:
        """Whether ticks wait to be written; to be asked while no packet is being processed."""
        return bool(self._waiting)

    def process(self, items: list[Item]) -> Outcome:
        """Work off packets in their order of arrival."""
        outcome = Outcome()
        needless = self._needless(items)
        for number, item in enumerate(items):
            if not self._was_taken(item.header):
                self.recorder.take(item.header, item.payload, item.received_ns)
            try:
                if number in needless:
                    self._pass_over(item, outcome)
                else:
                    self._readers[item.header.stream](item, outcome)
            except (VideoError, av.error.FFmpegError):
                outcome.dropped[item.header.stream, "undecodable"] += 1
            except ShapeError:
                outcome.dropped[item.header.stream, "unusable_size"] += 1
            except WireError as error:
                outcome.dropped[item.header.stream, error.reason] += 1
            except KeystepError:
                outcome.dropped[item.header.stream, "unusable"] += 1
        try:
            self._store_done()
        except OSError as error:  # what was recognised goes on all the same
            self.disk_error = f"ticks are not written: {error}"
            self._drop_waiting()
        return outcome

    def _needless(self, items: list[Item]) -> frozenset[int]:
        """Which frames need not be decoded, as a key frame follows among these packets.

        So the frames between a tick and a key frame, and all of those before it that have waited
        for too long: a live session whose decoding lags goes on at the newest group of pictures.
        """
        keys = [n for n, item in enumerate(items) if _is_rgb(item) and _is_key(item)]
        if self._lossless or not keys or keys[-1] == 0:
            return frozenset()
        now_ns, aligner = self._clock(), self._aligner
        key = items[keys[-1]].header
        before = [n for n, item in enumerate(items[: keys[-1]]) if _is_rgb(item)]
        if aligner is None or any(items[n].header.epoch != key.epoch for n in before):
            return frozenset()
        needless: list[int] = []
        for n in reversed(before):  # what is decoded needs all before it
            item = items[n]
            wanted = aligner.wants(item.header.device_time_ns)
            if wanted and now_ns - item.received_ns <= LATE_NS:
                break
            needless.append(n)
        return frozenset(needless)

    def _pass_over(self, item: Item, outcome: Outcome) -> None:
        """Keep a frame without decoding it; its tick, if it makes one, has no features."""
        header = item.header
        if self._was_taken(header):
            return
        _, gaps = self._decoder_of(header)
        if not gaps.admit(header.sequence, keyframe=header.keyframe):
            outcome.dropped["rgb", "before_keyframe"] += 1
            return
        self.passed_over_count += 1
        aligner = self._aligner_for("rgb", header.epoch)
        self.left_out["late"] += aligner.wants(header.device_time_ns)
        self._keep(aligner.push("rgb", header.device_time_ns, _Frame(item.received_ns)))

    def settle(self) -> None:
        """Write the ticks whose features have come since the last packet."""
        self._store_done()

    def finish(self, *, flush: bool = True) -> None:
        """Wait for what is in the engine and write it; with `flush`, incomplete ticks too."""
        if flush and self._aligner is not None:
            self._keep(self._aligner.flush())
        for future in self._in_engine:
            future.exception()  # waits
        self._store_done(wait=True)

    def close(self) -> None:
        """Close the files."""
        self.ticks.close()
        self.recorder.close()

    # -- resume ----------------------------------------------------------------------------------

    def mark(self) -> PipelineMark:
        """Note this moment; only while no packet is being processed."""
        return PipelineMark(
            row_count=self.ticks.row_count,
            feature_count=self.ticks.feature_count,
            detection_count=self.detection_count,
            waiting=tuple(_frame_of(tick) for tick, _ in self._waiting),
            aligned=(self._aligner.state(), self._epoch) if self._aligner else None,
            recorded=self.recorder.mark(),
        )

    def is_written(self, mark: PipelineMark) -> bool:
        """Whether everything of a moment has come and it is in the files."""
        in_files = self.ticks.flushed_count >= mark.needed_rows and mark.recorded.is_reached
        return in_files and mark.has_come

    def sync(self) -> None:
        """Wait until ticks and recording are on the disk; may run beside `process`."""
        self.ticks.sync()
        self.recorder.sync()

    def restore(self, state: PipelineState, taken: Mapping[str, tuple[int, int]]) -> None:
        """Go on from a moment that was written down; nothing may have been processed.

        Args:
            state: The moment; what the files hold beyond it is taken back.
            taken: Per stream (epoch, sequence) of the last packet that was worked off; what is
                sent again up to there is for the decoders only.

        Raises:
            DataError: The state is malformed or the files have less than it says.
        """
        self.ticks.truncate(state.row_count, state.feature_count)
        self._taken = dict(taken)
        self.detection_count = state.detection_count
        if self._lossless:
            self.recorder.take_back(state.video)
        else:  # its video is not sent again, and all of it is worth keeping
            self.recorder.go_on_after(state.video)
        if (fields := state.aligner) is None:
            return
        try:
            aligner = TickAligner(leading=fields.leading, others=_OTHERS, rate_hz=self._rate_hz)
            aligner.go_on_from(aligner_state(fields, _decode))
        except (ValueError, TypeError) as error:
            raise DataError(f"samples that ticks wait for cannot be read: {error}") from error
        self._aligner, self._leading, self._epoch = aligner, fields.leading, fields.epoch

    def _was_taken(self, header: PacketHeader) -> bool:
        epoch, sequence = self._taken.get(header.stream, (-1, -1))
        return header.epoch == epoch and header.sequence <= sequence

    # -- streams ---------------------------------------------------------------------------------

    def _take_rgb(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        again = self._was_taken(header)
        if self._lossless:
            self.recorder.wait_for_room()
        decoder, gaps = self._decoder_of(header)
        if not gaps.admit(header.sequence, keyframe=header.keyframe):
            outcome.dropped["rgb", "before_keyframe"] += not again
            return
        try:
            frame = decoder.decode(item.payload)
        except VideoError:
            gaps.break_off()
            raise
        if again:
            return
        self.decoded_count += 1
        size = (frame.width, frame.height)
        if self._size is not None and size != self._size:
            self.size_changes += 1
        self._size = size
        if (header.width or size[0], header.height or size[1]) != size:
            outcome.dropped["rgb", "size_mismatch"] += 1
            return
        aligner = self._aligner_for("rgb", header.epoch)
        leads = _Frame(item.received_ns)
        if aligner.wants(header.device_time_ns):
            row = np.empty((1, CROP, CROP, 3), np.uint8)
            self._preprocessing.from_video_frame(frame, row[0])
            leads.future = self._submit(row, leads)
        self._keep(aligner.push("rgb", header.device_time_ns, leads))

    def _take_detections(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        rows = () if header.valid == 0 else read_array(header, item.payload).tolist()
        if self.logic is not None and not self.paused:
            detections = [_detection(row) for row in rows]
            # Numbered here, since a source's own numbers begin anew with each of its epochs.
            report = self.logic.step(self.detection_count, detections)
            self.detection_count += 1
            outcome.changes += [Change(made, header, item.received_ns) for made in report.changes]
        self._align(header, _Frame(item.received_ns))

    def _take_array(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        value = None if header.valid == 0 else read_array(header, item.payload)
        self._align(header, value)

    def _take_depth(self, item: Item, outcome: Outcome) -> None:
        """Mark the ticks that have depth; no model reads it yet, so nothing is decoded."""
        header = item.header
        if header.valid != 0:
            check_image(header, item.payload)
        if self._aligner is not None and header.epoch == self._epoch:  # depth leads no ticks
            value = None if header.valid == 0 else header
            self._keep(self._aligner.push(header.stream, header.device_time_ns, value))

    def _take_calibration(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        if header.calibrates is None or header.calibrates not in STREAMS:
            raise WireError(
                f"calibration of {header.calibrates!r}, which is no stream", "unknown_stream"
            )
        if header.encoding != "none":
            read_array(header, item.payload)
        self.calibrated.add(header.calibrates)

    def _take_unused(self, item: Item, outcome: Outcome) -> None:
        """Check a packet that only counts here: no cue is made of its stream."""
        header = item.header
        encoding = STREAMS[header.stream].encodings[header.encoding]
        if header.valid == 0:
            return
        if encoding.numeric is not None:
            read_array(header, item.payload)
        elif header.encoding in ("png16", "u16"):
            check_image(header, item.payload)

    # -- ticks -----------------------------------------------------------------------------------

    def _align(self, header: PacketHeader, value: object) -> None:
        aligner = self._aligner_for(header.stream, header.epoch)
        if header.epoch == self._epoch:  # another epoch's times cannot be placed among these
            self._keep(aligner.push(header.stream, header.device_time_ns, value))

    def _aligner_for(self, stream: str, epoch: int) -> TickAligner:
        """The present aligner; a better leading stream or its new epoch starts another."""
        better = self._leading is None or _LEADING.index(stream) < _LEADING.index(self._leading)
        restarted = stream == self._leading and epoch != self._epoch
        if self._aligner is None or better or restarted:
            old, same_epoch = self._aligner, epoch == self._epoch
            if old is not None:
                self._keep(old.flush())
            self._leading, self._epoch = stream, epoch
            newest = self._newest_tick
            self._aligner = TickAligner(
                leading=stream,
                others=_OTHERS,
                rate_hz=self._rate_hz,
                previous_tick_ns=newest[1] if newest and newest[0] == epoch else None,
            )
            if old is not None and same_epoch:
                self._aligner.go_on_from(old.state())
        return self._aligner

    def _keep(self, ticks: list[Tick]) -> None:
        self._waiting.extend((tick, self._epoch) for tick in ticks)
        if ticks:
            self._newest_tick = self._epoch, ticks[-1].device_time_ns

    def _store_done(self, *, wait: bool = False) -> None:
        """Write the ticks whose features are there, in order."""
        written: list[tuple[int, _Frame]] = []
        while self._waiting:
            tick, epoch = self._waiting[0]
            frame = _frame_of(tick)
            future = frame.future if frame is not None else None
            if future is not None and not future.done() and not wait:
                break
            embedding, reason = _result(future)
            self.ticks.append(tick, epoch, embedding)
            self._waiting.popleft()  # where the disk did not take it, it is tried again
            if reason:
                self.left_out[reason] += 1
            self.recorder.tick(tick, epoch, embedding, self._model)
            if frame is not None and frame.done_ns:
                written.append((tick.device_time_ns, frame))
        self.ticks.flush()
        now_ns = self._clock()
        self.timings.extend(
            FeatureTiming(time_ns, frame.received_ns, frame.done_ns, now_ns)
            for time_ns, frame in written
        )

    def _drop_waiting(self) -> None:
        """Bound what waits for a full disk."""
        while len(self._waiting) > MAX_TICKS_WAITING:
            self._waiting.popleft()
            self.left_out["disk_full"] += 1

    # -- models and files ------------------------------------------------------------------------

    def _submit(self, row: npt.NDArray[np.uint8], frame: _Frame) -> Future[npt.NDArray[Any]]:
        if self._lossless:
            self._await_room()
        future = self._engine.submit(
            self._model, self._session_id, row, newest_wins=not self._lossless
        )
        future.add_done_callback(lambda _: self._note_done(frame))
        self._in_engine.append(future)
        return future

    def _note_done(self, frame: _Frame) -> None:
        frame.done_ns = self._clock()
        self._on_feature()

    def _await_room(self) -> None:
        while len(self._in_engine) >= MAX_TICKS_IN_ENGINE:
            self._in_engine.popleft().exception()

    def _decoder_of(self, header: PacketHeader) -> tuple[PacketDecoder, GapFilter]:
        key = (header.epoch, header.encoding)
        if self._decoder is None or self._decoder[0] != key:
            gaps = GapFilter(independent=header.encoding == "jpeg")
            self._decoder = key, PacketDecoder(header.encoding), gaps
        return self._decoder[1], self._decoder[2]


def _is_rgb(item: Item) -> bool:
    return item.header.stream == "rgb"


def _is_key(item: Item) -> bool:
    """Whether decoding can start here: not only the header must say so."""
    return item.header.keyframe and is_keyframe(item.payload, item.header.encoding)


def _result(
    future: Future[npt.NDArray[Any]] | None,
) -> tuple[npt.NDArray[np.float32] | None, str]:
    """The embedding; None and why, where a newer frame replaced it or the model failed."""
    if future is None:
        return None, ""
    if (error := future.exception()) is not None:
        return None, "superseded" if isinstance(error, StateError) else "failed"
    row: npt.NDArray[np.float32] = future.result()[0]
    return row, ""


def _frame_of(tick: Tick) -> _Frame | None:
    leads = next(iter(tick.samples.values()))
    frame = leads.value if leads is not None else None
    return frame if isinstance(frame, _Frame) else None


def _encode(stream: str, value: object) -> ValueState:
    """A sample's value as it is written down: all that becomes part of a tick's row."""
    if isinstance(value, _Frame):
        if value.future is None or not value.has_embedding:
            return FrameState()
        return FrameState(embedding=ArrayState.of(value.future.result()))
    if value is None:
        return None
    if isinstance(value, np.ndarray) and stream in _IN_ROWS:
        return ArrayState.of(value)
    return ArrayState.of(np.zeros(0, np.uint8))  # of other streams ticks keep the presence only


def _decode(state: ValueState) -> object:
    if isinstance(state, ArrayState):
        return state.array()
    if state is None:
        return None
    frame = _Frame(received_ns=0)
    if state.embedding is not None:
        frame.future = Future()
        frame.future.set_result(state.embedding.array())
    return frame


def _detection(row: list[float]) -> Detection:
    if not row[0].is_integer():
        raise DataError(f"expected a whole number as a detection's class, got {row[0]}")
    return Detection(int(row[0]), row[1], (row[2], row[3], row[4], row[5]))
