"""What leads a tick: a frame whose embedding is on its way. Samples as they are written down."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keystep_capture.align import Tick
from keystep_capture.errors import StateError
from keystep_server.checkpoint import ArrayState, FrameState, ValueState

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
    """

    received_ns: int
    future: Future[npt.NDArray[Any]] | None = None
    done_ns: int = 0
    small: npt.NDArray[np.uint8] | None = None
    seen: Future[npt.NDArray[np.float32]] | None = None

    @property
    def is_done(self) -> bool:
        """Whether its embedding and its detections are there, or will never be."""
        return all(each is None or each.done() for each in (self.future, self.seen))

    @property
    def detections(self) -> npt.NDArray[np.float32] | None:
        """Its row of detections, waits for one on its way; None where there is none."""
        if self.seen is None or self.seen.exception() is not None:
            return None
        return self.seen.result()

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
        return FrameState(embedding=embedding, small=small, seen=seen)
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
    frame = Frame(received_ns=0, small=small)
    if state.embedding is not None:
        frame.future = Future()
        frame.future.set_result(state.embedding.array())
    if state.seen is not None:
        frame.seen = Future()
        frame.seen.set_result(np.asarray(state.seen.array(), np.float32))
    return frame
