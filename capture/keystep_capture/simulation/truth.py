"""What truly happened, frame by frame: component states, what hands hid, where the assembly is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.plan import Action, Plan
from keystep_capture.simulation.renderer import MAX_MATERIALS, Picture
from keystep_capture.simulation.scene import Scene
from keystep_capture.simulation.tasks import Task

MIN_BOX_PIXELS = 12
_VALUE_OF = {"install": 1, "misinstall": -1, "remove": 0}

Box = tuple[int, int, int, int]  # x, y of the corner, width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTruth:
    """One picture's truth.

    Attributes:
        device_time_ns: Its stamp.
        time_s: True time since the session's start.
        state: -1, 0 or 1 for each component.
        hidden: For each component the share of its pixels that hands cover, NaN out of the picture.
        assembly_hidden: The same of all parts that are in the assembly.
        box: Around the assembly's parts, as if there were no hands; None out of the picture.
    """

    device_time_ns: int
    time_s: float
    state: tuple[int, ...]
    hidden: NDArray[np.float64]
    assembly_hidden: float
    box: Box | None


@dataclass(slots=True, kw_only=True)
class SessionTruth:
    """A session's truth; frames are added as they are drawn."""

    task: Task
    plan: Plan
    occluded: tuple[bool, ...]
    width: int
    height: int
    frame_rate_hz: int
    frames: list[FrameTruth] = field(default_factory=list)

    def state_at(self, time_s: float) -> tuple[int, ...]:
        """Component states at a time; a change holds from its own instant on."""
        state = [0] * len(self.task.components)
        for action in self.plan.actions:
            if action.complete_s <= time_s:
                state[action.component] = _VALUE_OF[action.kind]
        return tuple(state)

    def placed_at(self, time_s: float) -> list[tuple[int, int]]:
        """(component, part) of what sits in the assembly, right or wrong."""
        places: dict[int, int] = {}
        for action in self.plan.actions:
            if action.complete_s <= time_s:
                if action.kind == "remove":
                    places.pop(action.component, None)
                else:
                    places[action.component] = action.part
        return sorted(places.items())

    def frame_of(self, time_s: float) -> int | None:
        """First frame at or after a time; None if there is none."""
        times = np.array([frame.time_s for frame in self.frames])
        idx = int(np.searchsorted(times, time_s - 1e-9))
        return idx if idx < len(times) else None

    def add_frame(self, picture: Picture, scene: Scene, device_time_ns: int, time_s: float) -> None:
        """Take a picture's truth from its materials."""
        thing_of = scene.thing_of_material
        seen = _pixels(picture.materials, thing_of)
        there = _pixels(picture.behind_hands, thing_of)
        with np.errstate(invalid="ignore", divide="ignore"):
            hidden = np.where(there > 0, 1.0 - seen / there, np.nan)
        parts = [part for _, part in self.placed_at(time_s)]
        total = there[parts].sum() if parts else 0
        self.frames.append(
            FrameTruth(
                device_time_ns=device_time_ns,
                time_s=time_s,
                state=self.state_at(time_s),
                hidden=hidden[: len(self.task.components)],
                assembly_hidden=float(1 - seen[parts].sum() / total) if total else float("nan"),
                box=_box(np.isin(thing_of, parts)[picture.behind_hands]) if total else None,
            )
        )


def segment_of(action: Action) -> tuple[float, float]:
    """A key step's segment: from the reach for its part to its completion, seconds."""
    return action.reach_s, action.complete_s


def _pixels(materials: NDArray[np.uint8], thing_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each thing."""
    counts = np.bincount(materials.reshape(-1), minlength=MAX_MATERIALS)
    known = thing_of >= 0
    result: NDArray[np.int64] = np.bincount(thing_of[known], counts[known]).astype(np.int64)
    return result


def _box(mask: NDArray[np.bool_]) -> Box | None:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return None
    x, y = int(columns[0]), int(rows[0])
    width, height = int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
    return (x, y, width, height) if width * height >= MIN_BOX_PIXELS else None
