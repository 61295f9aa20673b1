"""What every method looks like to whoever drives it, a command or a server: frames in, steps out.

A `Follower` knows how far a session is. A `Recogniser` is driven by frames of detections, a
`TickRecogniser` by ticks and their cues; a method may be both. Nobody who drives one needs to know
which method it is; `methods` makes recognisers by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import StateError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.procedure import ComponentState, Procedure


@dataclass(frozen=True, slots=True)
class Retraction:
    """A step reported in an earlier frame that no longer holds.

    `step` is the report as it was made, which frame and step tell from all others. `frame_idx` is
    the frame that spoke against it, `confidence` the probability that it is wrong.
    """

    step: StepCompletion
    frame_idx: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    """What one frame led to: first what it takes back, then what it reports.

    `branches` gives the steps by branch, for methods that have branches.
    """

    steps: Sequence[StepCompletion] = ()
    retracted: Sequence[Retraction] = ()
    branches: Mapping[str, Sequence[StepCompletion]] = field(default_factory=dict)

    @property
    def changes(self) -> tuple[Retraction | StepCompletion, ...]:
        """Everything in the order in which it is to be told."""
        return (*self.retracted, *self.steps)


class Follower(ABC):
    """Follows one session: what is done so far, and whether it can see.

    Attributes:
        method: Its name, as sessions and step events have it.
        procedure: What it follows.
        note: What its user should know of how it was set up; empty where there is nothing.
    """

    note: str = ""

    def __init__(self, method: str, procedure: Procedure) -> None:
        self.method = method
        self.procedure = procedure

    @property
    @abstractmethod
    def state(self) -> ComponentState:
        """Present value of every component as reported so far, length C."""

    @property
    def can_see(self) -> bool:
        """Whether the work is in view; always, for a method that cannot tell."""
        return True

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done because a person says so, as of the last frame; go on from there.

        Raises:
            NotFoundError: The procedure has no such step.
            StateError: The method cannot be told; those that a live session can have all can.
        """
        raise StateError(f"the method {self.method} cannot be told that step {step_id} is done")

    @abstractmethod
    def snapshot(self) -> Mapping[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""

    @abstractmethod
    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same method, procedure and settings.

        Raises:
            DataError: it is another's, or is malformed. The recogniser is then as it was.
        """


class Recogniser(Follower):
    """A method that is driven by frames: detections, and what clips show."""

    @property
    def is_at_rest(self) -> bool:
        """Whether a frame without any input would change nothing; False where that is not sure."""
        return False

    @abstractmethod
    def step(
        self,
        frame_idx: int,
        detections: Sequence[Detection],
        clip: ClipPrediction | None = None,
    ) -> FrameReport:
        """Take the next frame, with or without detections, and what the clip that ends here shows.

        Raises:
            StateError: `frame_idx` is not after the last frame's.
            DataError: an input does not fit the procedure. The frame then counts as not given.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CueTick:
    """One tick's cues.

    Attributes:
        index: Its number on the session's timeline, from 0; numbers are left out where time jumped.
        rows: Cue to float32 (D,); a cue that is missing is None or not there.
    """

    index: int
    rows: Mapping[str, NDArray[np.float32] | None]


class TickRecogniser(Follower):
    """A method that is driven by ticks: the cues of all streams at one instant."""

    @property
    @abstractmethod
    def cues(self) -> tuple[str, ...]:
        """The cues it looks at."""

    @property
    def model_cues(self) -> Mapping[str, int]:
        """Those that models made of the tick's picture, and are kept: cue to size."""
        return {}

    @property
    @abstractmethod
    def memory_ticks(self) -> int:
        """How many ticks back it must be shown again (`remember`) after a `restore`."""

    @abstractmethod
    def step_tick(self, tick: CueTick) -> FrameReport:
        """Take the next tick.

        Raises:
            StateError: Its number is not after the last one's.
            ShapeError: A cue has another size. The tick then counts as not given.
            ModelError: A network failed.
        """

    @abstractmethod
    def remember(self, tick: CueTick) -> None:
        """Take a tick that says nothing of the work, as the session is paused, or said it before.

        Raises:
            StateError: As `step_tick`.
            ShapeError: As `step_tick`.
            ModelError: As `step_tick`.
        """

    def close(self) -> None:
        """Give back what it holds of what sessions share; it takes no more ticks."""
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRun:
    """A whole recording's steps in order of time.

    `steps` are those that stood at the end, `retracted` those that did not, `branches` each
    branch's own.
    """

    steps: list[StepCompletion]
    retracted: list[StepCompletion]
    branches: Mapping[str, list[StepCompletion]]


def run_recording(
    recogniser: Recogniser,
    detections: Iterable[Sequence[Detection]],
    clips: Iterable[ClipPrediction | None],
) -> MethodRun:
    """Give a recogniser every frame of a recording that can change anything, as if live.

    Args:
        recogniser: At the start of a session.
        detections: One list per frame.
        clips: What the clip that ends at each frame shows; as many.
    """
    steps: list[StepCompletion] = []
    retracted: list[StepCompletion] = []
    branches: dict[str, list[StepCompletion]] = {}
    for frame_idx, (seen, clip) in enumerate(zip(detections, clips, strict=True)):
        if not seen and clip is None and recogniser.is_at_rest:
            continue
        report = recogniser.step(frame_idx, seen, clip)
        for retraction in report.retracted:
            steps.remove(retraction.step)
            retracted.append(retraction.step)
        steps += report.steps
        for name, found in report.branches.items():
            branches.setdefault(name, []).extend(found)
    return MethodRun(steps=steps, retracted=retracted, branches=branches)
