"""Bundles of the spatio-temporal stream: all that a live session needs of a STORM run.

    bundle.json                what it says of itself (`StormDocument`), every file with its hash
    procedure.json             Keystep's own document of the procedure
    spatial/manifest.json      frozen appearance feature (B, 1280), or picture uint8 (B, 224, 224,
    spatial/spatial.onnx         3), to embedding (B, D), length one
    temporal/manifest.json     clips (B, N, D) with valid bool (B, N), oldest frame first, to
    temporal/temporal.onnx       logits (B, C): did the component change within the clip

A frame that is missing, or before the session, is not valid; its row is not looked at. The clip
that ends at tick t has the ticks t - (N - 1) `every`, ..., t - `every`, t.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from keystep_capture.errors import DataError, StateError
from keystep_models.bundles.document import FileEntry, check_size
from keystep_models.cues.appearance_cue import CROP, EMBEDDING_SIZE
from keystep_models.onnx_model import MAX_MODEL_BYTES, ModelManifest, TensorSpec
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.procedure_document import (
    of_procedure,
    read_document,
    to_procedure,
    write_document,
)
from keystep_models.storm.settings import MAX_CLIP_TICKS

FORMAT_VERSION: Final = 1
DOCUMENT: Final = "bundle.json"
PROCEDURE: Final = "procedure.json"
SPATIAL: Final = "spatial/manifest.json"
TEMPORAL: Final = "temporal/manifest.json"
FILES: Final = (PROCEDURE, SPATIAL, "spatial/spatial.onnx", TEMPORAL, "temporal/temporal.onnx")
MAX_DOCUMENT_BYTES: Final = 4 << 20

_Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Above0 = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_Rate = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]
_Tensor: TypeAlias = tuple[str, str, tuple[int | str, ...]]


class ClipGeometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`frames` of a clip, one every `every` ticks."""

    frames: Annotated[int, msgspec.Meta(ge=2, le=MAX_CLIP_TICKS)]
    every: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLIP_TICKS)]

    @property
    def ticks(self) -> int:
        """Ticks that a clip spans, first and last included; the accumulation's window."""
        return (self.frames - 1) * self.every + 1


