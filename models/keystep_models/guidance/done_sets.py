"""The filter's belief: which steps are done, what is being done now, and for how long.

A *row* is one set of done steps. Within a row, an activity is a step or none of them (*between*),
and each activity runs through K phases, so that its length has a gamma distribution (Erlang): an
explicit-duration model whose work per tick does not grow with durations. Finishing an open step
leads to the row that has it too. Rows are merged where they agree and the least likely are dropped,
so both memory and work per tick are bounded by `max_rows`.

B rows, S steps, K phases; activity S is *between*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import StepTiming

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_LEAST_SHARE: Final = 1e-7  # of all probability; rows below are dropped
_LEAST_EXIT: Final = 1e-9  # smaller completions wait in the last phase
_LEAST_EVIDENCE: Final = -60.0  # nats below the likeliest activity


class DoneSets:
    """A belief over sets of done steps, moved on tick by tick; deterministic."""

    def __init__(self, timing: StepTiming, settings: FilterSettings) -> None:
        """Nothing is done, and nothing has begun."""
        self._settings = settings
        self.step_count = len(timing.step_ids)
        self._keys_of_steps = _step_keys(self.step_count)
        self._advance = _advance_rates(timing, settings)
        self._abandon = settings.abandon_rate_hz / settings.tick_rate_hz
        repeats = np.where(timing.repeatable, settings.repeatable_rate, settings.repeat_rate)
        self._repeat_weight = np.asarray(repeats, np.float64)
        count, phases = self.step_count, settings.phases
        self.done: Flags = np.zeros((1, count), np.bool_)
        self.weights: Floats = np.zeros((1, count + 1, phases))
        self.weights[0, count, 0] = 1.0
        self.entered: Floats = np.zeros((1, count))  # mean tick at which the activity began
        self.started: Floats = np.full((1, count), -1.0)  # of done steps
        self.ended: Floats = np.full((1, count), -1.0)
        self._keys = np.zeros(1, np.uint64)
        self._next: Floats = self._next_chances(self.done)
        self._gap_shares: Floats = self._gap_chances(self.done)
        self.repeated: Floats = np.zeros(count)
        """Expected completions of steps that were done already, at the last `predict`; (S,)."""

    # --- what is believed -------------------------------------------------------------------------

    def row_weights(self) -> Floats:
        """Probability of each row, (B,)."""
        weights: Floats = self.weights.sum(axis=(1, 2))
        return weights

    def done_chances(self) -> Floats:
        """Probability of each step being done, (S,)."""
        chances: Floats = np.minimum(self.row_weights() @ self.done, 1.0)
        return chances

    def activity_chances(self) -> Floats:
        """Probability of each step being done now, and last of none of them, (S + 1,)."""
        chances: Floats = self.weights.sum(axis=(0, 2))
        return chances

    def next_chances(self) -> Floats:
        """Probability of each step coming next if nothing more is seen, (S,)."""
        open_next = np.where(self.done, 0.0, self._next)
        total = np.maximum(open_next.sum(axis=1, keepdims=True), 1e-300)
        chances: Floats = self.row_weights() @ (open_next / total)
        return chances

    def span(self, step: int) -> tuple[int, int]:
        """First and last tick of a done step in the likeliest row that has it; -1 where in none."""
        weights = np.where(self.done[:, step], self.row_weights(), -1.0)
        row = int(weights.argmax())
        return round(float(self.started[row, step])), round(float(self.ended[row, step]))

    # --- moving on --------------------------------------------------------------------------------

    def predict(self, tick_idx: int) -> None:
        """Let one tick pass; probabilities keep their sum."""
        count = self.step_count
        moving = self.weights * self._advance[None, :, None]
        weights = self.weights - moving
        weights[:, :, 1:] += moving[:, :, :-1]
        exits = moving[:, :, -1]
        left = weights[:, :count] * self._abandon
        weights[:, :count] -= left
        back = left.sum(axis=(1, 2))
        begun = exits[:, count, None] * self._next
        # Where nothing can follow any more, what is between stays so.
        back += exits[:, count] - begun.sum(axis=1)
        finished = exits[:, :count]
        again = np.where(self.done, finished, 0.0)
        self.repeated = again.sum(axis=0)
        back += again.sum(axis=1)
        fresh = np.where(self.done, 0.0, finished)
        small = fresh < _LEAST_EXIT
        weights[:, :count, -1] += np.where(small, fresh, 0.0)
        self._enter(weights, begun, tick_idx)
        weights[:, count, 0] += back
        self.weights = weights
        self._complete(np.where(small, 0.0, fresh), tick_idx)

    def weigh(self, log_likelihoods: Floats) -> None:
        """Weigh in what was seen: logarithms of its likelihood, (2 S + 1,).

        The first S are of the steps; the others of what lies before the first step, and after
        each step, in the expert's order.
        """
        count = self.step_count
        scale = np.exp(np.maximum(log_likelihoods - log_likelihoods.max(), _LEAST_EVIDENCE))
        factors = np.empty((len(self.done), count + 1))
        factors[:, :count] = scale[:count]
        factors[:, count] = self._gap_shares @ scale[count:]
        self.weights = self.weights * factors[:, :, None]
        self._prune()

    def require(self, step: int) -> None:
        """Drop every row in which a step is not done, unless nothing would be left."""
        keep = self.done[:, step]
        if keep.any() and not keep.all():
            self._take(np.flatnonzero(keep))
            self._normalise()

    def declare(self, step: int, tick_idx: int) -> None:
        """Take a step as done in every row; who was at it is between steps now."""
        open_rows = ~self.done[:, step]
        if not open_rows.any():
            return
        count = self.step_count
        at_it = self.weights[open_rows, step].copy()
        self.weights[open_rows, step] = 0.0
        self.weights[open_rows, count, 0] += at_it.sum(axis=1)
        begun = np.where(at_it.sum(axis=1) > 0.5 * self.weights[open_rows].sum(axis=(1, 2)),
                         self.entered[open_rows, step], tick_idx)  # fmt: skip
        self.started[open_rows, step] = begun
        self.ended[open_rows, step] = tick_idx
        self.done[open_rows, step] = True
        self._keys[open_rows] ^= self._keys_of_steps[step]
        self._look_ahead()
        self._merge_equal()
        self._prune()

    def _enter(self, weights: Floats, begun: Floats, tick_idx: int) -> None:
        """Add those who begin a step, and keep the mean tick at which it was begun."""
        count = self.step_count
        there = weights[:, :count].sum(axis=2)
        total = there + begun
        share = np.divide(begun, total, out=np.zeros_like(begun), where=total > 0)
        self.entered = self.entered + share * (tick_idx - self.entered)
        weights[:, :count, 0] += begun

    def _complete(self, fresh: Floats, tick_idx: int) -> None:
        """Move (B, S) probability of finished open steps into the rows that have them."""
        rows, steps = np.nonzero(fresh)
        if not len(rows):
            return
        masses = fresh[rows, steps]
        keys = self._keys[rows] ^ self._keys_of_steps[steps]
        names, place = np.unique(keys, return_inverse=True)
        # The likeliest way into a row tells it when its steps were done.
        order = np.lexsort((-masses, place))
        best = order[np.searchsorted(place[order], np.arange(len(names)))]
        gained: Floats = np.zeros(len(names))
        np.add.at(gained, place, masses)
        sorter = np.argsort(self._keys, kind="stable")
        at = np.minimum(np.searchsorted(self._keys, names, sorter=sorter), len(sorter) - 1)
        known = self._keys[sorter[at]] == names
        before = self.row_weights()
        for is_known in (True, False):
            chosen = np.flatnonzero(known == is_known)
            if not len(chosen):
                continue
            parents, step = rows[best[chosen]], steps[best[chosen]]
            started, ended = self.started[parents].copy(), self.ended[parents].copy()
            index = np.arange(len(chosen))
            started[index, step] = self.entered[parents, step]
            ended[index, step] = tick_idx
            if is_known:
                target = sorter[at[chosen]]
                self.weights[target, self.step_count, 0] += gained[chosen]
                better = gained[chosen] > before[target]
                self.started[target[better]] = started[better]
                self.ended[target[better]] = ended[better]
            else:
                self._append(parents, step, gained[chosen], names[chosen], started, ended)

    def _append(
        self, parents: NDArray[np.int64], steps: NDArray[np.int64], gained: Floats,
        keys: NDArray[np.uint64], started: Floats, ended: Floats,
    ) -> None:  # fmt: skip
        done = self.done[parents].copy()
        done[np.arange(len(parents)), steps] = True
        weights = np.zeros((len(parents), *self.weights.shape[1:]))
        weights[:, self.step_count, 0] = gained
        self.done = np.concatenate([self.done, done])
        self.weights = np.concatenate([self.weights, weights])
        self.entered = np.concatenate([self.entered, np.zeros_like(started)])
        self.started = np.concatenate([self.started, started])
        self.ended = np.concatenate([self.ended, ended])
        self._keys = np.concatenate([self._keys, keys])
        self._next = np.concatenate([self._next, self._next_chances(done)])
        self._gap_shares = np.concatenate([self._gap_shares, self._gap_chances(done)])

    def _merge_equal(self) -> None:
        names, place = np.unique(self._keys, return_inverse=True)
        if len(names) == len(self._keys):
            return
        totals = self.row_weights()
        order = np.lexsort((-totals, place))
        best = order[np.searchsorted(place[order], np.arange(len(names)))]
        weights = np.zeros((len(names), *self.weights.shape[1:]))
        np.add.at(weights, place, self.weights)
        self._take(best)
        self.weights = weights

    def _prune(self) -> None:
        totals = self.row_weights()
        keep = np.flatnonzero(totals > _LEAST_SHARE * totals.sum())
        if len(keep) > self._settings.max_rows:
            likeliest = np.argsort(-totals[keep], kind="stable")[: self._settings.max_rows]
            keep = np.sort(keep[likeliest])
        if len(keep) < len(totals):
            self._take(keep)
        self._normalise()

    def _take(self, rows: NDArray[np.int64]) -> None:
        self.done, self.weights, self.entered = (
            self.done[rows],
            self.weights[rows],
            self.entered[rows],
        )
        self.started, self.ended = self.started[rows], self.ended[rows]
        self._keys, self._next = self._keys[rows], self._next[rows]
        self._gap_shares = self._gap_shares[rows]

    def _normalise(self) -> None:
        self.weights = self.weights / self.weights.sum()

    def _next_chances(self, done: Flags) -> Floats:
        """Which step begins when one does, by row: shape (B, S), each row's sum 1 or 0."""
        rank = np.cumsum(~done, axis=1) - 1
        nearby = self._settings.skip_rate**rank + self._settings.jump_rate
        chances = np.where(done, self._repeat_weight, nearby)
        total = chances.sum(axis=1, keepdims=True)
        return np.asarray(
            np.divide(chances, total, out=np.zeros_like(chances), where=total > 0), np.float64
        )

    def _look_ahead(self) -> None:
        self._next = self._next_chances(self.done)
        self._gap_shares = self._gap_chances(self.done)

    def _gap_chances(self, done: Flags) -> Floats:
        """Which of the expert's gaps a row looks like between steps: (B, S + 1), rows' sum 1.

        Those are likeliest at which the expert had done most nearly the same steps.
        """
        missing = np.cumsum(~done, axis=1)  # of the first m steps
        extra = done.sum(axis=1, keepdims=True) - np.cumsum(done, axis=1)
        differing = np.concatenate([done.sum(axis=1, keepdims=True), missing + extra], axis=1)
        shares = self._settings.gap_likeness ** differing.astype(np.float64)
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    # --- snapshots --------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on, as values that JSON holds exactly."""
        return {
            "done": self.done.astype(int).tolist(),
            "weights": self.weights.tolist(),
            "entered": self.entered.tolist(),
            "started": self.started.tolist(),
            "ended": self.ended.tolist(),
            "repeated": self.repeated.tolist(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot; ValueError or KeyError where it is malformed, changing nothing."""
        count, phases = self.step_count, self._settings.phases
        done = np.array(snapshot["done"])
        weights = np.array(snapshot["weights"], np.float64)
        rows = len(done)
        times = {
            name: np.array(snapshot[name], np.float64) for name in ("entered", "started", "ended")
        }
        repeated = np.array(snapshot["repeated"], np.float64)
        if not 1 <= rows <= 2 * self._settings.max_rows * (count + 1):
            raise ValueError(f"{rows} rows")
        if done.shape != (rows, count) or not np.isin(done, (0, 1)).all():
            raise ValueError(f"done {done.shape}")
        if weights.shape != (rows, count + 1, phases) or repeated.shape != (count,):
            raise ValueError(f"weights {weights.shape}")
        if any(
            each.shape != (rows, count) or not np.isfinite(each).all() for each in times.values()
        ):
            raise ValueError("times of another shape")
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError("weights that are no probabilities")
        flags = done.astype(np.bool_)
        keys = np.bitwise_xor.reduce(np.where(flags, self._keys_of_steps, np.uint64(0)), axis=1)
        if len(np.unique(keys)) != rows:
            raise ValueError("rows that are equal")
        self.done, self.weights, self._keys, self.repeated = flags, weights, keys, repeated
        self.entered, self.started, self.ended = times["entered"], times["started"], times["ended"]
        self._look_ahead()


def _step_keys(count: int) -> NDArray[np.uint64]:
    """A number per step; a row's key is the exclusive or of its steps' (Zobrist hashing)."""
    return np.random.default_rng(0x5EED).integers(1, 2**63, size=count, dtype=np.uint64)


def _advance_rates(timing: StepTiming, settings: FilterSettings) -> Floats:
    """Probability per tick of going on to the next phase, by activity, (S + 1,)."""
    durations = np.array(timing.duration_ticks)
    usual = float(np.exp(np.log(durations).mean()))
    means = usual * (durations / usual) ** settings.duration_blend
    means = np.append(means, timing.gap_ticks) * settings.slowness
    means = np.maximum(means, settings.least_duration_s * settings.tick_rate_hz)
    rates: Floats = np.minimum(settings.phases / means, 1.0)
    return rates
