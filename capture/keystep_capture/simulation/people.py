"""Who does a task: how fast, with which hand, how tidily, and how they look.

Pace and mistakes come from the fitted `data/behaviour.json`; what the labels cannot tell (hands,
idle time, skins and sleeves, missed parts) is set here and said so in docs/simulation.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.shapes import Colour

SKINS: tuple[Colour, ...] = (
    (0.72, 0.46, 0.34), (0.60, 0.36, 0.25), (0.42, 0.23, 0.14), (0.25, 0.13, 0.08),
    (0.09, 0.14, 0.24),  # a blue work glove
)  # fmt: skip
SLEEVES: tuple[Colour, ...] = (
    (0.08, 0.10, 0.18), (0.30, 0.30, 0.32), (0.36, 0.10, 0.08), (0.10, 0.22, 0.16),
    (0.55, 0.52, 0.46),
)  # fmt: skip


@cache
def behaviour() -> dict[str, Any]:
    """The fitted numbers of `fit_behaviour.py`."""
    text = (resources.files(__package__) / "data" / "behaviour.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One simulated person.

    Attributes:
        name: `person_000` and so on.
        expert: Person 0 of every seed: usual order, no mistakes, little idling.
        pace: Gaps between completions are this much longer than the session's usual ones.
        dominant: The hand that does most: 0 left, 1 right.
        swaps_hands: Share of parts that the other hand fetches where it is nearer.
        order_noise: By how many places the person's own order strays from the usual one.
        mistake_scale: Mistakes and removals relative to the fitted rates.
        idle_share: Share of spare time spent with hands down or turning the assembly.
        reach_s: Time a reach of 30 cm takes.
        height_m: Of the eyes above the bench.
        hand_scale: Size of the hands, 1 is usual.
        skin: Colour of hands (or gloves).
        sleeve: Colour of the arms.
    """

    name: str
    expert: bool
    pace: float
    dominant: int
    swaps_hands: float
    order_noise: float
    mistake_scale: float
    idle_share: float
    reach_s: float
    height_m: float
    hand_scale: float
    skin: Colour
    sleeve: Colour


def make_person(seed: int, idx: int) -> Person:
    """Draw a person; number 0 is the expert."""
    rng = generator(seed, "person", idx)
    fitted = behaviour()
    expert = idx == 0
    pace = float(np.exp(rng.normal(0.0, fitted["gap_s"]["log_pace_sigma"])))
    return Person(
        name=f"person_{idx:03d}",
        expert=expert,
        pace=min(pace, 0.8) if expert else float(np.clip(pace, 0.65, 1.5)),
        dominant=int(rng.random() < 0.89),
        swaps_hands=float(rng.uniform(0.3, 0.9)),
        order_noise=0.0 if expert else float(fitted["order_noise"] * rng.uniform(0.5, 1.5)),
        mistake_scale=0.0 if expert else float(rng.gamma(2.0, 0.5)),
        idle_share=0.08 if expert else float(rng.uniform(0.1, 0.4)),
        reach_s=float(rng.uniform(0.55, 0.85)) * (0.9 if expert else 1.0),
        height_m=float(rng.uniform(0.43, 0.52)),
        hand_scale=float(rng.uniform(0.9, 1.1)),
        skin=SKINS[int(rng.integers(len(SKINS)))],
        sleeve=SLEEVES[int(rng.integers(len(SLEEVES)))],
    )
