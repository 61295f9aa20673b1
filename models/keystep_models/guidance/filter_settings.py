"""What can be chosen of the key-step filter; numbers per second, so that any tick rate fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from keystep_capture.errors import ConfigError

_NOT_IN_OLDER = ("level_share", "level_prior_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """How the filter believes that work goes on, and when it speaks.

    Attributes:
        tick_rate_hz: Ticks a second.
        phases: Of an activity; its length is the sum of so many equal exponential parts, so that
            its standard deviation is mean / sqrt(phases).
        slowness: A wearer's mean durations, relative to the expert's.
        duration_blend: 1 takes each step's own duration, 0 the geometric mean of all of them.
        least_duration_s: No mean duration is taken as shorter.
        skip_rate: How much likelier the first open step is to come next than the second, and so
            on: the chance falls by this factor from each open step to the next.
        jump_rate: Weight of any open step, however far, relative to the first open one.
        repeat_rate: Weight of a step that is done already, relative to the first open one.
        repeatable_rate: The same for steps that the expert repeats.
        gap_likeness: How much less a gap of the expert's is like the present one for each step
            that is done in one of them only.
        abandon_rate_hz: A step is left undone so often.
        report_threshold: A step is reported when the probability that it is done exceeds this,
        hold_s: for so long.
        retract_threshold: A report is taken back when the probability falls below this.
        look_back_s: After so long a report is final.
        repeat_threshold: Expected completions since the last one at which a repeated step is
            reported again.
        blind_s: Nothing seen for so long: cannot see.
        strange_share: Above this share of ticks unlike anything the expert did: cannot see.
        strange_s: Time over which that share is taken.
        max_rows: Sets of done steps that are considered at a time.
        level_share: How much of what a class has been ahead of the others in this session so far,
            per tick and on average, is taken off its evidence: what another person's clothes or
            height make likelier all the time says nothing of the work. 0: none.
        level_prior_s: The average counts as if it began with so much time of no difference.
    """

    tick_rate_hz: float = 10.0
    phases: int = 3
    slowness: float = 1.4
    duration_blend: float = 0.5
    least_duration_s: float = 1.0
    skip_rate: float = 0.1
    jump_rate: float = 0.005
    repeat_rate: float = 0.01
    repeatable_rate: float = 0.2
    gap_likeness: float = 0.3
    abandon_rate_hz: float = 0.0
    report_threshold: float = 0.5
    hold_s: float = 0.3
    retract_threshold: float = 0.2
    look_back_s: float = 30.0
    repeat_threshold: float = 0.8
    blind_s: float = 1.5
    strange_share: float = 0.7
    strange_s: float = 3.0
    max_rows: int = 64
    level_share: float = 0.5
    level_prior_s: float = 60.0

    def __post_init__(self) -> None:
        values = asdict(self)
        if not all(np.isfinite(value) for value in values.values()):
            raise ConfigError("expected finite filter settings")
        for name in ("tick_rate_hz", "slowness", "least_duration_s", "look_back_s", "strange_s",
                     "level_prior_s"):  # fmt: skip
            if not values[name] > 0:
                raise ConfigError(f"{name} must be above 0, got {values[name]}")
        for name in (
            "duration_blend", "skip_rate", "jump_rate", "gap_likeness", "repeat_rate",
            "repeatable_rate", "report_threshold", "retract_threshold", "strange_share",
            "level_share",
        ):  # fmt: skip
            if not 0 <= values[name] <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, got {values[name]}")
        if self.abandon_rate_hz < 0 or self.abandon_rate_hz > self.tick_rate_hz / 2:
            raise ConfigError(
                f"abandon_rate_hz is {self.abandon_rate_hz}, expected 0 to half a tick"
            )
        if self.hold_s < 0 or self.blind_s < 0 or self.repeat_threshold <= 0:
            raise ConfigError("hold_s and blind_s must be 0 or more, repeat_threshold above 0")
        if not 1 <= self.phases <= 16 or not 2 <= self.max_rows <= 4096:
            raise ConfigError("expected 1 to 16 phases and 2 to 4096 max_rows")
        if self.retract_threshold >= self.report_threshold:
            raise ConfigError("retract_threshold must be below report_threshold")

    def ticks(self, seconds: float) -> int:
        """A time in whole ticks."""
        return round(seconds * self.tick_rate_hz)

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON; what older bundles lack, only where it is not as in them.

        So a bundle made again of an older one has the older one's id, and its sessions' checkpoints
        fit.
        """
        plain = asdict(self)
        if self.level_share == 0:
            for name in _NOT_IN_OLDER:
                del plain[name]
        return plain

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> FilterSettings:
        """The inverse of `as_document`; ConfigError for unknown names or wrong types."""
        if "level_share" not in document:
            document = {**document, "level_share": 0.0}
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(document) - set(known)):
            raise ConfigError(f"unknown filter settings: {', '.join(map(str, unknown))}")
        for name, value in document.items():
            whole = name in ("phases", "max_rows")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "whole number" if whole else "number"
                raise ConfigError(f"{name}: expected a {kind}, got {value!r}")
        return cls(**document)
