"""What leads a tick: a frame whose embedding is on its way. Samples as they are written down."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keystep_capture.align import Tick
from keystep_capture.errors import StateError
from keystep_models.cues.gaze_crop import PictureView
from keystep_server.checkpoint import ArrayState, FrameState, ValueState, ViewState

_FAST = (int(cv2.IMWRITE_PNG_COMPRESSION), 1)
_IN_ROWS = frozenset({"gaze", "head"})


@dataclass(slots=True)
class Frame:
    """The leading value of a tick.

    Attributes:
        received_ns: When it came.
        future: Its embedding on its way, where one is made.
        done_ns: When that was there.
        small: Its picture for the motion cue, where that is one.
        seen: Its row of detections on its way, where the session has a detector.
        view: Its picture until its tick is complete, where what is around the gaze point is a cue.
        at_gaze: What the appearance model makes of that, on its way.
    """

    received_ns: int
    future: Future[npt.NDArray[Any]] | None = None
    done_ns: int = 0
    small: npt.NDArray[np.uint8] | None = None
    seen: Future[npt.NDArray[np.float32]] | None = None
    view: PictureView | None = None
    at_gaze: Future[npt.NDArray[Any]] | None = None

    @property
    def is_done(self) -> bool:
        """Whether all that is on its way for it is there, or will never be."""
        on_their_way = (self.future, self.seen, self.at_gaze)
        return all(each is None or each.done() for each in on_their_way)

    @property
    def detections(self) -> npt.NDArray[np.float32] | None:
        """Its row of detections, waits for one on its way; None where there is none."""
        if self.seen is None or self.seen.exception() is not None:
            return None
        return self.seen.result()

    @property
    def gaze_appearance(self) -> npt.NDArray[np.float32] | None:
        """The row of what is around the gaze point, waits for it; None where there is none."""
        if self.at_gaze is None or self.at_gaze.exception() is not None:
            return None
        row: npt.NDArray[np.float32] = self.at_gaze.result()[0]
        return row

    @property
    def has_embedding(self) -> bool:
        """Whether its embedding is there; waits for one on its way."""
        return self.future is not None and self.future.exception() is None

    def result(self) -> tuple[npt.NDArray[np.float32] | None, str]:
        """The embedding; None and why, where a newer frame replaced it or the model failed."""
        if self.future is None:
            return None, ""
        if (error := self.future.exception()) is not None:
            return None, "superseded" if isinstance(error, StateError) else "failed"
        row: npt.NDArray[np.float32] = self.future.result()[0]
        return row, ""


def frame_of(tick: Tick) -> Frame | None:
    """What leads a tick, where that is a picture or detections."""
    leads = next(iter(tick.samples.values()))
    frame = leads.value if leads is not None else None
    return frame if isinstance(frame, Frame) else None


def encode_sample(stream: str, value: object, *, hands: bool) -> ValueState:
    """A sample's value as it is written down: all that a tick is made of.

    Args:
        stream: Whose sample.
        value: Of it.
        hands: Whether hands are a cue; else ticks keep no more of them than that they were there.
    """
    if isinstance(value, Frame):
        small = None if value.small is None else ArrayState.of(value.small)
        embedding = None
        if value.future is not None and value.has_embedding:
            embedding = ArrayState.of(value.future.result())
        row = value.detections
        seen = None if row is None else ArrayState.of(row)
        view = None if value.view is None else _encode_view(value.view)
        return FrameState(embedding=embedding, small=small, seen=seen, view=view)
    if value is None:
        return None
    kept = stream in _IN_ROWS or (hands and stream == "hands")
    if isinstance(value, np.ndarray) and kept:
        return ArrayState.of(value)
    return ArrayState.of(np.zeros(0, np.uint8))


def decode_sample(state: ValueState) -> object:
    """What `encode_sample` wrote; ValueError or TypeError where it is malformed."""
    if isinstance(state, ArrayState):
        return state.array()
    if state is None:
        return None
    small = None if state.small is None else np.asarray(state.small.array(), np.uint8)
    view = None if state.view is None else _decode_view(state.view)
    frame = Frame(received_ns=0, small=small, view=view)
    if state.embedding is not None:
        frame.future = Future()
        frame.future.set_result(state.embedding.array())
    if state.seen is not None:
        frame.seen = Future()
        frame.seen.set_result(np.asarray(state.seen.array(), np.float32))
    return frame


def _encode_view(view: PictureView) -> ViewState:
    done, encoded = cv2.imencode(".png", view.pixels, _FAST)
    assert done
    return ViewState(
        png=encoded.tobytes(),
        intrinsics=view.intrinsics,
        world_from_camera=ArrayState.of(view.world_from_camera),
    )


def _decode_view(state: ViewState) -> PictureView:
    pixels = cv2.imdecode(np.frombuffer(state.png, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("a tick's picture cannot be decoded")
    return PictureView(
        pixels=np.asarray(pixels, np.uint8),
        intrinsics=state.intrinsics,
        world_from_camera=np.asarray(state.world_from_camera.array(), np.float64).reshape(4, 4),
    )
