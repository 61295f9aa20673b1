"""Temporal encoders one tick at a time: a pool of slots, a slot per session.

A tick costs the work of one tick: every layer's inputs of the last W ticks are cached in a ring,
and the newest tick attends over them. What a slot returns does not depend on which others are in
the batch, nor on who had the slot before. docs/incremental.md says how the graph is made.

B sessions of a batch, C cues, L layers, W ticks of context, D values of an embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, DataError, ModelError, StateError
from keystep_models.incremental.snapshot import CueRows, SlotSnapshot
from keystep_models.incremental.spec import KIND, read_spec
from keystep_models.incremental.state_pool import StatePool
from keystep_models.incremental.ticks import Embeddings, Ticks, checked_rows
from keystep_models.onnx_model import OnnxModel

__all__ = ["KIND", "Embeddings", "IncrementalEncoders", "Ticks"]

MAX_SLOTS = 4096
MAX_POOL_BYTES = 8 << 30
MAX_FRAME = 1 << 24
"""Ticks of a session: counted exactly in float32; 19 days at 10 Hz."""


class IncrementalEncoders:
    """Encoders of all cues with a pool of slots; any thread may call, one call runs at a time."""

    def __init__(self, model: OnnxModel, *, slot_count: int) -> None:
        """Allocate the pool; `load` also loads the model.

        Raises:
            ConfigError: No slot, too many, or a pool above `MAX_POOL_BYTES`.
            ModelError: The manifest is not one of incremental encoders.
        """
        self.spec = read_spec(model)
        self.model = model
        self._cues = tuple(self.spec.cues)
        shape = (len(self._cues), slot_count + 1, self.spec.context, self.spec.width)
        _check_pool(slot_count, len(self.spec.layers) * 4 * int(np.prod(shape)))
        self._slot_count = slot_count
        self._pool = StatePool(self.spec.layers, shape, model.provider)
        # The tick in every ring place; -inf: nothing there
        self._ring = np.full(shape[:3], -np.inf, np.float32)
        self._last = np.full(slot_count, -1, np.int64)
        self._open = np.zeros(slot_count, np.bool_)
        self._takes_frames = any(spec.name == "frames" for spec in model.manifest.inputs)
        self._binding = model.session.io_binding()
        self._pool.bind(self._binding)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        manifest_path: Path | str,
        *,
        slot_count: int,
        providers: Sequence[str] | None = None,
        intra_op_threads: int = 1,
    ) -> IncrementalEncoders:
        """Load a model that `export_incremental` wrote.

        Args:
            manifest_path: Its `manifest.json`.
            slot_count: Sessions at most at the same time, 1 or more. Each takes `slot_bytes`.
            providers: As `OnnxModel.load`.
            intra_op_threads: As `OnnxModel.load`.

        Raises:
            ConfigError: As the constructor and `OnnxModel.load`.
            ModelError: As the constructor and `OnnxModel.load`.
        """
        model = OnnxModel.load(
            manifest_path, providers=providers, intra_op_threads=intra_op_threads
        )
        return cls(model, slot_count=slot_count)

    @property
    def sha256(self) -> str:
        """The model's hash, hex."""
        return self.model.sha256

    @property
    def rate_hz(self) -> float:
        """Ticks a second."""
        return self.model.manifest.rate_hz

    @property
    def slot_count(self) -> int:
        """Sessions at most."""
        return self._slot_count

    @property
    def open_count(self) -> int:
        """Slots in use."""
        return int(self._open.sum())

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot's caches."""
        return self._pool.nbytes // (self._slot_count + 1)

    def open(self) -> int:
        """Take a free slot, empty, and return its number.

        Raises:
            StateError: All slots are in use.
        """
        with self._lock:
            free = np.flatnonzero(~self._open)
            if not len(free):
                raise StateError(
                    f"all {self._slot_count} slots of the temporal encoders are in use; close a "
                    "session or start with more slots"
                )
            slot = int(free[0])
            self._empty(slot)
            self._open[slot] = True
            return slot

    def close(self, slot: int) -> None:
        """Give a slot back.

        Raises:
            StateError: It is not open.
        """
        with self._lock:
            self._check_open(np.array([slot]))
            self._open[slot] = False

    def last_frame(self, slot: int) -> int:
        """The newest tick of a slot, -1 before the first.

        Raises:
            StateError: It is not open.
        """
        with self._lock:
            self._check_open(np.array([slot]))
            return int(self._last[slot])

    def step(self, ticks: Ticks) -> Embeddings:
        """Take the newest tick of several sessions; all of them or, on an error, none.

        Args:
            ticks: One per session.

        Raises:
            ShapeError: An array has another dtype or shape.
            DataError: A valid feature is not finite or above `ticks.MAX_ABSOLUTE_VALUE`.
            StateError: A slot is not open or there twice, or a tick is not after its last one.
            ModelError: ONNX Runtime failed.
        """
        raw, valid = checked_rows(ticks, self.spec.cues)
        with self._lock:
            self._check_order(ticks)
            slots, frames = ticks.slots, ticks.frames
            count = len(slots)
            place = frames % self.spec.context
            cue_idx, row_idx = np.nonzero(valid)
            ages = frames[None, :, None].astype(np.float32) - self._ring[:, slots]
            ages[cue_idx, row_idx, place[row_idx]] = 0.0
            places = np.empty((len(self._cues), count, 3), np.int64)
            places[:, :, 0] = np.arange(len(self._cues))[:, None]
            places[:, :, 1] = slots
            read = places[:, :, :2].copy()
            places[:, :, 1] = np.where(valid, slots, self._slot_count)
            places[:, :, 2] = place
            inputs: dict[str, NDArray[Any]] = {
                "slots": read,
                "places": places,
                "ages": ages,
                **raw,
            }
            if self._takes_frames:
                inputs["frames"] = frames.astype(np.float32)
            adapted = self._run(inputs, count)
            self._ring[cue_idx, slots[row_idx], place[row_idx]] = frames[row_idx]
            self._last[slots] = frames
        adapted[~valid] = 0.0
        return Embeddings(
            adapted=dict(zip(self._cues, adapted, strict=True)),
            valid=dict(zip(self._cues, valid, strict=True)),
        )

    def snapshot(self, slot: int) -> SlotSnapshot:
        """A slot's state, to go on from later, in this pool or another of the same model.

        Raises:
            StateError: It is not open.
        """
        with self._lock:
            self._check_open(np.array([slot]))
            rows, last = self._pool.read(slot), int(self._last[slot])
            cues = {}
            for idx, cue in enumerate(self._cues):
                frames = self._ring[idx, slot]
                places = np.flatnonzero(frames > last - self.spec.context)
                places = places[np.argsort(frames[places])]
                cues[cue] = CueRows(
                    frames=frames[places].astype(np.int64), rows=rows[:, idx, places]
                )
        return SlotSnapshot(model_sha256=self.sha256, last_frame=last, cues=cues)

    def restore(self, snapshot: SlotSnapshot) -> int:
        """Take a free slot that goes on where a snapshot was made, and return its number.

        Raises:
            ModelError: The snapshot is another model's.
            DataError: It is not as `snapshot` makes them.
            StateError: All slots are in use.
        """
        self._check_snapshot(snapshot)
        slot = self.open()
        with self._lock:
            rows = np.zeros(
                (len(self.spec.layers), len(self._cues), self.spec.context, self.spec.width),
                np.float32,
            )
            for idx, cue in enumerate(self._cues):
                own = snapshot.cues[cue]
                place = own.frames % self.spec.context
                rows[:, idx, place] = own.rows
                self._ring[idx, slot, place] = own.frames
            self._pool.write(slot, rows)
            self._last[slot] = snapshot.last_frame
        return slot

    def _empty(self, slot: int) -> None:
        self._pool.write(slot, np.zeros(1, np.float32))
        self._ring[:, slot] = -np.inf
        self._last[slot] = -1

    def _run(self, inputs: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.float32]:
        adapted = np.empty((len(self._cues), count, self.spec.width), np.float32)
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            for name, array in arrays.items():  # read where they lie
                self._binding.bind_cpu_input(name, array)
            place = ("cpu", 0, np.float32, list(adapted.shape), adapted.ctypes.data)
            self._binding.bind_output("adapted", *place)
            self.model.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise ModelError(
                f"{self.model.manifest.name} failed on {self.model.provider} for {count} sessions: "
                f"{error}; export the model again"
            ) from error
        return adapted

    def _check_order(self, ticks: Ticks) -> None:
        self._check_open(ticks.slots)
        if len(set(ticks.slots.tolist())) < len(ticks.slots):
            raise StateError(f"a slot is there twice in one batch: {ticks.slots.tolist()}")
        late = (ticks.frames <= self._last[ticks.slots]) | (ticks.frames >= MAX_FRAME)
        if late.any():
            slot, frame = int(ticks.slots[late][0]), int(ticks.frames[late][0])
            raise StateError(
                f"slot {slot}: tick {frame} must be after {self._last[slot]} and below {MAX_FRAME}"
            )

    def _check_open(self, slots: NDArray[np.int64]) -> None:
        known = (slots >= 0) & (slots < self._slot_count)
        if not known.all() or not self._open[slots].all():
            shut = [
                int(s) for s, ok in zip(slots, known, strict=True) if not ok or not self._open[s]
            ]
            raise StateError(f"slots {shut} are not open; `open` or `restore` gives one")

    def _check_snapshot(self, snapshot: SlotSnapshot) -> None:
        if snapshot.model_sha256 != self.sha256:
            raise ModelError(
                f"a snapshot of model {snapshot.model_sha256[:12]}, but this is "
                f"{self.sha256[:12]}; load the model the session is pinned to"
            )
        last, context = snapshot.last_frame, self.spec.context
        fits = set(snapshot.cues) == set(self._cues) and -1 <= last < MAX_FRAME
        for own in snapshot.cues.values():
            fits = fits and _rows_fit(own, last, context, (len(self.spec.layers), self.spec.width))
        if not fits:
            raise DataError(
                f"the snapshot does not hold rows of {', '.join(self._cues)} within {context} ticks"
            )


def _rows_fit(own: CueRows, last: int, context: int, sizes: tuple[int, int]) -> bool:
    layers, width = sizes
    frames = own.frames
    if own.rows.shape != (layers, len(frames), width) or not np.isfinite(own.rows).all():
        return False
    within = (frames > last - context) & (frames <= last) & (frames >= 0)
    return bool(within.all() and (np.diff(frames) > 0).all())


def _check_pool(slot_count: int, nbytes: int) -> None:
    if not 1 <= slot_count <= MAX_SLOTS:
        raise ConfigError(f"slot_count must be 1 to {MAX_SLOTS}, got {slot_count}")
    if nbytes > MAX_POOL_BYTES:
        raise ConfigError(
            f"{slot_count} slots need {nbytes} bytes, at most {MAX_POOL_BYTES} are given"
        )
