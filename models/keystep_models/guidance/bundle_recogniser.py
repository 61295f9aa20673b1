"""A bundle as a recogniser: a session's ticks in, the expert's key steps out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_models.bundles.bundle import Bundle
from keystep_models.guidance.stand_ins import StandIns
from keystep_models.incremental.session_slot import SessionSlot
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.methods import KEY_STEPS
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.recogniser import CueTick, FrameReport, Retraction, TickRecogniser


class BundleRecogniser(TickRecogniser):
    """Follows one session by an expert's key steps: encoders, prototypes, filter.

    The filter's time stands still in ticks that are only remembered: its ticks are counted by
    themselves, and reports have that number.
    """

    def __init__(self, procedure: Procedure, bundle: Bundle, slot: SessionSlot | None) -> None:
        """Start a session in which nothing is done.

        Args:
            procedure: Of the bundle's steps, a component each.
            bundle: That the procedure pins.
            slot: In the bundle's encoders; just where it has some. Given back by `close`.

        Raises:
            ConfigError: Procedure, bundle and slot do not belong together.
        """
        super().__init__(KEY_STEPS, procedure)
        check_fits(procedure, bundle)
        if (slot is None) != (bundle.encoder_manifest is None):
            raise ConfigError("expected a slot of the encoders just where the bundle has some")
        self._bundle = bundle
        self._slot = slot
        self._filter = bundle.make_filter()
        self._stand_ins = StandIns(
            bundle.emissions, bundle.emission_settings, bundle.filter_settings
        )
        self._last_index = -1
        own = {part.cue for part in bundle.document.parts}
        self._cues = tuple(dict.fromkeys([*sorted(own), *(slot.cues if slot else ())]))

    @property
    def bundle_id(self) -> str:
        """Of the bundle it follows."""
        return self._bundle.id

    @property
    def rate_hz(self) -> float:
        """Ticks a second that the bundle was made for."""
        return self._bundle.document.tick_rate_hz

    @property
    def cues(self) -> tuple[str, ...]:
        """The cues of the bundle's parts and encoders."""
        return self._cues

    @property
    def memory_ticks(self) -> int:
        """Those that the encoders' caches rest on."""
        return 0 if self._slot is None else self._slot.memory_ticks

    @property
    def state(self) -> ComponentState:
        """1 for the component of every step whose report stands."""
        state = list(self.procedure.initial_state)
        for step_id in self._filter.reported_steps:
            state[self.procedure.step(step_id).component_idx] = 1
        return tuple(state)

    @property
    def can_see(self) -> bool:
        """Whether something was seen lately, and something like the expert's work."""
        return self._filter.can_see

    def step_tick(self, tick: CueTick) -> FrameReport:
        """Take the next tick; as `TickRecogniser.step_tick`."""
        elapsed = tick.index - self._last_index
        embedding = self._embed(tick)
        self._last_index = tick.index
        embedding = self._stand_ins.speaking(embedding, elapsed)
        evidence = self._bundle.emissions.evidence(embedding)
        report = self._filter.step(self._filter.tick_idx + elapsed, evidence)
        return FrameReport(
            steps=[self._placed(step) for step in report.steps],
            retracted=[
                Retraction(self._placed(each.step), each.frame_idx, each.confidence)
                for each in report.retracted
            ],
        )

    def remember(self, tick: CueTick) -> None:
        """Take a tick that says nothing; as `TickRecogniser.remember`."""
        if self._slot is not None:
            self._slot.step(tick.index, tick.rows)
        self._last_index = max(self._last_index, tick.index)

    def _embed(self, tick: CueTick) -> Mapping[str, NDArray[np.float32] | None]:
        """Each part's values: the cue's row, or what the encoders make of it."""
        if tick.index <= self._last_index:
            raise StateError(f"expected a tick after {self._last_index}, got {tick.index}")
        adapted = {} if self._slot is None else self._slot.step(tick.index, tick.rows)
        return {
            part.name: (adapted if part.of == "encoder" else tick.rows).get(part.cue)
            for part in self._bundle.document.parts
        }

    def _placed(self, step: StepCompletion) -> StepCompletion:
        """A report with the component that the procedure gives the step."""
        place = self.procedure.step(step.step_id).component_idx
        return StepCompletion(step.frame_idx, step.step_id, step.confidence, place, step.kind)

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done, for good."""
        return self._placed(self._filter.declare(step_id))

    def snapshot(self) -> Mapping[str, Any]:
        """The filter's state; the encoders' is made again of the newest ticks."""
        return {
            "method": KEY_STEPS,
            "bundle": self._bundle.id,
            "last_index": self._last_index,
            "filter": self._filter.snapshot(),
            "missing": self._stand_ins.snapshot(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; the last `memory_ticks` ticks must be remembered then."""
        try:
            bundle_id, last = snapshot["bundle"], int(snapshot["last_index"])
            own, missing = snapshot["filter"], list(snapshot.get("missing", []))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no state of a bundle's session: {error!r}") from error
        if bundle_id != self._bundle.id:
            raise DataError(
                f"a state of bundle {str(bundle_id)[:64]}, but this is {self._bundle.id}; start the"
                " session anew"
            )
        self._filter.restore(own)
        if missing:  # checkpoints of earlier versions have none
            self._stand_ins.restore(missing)
        self._last_index = last

    def close(self) -> None:
        """Give the slot in the encoders back."""
        if self._slot is not None:
            self._slot.close()


def check_fits(procedure: Procedure, bundle: Bundle) -> None:
    """ConfigError unless a procedure is one of a bundle's steps."""
    if procedure.bundle != bundle.id:
        raise ConfigError(
            f"procedure {procedure.name!r} pins bundle {procedure.bundle}, this is {bundle.id}"
        )
    wanted, there = set(bundle.timing.step_ids), {step.id for step in procedure.steps}
    if wanted != there:
        raise ConfigError(
            f"procedure {procedure.name!r} has the steps {sorted(there)}, its bundle"
            f" {sorted(wanted)}; publish it again"
        )
