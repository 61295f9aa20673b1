"""The storm bundles of this server: `storm/NAME/` in the data directory, and those that ship.

A procedure pins one by its id. It is loaded when the first session needs it, and stays; the clips
of all its sessions run together.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from keystep_capture.errors import ConfigError, KeystepError, NotFoundError
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.recogniser import Recogniser
from keystep_models.storm.bundle import DOCUMENT, StormBundle, read_storm_bundle, storm_id
from keystep_models.storm.clip_model import ClipModel
from keystep_models.storm.clip_recogniser import ClipRecogniser, check_fits
from keystep_models.storm.clip_window import ClipWindow
from keystep_models.storm.shipped import shipped_bundles
from keystep_server.inference import LocalEngine

CLIPS_AT_ONCE: Final = 16
"""So many run together: unlike pictures, clips take less together than one by one."""
CLIP_WAIT_MS: Final = 20.0
"""So long one waits for those of other sessions."""

log = structlog.get_logger(__name__)


def add_clip_model(engine: LocalEngine, model: ClipModel) -> str:
    """Have an engine run clips, those of all sessions together; its key of the model."""
    return engine.add_model(
        model, max_batch=CLIPS_AT_ONCE, max_calls=1, max_wait_ms=CLIP_WAIT_MS, inline=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClips:
    """One session's way to a storm bundle that the engine runs.

    Attributes:
        key: The engine's.
        recogniser: That the clips are for.
    """

    key: str
    recogniser: ClipRecogniser


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    bundle: StormBundle
    model: ClipModel
    key: str


class ClipShelf:
    """Finds, loads and shares storm bundles; blocks, and may be used from any thread."""

    def __init__(self, folder: Path, engine: LocalEngine, *, appearance_sha256: str) -> None:
        """Name the folder; it need not be there.

        Args:
            folder: Where bundles lie, each in a folder of its own.
            engine: That runs them.
            appearance_sha256: Of this server's appearance model: bundles must be made with it.
        """
        self._folder = folder
        self._engine = engine
        self._appearance_sha256 = appearance_sha256
        self._lock = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}

    def check(self, procedure: Procedure) -> StormBundle:
        """The storm bundle that a procedure pins, if live sessions can be followed by it.

        Raises:
            NotFoundError: It is not here.
            ConfigError: It does not fit the procedure or this server.
            DataError: It is damaged.
            ModelError: Its models are.
        """
        bundle = self._get(procedure).bundle
        check_fits(procedure, bundle)
        return bundle

    def follow(self, method: str, inner: Recogniser) -> SessionClips:
        """A procedure's bundle for a new session; raises as `check`.

        Args:
            method: The session's.
            inner: What clips are for, at the session's start.
        """
        loaded = self._get(inner.procedure)
        recogniser = ClipRecogniser(method, inner, loaded.bundle, loaded.model)
        return SessionClips(key=loaded.key, recogniser=recogniser)

    def _get(self, procedure: Procedure) -> _Loaded:
        wanted = procedure.storm
        if wanted is None:
            raise ConfigError(f"procedure {procedure.name!r} pins no storm bundle")
        with self._lock:
            if wanted not in self._loaded:
                self._loaded[wanted] = self._load(self._find(wanted))
            return self._loaded[wanted]

    def _load(self, folder: Path) -> _Loaded:
        bundle = read_storm_bundle(folder)
        model = ClipModel.load(bundle)
        ClipWindow(bundle.document.clip, bundle.document.embedding_size)
        came = bundle.document.input_source.get("sha256")
        if came != self._appearance_sha256:
            raise ConfigError(
                f"storm bundle {bundle.id[:12]} was made with the appearance model"
                f" {str(came)[:12]}, this server has {self._appearance_sha256[:12]}; train again"
                " with it"
            )
        log.info("storm bundle loaded", bundle=bundle.id[:12])
        return _Loaded(bundle=bundle, model=model, key=add_clip_model(self._engine, model))

    def _find(self, wanted: str) -> Path:
        trouble = ""
        for path in (*sorted(self._folder.glob(f"*/{DOCUMENT}")), *shipped_bundles()):
            try:
                if storm_id(path.parent) == wanted:
                    return path.parent
            except KeystepError as error:
                log.warning("a storm bundle is passed over", path=str(path), error=str(error))
                trouble = trouble or f"; {path.parent.name}: {error}"
        raise NotFoundError(
            f"storm bundle {wanted[:12]} is not on this server; copy its folder into storm/ of"
            f" the data directory{trouble}"
        )
