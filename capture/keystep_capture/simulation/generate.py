"""Generates a data set of simulated sessions: in parallel, and going on where it was stopped.

A session is drawn into `NAME.partial` and renamed when it is whole, so what has its name is done.
What decides the data set is written to `dataset.json`; other settings do not go on in its folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from keystep_capture.errors import ConfigError
from keystep_capture.folder_lock import locked_folder
from keystep_capture.simulation.labels import procedure_info, state_classes, write_labels
from keystep_capture.simulation.recorded import record
from keystep_capture.simulation.session import Session, SessionSpec
from keystep_capture.simulation.tasks import find_task

FORMAT = 1
_PR_SET_PDEATHSIG = 1
Progress = Callable[[str, int, int], None]
"""Called with a person's name, frames drawn and about how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What decides a data set.

    Attributes:
        session: Of every session; its `person` is the first.
        people: How many.
        limit_s: Draw this much of each session only; None for all of it.
    """

    session: SessionSpec
    people: int
    limit_s: float | None = None

    def specs(self) -> Iterator[SessionSpec]:
        """Each session's."""
        for idx in range(self.people):
            yield replace(self.session, person=self.session.person + idx)


def generate(
    spec: DatasetSpec, folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[Path]:
    """Generate what is missing of a data set.

    Args:
        spec: What to generate.
        folder: Where; one folder a person.
        jobs: Processes.
        progress: Told about how far it is, from this process.

    Returns:
        The sessions' folders, those of earlier runs included.

    Raises:
        ConfigError: The folder holds something else.
        StateError: Another process generates into it.
    """
    _check(spec, folder)
    with locked_folder(folder):
        return _generate(spec, folder, jobs, progress)


def _generate(spec: DatasetSpec, folder: Path, jobs: int, progress: Progress | None) -> list[Path]:
    _prepare(spec, folder)
    wanted = {folder / f"person_{s.person:03d}": s for s in spec.specs()}
    missing = {path: s for path, s in wanted.items() if not path.exists()}
    if jobs <= 1:
        for path, one in missing.items():
            generate_session(one, path, limit_s=spec.limit_s, progress=progress)
    else:
        _in_parallel(missing, spec.limit_s, jobs, progress)
    return sorted(wanted)


def generate_session(
    spec: SessionSpec,
    folder: Path,
    *,
    limit_s: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Draw one session into a folder, which appears when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    session = Session(spec, limit_s=limit_s)
    said = 0

    def packets() -> Iterator[Any]:
        nonlocal said
        for packet in session.packets():
            yield packet
            done = len(session.truth.frames)
            if progress is not None and done >= said + 50:
                said = done
                progress(folder.name, done, session.frame_count)

    record(partial, session, packets())
    write_labels(partial, session.truth)
    about = {"simulated": True, **asdict(spec), "person_drawn": asdict(session.person)}
    about["frames"] = len(session.truth.frames)
    _write_json(partial / "session.json", about)
    os.replace(partial, folder)
    if progress is not None:
        progress(folder.name, about["frames"], about["frames"])


def _in_parallel(
    missing: dict[Path, SessionSpec], limit_s: float | None, jobs: int, progress: Progress | None
) -> None:
    """One process a session; spawned, since forked ones inherit the libraries' threads."""
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_die_with, initargs=(os.getpid(),)
    )
    with pool:
        running = {
            pool.submit(generate_session, spec, path, limit_s=limit_s): path
            for path, spec in missing.items()
        }
        try:
            for future in as_completed(running):
                future.result()
                if progress is not None:
                    progress(running[future].name, 1, 1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with(parent: int) -> None:
    """End when the process that waits for this one does, however that ends.

    It would draw on, and the next call, which takes the same folders, would meet it there.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this was set
            raise SystemExit("the process that started this one has ended")


def _about(spec: DatasetSpec) -> str:
    about = {"format": FORMAT, "simulated": True, **asdict(spec)}
    about.pop("people")  # more people may be added
    return _as_json(about)


def _check(spec: DatasetSpec, folder: Path) -> None:
    if spec.people < 1:
        raise ConfigError(f"expected at least one person, got {spec.people}")
    find_task(spec.session.task)
    path = folder / "dataset.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != _about(spec):
            raise ConfigError(
                f"{folder} holds a data set of other settings (see {path}); choose another --out"
            )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no data set; choose another --out")


def _prepare(spec: DatasetSpec, folder: Path) -> None:
    """Write what all sessions share, the file that makes the folder a data set's first."""
    task = find_task(spec.session.task)
    _write_at_once(folder / "dataset.json", _about(spec))
    _write_at_once(folder / "procedure_info.json", _as_json(procedure_info(task)))
    _write_at_once(folder / "classes.json", _as_json(state_classes(task)))


def _write_at_once(path: Path, text: str) -> None:
    if path.exists():
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _write_json(path: Path, content: object) -> None:
    path.write_text(_as_json(content), encoding="utf-8")


def _as_json(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"
