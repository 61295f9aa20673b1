"""How a session's steps are recognised: from detections and clips, or by its procedure's bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from keystep_models.detector.detecting_recogniser import DetectingRecogniser
from keystep_models.psr.methods import (
    KEY_STEPS,
    LIVE_CLIP_METHODS,
    METHODS,
    choose_live_method,
    live_method_name,
)
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.procedure_document import of_procedure, read_document, to_procedure
from keystep_models.psr.recogniser import Follower
from keystep_models.storm.clip_recogniser import clip_options
from keystep_server.bundle_shelf import BundleShelf
from keystep_server.clip_shelf import ClipShelf, SessionClips
from keystep_server.detector_shelf import DetectorShelf, SessionDetector
from keystep_server.procedure_shelf import ProcedureShelf, replace_document

PINNED_FILE = "procedure.json"
"""In a session's folder: what it is guided by, whatever is published under that name later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a session is followed by.

    Attributes:
        logic: At the start of the session.
        rate_hz: Ticks a second that it needs; None where it does not matter.
        detector: That looks at its frames; None where there is none.
        clips: That looks at its clips; None where the method needs none.
    """

    logic: Follower
    rate_hz: float | None = None
    detector: SessionDetector | None = None
    clips: SessionClips | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChooser:
    """Chooses and starts methods; blocks, from any thread. `default`: of sessions that ask none."""

    procedures: ProcedureShelf
    bundles: BundleShelf
    detectors: DetectorShelf
    clips: ClipShelf
    default: str

    def check_procedure(self, name: str) -> None:
        """NotFoundError unless there is such a procedure; DataError where it cannot be read."""
        self.procedures.get(name)

    def choose(self, name: str, asked: str | None) -> str:
        """The name of the method for a new session.

        Raises:
            ConfigError: It cannot be that one.
            NotFoundError: There is no such procedure, or a model that it pins is not there.
            DataError: Its file or its bundle is damaged.
            ModelError: Its detector is.
        """
        procedure = self.procedures.get(name)
        method = live_method_name(asked, procedure, default=self.default)
        if method == KEY_STEPS:
            self.bundles.check(procedure)
            return method
        if method in LIVE_CLIP_METHODS:
            self.clips.check(procedure)
        if _needs_detector(method, procedure):
            self.detectors.check(procedure)
        return method

    def begin(self, name: str, method: str | None, folder: Path) -> Chosen:
        """Start what a session is followed by.

        Args:
            name: Of its procedure.
            method: As `choose` gave it.
            folder: The session's: one with a bundle or detector is guided by the same even after
                another was published under its procedure's name.

        Raises:
            ConfigError: The method cannot be had.
            NotFoundError: There is no such procedure, or a model that it pins is not there.
            DataError: Its file or its bundle is damaged.
            ModelError: The bundle's encoders or the detector cannot be used.
            StateError: As many sessions as can be are guided by the bundle.
        """
        procedure = self._pinned(name, folder)
        if procedure.bundle is not None:
            logic = self.bundles.follow(procedure)
            return Chosen(logic=logic, rate_hz=logic.rate_hz)
        chosen = live_method_name(method, procedure)
        if chosen in LIVE_CLIP_METHODS:
            return self._begin_clips(chosen, procedure)
        inner = choose_live_method(method, procedure)[1]
        if procedure.detector is None:
            return Chosen(logic=inner)
        return Chosen(logic=DetectingRecogniser(inner), detector=self.detectors.follow(procedure))

    def _begin_clips(self, method: str, procedure: Procedure) -> Chosen:
        options = clip_options(self.clips.check(procedure))
        inner = choose_live_method(method, procedure, clip_options=options)[1]
        clips = self.clips.follow(method, inner)
        detector = None
        if _needs_detector(method, procedure):
            detector = self.detectors.follow(procedure)
        return Chosen(
            logic=clips.recogniser,
            rate_hz=clips.recogniser.rate_hz,
            detector=detector,
            clips=clips,
        )

    def _pinned(self, name: str, folder: Path) -> Procedure:
        path = folder / PINNED_FILE
        if path.is_file():
            return to_procedure(read_document(path))
        procedure = self.procedures.get(name)
        if procedure.bundle or procedure.detector or procedure.storm:
            replace_document(of_procedure(procedure), path)
        return procedure


def _needs_detector(method: str, procedure: Procedure) -> bool:
    """Whether a method looks at what a procedure's own detector sees."""
    base = LIVE_CLIP_METHODS[method][0] if method in LIVE_CLIP_METHODS else method
    return procedure.detector is not None and METHODS[base].needs_detections
