"""Recognised steps as files: Keystep's JSON, and the published label layout.

JSON: {"steps": [{"frame": 727, "id": 9, "confidence": 0.97}, ...]} in order of time; the published
"conf" is read as well. CSV: headerless rows image, step id, description, as PSR_labels.csv has
them, without confidences.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from keystep_capture.errors import DataError
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.text_files import MAX_FRAME_COUNT, read_json, shown
from keystep_models.psr.truth import read_labels


class RecognisedStep(Protocol):
    """A step that a method reported at a frame, with its confidence in [0, 1]."""

    @property
    def frame_idx(self) -> int:
        """Frame of the report."""

    @property
    def step_id(self) -> int:
        """Which step."""

    @property
    def confidence(self) -> float:
        """How sure the method is, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step as a file holds it."""

    frame_idx: int
    step_id: int
    confidence: float = 1.0


def write_steps(
    path: Path,
    steps: Sequence[RecognisedStep],
    procedure: Procedure,
    *,
    more: Mapping[str, Sequence[RecognisedStep]] | None = None,
) -> None:
    """Write steps as JSON, or, where the path ends in .csv, in the published label layout.

    Args:
        path: The file; its folder must exist.
        steps: In the order of reporting.
        procedure: Gives the descriptions of the label layout.
        more: Further lists for the JSON, by name ("detector" becomes "detector_steps").
    """
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            for step in steps:
                title = procedure.step(step.step_id).title
                writer.writerow([f"{step.frame_idx:05d}.jpg", step.step_id, title])
        return
    lists = {"steps": steps}
    lists.update({f"{name}_steps": found for name, found in (more or {}).items()})
    parts = [f"{json.dumps(name)}: {_json_list(found)}" for name, found in lists.items()]
    path.write_text("{" + ",\n ".join(parts) + "}\n", encoding="utf-8")


def _json_list(steps: Sequence[RecognisedStep]) -> str:
    rows = [
        json.dumps({"frame": s.frame_idx, "id": s.step_id, "confidence": s.confidence})
        for s in steps
    ]
    return "[" + ",\n  ".join(rows) + "]"


def read_steps(
    path: Path, procedure: Procedure | None = None, frame_count: int | None = None
) -> list[StepReport]:
    """Read steps from a JSON file or one in the published label layout (.csv).

    Args:
        path: The file.
        procedure: Whose step ids these must be; unchecked when not given.
        frame_count: Frames in the recording; unchecked when not given.

    Raises:
        DataError: naming file, line or entry, and value.
    """
    if path.suffix == ".csv":
        truth = read_labels(path, path.stem, procedure)
        steps = [StepReport(step.frame_idx, step.step_id) for step in truth.steps]
        for number, step in enumerate(steps, start=1):
            _check_frame(step, f"{path}, line {number}", frame_count)
        return steps
    content = read_json(path, "steps")
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list):
        raise DataError(f'{path}: expected {{"steps": [...]}}')
    steps = []
    for number, entry in enumerate(content["steps"]):
        where = f"{path}, steps[{number}]"
        step = _parse_entry(entry, where)
        _check_frame(step, where, frame_count)
        if steps and step.frame_idx < steps[-1].frame_idx:
            raise DataError(
                f"{where}: expected frame {steps[-1].frame_idx} or a later one, got frame"
                f" {step.frame_idx}; steps must be in order of time"
            )
        if procedure is not None and all(known.id != step.step_id for known in procedure.steps):
            raise DataError(
                f"{where}: expected a step of procedure {procedure.name!r}, got the unknown id"
                f" {step.step_id}"
            )
        steps.append(step)
    return steps


def _parse_entry(entry: Any, where: str) -> StepReport:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {shown(entry)}")
    frame_idx, step_id = entry.get("frame"), entry.get("id")
    confidence = entry.get("confidence", entry.get("conf", 1.0))
    if type(frame_idx) is not int or not 0 <= frame_idx < MAX_FRAME_COUNT:
        raise DataError(f"{where}: expected a frame of 0 or more, got {shown(frame_idx)}")
    if type(step_id) is not int or step_id < 0:
        raise DataError(f"{where}: expected a step id of 0 or more, got {shown(step_id)}")
    if (
        not isinstance(confidence, int | float)
        or isinstance(confidence, bool)
        or not 0.0 <= confidence <= 1.0
    ):
        raise DataError(f"{where}: expected a confidence from 0 to 1, got {shown(confidence)}")
    return StepReport(frame_idx, step_id, float(confidence))


def _check_frame(step: StepReport, where: str, frame_count: int | None) -> None:
    if frame_count is not None and step.frame_idx >= frame_count:
        raise DataError(
            f"{where}: expected frames below {frame_count}, the recording's end, got frame"
            f" {step.frame_idx}"
        )
