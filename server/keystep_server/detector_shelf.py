"""The detectors of this server: `detectors/NAME/` in the data directory, and those that ship.

A procedure pins one by its id, the hash of its manifest. It is loaded when the first session needs
it, and stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from av.video.frame import VideoFrame

from keystep_capture.errors import ConfigError, KeystepError, NotFoundError
from keystep_models.detector.batched_detector import BatchedDetector
from keystep_models.detector.classes import ClassMap
from keystep_models.detector.detecting_recogniser import pack
from keystep_models.detector.detector import MANIFEST, Detector, manifest_id
from keystep_models.detector.letterbox import Placement
from keystep_models.detector.shipped import shipped_manifests
from keystep_models.psr.procedure import Procedure
from keystep_server.inference import BatchModel

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDetector:
    """One session's way to a detector that the engine runs.

    Attributes:
        key: The engine's.
        detector: Of this session alone: it keeps a scaler's tables.
        class_map: To the procedure's classes.
    """

    key: str
    detector: Detector
    class_map: ClassMap

    def prepare(self, picture: VideoFrame) -> tuple[npt.NDArray[np.generic], Placement]:
        """A frame as the engine takes it, and where it lies; as `Detector.prepare`."""
        return self.detector.prepare(picture)

    def row_of(
        self,
        answer: Future[npt.NDArray[Any]],
        placement: Placement,
        on_done: Callable[[], None],
    ) -> Future[npt.NDArray[np.float32]]:
        """The engine's answer for a frame as the tick's row of detections, when it has come.

        Args:
            answer: Of the engine; fails where a newer frame took the frame's place.
            placement: Of the frame.
            on_done: Told then, in the engine's thread.
        """
        row: Future[npt.NDArray[np.float32]] = Future()

        def take(answered: Future[npt.NDArray[Any]]) -> None:
            try:
                found = answered.result()[0]
                seen = self.detector.to_detections(found[found[:, -1] >= 0], placement)
                row.set_result(pack(self.class_map.apply(seen)))
            except Exception as error:  # whoever asks for the row is told
                row.set_exception(error)
            on_done()

        answer.add_done_callback(take)
        return row


class DetectorShelf:
    """Finds, loads and shares detectors; blocks, and may be used from any thread."""

    def __init__(self, folder: Path, add_model: Callable[[BatchModel], str]) -> None:
        """Name the folder; it need not be there.

        Args:
            folder: Where detectors lie, each in a folder of its own.
            add_model: The engine's; its key of a model.
        """
        self._folder = folder
        self._add_model = add_model
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Detector, str]] = {}

    def check(self, procedure: Procedure) -> ClassMap:
        """Whether a procedure's detector is here and fits it: what its classes are there.

        Raises:
            NotFoundError: It is not here.
            ConfigError: Its classes are not the procedure's.
            ModelError: It is damaged.
        """
        detector, _ = self._get(procedure)
        return ClassMap.of(detector.spec, procedure)

    def follow(self, procedure: Procedure) -> SessionDetector:
        """A procedure's detector for a new session; raises as `check`."""
        class_map = self.check(procedure)
        detector, key = self._get(procedure)
        return SessionDetector(key=key, detector=detector.beside(), class_map=class_map)

    def _get(self, procedure: Procedure) -> tuple[Detector, str]:
        wanted = procedure.detector
        if wanted is None:
            raise ConfigError(f"procedure {procedure.name!r} pins no detector")
        with self._lock:
            if (found := self._loaded.get(wanted)) is not None:
                return found
            detector = Detector.load(self._find(wanted))
            key = self._add_model(BatchedDetector(detector))
            log.info("detector loaded", detector=wanted[:12], name=detector.spec.name)
            self._loaded[wanted] = detector, key
            return self._loaded[wanted]

    def _find(self, wanted: str) -> Path:
        for path in (*sorted(self._folder.glob(f"*/{MANIFEST}")), *shipped_manifests()):
            try:
                if manifest_id(path) == wanted:
                    return path
            except KeystepError as error:
                log.warning("a detector is passed over", path=str(path), error=str(error))
        raise NotFoundError(
            f"detector {wanted[:12]} is not on this server; copy its folder into detectors/ of "
            "the data directory"
        )