class Accumulation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How sigmoid values become steps (`psr.temporal`); `window_ticks` as there, in ticks."""

    threshold: _Above0
    decay: Annotated[float, msgspec.Meta(ge=0, le=1)]
    window_ticks: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLIP_TICKS)]


class StormDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `bundle.json`.

    Attributes:
        format_version: 1.
        kind: "storm".
        id: SHA-256 of everything else.
        rate_hz: Ticks a second.
        input: What the spatial model takes.
        input_source: What makes that: model and sha256 of the appearance feature.
        embedding_size: D.
        component_count: C.
        clip: Frames of a clip.
        accumulation: From sigmoid values to steps.
        states: Classes of the contrastive stage from 1 on, "1100..."; 0 is background.
        temporal: Kind of the temporal model.
        training: Settings and sessions of the run, for people.
        files: All other files.
    """

    format_version: int
    kind: Literal["storm"]
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rate_hz: _Rate
    input: Literal["appearance", "picture"]
    input_source: dict[str, Any]
    embedding_size: _Count
    component_count: _Count
    clip: ClipGeometry
    accumulation: Accumulation
    states: tuple[str, ...]
    temporal: Literal["transformer", "gru", "mlp"]
    training: dict[str, Any]
    files: dict[str, FileEntry]

    def content_id(self) -> str:
        """SHA-256 over everything but `id`: JSON with sorted keys and no spaces."""
        plain = msgspec.to_builtins(self)
        del plain["id"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StormBundle:
    """A bundle that was read and checked; its models are to be loaded by their manifests."""

    folder: Path
    document: StormDocument
    procedure: Procedure

    @property
    def id(self) -> str:
        """Its SHA-256."""
        return self.document.id

    @property
    def spatial_manifest(self) -> Path:
        """For `OnnxModel.load`."""
        return self.folder / SPATIAL

    @property
    def temporal_manifest(self) -> Path:
        """For `OnnxModel.load`."""
        return self.folder / TEMPORAL


def write_storm_bundle(
    folder: Path,
    procedure: Procedure,
    draft: StormDocument,
    write_models: Callable[[Path], None],
) -> StormBundle:
    """Write a bundle; the folder is there only when all of it is right.

    Args:
        folder: Where to; must not exist.
        procedure: What the components belong to.
        draft: Everything but `id` and `files`.
        write_models: Writes `spatial` and `temporal` into the folder it is given.

    Raises:
        StateError: The folder exists.
        DataError: The models do not fit the document.
        OSError: The disk does not take it.
    """
    if folder.exists():
        raise StateError(f"{folder} exists; bundles never change, choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_document(of_procedure(procedure), partial / PROCEDURE)
        write_models(partial)
        files = {name: _entry(partial / name) for name in FILES}
        document = msgspec.structs.replace(draft, files=files)
        document = msgspec.structs.replace(document, id=document.content_id())
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (partial / DOCUMENT).write_bytes(text + b"\n")
        read_storm_bundle(partial)
        partial.chmod(0o755)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_storm_bundle(folder)


def read_storm_bundle(folder: Path | str) -> StormBundle:
    """Read a bundle's folder and check all of it; files it does not name are not looked at.

    Raises:
        DataError: Something is missing, damaged, too large, or not as documented; one line.
        ModelError: A manifest is not as documented.
    """
    folder = Path(folder)
    path = folder / DOCUMENT
    check_size(path, MAX_DOCUMENT_BYTES)
    document = _parse(path)
    for name in FILES:
        _check_file(folder, document, name)
    procedure = _procedure(folder)
    if procedure.component_count != document.component_count:
        raise DataError(
            f"{path}: made for {document.component_count} components, its procedure has"
            f" {procedure.component_count}"
        )
    for state in document.states:
        if len(state) != document.component_count or set(state) - {"0", "1"}:
            raise DataError(f"{path}: {state[:40]!r} is no state of {document.component_count}")
    _check_tensors(folder, document)
    return StormBundle(folder=folder, document=document, procedure=procedure)


def storm_id(folder: Path) -> str:
    """The id in a bundle's folder; its files are not looked at.

    Raises:
        DataError: It holds no document of a storm bundle.
    """
    path = folder / DOCUMENT
    check_size(path, MAX_DOCUMENT_BYTES)
    return _parse(path).id


def _parse(path: Path) -> StormDocument:
    try:
        content = path.read_bytes()
        known = msgspec.json.decode(content)
        version = known.get("format_version") if isinstance(known, dict) else None
        kind = known.get("kind") if isinstance(known, dict) else None
        if version != FORMAT_VERSION or kind != "storm":
            raise DataError(
                f"{path}: expected a bundle of kind storm and format_version {FORMAT_VERSION}, got"
                f" {str(kind)[:40]} and {str(version)[:40]}"
            )
        document = msgspec.convert(known, StormDocument)
        came = document.content_id()
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DataError(f"{path}: no bundle: {str(error)[:200]}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if came != document.id:
        raise DataError(f"{path}: damaged or edited: its content has the id {came}")
    if set(document.files) != set(FILES):
        raise DataError(f"{path}: expected the files {', '.join(FILES)}")
    return document


def _entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _check_file(folder: Path, document: StormDocument, name: str) -> None:
    path, entry = folder / name, document.files[name]
    if path.parent.is_symlink():
        raise DataError(f"{path.parent}: expected a folder of the bundle, got a link")
    check_size(path, min(MAX_MODEL_BYTES, entry.bytes))
    try:
        came = _entry(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if came != entry:
        raise DataError(
            f"{path}: damaged or another version: expected sha256 {entry.sha256}, got"
            f" {came.sha256}; fetch the bundle again"
        )


def _procedure(folder: Path) -> Procedure:
    return to_procedure(read_document(folder / PROCEDURE))


def _check_tensors(folder: Path, document: StormDocument) -> None:
    """The manifests say what the document says; the files are checked when they are loaded."""
    frames, size = document.clip.frames, document.embedding_size
    expected = {
        SPATIAL: (
            [_spatial_input(document)],
            [("embedding", "float32", ("batch", size))],
        ),
        TEMPORAL: (
            [
                ("clips", "float32", ("batch", frames, size)),
                ("valid", "bool", ("batch", frames)),
            ],
            [("logits", "float32", ("batch", document.component_count))],
        ),
    }
    for name, tensors in expected.items():
        manifest = ModelManifest.read(folder / name)
        came = _tensors(manifest.inputs), _tensors(manifest.outputs)
        if came != tensors:
            raise DataError(f"{folder / name}: expected {tensors}, got {str(came)[:400]}")


def _spatial_input(document: StormDocument) -> _Tensor:
    if document.input == "appearance":
        return "appearance", "float32", ("batch", EMBEDDING_SIZE)
    return "frames", "uint8", ("batch", CROP, CROP, 3)


def _tensors(specs: tuple[TensorSpec, ...]) -> list[_Tensor]:
    return [(spec.name, spec.dtype, spec.shape) for spec in specs]
