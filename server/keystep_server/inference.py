"""One inference engine for all sessions: requests in, futures out, batched per model.

`InferenceEngine` is what the server knows; `LocalEngine` runs the models in this process, in one
or more threads per model (ONNX Runtime releases the GIL). They sleep on one condition variable
until there is something to run. A batch waits for more rows only while another session that was
heard of lately has nothing waiting, so that one session alone pays no waiting time. A request that
runs alone is read where it lies; a batch is put together in one preallocated buffer.

Models are named `name@hash`, so that a session stays with the very file it started with while
others are added and removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
import structlog
from numpy.typing import NDArray

from keystep_capture.errors import (
    ConfigError,
    DataError,
    ModelError,
    NotFoundError,
    StateError,
)
from keystep_server.inference_worker import BatchModel, Limits, ModelStats, Worker

STATE_VERSION = 1
"""Version of the envelope that `export_state` writes; another one is refused."""

HASH_DIGITS = 12

__all__ = ["BatchModel", "InferenceEngine", "LocalEngine", "model_key"]

_log = structlog.get_logger(__name__)


def model_key(model: BatchModel) -> str:
    """Return the name an engine knows the model by: `name@` and 12 digits of its hash."""
    return f"{model.manifest.name}@{model.sha256[:HASH_DIGITS]}"


class InferenceEngine(Protocol):
    """What the server asks of inference; every method may be called from any thread."""

    def submit(
        self, model: str, session_id: str, rows: NDArray[Any], *, newest_wins: bool = False
    ) -> Future[NDArray[Any]]:
        """Queue rows for a model; see `LocalEngine.submit`."""
        ...

    def export_state(self, session_id: str) -> bytes:
        """Return what the models remember of a session; see `LocalEngine.export_state`."""
        ...

    def import_state(self, session_id: str, data: bytes) -> None:
        """Take up a session where `export_state` left it."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop all that is kept for a session; its waiting requests fail."""
        ...

    def close(self) -> None:
        """Stop; waiting requests fail, running ones are answered."""
        ...


class _StateEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session's state on disk: per model its own bytes, empty for a stateless extractor."""

    version: int
    models: dict[str, bytes]


