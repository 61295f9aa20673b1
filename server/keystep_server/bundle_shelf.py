"""The bundles of this server: `bundles/ID/` in the data directory, loaded when a session needs one.

A bundle never changes, so that sessions which run keep theirs while others come. Sessions of one
bundle share its encoders, which are let go with the last of them.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import structlog

from keystep_capture.errors import ConfigError, DataError, NotFoundError
from keystep_models.bundles.bundle import Bundle, read_bundle
from keystep_models.cues import gaze_crop, motion_cue, sensor_cues
from keystep_models.guidance.bundle_recogniser import BundleRecogniser, check_fits
from keystep_models.incremental.encoders import IncrementalEncoders
from keystep_models.incremental.session_slot import SessionSlot
from keystep_models.psr.procedure import Procedure
from keystep_server.tick_following import LIVE_CUES

_ID = re.compile(r"[0-9a-f]{64}")
_KEPT = 4  # bundles in memory that no session needs

log = structlog.get_logger(__name__)


class BundleShelf:
    """Reads, makes and shares bundles; blocks, and may be used from any thread."""

    def __init__(self, folder: Path, *, appearance_sha256: str, slot_count: int) -> None:
        """Name the shelf.

        Args:
            folder: Where bundles lie; made with the first one.
            appearance_sha256: Of this server's appearance model: bundles must be made with it.
            slot_count: Sessions that one bundle's encoders can follow at the same time.
        """
        self._folder = folder
        self._appearance_sha256 = appearance_sha256
        self._slot_count = slot_count
        self._lock = threading.Lock()
        self._read: dict[str, Bundle] = {}
        self._encoders: dict[str, IncrementalEncoders] = {}  # by their hash

    def ids(self) -> list[str]:
        """Ids of the bundles that are there, whether or not they can be read."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _ID.fullmatch(path.name))

    def get(self, bundle_id: str) -> Bundle:
        """A bundle; all of it has been checked.

        Raises:
            NotFoundError: There is none with this id.
            DataError: It is damaged, or not the one that its folder is named for.
        """
        with self._lock:
            return self._get(bundle_id)

    def _get(self, bundle_id: str) -> Bundle:
        if (found := self._read.get(bundle_id)) is not None:
            return found
        folder = self._folder / bundle_id
        if not _ID.fullmatch(bundle_id) or not folder.is_dir():
            raise NotFoundError(
                f"bundle {bundle_id[:64]} is not on this server; publish its key steps again, or"
                " copy its folder into bundles/ of the data directory"
            )
        bundle = read_bundle(folder)
        if bundle.id != bundle_id:
            raise DataError(f"{folder}: holds the bundle {bundle.id}; name the folder so")
        self._keep(bundle)
        return bundle

    def _keep(self, bundle: Bundle) -> None:
        self._read[bundle.id] = bundle
        while len(self._read) > _KEPT:  # a session's own keep theirs
            del self._read[next(iter(self._read))]

    def add(self, make: Callable[[Path], Bundle]) -> Bundle:
        """Take a new bundle in; one that is there already is kept.

        Args:
            make: Makes it in a folder that does not exist.

        Raises:
            KeystepError: What `make` raises.
            OSError: The disk does not take it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f"unfinished-{uuid4().hex}"
        try:
            bundle = make(draft)
            folder = self._folder / bundle.id
            with self._lock:
                if not folder.is_dir():
                    draft.rename(folder)
                return self._get(bundle.id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def check(self, procedure: Procedure) -> Bundle:
        """The bundle that a procedure pins, if a live session can be guided by it.

        Raises:
            NotFoundError: It is not there.
            DataError: It is damaged.
            ConfigError: It does not fit the procedure or this server.
        """
        if procedure.bundle is None:
            raise ConfigError(f"procedure {procedure.name!r} pins no bundle")
        bundle = self.get(procedure.bundle)
        check_fits(procedure, bundle)
        for part in bundle.document.parts:
            self._check_cue(bundle, part.cue, part.source)
        return bundle

    def _check_cue(self, bundle: Bundle, cue: str, source: dict[str, object]) -> None:
        if cue not in LIVE_CUES:
            raise ConfigError(
                f"bundle {bundle.id[:12]} needs the cue {cue!r}, which live sessions do not have"
                f" (they have {', '.join(sorted(LIVE_CUES))}); extract again without it"
            )
        here: dict[str, object] = {"version": sensor_cues.VERSION}
        if cue == "appearance":
            here = {"sha256": self._appearance_sha256}
        elif cue == gaze_crop.CUE:
            here = {"sha256": self._appearance_sha256, "version": gaze_crop.VERSION}
        elif cue == "motion":
            here = {"version": motion_cue.VERSION}
        for field, own in here.items():
            if source.get(field, own) != own:
                raise ConfigError(
                    f"bundle {bundle.id[:12]} was made with another extractor of {cue} ({field}"
                    f" {str(source[field])[:64]}) than this server has ({own}); extract again"
                )

    def follow(self, procedure: Procedure) -> BundleRecogniser:
        """A recogniser at the start of a session; its `close` gives back what it holds.

        Raises:
            NotFoundError: As `check`.
            DataError: As `check`.
            ConfigError: As `check`.
            ModelError: The encoders cannot be used.
            StateError: As many sessions as can be are guided by it.
        """
        bundle = self.check(procedure)
        if bundle.encoder_manifest is None:
            return BundleRecogniser(procedure, bundle, None)
        slot = self._slot(bundle)
        try:
            for cue in slot.cues:
                self._check_cue(bundle, cue, {})
            return BundleRecogniser(procedure, bundle, slot)
        except BaseException:
            slot.close()
            raise

    def _slot(self, bundle: Bundle) -> SessionSlot:
        assert bundle.encoder_manifest is not None
        sha256 = bundle.document.files["encoders/manifest.json"].sha256
        with self._lock:
            self._encoders = {
                k: e for k, e in self._encoders.items() if e.open_count or k == sha256
            }
            encoders = self._encoders.get(sha256)
            if encoders is None:
                encoders = IncrementalEncoders.load(
                    bundle.encoder_manifest, slot_count=self._slot_count
                )
                self._encoders[sha256] = encoders
                log.info("encoders loaded", bundle=bundle.id[:12], slot_bytes=encoders.slot_bytes)
            return SessionSlot(encoders)
