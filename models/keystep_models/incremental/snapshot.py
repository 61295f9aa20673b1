"""What a slot's caches hold, as a value that can be stored and put into another pool.

The cached rows themselves are kept, not the raw features they came from. A row of the second layer
depends on the first layer's last W rows, which depend on features before them: to rebuild L layers
from features takes the last L * (W - 1) + 1 of them, for 1280-wide features ten times as many
bytes, and a second graph. The rows are exact to the bit. They mean something to one model only, so
that the model's hash travels along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

FORMAT_VERSION = 1
MAX_SNAPSHOT_BYTES = 256 << 20
"""Longer ones are refused unread; six cues of two layers with W = 1024 have 6.3 MB."""

_HASH = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CueRows:
    """One cue's cached rows, n of them, oldest first.

    Attributes:
        frames: The ticks they belong to, int64 (n,), increasing.
        rows: float32 (L, n, D): a row per layer and tick.
    """

    frames: NDArray[np.int64]
    rows: NDArray[np.float32]


class _CueDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    frames: bytes
    rows: bytes
    shape: tuple[int, int, int]


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    model_sha256: _HASH
    last_frame: int
    cues: dict[str, _CueDocument]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotSnapshot:
    """A session's state in the encoders.

    Attributes:
        model_sha256: The model that made it, the only one that can go on from it.
        last_frame: The newest tick, -1 before the first.
        cues: Cue to its rows.
    """

    model_sha256: str
    last_frame: int
    cues: Mapping[str, CueRows]

    def to_bytes(self) -> bytes:
        """For storage; `from_bytes` is the inverse."""
        return msgspec.msgpack.encode(
            _Document(
                version=FORMAT_VERSION,
                model_sha256=self.model_sha256,
                last_frame=self.last_frame,
                cues={
                    cue: _CueDocument(
                        frames=own.frames.astype("<i8").tobytes(),
                        rows=own.rows.astype("<f4").tobytes(),
                        shape=own.rows.shape,
                    )
                    for cue, own in self.cues.items()
                },
            )
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> SlotSnapshot:
        """Read what `to_bytes` wrote; whether it fits a model is checked when it is restored.

        Raises:
            DataError: Too long, or not of this form.
        """
        if len(content) > MAX_SNAPSHOT_BYTES:
            raise DataError(
                f"a snapshot has {len(content)} bytes, at most {MAX_SNAPSHOT_BYTES} are accepted"
            )
        try:
            document = msgspec.msgpack.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"no snapshot of temporal encoders: {error}") from error
        if document.version != FORMAT_VERSION:
            raise DataError(
                f"a snapshot of version {document.version}, expected {FORMAT_VERSION}; "
                "start the session afresh"
            )
        return cls(
            model_sha256=document.model_sha256,
            last_frame=document.last_frame,
            cues={cue: _read_rows(cue, own) for cue, own in document.cues.items()},
        )


def _read_rows(cue: str, document: _CueDocument) -> CueRows:
    layers, count, width = document.shape
    fits = min(document.shape) >= 0 and len(document.frames) == 8 * count
    if not fits or len(document.rows) != 4 * layers * count * width:
        raise DataError(
            f"snapshot of cue {cue!r}: {len(document.frames)} and {len(document.rows)} bytes do "
            f"not hold rows of shape {document.shape}"
        )
    return CueRows(
        frames=np.frombuffer(document.frames, "<i8").astype(np.int64),
        rows=np.frombuffer(document.rows, "<f4").astype(np.float32).reshape(document.shape),
    )
