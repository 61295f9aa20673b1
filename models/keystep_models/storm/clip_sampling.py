"""Which ticks are learnt from: key frames, and clips with what changed in them.

T is ticks of a session, C components, N frames of a clip. All draws come from a generator that is
given, so a run repeats.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385: key-frame sampling, key-clip-aware sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.storm.settings import StormSettings

BACKGROUND: Final = 0
"""Class of hard negatives; states are numbered from 1."""

_FLOOR: Final = 1e-8  # density of clips away from every completion, as published


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionTicks:
    """What is true at a session's ticks.

    Attributes:
        name: Of the session.
        states: int8 (T, C), 0 or 1.
        valid: bool (T,): whether the tick can be seen.
        frames: Video frame of each tick, int64 (T,).
        frame_count: Frames of the video.
    """

    name: str
    states: NDArray[np.int8]
    valid: NDArray[np.bool_]
    frames: NDArray[np.int64]
    frame_count: int

    @property
    def tick_count(self) -> int:
        """Ticks (T)."""
        return len(self.states)

    @property
    def completions(self) -> NDArray[np.int64]:
        """Ticks that are the first to show a new state, int64."""
        changed = (self.states[1:] != self.states[:-1]).any(axis=1)
        return np.flatnonzero(changed) + 1


def state_name(state: NDArray[np.int8]) -> str:
    """A state as a text, "1100...", as the detector's classes are named."""
    return "".join(str(int(value)) for value in state)


def state_classes(sessions: Sequence[SessionTicks], settings: StormSettings) -> tuple[str, ...]:
    """States that completions lead to in enough sessions, in order; class k + 1 is the k-th.

    Raises:
        DataError: There are fewer than two: nothing could be told apart.
    """
    reached: Counter[str] = Counter()
    for session in sessions:
        reached.update({state_name(session.states[tick]) for tick in session.completions})
    found = tuple(sorted(name for name, count in reached.items() if count >= settings.min_sessions))
    if len(found) < 2:
        raise DataError(
            f"expected two states or more that {settings.min_sessions} sessions reach, got"
            f" {len(found)} in {len(sessions)} sessions; label more, or lower min_sessions"
        )
    return found


def frame_classes(
    session: SessionTicks, classes: Sequence[str], settings: StormSettings
) -> NDArray[np.int64]:
    """Class of each tick for contrastive learning, -1 where it takes no part, int64 (T,).

    With key frames these are the ticks just after completions and, as background, those some time
    before; where both meet the completion wins. Without, every tick has its state's class.
    """
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    found = np.full(session.tick_count, -1, np.int64)
    if not settings.key_frames:
        for number, name in enumerate(map(state_name, session.states)):
            found[number] = numbers.get(name, -1)
        found[~session.valid] = -1
        return found
    positive = max(1, round(settings.positive_s * settings.rate_hz))
    early, late = (round(value * settings.rate_hz) for value in reversed(settings.negative_s))
    completions = session.completions.tolist()
    for tick in completions:
        found[max(0, tick - early) : max(0, tick - late)] = BACKGROUND
    for tick, following in zip(completions, [*completions[1:], session.tick_count], strict=True):
        end = min(tick + positive, following)
        found[tick:end] = numbers.get(state_name(session.states[tick]), -1)
    found[~session.valid] = -1
    return found


def clip_ticks(ends: NDArray[np.int64], settings: StormSettings) -> NDArray[np.int64]:
    """Ticks of the clips that end at given ticks, int64 (B, N), oldest first; below 0 before it."""
    steps = np.arange(settings.clip_frames - 1, -1, -1) * settings.clip_every
    return np.asarray(ends[:, None] - steps, np.int64)


def clip_changes(session: SessionTicks, ticks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Components that differ between a clip's first and last frame, float32 (B, C).

    A clip that begins before the session begins with its first tick.
    """
    first = session.states[np.maximum(ticks[:, 0], 0)]
    return np.asarray(first != session.states[ticks[:, -1]], np.float32)


def end_density(session: SessionTicks, settings: StormSettings) -> NDArray[np.float64]:
    """How likely a clip is to end at each tick, float64 (T,), not scaled.

    With key clips a pair of Gaussians about every completion: ends after it show it in mid-clip,
    ends before it do not show it.
    """
    if not settings.key_clips:
        return np.ones(session.tick_count)
    ticks = np.arange(session.tick_count)
    sigma = settings.clip_sigma * settings.clip_ticks
    density = np.full(session.tick_count, _FLOOR)
    for completion in session.completions:
        for side in (-1, 1):
            centre = completion + side * settings.clip_offset * settings.clip_ticks
            density += np.exp(-0.5 * ((ticks - centre) / sigma) ** 2)
    return density


class ClipDraw:
    """Draws clips from sessions by their density; a session counts by all of its density."""

    def __init__(self, sessions: Sequence[SessionTicks], settings: StormSettings) -> None:
        """Compute the densities."""
        self._settings = settings
        counts = [session.tick_count for session in sessions]
        self._session = np.repeat(np.arange(len(sessions)), counts)
        self._tick = np.concatenate([np.arange(count) for count in counts])
        density = np.concatenate([end_density(session, settings) for session in sessions])
        valid = np.concatenate([session.valid for session in sessions])
        cumulative = np.cumsum(np.where(valid, density, 0.0))
        if not cumulative[-1] > 0:
            raise DataError("expected sessions in which something can be seen, got none")
        self._cumulative = cumulative / cumulative[-1]

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Session and last tick of `count` clips, int64 (count,) each."""
        places = np.searchsorted(self._cumulative, rng.random(count), side="right")
        places = np.minimum(places, len(self._tick) - 1)
        return self._session[places], self._tick[places]


def made_up_gaps(valid: NDArray[np.bool_], share: float, rng: np.random.Generator) -> None:
    """Take a stretch out of some clips, in place; a clip's last frame stays.

    Args:
        valid: bool (B, N).
        share: Of clips that get a gap, up to half a clip long.
        rng: Where draws come from.
    """
    count, frames = valid.shape
    chosen = rng.random(count) < share
    lengths = rng.integers(1, max(2, frames // 2), count)
    starts = rng.integers(0, frames - 1, count)
    for row in np.flatnonzero(chosen):
        valid[row, starts[row] : min(starts[row] + lengths[row], frames - 1)] = False
