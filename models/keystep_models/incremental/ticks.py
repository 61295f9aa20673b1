"""What goes into the encoders with a tick, and what comes out. B sessions, D values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError, ShapeError

MAX_ABSOLUTE_VALUE = 1e6
"""Of a raw feature. Larger ones could overflow in the encoders and spoil W ticks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ticks:
    """The newest tick of several sessions.

    Attributes:
        slots: Each session's slot, int64 (B,), each at most once.
        frames: Each session's tick, int64 (B,): whole numbers at the model's rate, counted from
            the session's start, so that ticks that were left out count too; each later than the
            slot's last.
        raw: Cue to raw features, float32 (B, D_cue). A cue that is not named is missing in all.
        valid: Cue to bool (B,): where the cue is there; a cue in `raw` but not here is there in
            all. Rows that are not valid mean nothing.
    """

    slots: NDArray[np.int64]
    frames: NDArray[np.int64]
    raw: Mapping[str, NDArray[np.float32]]
    valid: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """What the encoders make of a batch of ticks.

    Attributes:
        adapted: Cue to adapted features, float32 (B, D); zeros where the cue is missing.
        valid: Cue to bool (B,): where the cue is there.
    """

    adapted: dict[str, NDArray[np.float32]]
    valid: dict[str, NDArray[np.bool_]]


def checked_rows(
    ticks: Ticks, sizes: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """A batch's features as the graph takes them.

    Args:
        ticks: The batch.
        sizes: Values of a raw feature by cue, in the graph's order.

    Returns:
        Raw features by the graph's input names, zeros where a cue is missing, and where it is
        there, bool (C, B).

    Raises:
        ShapeError: An array has another dtype or shape, or there is no encoder for a cue.
        DataError: A valid feature is not finite or above `MAX_ABSOLUTE_VALUE`.
    """
    count = len(ticks.slots)
    for name, array in (("slots", ticks.slots), ("frames", ticks.frames)):
        if array.shape != (count,) or array.dtype != np.int64 or not count:
            raise ShapeError(f"{name} must be int64 (B,), got {array.dtype} {array.shape}")
    if unknown := (set(ticks.raw) | set(ticks.valid)) - set(sizes):
        raise ShapeError(
            f"no encoder for {', '.join(sorted(unknown))}; there are {', '.join(sizes)}"
        )
    raw, valid = {}, np.zeros((len(sizes), count), np.bool_)
    for idx, (cue, size) in enumerate(sizes.items()):
        rows = ticks.raw.get(cue)
        if rows is None:
            raw[f"raw_{cue}"] = np.zeros((count, size), np.float32)
            continue
        if rows.shape != (count, size) or rows.dtype != np.float32:
            raise ShapeError(
                f"cue {cue!r} must be float32 ({count}, {size}), got {rows.dtype} {rows.shape}"
            )
        there = ticks.valid.get(cue, np.ones(count, np.bool_))
        if there.shape != (count,) or there.dtype != np.bool_:
            raise ShapeError(
                f"valid of {cue!r} must be bool ({count},), got {there.dtype} {there.shape}"
            )
        if not (np.abs(rows[there]) <= MAX_ABSOLUTE_VALUE).all():
            raise DataError(
                f"cue {cue!r} has a value that is not finite or above {MAX_ABSOLUTE_VALUE:g}; "
                "mark such a row as missing"
            )
        raw[f"raw_{cue}"] = rows if there.all() else np.where(there[:, None], rows, 0.0)
        valid[idx] = there
    return raw, valid
