"""A folder that one process at a time writes into."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keystep_capture.errors import StateError

_NAME = ".lock"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, while the block runs; a dead process holds none.

    Raises:
        StateError: Another process holds it.
        OSError: The folder cannot be made, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _NAME).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"another process writes into {folder}; wait for it, or choose another --out"
            ) from None
        yield
