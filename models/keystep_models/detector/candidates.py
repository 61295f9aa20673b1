"""Boxes, scores and classes of one picture, read from a detector's outputs.

N boxes. Values may be anything: what is not finite, has no area or no known class is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ModelError
from keystep_models.detector.layouts import OutputReading
from keystep_models.detector.spec import Activation, DetectorSpec, Role

_SURE: Final = 1.001  # float16 rounds a score of 1 up a little


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Boxes of one picture as a model gave them, in its order.

    Attributes:
        boxes: Corners in pixels of the input, or relative as the reading says, (N, 4), float64.
        scores: 0 to 1, (N,), float64.
        class_ids: (N,), int64.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]


def read_candidates(
    reading: OutputReading, spec: DetectorSpec, outputs: Mapping[str, NDArray[Any]]
) -> Candidates:
    """The boxes of one picture that are sure enough.

    Args:
        reading: From `choose_reading`.
        spec: The detector's.
        outputs: By name, with a batch of 1 first.

    Raises:
        ModelError: An output has another shape than the layout's.
    """
    arrays = {role: np.asarray(outputs[name]) for role, name in reading.names.items()}
    with np.errstate(all="ignore"):
        boxes, scores, class_ids = _READERS[reading.layout](reading, spec, arrays)
        keep = np.isfinite(boxes).all(axis=1) & (scores >= spec.confidence) & (scores <= _SURE)
        keep &= (class_ids >= 0) & (class_ids < len(spec.class_names))
        boxes, scores, class_ids = boxes[keep], scores[keep], class_ids[keep]
        if reading.centre_boxes:
            half = boxes[:, 2:] / 2
            boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1)
    return Candidates(
        boxes=boxes[has_area],
        scores=np.minimum(scores[has_area], 1.0),
        class_ids=class_ids[has_area].astype(np.int64),
    )


_Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _read_rows(
    reading: OutputReading, spec: DetectorSpec, arrays: Mapping[Role, NDArray[Any]]
) -> _Parts:
    """yolov8 and yolov5: a box's values, then a score for each class."""
    values = _picture(spec, arrays["boxes"], 2)
    rows = values.T if reading.attributes_first else values  # (N, attributes), a view
    skipped = 5 if reading.layout == "yolov5" else 4
    if rows.shape[1] != skipped + len(spec.class_names):
        raise _surprise(spec, arrays["boxes"])
    scores = _activated(rows[:, skipped:], reading.activation)
    class_ids = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    best = scores[np.arange(len(scores)), class_ids].astype(np.float64)
    if reading.layout == "yolov5":
        best = best * _activated(rows[:, 4], reading.activation).astype(np.float64)
    return rows[:, :4].astype(np.float64), best, class_ids.astype(np.float64)


def _read_end2end(
    reading: OutputReading, spec: DetectorSpec, arrays: Mapping[Role, NDArray[Any]]
) -> _Parts:
    rows = _picture(spec, arrays["boxes"], 2).astype(np.float64)
    if rows.shape[1] != 6:
        raise _surprise(spec, arrays["boxes"])
    return rows[:, :4], rows[:, 4], _whole(rows[:, 5])


def _read_yolov7(
    reading: OutputReading, spec: DetectorSpec, arrays: Mapping[Role, NDArray[Any]]
) -> _Parts:
    rows = arrays["boxes"].astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != 7:
        raise _surprise(spec, arrays["boxes"])
    rows = rows[rows[:, 0] == 0]
    return rows[:, 1:5], rows[:, 6], _whole(rows[:, 5])


def _read_nms(
    reading: OutputReading, spec: DetectorSpec, arrays: Mapping[Role, NDArray[Any]]
) -> _Parts:
    boxes = _picture(spec, arrays["boxes"], 2).astype(np.float64)
    scores = _picture(spec, arrays["scores"], 1).astype(np.float64)
    class_ids = _picture(spec, arrays["classes"], 1).astype(np.float64)
    if boxes.shape != (len(scores), 4) or len(class_ids) != len(scores):
        raise _surprise(spec, arrays["boxes"])
    count = len(scores)
    if "count" in arrays:
        told = arrays["count"].reshape(-1)
        is_number = told.size == 1 and np.isfinite(told[0])
        count = int(np.clip(told[0], 0, count)) if is_number else 0
    return boxes[:count], scores[:count], _whole(class_ids[:count])


def _read_detr(
    reading: OutputReading, spec: DetectorSpec, arrays: Mapping[Role, NDArray[Any]]
) -> _Parts:
    boxes = _picture(spec, arrays["boxes"], 2).astype(np.float64)
    logits = _picture(spec, arrays["logits"], 2)
    classes = len(spec.class_names)
    if boxes.shape != (len(logits), 4) or logits.shape[1] not in (classes, classes + 1):
        raise _surprise(spec, arrays["logits"])
    # The last of C + 1 is "no object": it takes part in a softmax and is never an answer.
    scores = _activated(logits, reading.activation)[:, :classes]
    class_ids = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    best = scores[np.arange(len(scores)), class_ids].astype(np.float64)
    return boxes, best, class_ids.astype(np.float64)


_READERS: Final = {
    "yolov8": _read_rows,
    "yolov5": _read_rows,
    "end2end": _read_end2end,
    "yolov7": _read_yolov7,
    "nms": _read_nms,
    "detr": _read_detr,
}


def _picture(spec: DetectorSpec, array: NDArray[Any], axes: int) -> NDArray[Any]:
    """One picture's part of an output: without the batch, or the sides of 1 that stand for it."""
    while array.ndim > axes and array.shape[0] == 1:
        array = array[0]
    if array.ndim != axes:
        raise _surprise(spec, array)
    return array


def _activated(values: NDArray[Any], activation: Activation) -> NDArray[Any]:
    if activation == "none":
        return values
    logits = values.astype(np.float64)
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _whole(class_ids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class ids; -1 where a value is none."""
    nearest = np.rint(class_ids)
    return np.where(np.abs(class_ids - nearest) < 0.01, nearest, -1.0)


def _surprise(spec: DetectorSpec, array: NDArray[Any]) -> ModelError:
    return ModelError(
        f"detector {spec.name} with {len(spec.class_names)} classes gave an output of shape "
        f"{list(array.shape)}, which is not its layout's; check `classes` and `layout` in its "
        "manifest"
    )
