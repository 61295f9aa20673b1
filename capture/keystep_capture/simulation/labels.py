"""A session's truth as files; frames are counted from 0, in the order of the video's packets.

- `PSR_labels.csv`, `PSR_labels_with_errors.csv`, `PSR_labels_raw.csv`: as MECCANO's and
  IndustReal's, headerless; what `keystep psr score --truth` reads.
- `frames.csv`: per frame its times, the components' states, what hands hide, the assembly's box.
- `segments.csv`: key steps, from the reach for the part to the completion.
- `mistakes.csv`: what went wrong, when it was put right.
- `coco.json` and `yolo/`: the assembly's box and state, per frame.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from keystep_capture.simulation.tasks import Task
from keystep_capture.simulation.truth import FrameTruth, SessionTruth, segment_of

State = tuple[int, ...]


def write_labels(folder: Path, truth: SessionTruth) -> None:
    """Write every label file of a session into a folder that exists."""
    _write_rows(folder / "PSR_labels.csv", _step_rows(truth, with_errors=False))
    _write_rows(folder / "PSR_labels_with_errors.csv", _step_rows(truth, with_errors=True))
    _write_rows(folder / "PSR_labels_raw.csv", _raw_rows(truth))
    _write_rows(folder / "frames.csv", _frame_rows(truth))
    _write_rows(folder / "segments.csv", _segment_rows(truth))
    _write_rows(folder / "mistakes.csv", _mistake_rows(truth))
    classes = state_classes(truth.task)
    (folder / "coco.json").write_text(json.dumps(_coco(truth, classes)), encoding="utf-8")
    (folder / "yolo").mkdir()
    for idx, frame in enumerate(truth.frames):
        line = _yolo_line(truth, frame, classes)
        (folder / "yolo" / f"{idx:05d}.txt").write_text(line, encoding="utf-8")


def procedure_info(task: Task) -> list[dict[str, Any]]:
    """The task as a published procedure_info file: step 3 k installs, 3 k + 2 removes."""
    return [
        {
            "id": step_id,
            "description": task.step_title(step_id),
            "install": step_id % 3 != 2,
            "state_idx": step_id // 3,
            "expected_in_assy": step_id % 3 == 0,
            "expected_before_subgoal": False,
            "expected_in_main": False,
        }
        for step_id in range(3 * len(task.components))
    ]


def state_classes(task: Task) -> list[str]:
    """Names of the detector's classes: the usual order's states, another one, one with an error."""
    count = len(task.components)
    usual = [
        "".join("1" if idx < done else "0" for idx in range(count)) for done in range(count + 1)
    ]
    return [*usual, "other", "error"]


def class_of(state: State, classes: Sequence[str]) -> int:
    """The class of a state."""
    if -1 in state:
        return len(classes) - 1
    name = "".join(str(value) for value in state)
    return classes.index(name) if name in classes else len(classes) - 2


def steps_between(before: State, after: State, *, with_errors: bool) -> list[int]:
    """Step ids that lead from state to state: 3 k installed, 3 k + 1 incorrectly, 3 k + 2 removed.

    Without errors -1 counts as not there. Source: the published labels' own derivation.
    """
    steps = []
    for idx, (old, new) in enumerate(zip(before, after, strict=True)):
        if not with_errors:
            old, new = max(old, 0), max(new, 0)
        if old != new and not (old == -1 and new == 0):
            steps.append(3 * idx + {1: 0, -1: 1, 0: 2}[new])
    return steps


def _write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows(rows)


def _changes(truth: SessionTruth) -> list[tuple[int, State]]:
    """Frame and state of the first frame and of every change."""
    frames = [(idx, frame.state) for idx, frame in enumerate(truth.frames)]
    return frames[:1] + [
        (idx, after) for (_, before), (idx, after) in pairwise(frames) if before != after
    ]


def _step_rows(truth: SessionTruth, *, with_errors: bool) -> Iterable[tuple[str, int, str]]:
    for (_, before), (idx, after) in pairwise(_changes(truth)):
        for step_id in steps_between(before, after, with_errors=with_errors):
            yield f"{idx:05d}.jpg", step_id, truth.task.step_title(step_id)


def _raw_rows(truth: SessionTruth) -> Iterable[tuple[object, ...]]:
    for idx, state in _changes(truth):
        yield f"{idx:05d}.jpg", *state


def _frame_rows(truth: SessionTruth) -> Iterable[tuple[object, ...]]:
    numbers = range(len(truth.task.components))
    yield (
        "frame", "device_time_ns", "time_s", "segment_step", "assembly_hidden",
        "box_x", "box_y", "box_width", "box_height",
        *(f"state_{k}" for k in numbers), *(f"hidden_{k}" for k in numbers),
    )  # fmt: skip
    segments = _segments(truth)
    for idx, frame in enumerate(truth.frames):
        step = next((s for s, start, end in segments if start <= idx <= end), "")
        yield (
            idx, frame.device_time_ns, f"{frame.time_s:.4f}", step, _share(frame.assembly_hidden),
            *(frame.box or ("",) * 4), *frame.state, *(_share(value) for value in frame.hidden),
        )  # fmt: skip


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _segments(truth: SessionTruth) -> list[tuple[int, int, int]]:
    """(step id, first frame, last frame) of every action that was drawn to its end."""
    segments = []
    for action in truth.plan.actions:
        start_s, end_s = segment_of(action)
        start, end = truth.frame_of(start_s), truth.frame_of(end_s)
        if start is not None and end is not None:
            kind = {"install": 0, "misinstall": 1, "remove": 2}[action.kind]
            segments.append((3 * action.component + kind, start, end))
    return segments


def _segment_rows(truth: SessionTruth) -> Iterable[tuple[object, ...]]:
    yield "step_id", "title", "first_frame", "last_frame", "start_s", "end_s"
    for step_id, start, end in _segments(truth):
        times = (truth.frames[start].time_s, truth.frames[end].time_s)
        yield step_id, truth.task.step_title(step_id), start, end, *(f"{t:.4f}" for t in times)


def _mistake_rows(truth: SessionTruth) -> Iterable[tuple[object, ...]]:
    yield "frame", "component", "kind", "part", "corrected_frame"
    actions = truth.plan.actions
    for idx, action in enumerate(actions):
        if action.kind == "install":
            continue
        frame = truth.frame_of(action.complete_s)
        if frame is None or (action.kind == "remove" and _was_wrong(truth, idx)):
            continue
        right = next(
            (
                a
                for a in actions[idx + 1 :]
                if (a.component, a.kind) == (action.component, "install")
            ),
            None,
        )
        corrected = truth.frame_of(right.complete_s) if right else None
        kind = action.fault or "taken_off_again"
        yield frame, action.component, kind, action.part, "" if corrected is None else corrected
    final = truth.frames[-1].state if truth.frames else ()
    done = truth.plan.actions and truth.frames[-1].time_s >= truth.plan.actions[-1].complete_s
    for component, value in enumerate(final):
        if done and value == 0:
            yield len(truth.frames) - 1, component, "missed_part", "", ""


def _was_wrong(truth: SessionTruth, idx: int) -> bool:
    """Whether a removal takes off what was put in wrongly."""
    action = truth.plan.actions[idx]
    return truth.state_at(action.complete_s - 1e-6)[action.component] == -1


def _yolo_line(truth: SessionTruth, frame: FrameTruth, classes: Sequence[str]) -> str:
    if frame.box is None:
        return ""
    x, y, width, height = frame.box
    numbers = (
        (x + width / 2) / truth.width, (y + height / 2) / truth.height,
        width / truth.width, height / truth.height,
    )  # fmt: skip
    values = " ".join(f"{value:.6f}" for value in numbers)
    return f"{class_of(frame.state, classes)} {values}\n"


def _coco(truth: SessionTruth, classes: Sequence[str]) -> dict[str, Any]:
    """COCO numbers categories and annotations from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for idx, frame in enumerate(truth.frames):
        name = f"{idx:05d}.jpg"
        images.append({"id": idx, "file_name": name, "width": truth.width, "height": truth.height})
        if frame.box is None:
            continue
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": idx,
                "category_id": class_of(frame.state, classes) + 1,
                "bbox": list(frame.box),
                "area": frame.box[2] * frame.box[3],
                "iscrowd": 0,
                "attributes": {
                    "state": list(frame.state),
                    "hidden": round(frame.assembly_hidden, 3),
                },
            }
        )
    categories = [{"id": idx + 1, "name": name} for idx, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}
