"""From reviewed key steps to a procedure that the next session can be guided by.

The steps are those of a revision. What tells them apart are the features of the session's own
recording: of the bundle that an extraction job left, else those of what was around the gaze
point, made now, with those of whole pictures, which were stored live, to stand in for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import structlog

from keystep_capture.errors import DataError, NotFoundError, StateError
from keystep_models.bundles.bundle import Bundle, read_bundle
from keystep_models.bundles.from_recording import (
    WHOLE_PICTURE,
    RecordedCue,
    TimedStep,
    make_raw_bundle,
    segments_of,
    whole_picture_source,
    why_not_gaze,
)
from keystep_models.bundles.making import recompile
from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle
from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
from keystep_models.cues.tick_timeline import TickTimeline
from keystep_models.guidance.emissions import PartRows
from keystep_models.psr.procedure import Procedure
from keystep_models.steps.feature_folder import read_video
from keystep_server.bundle_shelf import BundleShelf
from keystep_server.features import APPEARANCE, read_ticks
from keystep_server.gaze_features import recorded_gaze_cue
from keystep_server.key_steps import ModelIdentity
from keystep_server.procedure_shelf import ProcedureShelf
from keystep_server.storage import KeyStep, KeyStepRevision, Session, SessionState, Store

EXTRACTION = "extraction"
"""In a session's folder: what jobs make (`jobs.runner`)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A procedure and what it came from."""

    procedure: Procedure
    bundle_id: str
    revision: int


