"""A summary under a budget of time, in the style of ILS-SUMM: iterated local search over shots.

Source: Shemer et al., "ILS-SUMM: iterated local search for unsupervised video summarization",
ICPR 2020: choose shots so that every shot is near a chosen one, while the chosen ones together
last no longer than a budget. Here the shots are the segments of algorithm 1. S shots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ShapeError

_KICKS = 20


def choose_shots(
    features: NDArray[np.float64],
    durations_s: NDArray[np.float64],
    budget_s: float,
    *,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose the shots that stand for all best.

    Args:
        features: One row per shot, (S, D).
        durations_s: How long each shot lasts, (S,), 0 or more.
        budget_s: How long the chosen ones may last together, above 0.
        seed: Of the kicks that leave a local optimum.

    Returns:
        Indices of the chosen shots, ascending; where no shot fits the budget, the shortest one.

    Raises:
        ConfigError: The budget is not above 0.
        ShapeError: The arrays do not fit together.
    """
    if not budget_s > 0:
        raise ConfigError(f"budget_s must be above 0, got {budget_s}")
    if features.ndim != 2 or durations_s.shape != (len(features),):
        raise ShapeError(f"shapes {features.shape} and {durations_s.shape} do not fit together")
    if not len(features):
        return np.zeros(0, np.int64)
    search = _Search(features, durations_s, budget_s)
    if not search.fits.any():
        return np.array([int(durations_s.argmin())], np.int64)
    rng = np.random.default_rng(seed)
    best = search.improve(search.start())
    for _ in range(_KICKS):
        candidate = search.improve(search.kick(best, rng))
        if search.cost(candidate) < search.cost(best) - 1e-12:
            best = candidate
    return np.flatnonzero(best)


class _Search:
    """Distances between shots, and moves between subsets (bool (S,)) within the budget."""

    def __init__(
        self, features: NDArray[np.float64], durations: NDArray[np.float64], budget: float
    ) -> None:
        gaps = features[:, None, :] - features[None, :, :]
        self._distance = np.sqrt((gaps**2).sum(axis=-1))
        self._durations = durations
        self._budget = budget + 1e-9
        self.fits = durations <= self._budget

    def start(self) -> NDArray[np.bool_]:
        """The one shot that stands for all best."""
        chosen = np.zeros(len(self.fits), np.bool_)
        cost = np.where(self.fits, self._distance.sum(axis=0), np.inf)
        chosen[cost.argmin()] = True
        return chosen

    def cost(self, chosen: NDArray[np.bool_]) -> float:
        """Sum over shots of the distance to the nearest chosen one."""
        return float(self._distance[:, chosen].min(axis=1).sum()) if chosen.any() else np.inf

    def improve(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The best move (one more, or one for another) again and again, until none helps."""
        cost = self.cost(chosen)
        while True:
            moves = [(self.cost(each), each) for each in self._neighbours(chosen)]
            found, candidate = min(moves, key=lambda move: move[0], default=(np.inf, chosen))
            if found >= cost - 1e-12:
                return chosen
            cost, chosen = found, candidate

    def kick(self, chosen: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Leave a local optimum: drop about half, put a random one in."""
        kicked = chosen & (rng.random(len(chosen)) < 0.5)
        room = self._budget - self._durations[kicked].sum()
        fitting = np.flatnonzero(~kicked & (self._durations <= room))
        if len(fitting):
            kicked[rng.choice(fitting)] = True
        return kicked if kicked.any() else chosen.copy()

    def _neighbours(self, chosen: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        spent = self._durations[chosen].sum()
        found = []
        for place in outside:
            for leaving in (None, *inside):
                freed = 0.0 if leaving is None else self._durations[leaving]
                if spent - freed + self._durations[place] > self._budget:
                    continue
                move = chosen.copy()
                move[place] = True
                if leaving is not None:
                    move[leaving] = False
                found.append(move)
        return found
