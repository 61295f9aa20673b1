"""`bundle.json`: what a bundle says of itself.

    {"format_version": 1, "kind": "steps", "id": "SHA-256 of all that follows",
     "tick_rate_hz": 10.0,
     "parts": [{"name": "appearance", "cue": "appearance", "of": "raw", "size": 1280,
                "source": {"model": "...", "sha256": "..."}}],
     "steps": [{"id": 1, "segments": [[18, 48]], "duration_ticks": 31.0}],
     "emissions": {...}, "filter": {...},
     "files": {"prototypes.npz": {"sha256": "...", "bytes": 1}, "expert.npz": {...},
               "encoders/manifest.json": {...}, "encoders/encoders.onnx": {...}}}

Steps are in the expert's order and have no titles: those, and pictures, are the procedure's, which
pins the bundle by `id`. Every other file is named with its hash, so `id` stands for all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec

from keystep_capture.errors import DataError
from keystep_models.guidance.step_timing import MAX_STEPS, ExpertSegment, StepTiming

FORMAT_VERSION: Final = 1
DOCUMENT: Final = "bundle.json"
PROTOTYPES: Final = "prototypes.npz"
EXPERT: Final = "expert.npz"
ENCODERS: Final = "encoders"
ENCODER_MANIFEST: Final = f"{ENCODERS}/manifest.json"
MAX_DOCUMENT_BYTES: Final = 4 << 20
MAX_PARTS: Final = 32
MAX_PART_SIZE: Final = 65_536
MAX_TICKS: Final = 1 << 22

_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
_Tick = Annotated[int, msgspec.Meta(ge=0, lt=MAX_TICKS)]
_FILE: Final = re.compile(r"(encoders/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class PartEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of an embedding.

    Attributes:
        name: Of the part, unique.
        cue: Which cue it is made of.
        of: "raw" is the cue's feature itself, "encoder" what the bundle's encoders make of it.
        size: Values of it.
        source: What makes the cue's feature: extractor with version, or model with sha256.
    """

    name: _Name
    cue: _Name
    of: Literal["raw", "encoder"]
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_PART_SIZE)]
    source: dict[str, Any]


class StepEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step; its stretches' first and last ticks in the expert's recording, and mean length."""

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    segments: Annotated[tuple[tuple[_Tick, _Tick], ...], msgspec.Meta(min_length=1)]
    duration_ticks: Annotated[float, msgspec.Meta(gt=0)]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the bundle."""

    sha256: _Sha256
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class BundleDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `bundle.json`; see the module."""

    format_version: int
    kind: Literal["steps"]
    id: _Sha256
    tick_rate_hz: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    parts: Annotated[tuple[PartEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    steps: Annotated[tuple[StepEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    emissions: dict[str, Any]
    filter: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def segments(self) -> list[ExpertSegment]:
        """The expert's stretches in order of time."""
        found = [
            ExpertSegment(step_id=step.id, start_tick=start, end_tick=end)
            for step in self.steps
            for start, end in step.segments
        ]
        return sorted(found, key=lambda segment: segment.start_tick)

    def content_id(self) -> str:
        """SHA-256 over everything but `id`: JSON with sorted keys and no spaces."""
        plain = msgspec.to_builtins(self)
        del plain["id"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_document(content: bytes, source: str) -> BundleDocument:
    """Read and check `bundle.json`.

    Raises:
        DataError: It is not of this form, contradicts itself, or its `id` is not its content's.
    """
    try:
        known = msgspec.json.decode(content)
        version = known.get("format_version") if isinstance(known, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{source}: expected format_version {FORMAT_VERSION}, got {str(version)[:40]};"
                " this Keystep reads no other version of a bundle"
            )
        document = msgspec.convert(known, BundleDocument)
        came = document.content_id()
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DataError(f"{source}: no bundle: {str(error)[:200]}") from error
    if came != document.id:
        raise DataError(
            f"{source}: damaged or edited: its content has the id {came}, it says {document.id};"
            " edit steps with `recompile`"
        )
    _check(document, source)
    return document


def check_size(path: Path, limit: int) -> None:
    """DataError unless `path` is a plain file, no link, of at most `limit` bytes."""
    try:
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path}: expected a plain file of the bundle, there is none")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if size > limit:
        raise DataError(f"{path}: expected at most {limit} bytes, it has {size}")


def _check(document: BundleDocument, source: str) -> None:
    names = [part.name for part in document.parts]
    if len(set(names)) != len(names):
        raise DataError(f"{source}: expected parts with different names, got {names}")
    for name in document.files:
        inside = PurePosixPath(name)
        if not _FILE.fullmatch(name) or ".." in inside.parts or name == DOCUMENT:
            raise DataError(f"{source}: {name[:80]!r} cannot be a file of a bundle")
    for name in (PROTOTYPES, EXPERT):
        if name not in document.files:
            raise DataError(f"{source}: expected the file {name} to be named")
    has_encoders = ENCODER_MANIFEST in document.files
    if has_encoders != any(part.of == "encoder" for part in document.parts):
        raise DataError(f"{source}: expected {ENCODER_MANIFEST} just when a part is of an encoder")
    timing = StepTiming.of_segments(document.segments)
    if timing.step_ids != tuple(step.id for step in document.steps):
        raise DataError(f"{source}: expected steps in the expert's order, each id once")
    if timing.duration_ticks != tuple(step.duration_ticks for step in document.steps):
        raise DataError(f"{source}: expected durations that follow from the segments")