class ProcedurePublisher:
    """Publishes; blocks, and may be used from any thread."""

    def __init__(
        self,
        store: Store,
        procedures: ProcedureShelf,
        bundles: BundleShelf,
        *,
        data_dir: Path,
        appearance: ModelIdentity,
        appearance_manifest: Path,
        rate_hz: float,
    ) -> None:
        """Take what it stands on.

        Args:
            store: Has the revisions.
            procedures: Where procedures go.
            bundles: Where bundles go.
            data_dir: Has the sessions' folders.
            appearance: The model that made the features stored live.
            appearance_manifest: Of that model.
            rate_hz: Ticks a second of those.
        """
        self._store = store
        self._procedures = procedures
        self._bundles = bundles
        self._data_dir = data_dir
        self._appearance = appearance
        self._appearance_manifest = appearance_manifest
        self._rate_hz = rate_hz

    def publish(
        self, session: Session, *, name: str, task: str | None = None, revision: int | None = None
    ) -> Published:
        """Make a bundle and a procedure of a session's key steps; new sessions can use it at once.

        Args:
            session: The expert's; closed.
            name: Of the procedure; one of this name that was published before is replaced.
            task: Variant of the work; by default the session's.
            revision: Whose key steps; by default the newest.

        Raises:
            NotFoundError: There is no such revision, or the features are no longer there.
            StateError: The session is not closed, or is being published.
            DataError: The name cannot be one, or the key steps cannot be told apart.
            OSError: The disk does not take it.
        """
        if session.state is not SessionState.CLOSED:
            raise StateError(f"session {session.id} is not closed; close it, then publish")
        found = self._store.revisions.get(session.id, revision)
        self._procedures.check_name(name)
        steps = found.key_steps
        bundle = self._bundles.add(lambda folder: self._make(session.id, found, folder))
        reviewed = {
            number: ReviewedStep(title=step.title, picture=self._picture_name(name, number, step))
            for number, step in enumerate(steps, start=1)
        }
        document = procedure_of_bundle(
            bundle, reviewed, name=name, task=(task or session.task or name)[:200]
        )
        self._write_pictures(name, steps)
        procedure = self._procedures.put(document)
        log.info("published", procedure=name, bundle=bundle.id[:12], session=session.id)
        return Published(procedure=procedure, bundle_id=bundle.id, revision=found.number)

    def _make(self, session_id: str, revision: KeyStepRevision, folder: Path) -> Bundle:
        timed = [_timed(step, number) for number, step in enumerate(revision.key_steps, start=1)]
        if revision.provenance.get("method") == "steps":  # an extraction job's, edited or not
            made = self._data_dir / "sessions" / session_id / EXTRACTION
            if not (made / session_id / "bundle").is_dir():
                raise NotFoundError(
                    f"the extraction of session {session_id} left no bundle (its notes say why);"
                    " extract it again"
                )
            times_s = read_video(made / "features" / session_id).times_s
            extracted = read_bundle(made / session_id / "bundle")
            return recompile(extracted, segments_of(timed, times_s), folder)
        return self._of_stored_features(session_id, timed, folder)

    def _of_stored_features(
        self, session_id: str, timed: Sequence[TimedStep], folder: Path
    ) -> Bundle:
        """A bundle of what is around the gaze point, where that is, and of the whole pictures."""
        session = self._data_dir / "sessions" / session_id
        ticks = read_ticks(session / "ticks.rows")
        if not ((ticks["cues"] & APPEARANCE) != 0).any():
            raise NotFoundError(f"session {session_id} has no stored features; extract it again")
        times_s, places = self._timeline(ticks)
        cue = recorded_gaze_cue(session, ticks, self._appearance_manifest, self._rate_hz)
        if isinstance(cue, RecordedCue):
            at_gaze = _on_timeline(cue, places, len(times_s))
            reason = why_not_gaze(at_gaze.rows.valid, segments_of(timed, times_s))
        else:
            reason = cue
        source = {"model": self._appearance.name, "sha256": self._appearance.sha256}
        stored = RecordedCue(
            rows=PartRows(rows=ticks["appearance"], valid=(ticks["cues"] & APPEARANCE) != 0),
            source=source if reason is None else whole_picture_source(source, reason),
        )
        cues = {WHOLE_PICTURE: _on_timeline(stored, places, len(times_s))}
        if reason is None:
            cues = {GAZE_APPEARANCE: at_gaze, **cues}
        else:
            log.warning("published by the whole picture", session=session_id, because=reason)
        return make_raw_bundle(folder, cues, timed, times_s, self._rate_hz)

    def _timeline(
        self, ticks: npt.NDArray[np.void]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Times of the timeline, s, (T,), and where on it the ticks lie."""
        timeline = TickTimeline(self._rate_hz)
        placed = [timeline.place(int(t["epoch"]), int(t["device_time_ns"])) for t in ticks]
        times_ns = np.zeros(timeline.count, np.int64)
        for place in placed:
            times_ns[place.index - len(place.missing_ns) : place.index] = place.missing_ns
            times_ns[place.index] = place.time_ns
        return times_ns / 1e9, np.array([place.index for place in placed], np.int64)

    # -- pictures --------------------------------------------------------------------------------

    @staticmethod
    def _picture_name(name: str, number: int, step: KeyStep) -> str | None:
        return None if step.exemplar_path is None else f"{name}/{number}.jpg"

    def _write_pictures(self, name: str, steps: Sequence[KeyStep]) -> None:
        """Copy the exemplars to where sessions look for them; the ones before are replaced."""
        folder = self._procedures.folder / name
        draft = folder.with_name(f".{name}-{uuid4().hex}")
        draft.mkdir(parents=True)
        try:
            for number, step in enumerate(steps, start=1):
                if step.exemplar_path is not None:
                    shutil.copyfile(self._data_dir / step.exemplar_path, draft / f"{number}.jpg")
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        except FileNotFoundError as error:
            raise NotFoundError(f"a key step's picture is no longer there: {error}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _on_timeline(cue: RecordedCue, places: npt.NDArray[np.int64], tick_count: int) -> RecordedCue:
    """A cue of ticks with those between them that stand for gaps, which lack it."""
    rows = np.zeros((tick_count, cue.rows.rows.shape[1]), np.float32)
    valid = np.zeros(tick_count, np.bool_)
    rows[places], valid[places] = cue.rows.rows, cue.rows.valid
    return RecordedCue(rows=PartRows(rows=rows, valid=valid), source=cue.source)


def _timed(step: KeyStep, number: int) -> TimedStep:
    times: tuple[Any, ...] = (step.start_s, step.end_s)
    if None in times:
        raise DataError(f"key step {step.id} has no times; leave it out")
    return TimedStep(step_id=number, start_s=times[0], end_s=times[1], exemplar_s=step.exemplar_s)
