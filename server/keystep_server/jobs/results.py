"""What a finished extraction left on disk, as a revision of key steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import cv2

from keystep_capture.errors import DataError
from keystep_server.key_steps import picture_path
from keystep_server.storage import (
    EpochSpan,
    Job,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    NewRevision,
    RevisionOrigin,
)

MAX_RESULT_BYTES = 16 << 20
_NAMESPACE = UUID("3b8f6a52-9a1d-5d3e-8c11-7be0c6a4f2d9")
_COPIED = (
    *("title", "epoch", "start_s", "end_s", "exemplar_s", "start_device_time_ns"),
    *("end_device_time_ns", "exemplar_device_time_ns", "confidence"),
)


def read_result(job: Job, made: Path, session_folder: Path) -> tuple[NewRevision, tuple[str, ...]]:
    """Read `key_steps.json` and `extraction.json` (docs/steps.md), keep the pictures; blocks.

    Args:
        job: Whose result it is.
        made: The folder of key_steps.json, which the next job of the session overwrites.
        session_folder: Where the session's files lie; pictures, the document and the contact
            sheet are copied there.

    Returns:
        The revision, and notes on it.

    Raises:
        DataError: The files are not as documented.
        OSError: Something cannot be read, or the disk does not take the copies.
    """
    document = _read(made / "key_steps.json")
    summary = _read(made.parent / "extraction.json")
    if document.get("format") != "keystep-key-steps":
        raise DataError("key_steps.json is not of the format keystep-key-steps")
    try:
        key_steps = tuple(
            _key_step(job, position, item, made, session_folder)
            for position, item in enumerate(document["key_steps"])
        )
        timeline = tuple(
            EpochSpan(
                epoch=span["epoch"],
                start_s=span["start_s"],
                end_s=span["end_s"],
                device_time_ns=span["start_device_time_ns"],
            )
            for span in document["timeline"]
        )
        provenance = {
            **document["provenance"],
            "recording": document["recording"],
            "quality": document["quality"],
        }
        notes = tuple(str(note) for note in summary["recordings"][made.name]["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the result is not as docs/steps.md has it: {error!r}") from None
    kept = session_folder / "jobs" / job.id
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("key_steps.json", "contact_sheet.jpg"):
        shutil.copyfile(made / name, kept / name)
    revision = NewRevision(
        origin=RevisionOrigin.EXTRACTION,
        key_steps=key_steps,
        provenance=provenance,
        timeline=timeline,
        job_id=job.id,
    )
    return revision, notes


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_RESULT_BYTES:
        raise DataError(f"{path.name} has more than {MAX_RESULT_BYTES} bytes")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path.name} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path.name} holds no object")
    return document


def _key_step(
    job: Job, position: int, item: dict[str, Any], made: Path, session_folder: Path
) -> KeyStep:
    picture: dict[str, Any] = {}
    if item["picture"] is not None:
        moment = (item["epoch"], item["exemplar_device_time_ns"])
        picture = _keep_picture(made / item["picture"], picture_path(session_folder, moment))
    return KeyStep(
        id=f"kst_{uuid5(_NAMESPACE, f'{job.id}/{position}').hex}",
        session_id=job.session_id,
        position=position,
        status=KeyStepStatus.PROPOSED,
        source=KeyStepSource.EXTRACTED,
        provenance={
            "method": "steps",
            "job_id": job.id,
            "cluster": item["cluster"],
            "distance": item["distance"],
        },
        **{name: item[name] for name in _COPIED},
        **picture,
    )


def _keep_picture(source: Path, target: Path) -> dict[str, Any]:
    """Copy a picture; where it lies relative to the data directory, and its size."""
    image = cv2.imread(str(source))
    if image is None:
        raise DataError(f"{source.name} is no picture")
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        unfinished = target.with_name(f"unfinished-{target.name}")
        shutil.copyfile(source, unfinished)
        unfinished.replace(target)
    data_dir = target.parents[3]  # DATA/sessions/SESSION/key_steps/PICTURE
    return {
        "exemplar_path": target.relative_to(data_dir).as_posix(),
        "exemplar_size": (image.shape[1], image.shape[0]),
    }
