"""Batches of a STORM run: frames of classes, clips of stored embeddings, clips of inputs.

Every batch is drawn from the generator that is given, so an epoch repeats. B clips, N frames of a
clip, D values of an embedding, C components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keystep_capture.errors import DataError
from keystep_models.storm.clip_sampling import (
    BACKGROUND,
    ClipDraw,
    clip_changes,
    clip_ticks,
    frame_classes,
    made_up_gaps,
)
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings
from keystep_models.training.storm_augment import augment_pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Frames of a contrastive step: inputs [B, ...] and class of each, int64 [B]."""

    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBatch:
    """Clips of a temporal step.

    Attributes:
        frames: Embeddings float [B, N, D], or inputs [B, N, ...].
        valid: bool [B, N].
        changed: Components that changed, float [B, C].
    """

    frames: Tensor
    valid: Tensor
    changed: Tensor


class FrameBatches:
    """Frames by class."""

    def __init__(
        self, sessions: Sequence[SessionInputs], classes: Sequence[str], settings: StormSettings
    ) -> None:
        """Find every class's frames.

        Raises:
            DataError: No frame of two classes can be seen.
        """
        self._sessions, self._settings = sessions, settings
        places: dict[int, list[tuple[int, int]]] = {}
        for number, session in enumerate(sessions):
            found = frame_classes(session.ticks, classes, settings)
            for tick in np.flatnonzero(found >= 0).tolist():
                places.setdefault(int(found[tick]), []).append((number, tick))
        self.places = {key: np.array(value, np.int64) for key, value in sorted(places.items())}
        self._states = [key for key in self.places if key != BACKGROUND]
        if len(self._states) < 2:
            raise DataError("expected key frames of two states or more that can be seen")

    def draw(self, rng: np.random.Generator) -> FrameBatch:
        """Frames of some states and, with key frames, background."""
        settings = self._settings
        count = min(settings.classes, len(self._states))
        chosen = [int(key) for key in rng.choice(self._states, count, replace=False)]
        wanted = [(key, settings.per_class) for key in chosen]
        if BACKGROUND in self.places:
            wanted.append((BACKGROUND, settings.background))
        rows = [self.places[key][rng.integers(len(self.places[key]), size=n)] for key, n in wanted]
        drawn = np.concatenate(rows)
        inputs = torch.from_numpy(gather(self._sessions, drawn[:, 0], drawn[:, 1]))
        if settings.input == "picture":
            inputs = augment_pictures(inputs, rng)
        classes = np.repeat([key for key, _ in wanted], [n for _, n in wanted])
        return FrameBatch(inputs=inputs, classes=torch.from_numpy(classes))

    def epoch(self, steps: int, rng: np.random.Generator) -> Iterator[FrameBatch]:
        """`steps` batches."""
        return (self.draw(rng) for _ in range(steps))


class ClipBatches:
    """Clips, drawn by how close their ends are to completions."""

    def __init__(
        self,
        sessions: Sequence[SessionInputs],
        settings: StormSettings,
        embeddings: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Compute densities; with `embeddings` by session clips are of those, else of inputs."""
        self._sessions, self._settings = sessions, settings
        self._draw = ClipDraw([session.ticks for session in sessions], settings)
        counts = [session.ticks.tick_count for session in sessions]
        self._starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        self._valid = np.concatenate([session.ticks.valid for session in sessions])
        self._rows = (
            None
            if embeddings is None
            else torch.from_numpy(np.concatenate([embeddings[s.ticks.name] for s in sessions]))
        )

    def draw(self, count: int, rng: np.random.Generator) -> ClipBatch:
        """Some clips; now and then one with a made-up gap."""
        of, ends = self._draw.draw(count, rng)
        ticks = clip_ticks(ends, self._settings)
        places = self._starts[of][:, None] + np.maximum(ticks, 0)
        valid = (ticks >= 0) & self._valid[places]
        made_up_gaps(valid, self._settings.gap_share, rng)
        changed = np.stack(
            [
                clip_changes(self._sessions[one].ticks, row[None])[0]
                for one, row in zip(of.tolist(), ticks, strict=True)
            ]
        )
        return ClipBatch(
            frames=self._frames(of, ticks, places),
            valid=torch.from_numpy(valid),
            changed=torch.from_numpy(changed),
        )

    def epoch(self, steps: int, count: int, rng: np.random.Generator) -> Iterator[ClipBatch]:
        """`steps` batches of `count` clips."""
        return (self.draw(count, rng) for _ in range(steps))

    def _frames(
        self, of: NDArray[np.int64], ticks: NDArray[np.int64], places: NDArray[np.int64]
    ) -> Tensor:
        if self._rows is not None:
            return self._rows[torch.from_numpy(places)]
        batch, frames = ticks.shape
        rows = gather(self._sessions, np.repeat(of, frames), np.maximum(ticks, 0).ravel())
        return torch.from_numpy(rows.reshape(batch, frames, *rows.shape[1:]))


def gather(
    sessions: Sequence[SessionInputs], of: NDArray[np.int64], ticks: NDArray[np.int64]
) -> NDArray[Any]:
    """Inputs of given ticks, (B, ...), read where they are kept; missing ones are zeros."""
    first = sessions[0].inputs
    rows = np.zeros((len(of), *first.shape[1:]), first.dtype)
    for one in np.unique(of).tolist():
        session = sessions[one]
        places = np.flatnonzero(of == one)
        places = places[session.ticks.valid[ticks[places]]]
        rows[places] = session.inputs[ticks[places]]
    return rows
