"""Ground truth of recordings, in every published layout.

- `labels`: PSR_labels.csv (image, step id, description), headerless; correct completions only.
- `with-errors`: PSR_labels_with_errors.csv, the same plus incorrect installations.
- `raw`, `raw-with-errors`: PSR_labels_raw.csv (image, one of -1, 0, 1 per component), headerless.
- `states`: IndustReal's `_gt.csv[.gz]`: the state class of every frame, 0 where unlabelled.
- `expected`: expected.json: several recordings with steps that were derived from states before.

Source: Schoonbeek et al., IndustReal, WACV 2024, and STORM-PSR, arXiv:2510.12385, labels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from keystep_capture.errors import DataError
from keystep_models.measures.psr import GroundTruthStep
from keystep_models.psr.detections import DetectionLimits, read_detections
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.text_files import (
    MAX_FRAME_COUNT,
    open_text,
    plain,
    read_json,
    shown,
    whole_number,
)

Layout: TypeAlias = Literal["labels", "with-errors", "raw", "raw-with-errors", "states", "expected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingTruth:
    """What truly happened in a recording.

    `has_errors` says whether a part was installed incorrectly, None where the labels cannot tell.
    `frame_count` and `task` are None where the labels do not say; `titles` are the labels' own.
    """

    name: str
    source: str
    steps: tuple[GroundTruthStep, ...]
    has_errors: bool | None
    frame_count: int | None = None
    task: str | None = None
    titles: tuple[tuple[int, str], ...] = ()


def read_labels(path: Path, name: str, procedure: Procedure | None = None) -> RecordingTruth:
    """Read PSR_labels.csv or PSR_labels_with_errors.csv.

    Whether the recording has errors is taken from the labels with errors, or the raw ones, that
    lie beside it.

    Args:
        path: The label file.
        name: Name of the recording.
        procedure: Whose step ids these must be; unchecked when not given.

    Raises:
        DataError: naming file, line and value.
    """
    steps, titles = list[GroundTruthStep](), dict[int, str]()
    for frame_idx, values, where in _label_rows(path):
        if len(values) < 2:
            raise DataError(
                f"{where}: expected image, step id, description, got {1 + len(values)} values"
            )
        step_id = whole_number(values[0], f"{where}, step id")
        if procedure is not None and all(step.id != step_id for step in procedure.steps):
            raise DataError(
                f"{where}: expected a step of procedure {procedure.name!r}, got the unknown id"
                f" {step_id}"
            )
        titles.setdefault(step_id, ",".join(values[1:]).strip())
        if any(s.frame_idx == frame_idx and s.step_id == step_id for s in steps):
            raise DataError(f"{where}: expected step {step_id} once in a frame, got it repeated")
        steps.append(GroundTruthStep(frame_idx, step_id))
    return RecordingTruth(
        name=name,
        source=str(path),
        steps=tuple(steps),
        has_errors=_errors_beside(path),
        titles=tuple(titles.items()),
    )


def read_raw_labels(
    path: Path, name: str, procedure: Procedure | None = None, *, with_errors: bool = False
) -> RecordingTruth:
    """Read PSR_labels_raw.csv and derive the steps between consecutive states.

    Args:
        path: The label file.
        name: Name of the recording.
        procedure: Whose components these must be; any number when not given.
        with_errors: Also give incorrect installations; else -1 is taken as 0 first.

    Raises:
        DataError: naming file, line and value.
    """
    states = list(raw_states(path, None if procedure is None else procedure.component_count))
    steps = []
    for (_, before), (frame_idx, after) in pairwise(states):
        ids = raw_steps_between(before, after, with_errors=with_errors)
        steps += [GroundTruthStep(frame_idx, step_id) for step_id in ids]
    return RecordingTruth(
        name=name,
        source=str(path),
        steps=tuple(steps),
        has_errors=any(-1 in state for _, state in states),
        titles=() if procedure is None else tuple((s.id, s.title) for s in procedure.steps),
    )


def raw_steps_between(
    before: ComponentState, after: ComponentState, *, with_errors: bool
) -> list[int]:
    """Step ids (3k install, 3k+1 incorrectly, 3k+2 remove) that lead from state to state."""
    ids = []
    for idx, (old, new) in enumerate(zip(before, after, strict=True)):
        if not with_errors:
            old, new = max(old, 0), max(new, 0)
        if old == new or (old == -1 and new == 0):
            continue
        ids.append(3 * idx + {1: 0, -1: 1, 0: 2}[new])
    return ids


def read_state_labels(
    path: Path, name: str, procedure: Procedure, frame_count: int | None = None
) -> RecordingTruth:
    """Read IndustReal's `_gt.csv[.gz]` and derive the steps between labelled states.

    Class 0 and the error state are no labels: a step's `not_before_idx` is the last frame that
    was labelled before.

    Args:
        path: The state labels; every frame has a row.
        name: Name of the recording.
        procedure: With the states its detector classes stand for.
        frame_count: Frames in the recording; up to the last row's when not given.

    Raises:
        DataError: naming file, line and value.
    """
    limits = DetectionLimits(class_count=len(procedure.states), corner_boxes=True)
    frames = read_detections(path, frame_count, limits)
    _check_every_frame(path)
    steps, last = [], None
    for frame_idx, labels in enumerate(frames):
        for label in labels:
            state = procedure.states[label.class_id]
            if state is None:
                continue
            if last is not None:
                changed = procedure.steps_between(last[1], state)
                steps += [GroundTruthStep(frame_idx, step.id, last[0]) for step in changed]
            last = (frame_idx, state)
    error_class = len(procedure.states) - 1
    return RecordingTruth(
        name=name,
        source=str(path),
        steps=tuple(steps),
        has_errors=any(label.class_id == error_class for labels in frames for label in labels),
        frame_count=len(frames),
        task=procedure.task,
        titles=tuple((step.id, step.title) for step in procedure.steps),
    )


def read_expected(path: Path) -> dict[str, RecordingTruth]:
    """Read expected.json: per recording procedure, n_frames and ground_truth_from_states.

    Raises:
        DataError: naming file, recording and value.
    """
    content = read_json(path, "ground truth")
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected an object with one entry per recording")
    return {name: _expected_recording(path, name, entry) for name, entry in content.items()}


def _expected_recording(path: Path, name: str, entry: Any) -> RecordingTruth:
    where = f"{path}, {plain(name)}"
    try:
        frame_count, task = int(entry["n_frames"]), str(entry["procedure"])
        rows = [
            (GroundTruthStep(int(s["frame"]), int(s["id"]), int(s["not_before"])), s)
            for s in entry["ground_truth_from_states"]
        ]
        titles = {step.step_id: str(row.get("description", "")) for step, row in rows}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{where}: expected procedure, n_frames and ground_truth_from_states with frame, id and"
            f" not_before ({type(error).__name__}: {plain(str(error))})"
        ) from error
    if not 0 <= frame_count <= MAX_FRAME_COUNT:
        raise DataError(
            f"{where}: expected n_frames from 0 to {MAX_FRAME_COUNT}, got {shown(frame_count)}"
        )
    steps = tuple(step for step, _ in rows)
    for number, step in enumerate(steps):
        if not 0 <= step.frame_idx < frame_count or step.last_old_frame_idx >= step.frame_idx:
            raise DataError(
                f"{where}, ground_truth_from_states[{number}]: expected not_before below frame"
                f" below {frame_count}, got {step}"
            )
    return RecordingTruth(
        name=name,
        source=str(path),
        steps=steps,
        has_errors=None,
        frame_count=frame_count,
        task=task,
        titles=tuple(titles.items()),
    )


def check_known_steps(truth: RecordingTruth, procedure: Procedure) -> None:
    """DataError, naming the entry, where ground truth of expected.json has an unknown step id.

    Label files are checked line by line as they are read.
    """
    known = {step.id for step in procedure.steps}
    for number, step in enumerate(truth.steps):
        if step.step_id not in known:
            raise DataError(
                f"{truth.source}, {plain(truth.name)}, ground_truth_from_states[{number}]: expected"
                f" a step of procedure {shown(procedure.name)}, got the unknown id {step.step_id}"
            )


def _label_rows(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Frame, the values after the image, and where that stands, row by row."""
    last_idx = -1
    with open_text(path, "labels") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
            where = f"{path}, line {number}"
            if not row:
                continue
            frame_idx = _frame_of_image(row[0], where, is_first=number == 1)
            if frame_idx < last_idx:
                raise DataError(
                    f"{where}: expected an image from {last_idx} on, got {shown(row[0])}; rows must"
                    " be in the order of frames"
                )
            last_idx = frame_idx
            yield frame_idx, row[1:], where


