"""What guidance from one expert is worth on other people's sessions, beside what knows less.

Every method gets the same filter; they differ in what it sees. The *clock* sees nothing and knows
durations and order; *uniform* spreads the expert's steps evenly over the session, whose length it
is told. With `tempo`, each stretch and gap of a session is played at its own speed, drawn evenly in
the logarithm from 0.6 to 1.6, so that a clock must fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.guidance.emissions import EmissionModel, EmissionSettings, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.stand_ins import StandIns
from keystep_models.guidance.step_filter import Evidence, KeyStepFilter
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming
from keystep_models.measures.guidance_scores import (
    TOLERANCE_S,
    DoneStep,
    SessionScore,
    done_steps,
    score_session,
)

TEMPO_RANGE: Final = (0.6, 1.6)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """One wearer's session, or the expert's.

    Attributes:
        name: Of the person.
        parts: Embeddings by part, a row per tick.
        labels: Step of each tick, (T,), 0 for none.
        times_s: Time of each tick, (T,).
    """

    name: str
    parts: Mapping[str, PartRows]
    labels: NDArray[np.int64]
    times_s: NDArray[np.float64]

    def played(self, ticks: NDArray[np.int64], rate_hz: float) -> Session:
        """The same with other ticks, which may repeat, at a rate."""
        parts = {
            name: PartRows(rows=part.rows[ticks], valid=part.valid[ticks])
            for name, part in self.parts.items()
        }
        times = np.arange(len(ticks)) / rate_hz
        return Session(name=self.name, parts=parts, labels=self.labels[ticks], times_s=times)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What a filter believed and said of a session; posterior is (T, S + 1)."""

    session: Session
    posterior: NDArray[np.float32]
    reports: list[tuple[int, float]]
    truth: list[DoneStep]
    score: SessionScore


class Guide:
    """A method under test: prototypes of one expert, and the filter's settings."""

    def __init__(
        self,
        expert: Session,
        segments: Sequence[ExpertSegment],
        *,
        parts: Sequence[str],
        emissions: EmissionSettings,
        filtering: FilterSettings,
        names: Mapping[int, int] | None = None,
    ) -> None:
        """Make prototypes; no `parts` makes the clock.

        Args:
            expert: The one recording that is learned from.
            segments: Its key steps.
            parts: What is seen.
            emissions: How prototypes are made.
            filtering: How the filter runs; its tick rate is the sessions'.
            names: Label of each step; by default its id. Steps without one are told as label -1.
        """
        self.timing = StepTiming.of_segments(segments)
        self._filtering = filtering
        self._names = names or {step_id: step_id for step_id in self.timing.step_ids}
        self._emissions = emissions
        self._model: EmissionModel | None = None
        if parts:
            chosen = {name: expert.parts[name] for name in parts}
            self._model = EmissionModel.fit(chosen, segments, emissions)

    def follow(
        self, session: Session, known: Sequence[int], tolerance_s: float = TOLERANCE_S
    ) -> Trace:
        """Run over a session and score it; `known` are the labels that the expert shows."""
        running = KeyStepFilter(self.timing, self._filtering)
        flat = Evidence(log_likelihoods=np.zeros(2 * len(self.timing.step_ids) + 1))
        posterior = np.zeros((len(session.times_s), len(self.timing.step_ids) + 1), np.float32)
        standing: dict[tuple[int, int], None] = {}
        retracted = 0
        model = self._model
        stand_ins = None if model is None else StandIns(model, self._emissions, self._filtering)
        for tick in range(len(session.times_s)):
            evidence: Evidence | None = flat
            if model is not None and stand_ins is not None:
                evidence = model.evidence(stand_ins.speaking(_row(session, tick)))
            report = running.step(tick, evidence)
            for taken_back in report.retracted:
                del standing[taken_back.step.step_id, taken_back.step.frame_idx]
                retracted += 1
            standing |= {(step.step_id, step.frame_idx): None for step in report.steps}
            posterior[tick] = running.activity_chances()
        reports = self._named(standing, session)
        return _trace(session, reports, known, tolerance_s, retracted, posterior)

    def _named(
        self, standing: Mapping[tuple[int, int], None], session: Session
    ) -> list[tuple[int, float]]:
        """Reports by label; a label of several steps counts where the last of them is told."""
        last: dict[int, float] = {}
        nameless = []
        for step_id, tick in standing:
            label, time_s = self._names.get(step_id, -1), float(session.times_s[tick])
            if label < 0:
                nameless.append((label, time_s))
            else:
                last[label] = max(last.get(label, 0.0), time_s)
        return [*last.items(), *nameless]


