"""One inference engine for all sessions: requests in, futures out, batched per model.

`InferenceEngine` is what the server knows; `LocalEngine` runs the models in this process, one
worker thread per model (ONNX Runtime releases the GIL). A worker sleeps on one condition variable
until there is something to run. It waits for a fuller batch only while another session that was
heard of lately has nothing waiting, so that one session alone pays no waiting time. A request that
runs alone is read where it lies; a batch is put together in one preallocated buffer.

Models are named `name@hash`, so that a session stays with the very file it started with while
others are added and removed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from keystep_capture.errors import (
    ConfigError,
    DataError,
    KeystepError,
    ModelError,
    NotFoundError,
    ShapeError,
    StateError,
)
from keystep_models.onnx_model import OnnxModel, check_array

STATE_VERSION = 1
"""Version of the envelope that `export_state` writes; another one is refused."""

HASH_DIGITS = 12

_log = structlog.get_logger(__name__)


def model_key(model: OnnxModel) -> str:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """What one model has done since it was added.

    Attributes:
        batches: Runs of the model.
        rows: Rows answered.
        busy_s: Time spent in those runs, seconds.
        waiting: Requests waiting now.
        superseded: Requests a newer one of the same session replaced.
        refused: Requests refused because the session's queue was full.
        failed: Requests answered with a ModelError.
    """

    batches: int
    rows: int
    busy_s: float
    waiting: int
    superseded: int
    refused: int
    failed: int

    @property
    def mean_batch_rows(self) -> float:
        """Rows per run; 0 before the first."""
        return self.rows / self.batches if self.batches else 0.0


class _StateEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session's state on disk: per model its own bytes, empty for a stateless extractor."""

    version: int
    models: dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    rows: NDArray[Any]
    submitted_ns: int
    newest_wins: bool
    future: Future[NDArray[Any]] = field(default_factory=Future)

    def fail(self, error: KeystepError) -> None:
        """Answer a request that never ran; one the caller cancelled stays cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    max_batch: int
    max_wait_ns: int
    active_ns: int
    queue_limit: int


class _Worker:
    """One model, its thread and its queues; `_changed` guards all of it but the model."""

    def __init__(
        self, key: str, model: OnnxModel, limits: _Limits, clock: Callable[[], int]
    ) -> None:
        self.key = key
        self._model = model
        self._limits = limits
        self._clock = clock
        self._spec = model.manifest.inputs[0]
        row_shape = [dim for dim in self._spec.shape[1:] if isinstance(dim, int)]
        self._buffer = np.empty([limits.max_batch, *row_shape], self._spec.dtype)
        self._changed = threading.Condition()
        # Sessions with something waiting, the next one to serve first.
        self._queues: OrderedDict[str, deque[_Request]] = OrderedDict()
        self._waiting_rows = 0
        # When each session last submitted; None for one that was imported and has not yet.
        self._sessions: dict[str, int | None] = {}
        self._stopping = False
        self._batches = self._rows = self._busy_ns = 0
        self._superseded = self._refused = self._failed = 0
        self._thread = threading.Thread(target=self._serve, name=f"inference {key}", daemon=True)
        self._thread.start()

    def submit(self, session_id: str, rows: NDArray[Any], newest_wins: bool) -> _Request:
        check_array(self._spec, rows, self.key)
        if len(rows) > self._limits.max_batch:
            raise ShapeError(
                f"{self.key} takes at most {self._limits.max_batch} rows a request, got "
                f"{len(rows)}; submit them in parts"
            )
        request = _Request(rows=rows, submitted_ns=self._clock(), newest_wins=newest_wins)
        superseded = None
        with self._changed:
            if self._stopping:
                raise StateError(f"{self.key} was removed or the engine closed; nothing more runs")
            queue = self._queues.get(session_id)
            if queue and len(queue) >= self._limits.queue_limit:
                superseded = self._make_room(session_id, queue, newest_wins)
            self._queues.setdefault(session_id, deque()).append(request)
            self._waiting_rows += len(rows)
            self._sessions[session_id] = request.submitted_ns
            self._changed.notify()
        if superseded:
            superseded.fail(
                StateError(
                    f"superseded: session {session_id} is faster than {self.key} and newer rows "
                    "took this request's place; leave this tick out"
                )
            )
        return request

    def _make_room(
        self, session_id: str, queue: deque[_Request], newest_wins: bool
    ) -> _Request | None:
        """Take the session's oldest request that may be replaced out of its full queue."""
        if newest_wins:
            for place, request in enumerate(queue):
                if request.newest_wins:
                    del queue[place]
                    self._waiting_rows -= len(request.rows)
                    self._superseded += 1
                    return request
        self._refused += 1
        raise StateError(
            f"session {session_id} already has {len(queue)} requests waiting for {self.key}, the "
            "most there may be; wait for one of their futures, then submit again"
        )

    def remember(self, session_id: str) -> None:
        with self._changed:
            self._sessions.setdefault(session_id, None)

    def knows(self, session_id: str) -> bool:
        with self._changed:
            return session_id in self._sessions

    def forget(self, session_id: str) -> None:
        with self._changed:
            self._sessions.pop(session_id, None)
            requests = self._queues.pop(session_id, deque())
            self._waiting_rows -= sum(len(request.rows) for request in requests)
            self._changed.notify()  # whoever waited for this session to join the batch need not
        for request in requests:
            request.fail(StateError(f"session {session_id} was forgotten before this request ran"))

    def stop(self, *, drain: bool) -> None:
        """End the thread after the running batch, or, with `drain`, after all that waits."""
        with self._changed:
            self._stopping = True
            dropped = [] if drain else [r for queue in self._queues.values() for r in queue]
            if not drain:
                self._queues.clear()
                self._waiting_rows = 0
            self._changed.notify()
        for request in dropped:
            request.fail(StateError(f"the engine closed before this request for {self.key} ran"))
        if threading.current_thread() is not self._thread:  # a future's callback may close us
            self._thread.join()

    def stats(self) -> ModelStats:
        with self._changed:
            return ModelStats(
                batches=self._batches,
                rows=self._rows,
                busy_s=self._busy_ns * 1e-9,
                waiting=sum(map(len, self._queues.values())),
                superseded=self._superseded,
                refused=self._refused,
                failed=self._failed,
            )

    def _serve(self) -> None:
        while batch := self._next_batch():
            # A request cancelled while it waited is left out; from here on none can be.
            batch = [r for r in batch if r.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[_Request] | None:
        """Sleep until a batch is due and take it; None when the worker is to end."""
        with self._changed:
            while not self._stopping:
                wait_ns = self._wait_ns()
                if wait_ns is not None and wait_ns <= 0:
                    break
                self._changed.wait(None if wait_ns is None else wait_ns * 1e-9)
            return self._take() if self._queues else None

    def _wait_ns(self) -> int | None:
        """How long a batch may still wait for more rows, ns; None while nothing waits."""
        if not self._queues:
            return None
        now_ns = self._clock()
        if self._waiting_rows >= self._limits.max_batch or not self._expects_more(now_ns):
            return 0
        first_ns = min(queue[0].submitted_ns for queue in self._queues.values())
        return first_ns + self._limits.max_wait_ns - now_ns

    def _expects_more(self, now_ns: int) -> bool:
        """Whether a session that submitted lately has nothing in the queue."""
        return any(
            last_ns is not None
            and now_ns - last_ns <= self._limits.active_ns
            and session_id not in self._queues
            for session_id, last_ns in self._sessions.items()
        )

    def _take(self) -> list[_Request]:
        """Take one request of each session in turn, until the batch or the queues are done."""
        batch: list[_Request] = []
        space = self._limits.max_batch
        while self._queues:
            session_id, queue = next(iter(self._queues.items()))
            if len(queue[0].rows) > space:
                break  # this session stays first in turn for the next batch
            batch.append(queue.popleft())
            space -= len(batch[-1].rows)
            if queue:
                self._queues.move_to_end(session_id)
            else:
                del self._queues[session_id]
        self._waiting_rows -= self._limits.max_batch - space
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        """Run a batch and answer its futures; after a failure, each request by itself.

        So a request whose values the model cannot take fails alone.
        """
        try:
            output = self._run(batch)
        except Exception as error:  # whatever it is, the other sessions' worker goes on
            if len(batch) > 1:
                for request in batch:
                    self._answer([request])
                return
            with self._changed:
                self._failed += 1
            _log.warning("inference request failed", model=self.key, error=str(error))
            batch[0].future.set_exception(_as_model_error(self.key, error))
            return
        start = 0
        for request in batch:
            stop = start + len(request.rows)
            request.future.set_result(output[start:stop])
            start = stop

    def _run(self, batch: list[_Request]) -> NDArray[Any]:
        rows = batch[0].rows if len(batch) == 1 else self._gather(batch)
        start_ns = self._clock()
        output = self._model.run(rows)
        busy_ns = self._clock() - start_ns
        if len(output) != len(rows):
            raise ModelError(f"{self.key} gave {len(output)} rows for {len(rows)}")
        with self._changed:
            self._batches += 1
            self._rows += len(rows)
            self._busy_ns += busy_ns
        return output

    def _gather(self, batch: list[_Request]) -> NDArray[Any]:
        """Put the requests' rows together in the buffer; the only copy on their way in."""
        stop = 0
        for request in batch:
            start, stop = stop, stop + len(request.rows)
            self._buffer[start:stop] = request.rows
        return self._buffer[:stop]


def _as_model_error(key: str, error: Exception) -> KeystepError:
    if isinstance(error, KeystepError):
        return error
    wrapped = ModelError(f"{key} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


class LocalEngine:
    """Runs every model in this process; the `InferenceEngine` of a single server.

    Use as a context manager or call `close`.
    """

    def __init__(
        self,
        models: Mapping[str, OnnxModel] | None = None,
        *,
        max_batch: int = 16,
        max_wait_ms: float = 2.0,
        queue_limit: int = 8,
        active_s: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Start a worker for each model.

        Args:
            models: By `model_key`; `add_model` adds more and works the key out.
            max_batch: Most rows in one run.
            max_wait_ms: Longest a request waits for other sessions' rows to run with.
            queue_limit: Most requests of one session that wait for one model.
            active_s: A session that submitted within this time is worth waiting for.
            clock: Monotonic, ns.

        Raises:
            ConfigError: A limit out of range, or a key that is not its model's.
            ModelError: A model that cannot be batched; see `add_model`.
        """
        if max_batch < 1 or queue_limit < 1 or max_wait_ms < 0 or active_s < 0:
            raise ConfigError(
                "expected max_batch >= 1, queue_limit >= 1, max_wait_ms >= 0 and active_s >= 0, "
                f"got {max_batch}, {queue_limit}, {max_wait_ms} and {active_s}"
            )
        self._limits = _Limits(
            max_batch=max_batch,
            max_wait_ns=round(max_wait_ms * 1e6),
            active_ns=round(active_s * 1e9),
            queue_limit=queue_limit,
        )
        self._clock = clock
        self._lock = threading.Lock()
        # Replaced as a whole, under the lock, so that readers need none.
        self._workers: Mapping[str, _Worker] = {}
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

    def add_model(self, model: OnnxModel) -> str:
        """Take a model in while sessions run; one that is there already stays as it is.

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
                worker = _Worker(key, model, self._limits, self._clock)
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
            newest_wins: When the session's queue is full, take the place of its oldest waiting
                request that was submitted so too.

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

    def _worker(self, key: str) -> _Worker:
        worker = self._workers.get(key)
        if worker is None:
            raise NotFoundError(f"no model {key}, there are {sorted(self._workers)}; add it first")
        return worker


def _check_batchable(model: OnnxModel) -> None:
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
