"""The next batch is made while the present one is learnt from."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_END: Any = object()


class Prefetched(Generic[_T]):
    """Items of an iterator that a thread of its own runs, in order; a context manager.

    What the iterator raises is raised where its item would have come.
    """

    def __init__(self, make: Callable[[], Iterator[_T]], depth: int = 2) -> None:
        """Start; at most `depth` items wait."""
        self._queue: queue.Queue[tuple[_T, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(make,), name="prefetch", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Iterator[_T]:
        return self._items()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join()

    def _items(self) -> Iterator[_T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    def _fill(self, make: Callable[[], Iterator[_T]]) -> None:
        try:
            for item in make():
                if not self._put(item, None):
                    return
            self._put(_END, None)
        except BaseException as error:  # it is the other thread's to deal with
            self._put(_END, error)

    def _put(self, item: _T, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=0.05)
            except queue.Full:
                continue
            return True
        return False