def uniform_trace(
    session: Session, labels: Sequence[int], known: Sequence[int], tolerance_s: float = TOLERANCE_S
) -> Trace:
    """Every step after the same share of the session."""
    length = float(session.times_s[-1])
    reports = [(label, length * (place + 1) / len(labels)) for place, label in enumerate(labels)]
    nothing = np.zeros((len(session.times_s), len(labels) + 1), np.float32)
    return _trace(session, reports, known, tolerance_s, 0, nothing)


def true_segments(expert: Session) -> list[ExpertSegment]:
    """The expert's labels as reviewed key steps; DataError where there is none."""
    labels = expert.labels
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    found = [
        ExpertSegment(step_id=int(labels[start]), start_tick=start, end_tick=end - 1)
        for start, end in itertools.pairwise(bounds)
        if labels[start] > 0
    ]
    if not found:
        raise DataError(f"{expert.name}: expected labels of key steps, got none")
    return found


def labels_of(segments: Sequence[ExpertSegment], expert: Session) -> dict[int, int]:
    """The label that most of each step's ticks have; steps that lie between labels have none."""
    names = {}
    for segment in segments:
        own = expert.labels[segment.start_tick : segment.end_tick + 1]
        counts = np.bincount(own)
        best = int(counts[1:].argmax()) + 1 if len(counts) > 1 else 0
        if best and counts[best] >= 0.5 * len(own):
            names[segment.step_id] = best
    return names


def with_tempo(session: Session, seed: int, rate_hz: float) -> Session:
    """A session in which each stretch and gap has a speed of its own."""
    rng = np.random.default_rng([seed, *session.name.encode()])
    bounds = [0, *(np.flatnonzero(np.diff(session.labels)) + 1).tolist(), len(session.labels)]
    ticks = []
    low, high = np.log(TEMPO_RANGE)
    for start, end in itertools.pairwise(bounds):
        speed = float(np.exp(rng.uniform(low, high)))
        count = max(1, round((end - start) / speed))
        ticks.append(start + (np.arange(count) * (end - start)) // count)
    return session.played(np.concatenate(ticks), rate_hz)


def thinned(session: Session, stride: int) -> Session:
    """Every so many ticks of a session; times stay."""
    places = np.arange(stride // 2, len(session.times_s), stride)
    parts = {
        name: PartRows(rows=part.rows[places], valid=part.valid[places])
        for name, part in session.parts.items()
    }
    return replace(
        session, parts=parts, labels=session.labels[places], times_s=session.times_s[places]
    )


def inversions(session: Session, order: Sequence[int]) -> int:
    """Pairs of steps that are done in another order than the expert's (first time each)."""
    place = {label: idx for idx, label in enumerate(order)}
    done = list(dict.fromkeys(int(k) for k in session.labels[session.labels > 0]))
    seen = [place[label] for label in done if label in place]
    return sum(a > b for idx, a in enumerate(seen) for b in seen[idx + 1 :])


def _row(session: Session, tick: int) -> dict[str, NDArray[np.floating] | None]:
    return {
        name: part.rows[tick] if part.valid[tick] else None for name, part in session.parts.items()
    }


def _trace(
    session: Session,
    reports: list[tuple[int, float]],
    known: Sequence[int],
    tolerance_s: float,
    retracted: int,
    posterior: NDArray[np.float32],
) -> Trace:
    done = [s for s in done_steps(session.labels, session.times_s) if s.label in set(known)]
    score = score_session(reports, done, tolerance_s=tolerance_s, retracted=retracted)
    return Trace(session=session, posterior=posterior, reports=reports, truth=done, score=score)
