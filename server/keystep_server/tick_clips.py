"""A session's clips: each tick embedded once, and the clip that ends at it looked at.

One is in the engine at a time, since the next one holds its embedding; the clips of other sessions
run with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from keystep_models.storm.clip_recogniser import ClipRecogniser

MAX_TICKS_BEHIND: Final = 8
"""A live session's tick that more than so many complete ones wait behind gets no clip."""

Rows: TypeAlias = Mapping[str, npt.NDArray[np.float32]]


class TickClips:
    """Asks for the clips of a session's ticks, in order; used by one thread at a time."""

    def __init__(
        self,
        recogniser: ClipRecogniser,
        submit: Callable[[npt.NDArray[Any]], Future[npt.NDArray[Any]]],
        on_done: Callable[[], None],
    ) -> None:
        """Take what makes rows of ticks, and what they are given to.

        Args:
            recogniser: That looks at each tick before the next is asked for.
            submit: Has the engine run a row.
            on_done: Told, in the engine's thread, when an answer is there.
        """
        self._recogniser, self._submit, self._on_done = recogniser, submit, on_done
        self._asked: tuple[int, Future[npt.NDArray[Any]]] | None = None
        self.left_out: Counter[str] = Counter()  # ticks without a clip, by reason

    def rows_of(
        self, index: int, feature: npt.NDArray[np.float32], *, behind: int, wait: bool
    ) -> Rows | None:
        """A tick's cues; none where it gets no clip.

        Args:
            index: The tick's number, of one that comes next.
            feature: Its appearance, (1280,).
            behind: Complete ticks that wait behind it; 0 where none may be left out.
            wait: Whether to wait for the engine.

        Returns:
            Cue to row; None while they are on their way.
        """
        if self._asked is None or self._asked[0] != index:
            if behind > MAX_TICKS_BEHIND:
                self.left_out["clip_late"] += 1
                return {}
            answer = self._submit(self._recogniser.row(index, feature))
            answer.add_done_callback(lambda _: self._on_done())
            self._asked = index, answer
        answer = self._asked[1]
        if not (wait or answer.done()):
            return None
        if answer.exception() is not None:  # waits
            self.left_out["clip_failed"] += 1
            return {}
        return self._recogniser.rows_of(answer.result()[0])