def _frame_of_image(text: str, where: str, *, is_first: bool) -> int:
    stem, _, suffix = text.strip().rpartition(".")
    if not stem.isdigit() or suffix.lower() not in ("jpg", "jpeg", "png"):
        header = " (a header? label files have none)" if is_first else ""
        raise DataError(f"{where}: expected an image like 00727.jpg, got {shown(text)}{header}")
    return whole_number(stem, f"{where}, image")


def raw_states(path: Path, component_count: int | None) -> Iterator[tuple[int, ComponentState]]:
    """Frame and state of every row of PSR_labels_raw.csv, in order.

    Args:
        path: The label file.
        component_count: Components that a state must have; as many as the first row's when None.

    Raises:
        DataError: naming file, line and value.
    """
    last_idx = None
    for frame_idx, values, where in _label_rows(path):
        if component_count is None:
            component_count = len(values)
        if len(values) != component_count or not values:
            raise DataError(
                f"{where}: expected an image and {component_count} components, got"
                f" {1 + len(values)} values"
            )
        if frame_idx == last_idx:
            raise DataError(f"{where}: expected every image once, got {frame_idx} repeated")
        for value in values:
            if value.strip() not in ("-1", "0", "1"):
                raise DataError(f"{where}: expected -1, 0 or 1, got {shown(value)}")
        last_idx = frame_idx
        yield frame_idx, tuple(int(value) for value in values)


def _errors_beside(path: Path) -> bool | None:
    raw = path.with_name("PSR_labels_raw.csv")
    if raw.exists():
        return any(-1 in state for _, state in raw_states(raw, None))
    with_errors = path.with_name("PSR_labels_with_errors.csv")
    if with_errors.exists():
        ids = [
            whole_number(values[0] if values else "", f"{where}, step id")
            for _, values, where in _label_rows(with_errors)
        ]
        return any(step_id % 3 == 1 for step_id in ids)
    return None


def _check_every_frame(path: Path) -> None:
    """DataError where a state label file leaves a frame out."""
    expected = 0
    with open_text(path, "state labels") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
            if number == 1 or not row:
                continue
            frame_idx = int(row[1])
            if frame_idx > expected:
                raise DataError(
                    f"{path}, line {number}: expected frame {expected}, got frame {frame_idx};"
                    " every frame needs a row, an unlabelled one with class 0"
                )
            expected = frame_idx + 1


def titles_of(
    truths: Sequence[RecordingTruth], procedures: Sequence[Procedure]
) -> Mapping[int, str]:
    """What to call each step: as the procedures do, else as the labels do."""
    titles = {step_id: title for truth in truths for step_id, title in truth.titles if title}
    for procedure in procedures:
        titles.update({step.id: step.title for step in procedure.steps})
    return titles
