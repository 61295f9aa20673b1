"""One session's streams through the models: decode, align, extract, recognise.

Detections are looked at as they come; ticks, where the session is guided by them, in their order
when their features are there.

`process` is called with packets in their order of arrival, by one thread at a time (never two for
one session), and touches nothing outside its session. Inference runs in the engine's threads.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av.error
import numpy as np
import numpy.typing as npt

from keystep_capture.align import AlignerState, Tick
from keystep_capture.clock import Clock
from keystep_capture.errors import (
    DataError,
    KeystepError,
    ShapeError,
    VideoError,
    WireError,
)
from keystep_capture.payloads import check_image, read_array
from keystep_capture.streams import STREAMS
from keystep_capture.video import GapFilter, PacketDecoder, is_keyframe
from keystep_capture.wire import PacketHeader
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.detector.detecting_recogniser import DETECTIONS
from keystep_models.psr.logic import Detection
from keystep_models.psr.recogniser import CueTick, Follower, Recogniser, TickRecogniser
from keystep_server.batches import FeatureTiming, Item, Outcome, Sighting
from keystep_server.checkpoint import FollowingState, PipelineState
from keystep_server.clip_shelf import SessionClips
from keystep_server.detector_shelf import SessionDetector
from keystep_server.features import TickStore
from keystep_server.inference import InferenceEngine
from keystep_server.picture_requests import PictureRequests
from keystep_server.pipeline_mark import PipelineMark
from keystep_server.recorder import SessionRecorder
from keystep_server.storage import Branch
from keystep_server.tick_assembly import LEADING, OTHERS, TickAssembly
from keystep_server.tick_clips import TickClips
from keystep_server.tick_following import TickFollowing
from keystep_server.tick_frames import Frame, frame_of

_DEPTH = ("depth", "depth_ahat")
_LIGHT = frozenset({"gaze", "head", "hands", *_DEPTH})
_READ = frozenset({*LEADING, *OTHERS, "calibration"})
"""Streams that something is made of; the others are checked and counted."""
LATE_NS = 250_000_000
"""A live session's frame that has waited for longer is not decoded if a key frame follows."""
MAX_TICKS_WAITING = 600
"""So many ticks, a minute's, are held for a disk that does not take them."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A complete tick that is not written; `cues` where the session is guided by its ticks."""

    tick: Tick
    epoch: int
    frame: Frame | None
    cues: CueTick | None = None


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
        logic: Follower | None,
        recorder: SessionRecorder,
        detector: SessionDetector | None = None,
        clips: SessionClips | None = None,
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
            logic: Step recognition, from detections, ticks or both; None where there is no
                procedure. What is driven by ticks is closed with this.
            recorder: Where packets and ticks are recorded; closed with this.
            detector: That looks at the frames of ticks; what it sees drives `logic`.
            clips: That embeds ticks and looks at the clips that end at them, for `logic`.
            clock: Monotonic clock, ns.
            on_feature: Told, in the engine's thread, when a frame's features are there or will
                never be: a tick may be written now.
        """
        self._requests = PictureRequests(
            engine=engine,
            session_id=session_id,
            appearance_model=appearance_model,
            detector=detector,
            lossless=lossless,
            clock=clock,
            on_answer=on_feature,
        )
        self._model = appearance_model
        self._has_detector = detector is not None
        self._clips: TickClips | None = None
        if clips is not None:
            ask = partial(self._requests.run, clips.key)
            self._clips = TickClips(clips.recogniser, ask, on_feature)
        self._lossless = lossless
        self._clock = clock
        self._on_detections = logic if isinstance(logic, Recogniser) else None
        self._following: TickFollowing | None = None
        if isinstance(logic, TickRecogniser):
            self._following = TickFollowing(logic, folder, rate_hz)
        self._looked_at = 0  # of the ticks that wait to be written, the first
        self.paused = False  # set between two batches: nothing is then looked at
        self.ticks = TickStore(folder / "ticks.rows")
        self.timings: deque[FeatureTiming] = deque(maxlen=4096)
        self.decoded_count = 0
        self.passed_over_count = 0  # frames that needed no decoding
        self.size_changes = 0
        self.left_out: Counter[str] = Counter()  # ticks without an embedding, by reason
        self.recorder = recorder
        self._decoder: tuple[tuple[int, str], PacketDecoder, GapFilter] | None = None
        self._size: tuple[int, int] | None = None
        pictures = self._following is not None and self._following.needs_pictures
        self._ticks = TickAssembly(rate_hz, self._keep, only_pictures_lead=pictures)
        self._waiting: deque[_Waiting] = deque()
        self.disk_error: str | None = None
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
        return self._ticks.late_counts

    @property
    def features_left_out(self) -> dict[str, int]:
        """Ticks without an embedding, or without a clip, by reason."""
        clips = {} if self._clips is None else self._clips.left_out
        return {**self.left_out, **clips}

    def may_wait(self, header: PacketHeader) -> bool:
        """Whether nothing hangs on working a packet off before the next.

        So it is with a sensor's packet that neither makes a tick nor lets one be written, and with
        streams of which nothing is made. Only to be asked while no packet is being processed.
        """
        aligner, stream = self._ticks.aligner, header.stream
        if stream not in _READ:
            return True
        if aligner is None or stream not in aligner.late_counts:
            return False
        if stream == "detections" or header.epoch != self._ticks.epoch:
            return False
        if stream == self._ticks.leading:
            return not aligner.wants(header.device_time_ns)
        first = aligner.first_waiting
        if first is None or header.device_time_ns < first.device_time_ns:
            return True
        frame = first.value
        if not isinstance(frame, Frame) or frame.view is not None:  # it is cut when complete
            return False
        return not frame.is_done  # then `on_feature` is told

    def is_light(self, headers: Iterable[PacketHeader]) -> bool:
        """Whether working packets off takes no longer than handing them to another thread."""
        if self._following is not None:  # a tick may become complete
            return False
        return all(header.stream in _LIGHT for header in headers)

    @property
    def evidence_stream(self) -> str:
        """The stream whose silence leaves nothing to look at."""
        if self._following is None:
            return "detections"
        return self._ticks.leading or "rgb"

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
            self._settle_ticks(outcome)
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
        now_ns, aligner = self._clock(), self._ticks.aligner
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
        aligner = self._ticks.aligner_for("rgb", header.epoch)
        self.left_out["late"] += aligner.wants(header.device_time_ns)
        self._align(header, Frame(item.received_ns))

    def settle(self, outcome: Outcome) -> None:
        """Look at and write the ticks whose features have come since the last packet.

        Raises:
            OSError: The disk did not take them; `outcome` has what they led to.
        """
        self._settle_ticks(outcome)

    def finish(self, outcome: Outcome, *, flush: bool = True) -> None:
        """Wait for what is in the engine and settle it; with `flush`, incomplete ticks too.

        Raises:
            OSError: As `settle`.
        """
        if flush:
            self._ticks.flush()
        self._requests.wait()
        self._settle_ticks(outcome, wait=True)

    def close(self) -> None:
        """Close the files."""
        self.ticks.close()
        if self._following is not None:
            self._following.close()
        self.recorder.close()

    # -- resume ----------------------------------------------------------------------------------

    def mark(self) -> PipelineMark:
        """Note this moment; only while no packet is being processed."""
        following, aligned = self._following, self._ticks.state()
        if aligned is not None:
            aligned = _as_now(aligned[0]), aligned[1]
        looked_at = self.ticks.row_count + self._looked_at
        return PipelineMark(
            row_count=self.ticks.row_count,
            feature_count=self.ticks.feature_count,
            detection_count=self.detection_count,
            waiting=tuple(each.frame for each in self._waiting),
            aligned=aligned,
            recorded=self.recorder.mark(),
            following=None if following is None else following.state(looked_at),
            hands=following is not None and following.wants_hands,
        )

    def is_written(self, mark: PipelineMark) -> bool:
        """Whether everything of a moment has come and it is in the files."""
        in_files = self.ticks.flushed_count >= mark.needed_rows and mark.recorded.is_reached
        return in_files and mark.has_come

    def sync(self) -> None:
        """Wait until ticks and recording are on the disk; may run beside `process`."""
        self.ticks.sync()
        if self._following is not None:
            self._following.sync()
        self.recorder.sync()

    def restore(
        self, state: PipelineState, taken: Mapping[str, tuple[int, int]], outcome: Outcome
    ) -> None:
        """Go on from a moment that was written down; nothing may have been processed.

        Args:
            state: The moment; what the files hold beyond it is taken back.
            taken: Per stream (epoch, sequence) of the last packet that was worked off; what is
                sent again up to there is for the decoders only.
            outcome: Gets what ticks lead to that were written but not looked at.

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
        if (fields := state.aligner) is not None:
            self._ticks.restore(fields)
        if self._following is not None and state.following is not None:
            self._look_again(self._following, state.following, outcome)

    def _look_again(
        self, following: TickFollowing, state: FollowingState, outcome: Outcome
    ) -> None:
        now_ns = self._clock()
        found = following.restore(state, self.ticks.row_count, paused=self.paused)
        for row, index, report in found:
            seen = self._sighting(index, int(row["device_time_ns"]), int(row["epoch"]), now_ns)
            outcome.add(report, seen)

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
        aligner = self._ticks.aligner_for("rgb", header.epoch)
        leads = Frame(item.received_ns)
        if aligner.wants(header.device_time_ns):
            self._requests.look_at(frame, header, leads, self._following)
        self._align(header, leads)

    def _take_detections(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        rows = () if header.valid == 0 else read_array(header, item.payload).tolist()
        if self._on_detections is not None and not self.paused:
            detections = [_detection(row) for row in rows]
            # Numbered here, since a source's own numbers begin anew with each of its epochs.
            report = self._on_detections.step(self.detection_count, detections)
            self.detection_count += 1
            seen = Sighting(
                stream=header.stream,
                frame_idx=header.frame_idx,
                device_time_ns=header.device_time_ns,
                epoch=header.epoch,
                received_ns=item.received_ns,
                branch=Branch.ASSEMBLY_STATE,
            )
            outcome.add(report, seen)
        self._align(header, Frame(item.received_ns))

    def _take_array(self, item: Item, outcome: Outcome) -> None:
        header = item.header
        value = None if header.valid == 0 else read_array(header, item.payload)
        self._align(header, value)

    def _take_depth(self, item: Item, outcome: Outcome) -> None:
        """Mark the ticks that have depth; no model reads it yet, so nothing is decoded."""
        header = item.header
        if header.valid != 0:
            check_image(header, item.payload)
        value = None if header.valid == 0 else header
        self._ticks.join(header.stream, header.epoch, header.device_time_ns, value)

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
        self._ticks.lead(header.stream, header.epoch, header.device_time_ns, value)

    def _keep(self, tick: Tick, epoch: int) -> None:
        """Take a tick that is complete."""
        kept = _Waiting(tick=tick, epoch=epoch, frame=frame_of(tick))
        if self._following is not None:
            frame = kept.frame or Frame(0)
            kept.cues, crop = self._following.describe(tick, epoch, frame.small, frame.view)
            if crop is not None:
                self._requests.look_around_gaze(crop, frame)
            frame.view = None  # it is large
        self._waiting.append(kept)

    def _settle_ticks(self, outcome: Outcome, *, wait: bool = False) -> None:
        """Look at and write the ticks whose features are there, in order."""
        if self._following is not None:
            self._look_at_done(self._following, outcome, wait=wait)
        self._store_done(wait=wait)

    def _look_at_done(self, following: TickFollowing, outcome: Outcome, *, wait: bool) -> None:
        while self._looked_at < len(self._waiting):
            each = self._waiting[self._looked_at]
            if each.frame is not None and not each.frame.is_done and not wait:
                return
            embedding = None if each.frame is None else each.frame.result()[0]
            if embedding is not None and not self._add_clip(each, embedding, wait=wait):
                return
            self._looked_at += 1
            if each.cues is None:
                continue
            if each.frame is not None:
                each.cues = self._with_seen(each.cues, each.frame)
            report = following.look(each.cues, embedding, paused=self.paused)
            if report is not None:
                received_ns = each.frame.received_ns if each.frame is not None else self._clock()
                time_ns = each.tick.device_time_ns
                seen = self._sighting(each.cues.index, time_ns, each.epoch, received_ns)
                outcome.add(report, seen)

    def _with_seen(self, tick: CueTick, frame: Frame) -> CueTick:
        """A tick with what networks beside the appearance one saw in its frame."""
        seen = {}
        if self._has_detector:
            seen[DETECTIONS] = frame.detections
        if frame.at_gaze is not None:
            seen[GAZE_APPEARANCE] = frame.gaze_appearance
            self.left_out["gaze_crop"] += frame.gaze_appearance is None
        return replace(tick, rows={**tick.rows, **seen}) if seen else tick

    def _add_clip(self, each: _Waiting, embedding: npt.NDArray[np.float32], *, wait: bool) -> bool:
        """Put a tick's clip among its cues; False while that is on its way."""
        if self._clips is None or each.cues is None:
            return True
        behind = 0 if self._lossless else len(self._waiting) - self._looked_at - 1
        rows = self._clips.rows_of(
            each.cues.index, embedding, behind=behind, wait=wait or self._lossless
        )
        if rows is None:
            return False
        each.cues = CueTick(index=each.cues.index, rows={**each.cues.rows, **rows})
        return True

    def _sighting(self, index: int, time_ns: int, epoch: int, received_ns: int) -> Sighting:
        return Sighting(
            stream=self._ticks.leading or "rgb",
            frame_idx=index,
            device_time_ns=time_ns,
            epoch=epoch,
            received_ns=received_ns or self._clock(),
            branch=Branch.KEY_STEP_FILTER if self._following is None else self._following.branch,
        )

    def _store_done(self, *, wait: bool) -> None:
        """Write the ticks whose features are there, in order."""
        written: list[tuple[int, Frame]] = []
        while self._waiting:
            each = self._waiting[0]
            tick, frame = each.tick, each.frame
            if frame is not None and not frame.is_done and not wait:
                break
            if self._following is not None and self._looked_at == 0:
                break  # its features came just now: it is looked at first
            embedding, reason = (None, "") if frame is None else frame.result()
            if self._following is not None and each.cues is not None:
                self._following.append(self.ticks.row_count, each.cues)
            self.ticks.append(tick, each.epoch, embedding)
            self._forget_first()  # where the disk did not take it, it is tried again
            if reason:
                self.left_out[reason] += 1
            self.recorder.tick(tick, each.epoch, embedding, self._model)
            if frame is not None and frame.done_ns:
                written.append((tick.device_time_ns, frame))
        if self._following is not None:
            self._following.flush()
        self.ticks.flush()
        now_ns = self._clock()
        self.timings.extend(
            FeatureTiming(time_ns, frame.received_ns, frame.done_ns, now_ns)
            for time_ns, frame in written
        )

    def _forget_first(self) -> None:
        self._waiting.popleft()
        self._looked_at = max(0, self._looked_at - 1)

    def _drop_waiting(self) -> None:
        """Bound what waits for a full disk."""
        while len(self._waiting) > MAX_TICKS_WAITING:
            self._forget_first()
            self.left_out["disk_full"] += 1

    def _decoder_of(self, header: PacketHeader) -> tuple[PacketDecoder, GapFilter]:
        key = (header.epoch, header.encoding)
        if self._decoder is None or self._decoder[0] != key:
            gaps = GapFilter(independent=header.encoding == "jpeg")
            self._decoder = key, PacketDecoder(header.encoding), gaps
        return self._decoder[1], self._decoder[2]


def _as_now(state: AlignerState) -> AlignerState:
    """A state whose frames keep their pictures, though their ticks become complete."""
    waiting = [
        replace(each, value=replace(each.value)) if isinstance(each.value, Frame) else each
        for each in state.waiting
    ]
    return replace(state, waiting=tuple(waiting))


def _is_rgb(item: Item) -> bool:
    return item.header.stream == "rgb"


def _is_key(item: Item) -> bool:
    """Whether decoding can start here: not only the header must say so."""
    return item.header.keyframe and is_keyframe(item.payload, item.header.encoding)


def _detection(row: list[float]) -> Detection:
    if not row[0].is_integer():
        raise DataError(f"expected a whole number as a detection's class, got {row[0]}")
    return Detection(int(row[0]), row[1], (row[2], row[3], row[4], row[5]))
