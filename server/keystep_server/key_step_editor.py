"""Edits of a session's extracted key steps: read, changed, given pictures, stored as a revision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from keystep_capture.errors import ChangedError, DataError, NotFoundError
from keystep_server.key_step_edits import Edit, EditContext, apply_edits
from keystep_server.key_steps import picture_path, write_jpeg
from keystep_server.recordings import Recordings
from keystep_server.storage import (
    KeyStep,
    KeyStepRevision,
    NewRevision,
    RevisionOrigin,
    Store,
)

_NS = 1_000_000_000
_TRIES = 20  # edits that came in between; each try sees what the one before stored

log = structlog.get_logger(__name__)


class KeyStepEditor:
    """Makes revisions of edits; blocks, and may be used from any thread."""

    def __init__(
        self, store: Store, recordings: Recordings, data_dir: Path, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._recordings = recordings
        self._data_dir = data_dir
        self._now = now

    def edit(
        self,
        session_id: str,
        edits: Sequence[Edit],
        changes: Sequence[Mapping[str, Any]],
        check: Callable[[KeyStepRevision], None] | None = None,
    ) -> KeyStepRevision:
        """Apply edits to the newest revision and store what comes of it as the next.

        Args:
            session_id: The session.
            edits: What to do.
            changes: The same as JSON values, to be kept with the revision.
            check: Raises ChangedError where the newest revision is not the one it expects.

        Raises:
            NotFoundError: There are no extracted key steps.
            DataError: An edit does not fit.
            ChangedError: `check` says so, or others edit without end.
            StateError: There are too many revisions.
        """
        for _ in range(_TRIES):
            newest = self._store.revisions.get(session_id)
            if check is not None:
                check(newest)
            context = EditContext(
                session_id=session_id,
                seed=f"revision {newest.number + 1}",
                timeline=newest.timeline,
            )
            edited = self._with_pictures(apply_edits(newest.key_steps, edits, context))
            revision = NewRevision(
                origin=RevisionOrigin.EDIT,
                key_steps=edited,
                changes=tuple(changes),
                provenance=newest.provenance,
                timeline=newest.timeline,
            )
            stored = self._store.revisions.add(
                session_id, revision, self._now(), only_after=newest.number
            )
            if stored is not None:
                return stored
        raise ChangedError(f"the key steps of session {session_id} change all the time; try again")

    def _with_pictures(self, key_steps: tuple[KeyStep, ...]) -> tuple[KeyStep, ...]:
        return tuple(
            self._with_picture(step) if step.exemplar_path is None else step for step in key_steps
        )

    def _with_picture(self, step: KeyStep) -> KeyStep:
        """The key step with the picture on show at its exemplar's time, where there is one."""
        wanted_ns, start_ns = step.exemplar_device_time_ns, step.start_device_time_ns
        if step.epoch is None or wanted_ns is None or start_ns is None or step.exemplar_s is None:
            return step
        try:
            found = self._recordings.picture_at(step.session_id, step.epoch, wanted_ns)
        except (NotFoundError, DataError) as error:
            log.warning("a key step has no picture", key_step=step.id, error=str(error))
            return step
        if found is None or not start_ns <= found[0] <= (step.end_device_time_ns or found[0]):
            return step
        time_ns, image = found
        path = picture_path(self._data_dir / "sessions" / step.session_id, (step.epoch, time_ns))
        if not path.exists() and not write_jpeg(path, image):
            return step
        return replace(
            step,
            exemplar_device_time_ns=time_ns,
            exemplar_s=step.exemplar_s + (time_ns - wanted_ns) / _NS,
            exemplar_path=path.relative_to(self._data_dir).as_posix(),
            exemplar_size=(image.shape[1], image.shape[0]),
        )