class LocalEngine:
    """Runs every model in this process; the `InferenceEngine` of a single server.

    Use as a context manager or call `close`.
    """

    def __init__(
        self,
        models: Mapping[str, BatchModel] | None = None,
        *,
        max_batch: int = 16,
        max_calls: int = 1,
        max_wait_ms: float = 2.0,
        queue_limit: int = 8,
        live_limit: int = 2,
        active_s: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
        on_batch: Callable[[str, int], None] = lambda _key, _rows: None,
    ) -> None:
        """Start a worker for each model.

        Args:
            models: By `model_key`; `add_model` adds more and works the key out.
            max_batch: Most rows in one run.
            max_calls: Most runs of one model at a time, each in a thread of its own and never two
                for one session.
            max_wait_ms: Longest a request waits for other sessions' rows to run with.
            queue_limit: Most requests of one session that wait for one model.
            live_limit: Most of them submitted with `newest_wins`: in an overload they are as late
                as so many rounds of all sessions take.
            active_s: A session that submitted within this time is worth waiting for.
            clock: Monotonic, ns.
            on_batch: Told of each run, its model's key and rows; called in the worker's thread.

        Raises:
            ConfigError: A limit out of range, or a key that is not its model's.
            ModelError: A model that cannot be batched; see `add_model`.
        """
        if (
            min(max_batch, max_calls, queue_limit, live_limit) < 1
            or max_wait_ms < 0
            or active_s < 0
        ):
            raise ConfigError(
                "expected max_batch, max_calls, queue_limit and live_limit >= 1, max_wait_ms and "
                f"active_s >= 0, got {max_batch}, {max_calls}, {queue_limit}, {live_limit}, "
                f"{max_wait_ms} and {active_s}"
            )
        self._limits = Limits(
            max_batch=max_batch,
            max_calls=max_calls,
            max_wait_ns=round(max_wait_ms * 1e6),
            active_ns=round(active_s * 1e9),
            queue_limit=queue_limit,
            live_limit=live_limit,
        )
        self._clock = clock
        self._on_batch = on_batch
        self._lock = threading.Lock()
        # Replaced as a whole, under the lock, so that readers need none.
        self._workers: Mapping[str, Worker] = {}
        self._closed = False
        for key, model in (models or {}).items():
            if key != model_key(model):
                raise ConfigError(f"expected the model under the key {model_key(model)}, got {key}")
        for model in (models or {}).values():
            self.add_model(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add_model(
        self,
        model: BatchModel,
        *,
        max_batch: int | None = None,
        max_calls: int | None = None,
        max_wait_ms: float | None = None,
        inline: bool = False,
    ) -> str:
        """Take a model in while sessions run; one that is there already stays as it is.

        Args:
            model: With one input and one output.
            max_batch: Most rows in one of its runs, where not the engine's.
            max_calls: Most of its runs at a time, where not the engine's.
            max_wait_ms: Longest a request waits for others, where not the engine's.
            inline: Have the thread that submits what completes a batch run it, beside those calls:
                for a small model, which costs less than waking a thread. `submit` then blocks.

        Returns:
            The key to `submit` to.

        Raises:
            ModelError: The model does not have one input and one output whose first dimension,
                and no other, is free under one name: its rows cannot be batched.
            StateError: The engine is closed.
        """
        _check_batchable(model)
        key = model_key(model)
        with self._lock:
            if self._closed:
                raise StateError(f"cannot add {key}: the engine is closed")
            if key not in self._workers:
                limits = replace(
                    self._limits,
                    max_batch=max_batch or self._limits.max_batch,
                    max_calls=max_calls or self._limits.max_calls,
                    max_wait_ns=(
                        self._limits.max_wait_ns
                        if max_wait_ms is None
                        else round(max_wait_ms * 1e6)
                    ),
                    inline=inline,
                )
                worker = Worker(key, model, limits, self._clock, self._on_batch)
                self._workers = {**self._workers, key: worker}
        return key

    def remove_model(self, key: str) -> None:
        """Let a model go, once everything that waits for it has been answered.

        Raises:
            NotFoundError: No such model.
        """
        with self._lock:
            worker = self._worker(key)
            self._workers = {name: kept for name, kept in self._workers.items() if name != key}
        worker.stop(drain=True)

    def submit(
        self, model: str, session_id: str, rows: NDArray[Any], *, newest_wins: bool = False
    ) -> Future[NDArray[Any]]:
        """Queue rows for a model.

        Args:
            model: Key from `add_model` or `model_key`.
            session_id: Whose rows; answered in the order of submission.
            rows: (n, ...) as the model's input, n from 1 to `max_batch`, C-contiguous. Not
                copied: leave them alone until the future is done.
            newest_wins: When the session's queue is full, or holds `live_limit` such requests,
                take the place of its oldest waiting request that was submitted so too.

        Returns:
            The output's rows, (n, ...); or a ModelError if the run failed, a StateError if the
            request was superseded, its session forgotten or the engine closed.

        Raises:
            NotFoundError: No such model.
            ShapeError: The rows are not what the model takes.
            StateError: The engine is closed, or the session's queue is full and holds nothing
                that may be replaced: wait for a future, then submit again.
        """
        return self._worker(model).submit(session_id, rows, newest_wins).future

    def export_state(self, session_id: str) -> bytes:
        """Return what a session's models remember, as a versioned msgpack envelope.

        It names each model the session has used, by key, with that model's own bytes: none for
        the stateless extractors this engine runs.
        """
        models = {key: b"" for key, worker in self._workers.items() if worker.knows(session_id)}
        return msgspec.msgpack.encode(_StateEnvelope(version=STATE_VERSION, models=models))

    def import_state(self, session_id: str, data: bytes) -> None:
        """Take up a session where `export_state` left it; nothing changes if that fails.

        Raises:
            DataError: Not an envelope of this version, or state for a stateless model.
            NotFoundError: A model the session used is not here; add it first.
        """
        try:
            envelope = msgspec.msgpack.decode(data, type=_StateEnvelope)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"expected a session's inference state, got {len(data)} bytes that are none: "
                f"{error}; start the session without it"
            ) from error
        if envelope.version != STATE_VERSION:
            raise DataError(
                f"expected inference state of version {STATE_VERSION}, got {envelope.version}; "
                "start the session without it"
            )
        if stateful := sorted(key for key, state in envelope.models.items() if state):
            raise DataError(f"expected no state for the stateless models {stateful}, got some")
        workers = [self._worker(key) for key in envelope.models]
        for worker in workers:
            worker.remember(session_id)

    def forget(self, session_id: str) -> None:
        """Drop all that is kept for a session; call it when the session is closed.

        Requests that still wait get a StateError; one that is running is answered.
        """
        for worker in self._workers.values():
            worker.forget(session_id)

    def stats(self) -> dict[str, ModelStats]:
        """Return what each model has done, by key."""
        return {key: worker.stats() for key, worker in self._workers.items()}

    def close(self) -> None:
        """Stop: running batches are answered, waiting requests get a StateError. Idempotent."""
        with self._lock:
            self._closed = True
        for worker in self._workers.values():
            worker.stop(drain=False)

    def _worker(self, key: str) -> Worker:
        worker = self._workers.get(key)
        if worker is None:
            raise NotFoundError(f"no model {key}, there are {sorted(self._workers)}; add it first")
        return worker


def _check_batchable(model: BatchModel) -> None:
    """Raise a ModelError unless rows go in and as many rows come out."""
    inputs, outputs = model.manifest.inputs, model.manifest.outputs
    tensors = (*inputs, *outputs)
    fits = len(inputs) == len(outputs) == 1 and all(
        spec.shape
        and isinstance(spec.shape[0], str)
        and all(isinstance(dim, int) for dim in spec.shape[1:])
        for spec in tensors
    )
    if not fits or inputs[0].shape[0] != outputs[0].shape[0]:
        raise ModelError(
            f"{model.manifest.name}: expected one input and one output with the free dimension "
            f"'batch' first and all others fixed, got {[list(spec.shape) for spec in tensors]}; "
            "export it so"
        )
