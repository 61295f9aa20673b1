"""The key-step filter: turns what each tick looks like into steps that are done, or are not.

Online and deterministic; work and memory per tick are bounded, and a report can be taken back for
`look_back_s` and is final then. docs/guidance.md has the model and what it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError, NotFoundError, ShapeError, StateError
from keystep_models.guidance.done_sets import DoneSets, Floats
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import StepTiming
from keystep_models.psr.logic import StepCompletion
from keystep_models.psr.recogniser import FrameReport, Retraction

METHOD: Final = "key_steps"
_MAX_TICK: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What one tick looks like.

    Attributes:
        log_likelihoods: Of what was seen, float64 (2 S + 1,): of the S steps in the expert's
            order, then of what lies before the first step and after each one. Scaled so that
            ticks count as independent.
        is_strange: Whether it is like nothing in the expert's recording.
    """

    log_likelihoods: NDArray[np.float64]
    is_strange: bool = False


@dataclass(slots=True)
class _Standing:
    """A report that stands; final ones cannot be taken back."""

    report: StepCompletion
    is_final: bool


class KeyStepFilter:
    """Follows one wearer through one expert's key steps."""

    def __init__(self, timing: StepTiming, settings: FilterSettings | None = None) -> None:
        """Start a session in which nothing is done."""
        self.timing = timing
        self.settings = settings or FilterSettings()
        self._belief = DoneSets(timing, self.settings)
        self._place = {step_id: place for place, step_id in enumerate(timing.step_ids)}
        self._tick_idx = -1
        self._blind_ticks = 0
        self._strange = 0.0
        self._ahead = np.zeros(2 * len(timing.step_ids) + 1)
        self._weighed_ticks = 0
        self._held = np.zeros(len(timing.step_ids), np.int64)
        self._again = np.zeros(len(timing.step_ids))
        self._standing: dict[int, _Standing] = {}

    # --- what is believed -------------------------------------------------------------------------

    @property
    def tick_idx(self) -> int:
        """The last tick given, -1 before the first."""
        return self._tick_idx

    @property
    def can_see(self) -> bool:
        """Whether something was seen lately, and something like the expert's work."""
        blind = self._blind_ticks > self.settings.ticks(self.settings.blind_s)
        return not blind and self._strange <= self.settings.strange_share

    @property
    def reported_steps(self) -> tuple[int, ...]:
        """Ids of the steps whose report stands, in the expert's order."""
        return tuple(step_id for step_id in self.timing.step_ids if step_id in self._standing)

    def done_chances(self) -> dict[int, float]:
        """Probability of each step being done."""
        chances = self._belief.done_chances().tolist()
        return dict(zip(self.timing.step_ids, chances, strict=True))

    def activity_chances(self) -> Floats:
        """Probability of each step being under way, and last of none of them; (S + 1,), sum 1."""
        return self._belief.activity_chances()

    def current_step(self) -> int | None:
        """The likeliest step under way; None when none of them is likelier."""
        chances = self._belief.activity_chances()
        best = int(chances.argmax())
        return None if best == len(self.timing.step_ids) else self.timing.step_ids[best]

    def next_steps(self) -> dict[int, float]:
        """Probability of each open step coming next, the likeliest first."""
        pairs = zip(self.timing.step_ids, self._belief.next_chances().tolist(), strict=True)
        ordered = sorted(pairs, key=lambda pair: (-pair[1], self._place[pair[0]]))
        return {step_id: chance for step_id, chance in ordered if chance > 0}

    def span(self, step_id: int) -> tuple[int, int] | None:
        """First and last tick of a reported step as believed now; None where none is."""
        if step_id not in self._standing:
            return None
        start, end = self._belief.span(self._place_of(step_id))
        return (start, end) if start >= 0 else None

    # --- moving on --------------------------------------------------------------------------------

    def step(self, tick_idx: int, evidence: Evidence | None) -> FrameReport:
        """Take the next tick and return what it makes sure of, retractions first.

        Args:
            tick_idx: Index of the tick; must grow. Ticks left out count as ticks without evidence.
            evidence: What it looks like; None where nothing was seen.

        Raises:
            StateError: `tick_idx` is not after the last tick's.
            ShapeError: `evidence` is not of this filter's steps, or not finite. The tick then
                counts as not given.
        """
        if not self._tick_idx < tick_idx < _MAX_TICK:
            raise StateError(f"expected a tick after {self._tick_idx}, got tick {tick_idx}")
        if evidence is not None:
            self._check(evidence)
        # A long silence says no more than one of the look-back's length.
        silent = min(tick_idx - self._tick_idx, self.settings.ticks(self.settings.look_back_s) + 1)
        self._blind_ticks = min(self._blind_ticks + tick_idx - self._tick_idx - 1, _MAX_TICK)
        for back in reversed(range(silent)):
            self._pass_tick(tick_idx - back)
        self._tick_idx = tick_idx
        self._see(evidence)
        if evidence is not None and not evidence.is_strange:
            self._belief.weigh(self._levelled(evidence.log_likelihoods))
            return self._decide()
        return FrameReport()

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done because the wearer says so; this report is final.

        Raises:
            NotFoundError: The expert has no such step.
        """
        place = self._place_of(step_id)
        self._belief.declare(place, max(self._tick_idx, 0))
        self._held[place] = 0
        self._again[place] = 0.0
        report = self._report(place, 1.0)
        self._standing[step_id] = _Standing(report, is_final=True)
        return report

    def _levelled(self, values: Floats) -> Floats:
        """Evidence less a share of what each class has been ahead by on average, this tick's too.

        The evidence of one camera on one person tends to favour some classes all the time.
        """
        share = self.settings.level_share
        if share == 0:
            return values
        self._ahead = self._ahead + (values - values.mean())
        prior = self.settings.level_prior_s * self.settings.tick_rate_hz
        levelled = values - share * self._ahead / (prior + self._weighed_ticks)
        self._weighed_ticks = min(self._weighed_ticks + 1, _MAX_TICK)
        return np.asarray(levelled)

    def _pass_tick(self, tick_idx: int) -> None:
        self._belief.predict(tick_idx)
        leak = 1.0 / max(self.settings.ticks(self.settings.look_back_s), 1)
        self._again = self._again * (1.0 - leak) + self._belief.repeated

    def _see(self, evidence: Evidence | None) -> None:
        if evidence is None:
            self._blind_ticks += 1
            return
        self._blind_ticks = 0
        weight = 1.0 / max(self.settings.ticks(self.settings.strange_s), 1)
        self._strange += weight * (float(evidence.is_strange) - self._strange)

    def _decide(self) -> FrameReport:
        settings = self.settings
        chances = self._belief.done_chances()
        retracted = [
            self._retract(place, float(chances[place]))
            for place, step_id in enumerate(self.timing.step_ids)
            if (standing := self._standing.get(step_id)) is not None
            and not standing.is_final
            and chances[place] < settings.retract_threshold
        ]
        is_open = np.array([step_id not in self._standing for step_id in self.timing.step_ids])
        above = is_open & (chances > settings.report_threshold)
        self._held = np.where(above, self._held + 1, 0)
        new = []
        for place in np.flatnonzero(self._held > settings.ticks(settings.hold_s)).tolist():
            report = self._report(place, float(chances[place]))
            self._standing[report.step_id] = _Standing(report, is_final=False)
            new.append(report)
        repeats = self._repeats(new)
        self._make_final()
        return FrameReport(steps=[*new, *repeats], retracted=retracted)

    def _retract(self, place: int, chance: float) -> Retraction:
        standing = self._standing.pop(self.timing.step_ids[place])
        return Retraction(standing.report, self._tick_idx, 1.0 - chance)

    def _report(self, place: int, chance: float) -> StepCompletion:
        step_id = self.timing.step_ids[place]
        return StepCompletion(self._tick_idx, step_id, chance, place, "completed")

    def _repeats(self, new: list[StepCompletion]) -> list[StepCompletion]:
        """Steps that the expert repeats, and that were probably done once more."""
        found = []
        just_now = {report.step_id for report in new}
        for place in np.flatnonzero(self._again > self.settings.repeat_threshold).tolist():
            step_id = self.timing.step_ids[place]
            self._again[place] = 0.0
            if self.timing.repeatable[place] and step_id in self._standing.keys() - just_now:
                report = self._report(place, float(self._belief.done_chances()[place]))
                self._standing[step_id] = _Standing(report, is_final=True)
                found.append(report)
        return found

    def _make_final(self) -> None:
        limit = self._tick_idx - self.settings.ticks(self.settings.look_back_s)
        for step_id, standing in self._standing.items():
            if not standing.is_final and standing.report.frame_idx <= limit:
                standing.is_final = True
                self._belief.require(self._place[step_id])

    def _place_of(self, step_id: int) -> int:
        place = self._place.get(step_id)
        if place is None:
            raise NotFoundError(f"no key step {step_id}; there are {list(self.timing.step_ids)}")
        return place

    def _check(self, evidence: Evidence) -> None:
        values = evidence.log_likelihoods
        expected = (2 * len(self.timing.step_ids) + 1,)
        if values.shape != expected or values.dtype.kind != "f":
            raise ShapeError(
                f"expected floats of shape {expected}, got {values.dtype} {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ShapeError("expected finite log-likelihoods")

    # --- snapshots --------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here, as values that JSON holds exactly."""
        return {
            "method": METHOD,
            "steps": list(self.timing.step_ids),
            "settings": self.settings.as_document(),
            "tick_idx": self._tick_idx,
            "blind_ticks": self._blind_ticks,
            "strange": self._strange,
            "held": self._held.tolist(),
            "again": self._again.tolist(),
            **self._level_state(),
            "belief": self._belief.snapshot(),
            "standing": [
                {**asdict(each.report), "is_final": each.is_final}
                for each in self._standing.values()
            ],
        }

    def _level_state(self) -> dict[str, Any]:
        if self.settings.level_share == 0:
            return {}
        return {"ahead": self._ahead.tolist(), "weighed_ticks": self._weighed_ticks}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of the same steps and settings.

        Raises:
            DataError: It is another filter's, or is malformed. The filter is then as it was.
        """
        belief = DoneSets(self.timing, self.settings)
        try:
            self._check_same_origin(snapshot)
            tick, blind = int(snapshot["tick_idx"]), int(snapshot["blind_ticks"])
            strange = float(snapshot["strange"])
            held = np.array(snapshot["held"], np.int64)
            again = np.array(snapshot["again"], np.float64)
            if held.shape != self._held.shape or again.shape != self._again.shape:
                raise ValueError(f"held {held.shape}, again {again.shape}")
            ahead, weighed = self._ahead, 0
            if self.settings.level_share > 0:
                ahead = np.array(snapshot["ahead"], np.float64)
                weighed = int(snapshot["weighed_ticks"])
            if ahead.shape != self._ahead.shape or not np.isfinite(ahead).all():
                raise ValueError(f"what classes are ahead by, {ahead.shape}")
            if not 0 <= weighed <= _MAX_TICK:
                raise ValueError(f"weighed_ticks {weighed}")
            if not (-1 <= tick < _MAX_TICK and blind >= 0 and 0 <= strange <= 1):
                raise ValueError("counters out of range")
            if not (np.isfinite(again).all() and (again >= 0).all()):
                raise ValueError("repeats that are no numbers")
            belief.restore(snapshot["belief"])
            standing = {}
            for entry in snapshot["standing"]:
                values = dict(entry)
                is_final = bool(values.pop("is_final"))
                report = StepCompletion(**values)
                self._place_of(report.step_id)
                standing[report.step_id] = _Standing(report, is_final)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                "expected a snapshot of the key-step filter as `snapshot` returns it"
                f" ({type(error).__name__}: {error}); start the session anew"
            ) from error
        except NotFoundError as error:
            raise DataError(f"a snapshot of other key steps: {error}") from error
        self._belief, self._standing = belief, standing
        self._tick_idx, self._blind_ticks, self._strange = tick, blind, strange
        self._held, self._again = held, again
        self._ahead, self._weighed_ticks = ahead, weighed

    def _check_same_origin(self, snapshot: Mapping[str, Any]) -> None:
        for name, own in (
            ("method", METHOD),
            ("steps", list(self.timing.step_ids)),
            ("settings", self.settings.as_document()),
        ):
            if snapshot[name] != own:
                raise DataError(
                    f"a snapshot of another session: expected {name} {own}, got"
                    f" {str(snapshot[name])[:80]}; start the session anew"
                )
