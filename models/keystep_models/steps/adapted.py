"""Adapted features of one recording, joined over cues: what key steps are made of (late fusion)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

MIN_COVERAGE = 0.5
"""A cue that fewer of a recording's frames have is left out of the joined features."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinedFeatures:
    """Features of several cues side by side, N frames.

    Attributes:
        features: float32 (N, D), each cue's part of length 1; zeros where not valid.
        valid: bool (N,): frames that have every joined cue.
        cues: The joined cues.
        notes: What was left out, and why.
    """

    features: NDArray[np.float32]
    valid: NDArray[np.bool_]
    cues: tuple[str, ...]
    notes: tuple[str, ...]


def join_cues(
    adapted: Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_]]],
    wanted: tuple[str, ...] = (),
) -> JoinedFeatures:
    """Put cues side by side; a frame that lacks one of them is marked missing.

    Args:
        adapted: Cue to features (N, D) and where they are there, bool (N,).
        wanted: Cues to join; empty: all that are there. Of these, one that fewer than half of
            the frames have is left out rather than that those frames are lost.

    Raises:
        DataError: No wanted cue is there.
    """
    names = wanted or tuple(adapted)
    kept, notes = [], []
    for cue in names:
        share = float(adapted[cue][1].mean()) if cue in adapted else 0.0
        if share >= MIN_COVERAGE:
            kept.append(cue)
        elif cue in adapted:
            notes.append(f"cue {cue} is there in {100 * share:.0f} % of the frames: left out")
        else:
            notes.append(f"cue {cue} is missing: left out")
    if not kept:
        raise DataError(
            f"none of the cues {', '.join(names) or '(none)'} is there in half the frames; choose "
            "others, or no more ticks a second than were recorded"
        )
    valid = np.logical_and.reduce([adapted[cue][1] for cue in kept])
    parts = []
    for cue in kept:
        rows = np.asarray(adapted[cue][0], np.float32)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        parts.append(np.divide(rows, length, out=np.zeros_like(rows), where=length > 0))
    features = np.concatenate(parts, axis=1)
    features[~valid] = 0.0
    missing = float(1 - valid.mean())
    if missing > 0.1:
        notes.append(
            f"{100 * missing:.0f} % of the frames lack a joined cue and are in no key step"
        )
    return JoinedFeatures(features=features, valid=valid, cues=tuple(kept), notes=tuple(notes))
