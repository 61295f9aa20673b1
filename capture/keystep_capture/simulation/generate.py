"""Generates a data set of simulated sessions: in parallel, and going on where it was stopped.

A session is drawn into `NAME.partial` and renamed when it is whole, so what has its name is done.
What decides the data set is written to `dataset.json`; other settings do not go on in its folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from keystep_capture.errors import ConfigError
from keystep_capture.simulation.labels import procedure_info, state_classes, write_labels
from keystep_capture.simulation.recorded import record
from keystep_capture.simulation.session import Session, SessionSpec
from keystep_capture.simulation.tasks import find_task

FORMAT = 1
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
    """
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
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
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


def _prepare(spec: DatasetSpec, folder: Path) -> None:
    if spec.people < 1:
        raise ConfigError(f"expected at least one person, got {spec.people}")
    task = find_task(spec.session.task)
    about = {"format": FORMAT, "simulated": True, **asdict(spec)}
    about.pop("people")  # more people may be added
    path = folder / "dataset.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != _as_json(about):
            raise ConfigError(
                f"{folder} holds a data set of other settings (see {path}); choose another --out"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no data set; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "procedure_info.json", procedure_info(task))
    _write_json(folder / "classes.json", state_classes(task))
    _write_json(path, about)


def _write_json(path: Path, content: object) -> None:
    path.write_text(_as_json(content), encoding="utf-8")


def _as_json(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"
