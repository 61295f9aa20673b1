"""What networks are asked about a session's pictures, each request batched with other sessions'."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from keystep_capture.clock import Clock
from keystep_capture.errors import KeystepError
from keystep_capture.wire import PacketHeader
from keystep_models.cues.appearance_cue import CROP, AppearancePreprocessing
from keystep_models.cues.gaze_crop import ViewMaker
from keystep_models.cues.motion_cue import MotionPreprocessing
from keystep_server.detector_shelf import SessionDetector
from keystep_server.inference import InferenceEngine
from keystep_server.tick_following import TickFollowing
from keystep_server.tick_frames import Frame

MAX_IN_ENGINE: Final = 8

Answer = Future[npt.NDArray[Any]]


class PictureRequests:
    """One session's requests; used by the thread that works its packets off."""

    def __init__(
        self,
        *,
        engine: InferenceEngine,
        session_id: str,
        appearance_model: str,
        detector: SessionDetector | None,
        lossless: bool,
        clock: Clock,
        on_answer: Callable[[], None],
    ) -> None:
        """Start without a request.

        Args:
            engine: Where the networks run.
            session_id: The session.
            appearance_model: The engine's key of the appearance extractor.
            detector: That looks at each picture, too.
            lossless: Wait for the engine rather than let a newer picture replace an older one.
            clock: Monotonic clock, ns.
            on_answer: Told, in the engine's thread, when an answer is there or will never be.
        """
        self._engine = engine
        self._session_id = session_id
        self._model = appearance_model
        self._detector = detector
        self._lossless = lossless
        self._clock = clock
        self._on_answer = on_answer
        self._preprocessing, self._small = AppearancePreprocessing(), MotionPreprocessing()
        self._views = ViewMaker()
        self._asked: deque[Answer] = deque(maxlen=MAX_IN_ENGINE)

    def look_at(
        self,
        picture: VideoFrame,
        header: PacketHeader,
        frame: Frame,
        following: TickFollowing | None,
    ) -> None:
        """Ask about a tick's picture, and make of it what the session's cues need without asking.

        Args:
            picture: As decoded.
            header: Its packet's.
            frame: Gets the requests and what was made.
            following: What the ticks drive; None where they drive nothing.

        Raises:
            ShapeError: The picture has sides that no camera has.
        """
        row = np.empty((1, CROP, CROP, 3), np.uint8)
        self._preprocessing.from_video_frame(picture, row[0])
        if following is not None and following.wants_motion:
            frame.small = self._small.from_video_frame(picture)
        if following is not None and following.wants_view:
            frame.view = self._views.view(picture, header.intrinsics, header.pose)
        frame.future = self._told(self.run(self._model, row), frame)
        if self._detector is not None:
            rows, placement = self._detector.prepare(picture)
            answer = self.run(self._detector.key, rows)
            frame.seen = self._detector.row_of(answer, placement, self._on_answer)

    def look_around_gaze(self, crop: npt.NDArray[np.uint8], frame: Frame) -> None:
        """Ask about what is around the gaze point; a request of its own, batched as all are.

        Its tick is complete only now, while the whole picture went in when it was decoded.

        Args:
            crop: uint8 (224, 224, 3).
            frame: Gets the request.
        """
        try:
            frame.at_gaze = self._told(self.run(self._model, crop[None]), frame)
        except KeystepError as error:  # the tick goes on without
            frame.at_gaze = Future()
            frame.at_gaze.set_exception(error)

    def run(self, model: str, rows: npt.NDArray[Any]) -> Answer:
        """Ask one of the engine's models; a lossless session first waits for room."""
        while self._lossless and len(self._asked) >= MAX_IN_ENGINE:
            self._asked.popleft().exception()
        future = self._engine.submit(model, self._session_id, rows, newest_wins=not self._lossless)
        self._asked.append(future)
        return future

    def wait(self) -> None:
        """Wait for the newest requests."""
        for future in self._asked:
            future.exception()

    def _told(self, future: Answer, frame: Frame) -> Answer:
        future.add_done_callback(lambda _: self._note_done(frame))
        return future

    def _note_done(self, frame: Frame) -> None:
        frame.done_ns = self._clock()
        self._on_answer()
