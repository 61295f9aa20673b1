"""How a method deals with parts put in wrongly: does it call them done, and for how long.

What is measured is what the worker was told of the one component, frame by frame: done or not, as
the reports that stood then say. A *mistake* is a stretch of frames in which the component truly is
wrongly there (-1).

- It was *called completed* if the component counted as done in one of those frames, by a report
  within the stretch or by one that stood from before.
- Guidance is *right again* in the first frame after that in which the worker is told the truth:
  the report was taken back or followed by another, or the part has meanwhile been put right. The
  time lasts from the first frame in which the mistake counted as done; it ends with the recording
  where that never happens.
- The *repair* is the first frame after the mistake in which the component truly is as it should
  be. It was *told* in the first frame from then on in which the component counts as done; too late
  once the component changes again.

F is frames, C components.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ShapeError
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.procedure import ComponentState
from keystep_models.psr.recogniser import Retraction

Change: TypeAlias = StepCompletion | Retraction
"""What a method reports or takes back; both have `frame_idx`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A component that is wrongly there.

    `start_idx` is the first such frame, `end_idx` the first after it; `repair_idx` the first frame
    that shows it right, None where that does not come.
    """

    component_idx: int
    start_idx: int
    end_idx: int
    repair_idx: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MistakeOutcome:
    """What the worker was told of a mistake.

    Attributes:
        mistake: Which one.
        called_idx: First frame in which it counted as done; None: it never did.
        wrong_frames: Frames from then until guidance is right again, or the recording ends.
        is_right_again: Whether it became right before the end.
        repair_delay_frames: From the repair until it counts as done; None: no repair, or not told.
    """

    mistake: Mistake
    called_idx: int | None
    wrong_frames: int
    is_right_again: bool
    repair_delay_frames: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MistakeCounts:
    """The outcomes of several mistakes.

    Attributes:
        mistakes: All of them.
        called: Those that were called completed.
        never_right: Those of which guidance stayed wrong until the recording's end.
        wrong_frames: Of those called completed, each.
        repairs: Those that were put right.
        repairs_told: Repairs that were told.
        repair_delays_frames: Of these, each.
    """

    mistakes: int
    called: int
    never_right: int
    wrong_frames: tuple[int, ...]
    repairs: int
    repairs_told: int
    repair_delays_frames: tuple[int, ...]

    @property
    def called_share(self) -> float:
        """Share of the mistakes that were called completed; nan without a mistake."""
        return self.called / self.mistakes if self.mistakes else float("nan")

    @property
    def mean_wrong_frames(self) -> float:
        """Frames until guidance is right again, on average; nan where none was called."""
        return statistics.fmean(self.wrong_frames) if self.wrong_frames else float("nan")

    @property
    def repairs_told_share(self) -> float:
        """Share of the repairs that were told; nan without a repair."""
        return self.repairs_told / self.repairs if self.repairs else float("nan")

    @property
    def mean_repair_delay_frames(self) -> float:
        """Frames from a repair until it was told, on average; nan where none was."""
        delays = self.repair_delays_frames
        return statistics.fmean(delays) if delays else float("nan")


def find_mistakes(states: NDArray[np.int8]) -> list[Mistake]:
    """Every stretch of a component being wrongly there, by component, then time.

    Args:
        states: True state of each component in each frame, (F, C) of -1, 0, 1.

    Raises:
        ShapeError: They are no table.
    """
    if states.ndim != 2:
        raise ShapeError(f"expected states of shape (frames, components), got {states.shape}")
    found = []
    for component_idx, column in enumerate(states.T):
        wrong = np.concatenate([[False], column == -1, [False]])
        starts = np.flatnonzero(wrong[1:] & ~wrong[:-1])
        ends = np.flatnonzero(wrong[:-1] & ~wrong[1:])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            right = np.flatnonzero(column[end:] == 1)
            again = np.flatnonzero(column[end:] == -1)  # wrong once more: another mistake
            is_repaired = len(right) and not (len(again) and again[0] < right[0])
            found.append(
                Mistake(
                    component_idx=component_idx,
                    start_idx=start,
                    end_idx=end,
                    repair_idx=end + int(right[0]) if is_repaired else None,
                )
            )
    return found


def told_done(
    changes: Sequence[Change], initial_state: ComponentState, frame_count: int
) -> NDArray[np.bool_]:
    """Which components counted as done in each frame, (F, C), by the reports that stood then.

    The last standing report of a component decides; one that is taken back leaves what stood
    before it.

    Args:
        changes: What a method reported and took back, in order.
        initial_state: The procedure's, length C.
        frame_count: F.
    """
    told = np.empty((frame_count, len(initial_state)), np.bool_)
    told[:] = np.array(initial_state) == 1
    standing: list[StepCompletion] = []
    for change in changes:
        step = change if isinstance(change, StepCompletion) else change.step
        if isinstance(change, StepCompletion):
            standing.append(change)
        else:
            standing.remove(change.step)
        own = [each for each in standing if each.component_idx == step.component_idx]
        is_done = own[-1].kind == "completed" if own else initial_state[step.component_idx] == 1
        told[change.frame_idx :, step.component_idx] = is_done
    return told


def judge(mistake: Mistake, states: NDArray[np.int8], told: NDArray[np.bool_]) -> MistakeOutcome:
    """What the worker was told of a mistake.

    Args:
        mistake: One of `find_mistakes(states)`.
        states: True states, (F, C).
        told: As `told_done`, (F, C).

    Raises:
        ShapeError: Both are not of one shape.
    """
    if states.shape != told.shape:
        raise ShapeError(f"expected what was told as {states.shape}, got {told.shape}")
    truth = states[:, mistake.component_idx] == 1
    said = told[:, mistake.component_idx]
    called = np.flatnonzero(said[mistake.start_idx : mistake.end_idx])
    called_idx, wrong, is_right = None, 0, False
    if len(called):
        called_idx = mistake.start_idx + int(called[0])
        right = np.flatnonzero(said[called_idx:] == truth[called_idx:])
        is_right = bool(len(right))
        wrong = int(right[0]) if is_right else len(said) - called_idx
    return MistakeOutcome(
        mistake=mistake,
        called_idx=called_idx,
        wrong_frames=wrong,
        is_right_again=is_right,
        repair_delay_frames=_repair_delay(mistake, truth, said),
    )


def _repair_delay(
    mistake: Mistake, truth: NDArray[np.bool_], said: NDArray[np.bool_]
) -> int | None:
    if mistake.repair_idx is None:
        return None
    changed = np.flatnonzero(~truth[mistake.repair_idx :])
    end = mistake.repair_idx + int(changed[0]) if len(changed) else len(truth)
    found = np.flatnonzero(said[mistake.repair_idx : end])
    return int(found[0]) if len(found) else None


def count(outcomes: Sequence[MistakeOutcome]) -> MistakeCounts:
    """Outcomes put together; of none, all counts are 0."""
    called = [each for each in outcomes if each.called_idx is not None]
    repairs = [each for each in outcomes if each.mistake.repair_idx is not None]
    told = [each.repair_delay_frames for each in repairs if each.repair_delay_frames is not None]
    return MistakeCounts(
        mistakes=len(outcomes),
        called=len(called),
        never_right=sum(not each.is_right_again for each in called),
        wrong_frames=tuple(each.wrong_frames for each in called),
        repairs=len(repairs),
        repairs_told=len(told),
        repair_delays_frames=tuple(told),
    )
