"""A method of clips, driven by ticks: each tick's embedding, its clip, and what a detector saw.

A tick is a frame where all its evidence is there: with a detector its row of detections, without
one its clip. A clip that is missing beside detections is a frame without prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError
from keystep_models.detector.detecting_recogniser import DETECTIONS, DETECTIONS_SIZE, unpack
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.methods import MethodOptions
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.recogniser import CueTick, FrameReport, Recogniser, TickRecogniser
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.clip_model import ClipModel
from keystep_models.storm.clip_window import ClipWindow

EMBEDDING: Final = "embedding"
CLIP: Final = "clip"
"""The cues' names."""


class ClipRecogniser(TickRecogniser):
    """Any `Recogniser` that takes clips, over the embeddings of its session's ticks."""

    def __init__(
        self, method: str, inner: Recogniser, bundle: StormBundle, model: ClipModel
    ) -> None:
        """Take a recogniser at the start of its session.

        Args:
            method: Its name for the session.
            inner: For the bundle's components.
            bundle: What clips are looked at with; its models are `model`'s.
            model: That rows are made for; run elsewhere.

        Raises:
            ConfigError: The bundle does not fit the procedure.
        """
        super().__init__(method, inner.procedure)
        check_fits(inner.procedure, bundle)
        self.note = inner.note
        self._inner, self._model, self._document = inner, model, bundle.document
        self._window = ClipWindow(bundle.document.clip, bundle.document.embedding_size)
        self._row = model.new_row(model.open_window(self._window))
        self._detects = method != "temporal"

    @property
    def rate_hz(self) -> float:
        """Ticks a second that the bundle was made for."""
        return self._document.rate_hz

    @property
    def cues(self) -> tuple[str, ...]:
        """Embedding and clip, and detections where the method looks at them."""
        return (EMBEDDING, CLIP, *([DETECTIONS] if self._detects else []))

    @property
    def model_cues(self) -> Mapping[str, int]:
        """All its cues are of models."""
        sizes = {EMBEDDING: self._document.embedding_size, CLIP: self._document.component_count}
        return {**sizes, DETECTIONS: DETECTIONS_SIZE} if self._detects else sizes

    @property
    def memory_ticks(self) -> int:
        """Those of a clip."""
        return self._document.clip.ticks

    @property
    def state(self) -> ComponentState:
        """The recogniser's."""
        return self._inner.state

    @property
    def can_see(self) -> bool:
        """The recogniser's."""
        return self._inner.can_see

    def row(self, index: int, feature: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's row of the tick that comes next.

        It is overwritten by the next one: that is asked for when this one was answered.

        Raises:
            ShapeError: The feature has another size than the bundle's.
        """
        self._model.fill(self._row, index, feature)
        return self._row

    def rows_of(self, answer: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """A tick's cues of the model's answer, (D + C,)."""
        embedding, chances = self._model.unpack(answer)
        return {EMBEDDING: embedding, CLIP: chances}

    def step_tick(self, tick: CueTick) -> FrameReport:
        """Take the next tick; as `TickRecogniser.step_tick`."""
        self.remember(tick)
        chances, seen = tick.rows.get(CLIP), tick.rows.get(DETECTIONS)
        if (seen if self._detects else chances) is None:
            return FrameReport()
        clip = None if chances is None else ClipPrediction.of(chances.tolist())
        return self._inner.step(tick.index, [] if seen is None else unpack(seen), clip)

    def remember(self, tick: CueTick) -> None:
        """Keep its embedding for the clips to come."""
        embedding = tick.rows.get(EMBEDDING)
        if embedding is not None and not self._window.has(tick.index):  # after a restart
            self._window.put(tick.index, embedding)

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done; as `Follower.declare`."""
        return self._inner.declare(step_id)

    def snapshot(self) -> Mapping[str, Any]:
        """The recogniser's, and which bundle's clips it has seen."""
        return {"storm": self._document.id, "inner": self._inner.snapshot()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; as `Follower.restore`. The window is filled by `remember`."""
        try:
            came, inner = snapshot["storm"], snapshot["inner"]
        except (KeyError, TypeError) as error:
            raise DataError(f"expected a snapshot of {self.method}: {error}") from error
        if came != self._document.id:
            raise DataError(f"expected a snapshot of bundle {self._document.id}, got {came!r}")
        self._inner.restore(inner)


def clip_options(bundle: StormBundle) -> MethodOptions:
    """The accumulation that a bundle was made with."""
    chosen = bundle.document.accumulation
    return MethodOptions(
        threshold=chosen.threshold, decay=chosen.decay, window_frames=chosen.window_ticks
    )


def check_fits(procedure: Procedure, bundle: StormBundle) -> None:
    """Whether a bundle's components are a procedure's.

    Titles, tasks and what is expected are free; what installs a component has the same id.

    Raises:
        ConfigError: They are not.
    """
    known = bundle.procedure
    what = f"storm bundle {bundle.id[:12]} (of procedure {known.name!r})"
    if known.component_count != procedure.component_count:
        raise ConfigError(
            f"{what} sees {known.component_count} components, procedure {procedure.name!r} has"
            f" {procedure.component_count}; train one for it"
        )
    for idx in range(known.component_count):
        mine, theirs = (each.step_for(idx, "completed") for each in (procedure, known))
        if mine is not None and theirs is not None and mine.id != theirs.id:
            raise ConfigError(
                f"{what} has step {theirs.id} ({theirs.title}) for component {idx}, procedure"
                f" {procedure.name!r} has {mine.id} ({mine.title}); they are not of the same work"
            )
