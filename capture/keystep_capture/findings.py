"""What `keystep doctor` finds: each thing looked at, how it stands, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]

HEADSET_CHECKS = "keystep.headset_checks"
"""Entry-point group of `HeadsetCheck`s: packages that know a headset's protocol offer one each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: What it belongs to: `python`, `ports`, `headset`, ...
        name: What was looked at.
        level: `problem`: Keystep does not work so; `warning`: it works, worse or only partly.
        detail: What was found, one line.
        remedy: What to do, one line; empty where all is well.
    """

    area: str
    name: str
    level: Level
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


HeadsetCheck = Callable[[str, int | None], list[Finding]]
"""Looks at the headset at (host, base port; None: its usual one); raises nothing for what it
finds."""
