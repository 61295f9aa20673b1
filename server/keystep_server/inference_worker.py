"""One model's worker of the inference engine: its threads, its queues, its batches."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from keystep_capture.errors import KeystepError, ModelError, ShapeError, StateError
from keystep_models.onnx_model import ModelManifest, check_array

_log = structlog.get_logger(__name__)


class BatchModel(Protocol):
    """What the engine runs: an `OnnxModel`, or what behaves like one with one input and output."""

    @property
    def manifest(self) -> ModelManifest:
        """What goes in and out."""
        ...

    @property
    def sha256(self) -> str:
        """What tells it from others of its name, hex."""
        ...

    def beside(self) -> Self:
        """The same, its weights shared, for another thread."""
        ...

    def run(self, batch: NDArray[Any], /) -> NDArray[Any]:
        """Run rows; used by one thread at a time."""
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """Rows that wait for a model, and the future of their answer."""

    rows: NDArray[Any]
    submitted_ns: int
    newest_wins: bool
    future: Future[NDArray[Any]] = field(default_factory=Future)

    def fail(self, error: KeystepError) -> None:
        """Answer a request that never ran; one the caller cancelled stays cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a worker takes in, how long it waits, and whether submitters run batches."""

    max_batch: int
    max_calls: int
    max_wait_ns: int
    active_ns: int
    queue_limit: int
    live_limit: int
    inline: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Inline:
    """What a submitter runs a batch with."""

    model: BatchModel
    buffer: NDArray[Any]


class Worker:
    """One model, its threads and its queues; `_changed` guards all of it but the model.

    Each thread has a binding of its own to the model. No two of them serve one session at a time,
    so its answers keep their order. With `inline`, who submits what completes a batch runs it at
    once: for a small model that costs less than waking a thread.
    """

    def __init__(
        self,
        key: str,
        model: BatchModel,
        limits: Limits,
        clock: Callable[[], int],
        on_batch: Callable[[str, int], None],
    ) -> None:
        self.key = key
        self._limits = limits
        self._clock = clock
        self._on_batch = on_batch
        self._spec = model.manifest.inputs[0]
        self._changed = threading.Condition()
        # Sessions with something waiting, the next one to serve first.
        self._queues: OrderedDict[str, deque[Request]] = OrderedDict()
        self._waiting_rows = 0
        self._served: set[str] = set()  # sessions in a batch that runs now
        # When each session last submitted; None for one that was imported and has not yet.
        self._sessions: dict[str, int | None] = {}
        self._stopping = False
        self._dozing = True  # no thread will look by itself
        self._batches = self._rows = self._busy_ns = 0
        self._superseded = self._refused = self._failed = 0
        models = [model, *(model.beside() for _ in range(limits.max_calls - 1))]
        self._inline = _Inline(model.beside(), self._new_buffer()) if limits.inline else None
        self._threads = [
            threading.Thread(
                target=self._serve, args=(one,), name=f"inference {key} {number}", daemon=True
            )
            for number, one in enumerate(models)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, session_id: str, rows: NDArray[Any], newest_wins: bool) -> Request:
        """Queue rows; see `LocalEngine.submit`."""
        check_array(self._spec, rows, self.key)
        if len(rows) > self._limits.max_batch:
            raise ShapeError(
                f"{self.key} takes at most {self._limits.max_batch} rows a request, got "
                f"{len(rows)}; submit them in parts"
            )
        request = Request(rows=rows, submitted_ns=self._clock(), newest_wins=newest_wins)
        superseded = None
        with self._changed:
            if self._stopping:
                raise StateError(f"{self.key} was removed or the engine closed; nothing more runs")
            queue = self._queues.get(session_id)
            if queue and self._is_full(queue, newest_wins):
                superseded = self._make_room(session_id, queue, newest_wins)
            self._queues.setdefault(session_id, deque()).append(request)
            self._waiting_rows += len(rows)
            self._sessions[session_id] = request.submitted_ns
            mine = self._take_inline()
            if mine is None and (self._dozing or not self._limits.inline):
                self._changed.notify()
        if superseded:
            superseded.fail(
                StateError(
                    f"superseded: session {session_id} is faster than {self.key} and newer rows "
                    "took this request's place; leave this tick out"
                )
            )
        if mine is not None:
            self._run_inline(*mine)
        return request

    def _take_inline(self) -> tuple[_Inline, list[Request], set[str]] | None:
        """A batch that the submitter is to run, where one is due and no other submitter does."""
        inline, wait_ns = self._inline, self._wait_ns() if self._inline else None
        if inline is None or wait_ns is None or wait_ns > 0:
            return None
        served: set[str] = set()
        self._inline = None  # until it has run
        return inline, self._take(served), served

    def _run_inline(self, inline: _Inline, batch: list[Request], served: set[str]) -> None:
        self._answer_all(inline.model, batch, inline.buffer)
        with self._changed:
            self._inline = inline
            self._served -= served
            if self._queues or self._stopping:
                self._changed.notify()

    def _is_full(self, queue: deque[Request], newest_wins: bool) -> bool:
        if len(queue) >= self._limits.queue_limit:
            return True
        return newest_wins and sum(r.newest_wins for r in queue) >= self._limits.live_limit

    def _make_room(
        self, session_id: str, queue: deque[Request], newest_wins: bool
    ) -> Request | None:
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
        """Note a session that was imported."""
        with self._changed:
            self._sessions.setdefault(session_id, None)

    def knows(self, session_id: str) -> bool:
        """Whether the session has submitted or was imported."""
        with self._changed:
            return session_id in self._sessions

    def forget(self, session_id: str) -> None:
        """Fail what a session has waiting and drop all of it."""
        with self._changed:
            self._sessions.pop(session_id, None)
            requests = self._queues.pop(session_id, deque())
            self._waiting_rows -= sum(len(request.rows) for request in requests)
            self._changed.notify()  # whoever waited for this session to join the batch need not
        for request in requests:
            request.fail(StateError(f"session {session_id} was forgotten before this request ran"))

    def stop(self, *, drain: bool) -> None:
        """End the threads after the running batches, or, with `drain`, after all that waits."""
        with self._changed:
            self._stopping = True
            dropped = [] if drain else [r for queue in self._queues.values() for r in queue]
            if not drain:
                self._queues.clear()
                self._waiting_rows = 0
            self._changed.notify_all()
        for request in dropped:
            request.fail(StateError(f"the engine closed before this request for {self.key} ran"))
        if threading.current_thread() not in self._threads:  # a future's callback may close us
            for thread in self._threads:
                thread.join()

    def stats(self) -> ModelStats:
        """Counters so far."""
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

    def _serve(self, model: BatchModel) -> None:
        buffer = self._new_buffer()
        served: set[str] = set()
        while batch := self._next_batch(served):
            self._answer_all(model, batch, buffer)

    def _answer_all(self, model: BatchModel, batch: list[Request], buffer: NDArray[Any]) -> None:
        # A request cancelled while it waited is left out; from here on none can be.
        batch = [r for r in batch if r.future.set_running_or_notify_cancel()]
        if batch:
            self._answer(model, batch, buffer)

    def _new_buffer(self) -> NDArray[Any]:
        row_shape = [dim for dim in self._spec.shape[1:] if isinstance(dim, int)]
        return np.empty([self._limits.max_batch, *row_shape], self._spec.dtype)

    def _next_batch(self, served: set[str]) -> list[Request] | None:
        """Sleep until a batch is due and take it; None when the thread is to end.

        Args:
            served: The sessions of this thread's last batch; replaced by those of the next.
        """
        with self._changed:
            self._served -= served
            served.clear()
            while self._queues or not self._stopping:
                wait_ns = self._wait_ns()
                if wait_ns is not None and wait_ns <= 0:
                    return self._take(served)
                if wait_ns is None and self._limits.inline and self._is_shared():
                    # Cheaper than to be woken by each request.
                    wait_ns = self._limits.max_wait_ns or None
                self._dozing = wait_ns is None
                self._changed.wait(None if wait_ns is None else wait_ns * 1e-9)
            self._changed.notify_all()  # the other threads may end too
            return None

    def _next_in_turn(self) -> str | None:
        """The session to serve next; None while nothing waits that no other thread serves."""
        return next((name for name in self._queues if name not in self._served), None)

    def _wait_ns(self) -> int | None:
        """How long a batch may still wait for more rows, ns; None while nothing can be taken."""
        if self._next_in_turn() is None:
            return None
        if self._stopping:
            return 0
        now_ns = self._clock()
        if self._waiting_rows >= self._limits.max_batch or not self._expects_more(now_ns):
            return 0
        first_ns = min(queue[0].submitted_ns for queue in self._queues.values())
        return first_ns + self._limits.max_wait_ns - now_ns

    def _is_shared(self) -> bool:
        """Whether more than one session submitted lately."""
        since_ns = self._clock() - self._limits.active_ns
        return sum(at is not None and at >= since_ns for at in self._sessions.values()) > 1

    def _expects_more(self, now_ns: int) -> bool:
        """Whether a session that submitted lately has nothing in the queue."""
        return any(
            last_ns is not None
            and now_ns - last_ns <= self._limits.active_ns
            and session_id not in self._queues
            for session_id, last_ns in self._sessions.items()
        )

    def _take(self, served: set[str]) -> list[Request]:
        """Take one request of each session in turn, until the batch or the queues are done."""
        batch: list[Request] = []
        space = self._limits.max_batch
        while (session_id := self._next_in_turn()) is not None:
            queue = self._queues[session_id]
            if len(queue[0].rows) > space:
                break  # this session stays first in turn for the next batch
            batch.append(queue.popleft())
            served.add(session_id)
            space -= len(batch[-1].rows)
            if queue:
                self._queues.move_to_end(session_id)
            else:
                del self._queues[session_id]
        self._waiting_rows -= self._limits.max_batch - space
        self._served |= served
        if self._next_in_turn() is not None:
            self._changed.notify()  # there is more for another thread
        return batch

    def _answer(self, model: BatchModel, batch: list[Request], buffer: NDArray[Any]) -> None:
        """Run a batch and answer its futures; after a failure, each request by itself.

        So a request whose values the model cannot take fails alone.
        """
        try:
            output = self._run(model, batch, buffer)
        except Exception as error:  # whatever it is, the other sessions' worker goes on
            if len(batch) > 1:
                for request in batch:
                    self._answer(model, [request], buffer)
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

    def _run(self, model: BatchModel, batch: list[Request], buffer: NDArray[Any]) -> NDArray[Any]:
        rows = batch[0].rows if len(batch) == 1 else _gather(batch, buffer)
        start_ns = self._clock()
        output = model.run(rows)
        busy_ns = self._clock() - start_ns
        if len(output) != len(rows):
            raise ModelError(f"{self.key} gave {len(output)} rows for {len(rows)}")
        with self._changed:
            self._batches += 1
            self._rows += len(rows)
            self._busy_ns += busy_ns
        self._on_batch(self.key, len(rows))
        return output


def _gather(batch: list[Request], buffer: NDArray[Any]) -> NDArray[Any]:
    """Put the requests' rows together in a buffer; the only copy on their way in."""
    stop = 0
    for request in batch:
        start, stop = stop, stop + len(request.rows)
        buffer[start:stop] = request.rows
    return buffer[:stop]


def _as_model_error(key: str, error: Exception) -> KeystepError:
    if isinstance(error, KeystepError):
        return error
    wrapped = ModelError(f"{key} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
