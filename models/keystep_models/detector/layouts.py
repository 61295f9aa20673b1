"""Which layout a detector's outputs have: as its manifest says, else as their shapes tell.

C classes, N boxes; the batch comes first where there is one, and is 1 here.

| layout | outputs | boxes |
|---|---|---|
| yolov8 | (1, 4 + C, N), or (1, N, 4 + C) | centre and size |
| yolov5 | (1, N, 5 + C): box, objectness, classes; or (1, 5 + C, N) | centre and size |
| end2end | (1, N, 6): corners, score, class | corners |
| yolov7 | (N, 7): picture, corners, class, score | corners |
| nms | boxes (1, N, 4), scores (1, N), classes (1, N), perhaps count (1, 1) | corners |
| detr | boxes (1, N, 4), logits (1, N, C or C + 1) | centre and size, relative |

The last four need no further suppression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keystep_capture.errors import ModelError
from keystep_models.detector.spec import Activation, DetectorSpec, LayoutName, Role
from keystep_models.onnx_model import ModelManifest, TensorSpec

DEFAULT_IOU: Final = 0.7

_Dim = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReading:
    """How to read a model's outputs.

    Attributes:
        layout: Which.
        names: The output of each role; "boxes" is the only one of layouts with one output.
        attributes_first: Whether a box's values lie along the first axis after the batch.
        centre_boxes: Whether boxes are centre and size, not corners.
        relative_boxes: Whether they go from 0 to 1.
        activation: What is still to be applied to scores.
        iou: Boxes of a class that overlap more are suppressed; None: the model has done so.
    """

    layout: LayoutName
    names: Mapping[Role, str]
    attributes_first: bool
    centre_boxes: bool
    relative_boxes: bool
    activation: Activation
    iou: float | None


def choose_reading(spec: DetectorSpec, manifest: ModelManifest) -> OutputReading:
    """How a model's outputs are to be read: as its manifest says, else as their shapes tell.

    Raises:
        ModelError: The outputs are of no known layout, of several possible ones, or not of the
            one that the manifest names.
    """
    possible = _possible(spec, manifest.outputs)
    if spec.layout is not None:
        if spec.layout not in possible:
            raise _unfit(spec, manifest, f"outputs of layout {spec.layout}")
        layout = spec.layout
    elif len(possible) == 1:
        [layout] = possible
    elif possible:
        raise _unfit(
            spec, manifest, f"`layout` in `preprocessing`, since it may be {' or '.join(possible)}"
        )
    else:
        raise _unfit(spec, manifest, "outputs of a known layout")
    names = _roles(spec, manifest, layout)
    raw = layout in ("yolov8", "yolov5")
    default_activation: Activation = "none"
    if layout == "detr" and spec.activation is None:
        raise _unfit(spec, manifest, "`activation` sigmoid or softmax for layout detr")
    return OutputReading(
        layout=layout,
        names=names,
        attributes_first=raw and _attributes_first(spec, layout, manifest.outputs[0]),
        centre_boxes=spec.form == "centre" if spec.form else raw or layout == "detr",
        relative_boxes=spec.relative_boxes or layout == "detr",
        activation=spec.activation or default_activation,
        iou=spec.iou if spec.iou is not None or not raw else DEFAULT_IOU,
    )


def _possible(spec: DetectorSpec, outputs: tuple[TensorSpec, ...]) -> list[LayoutName]:
    """The layouts that these outputs may have."""
    classes = len(spec.class_names)
    if len(outputs) == 1:
        shape = outputs[0].shape
        if len(shape) == 2:
            return ["yolov7"] if _may_be(shape[1], 7) else []
        if len(shape) != 3:
            return []
        sides = shape[1:]
        found: list[LayoutName] = []
        if any(_may_be(side, 4 + classes) for side in sides):
            found.append("yolov8")
        if any(_may_be(side, 5 + classes) for side in sides):
            found.append("yolov5")
        if _may_be(shape[2], 6):
            found.append("end2end")
        exact = [name for name in found if _exactly(name, sides, classes)]
        return exact or found
    found = []
    if len(outputs) in (3, 4) and _has_box_output(outputs):
        found.append("nms")
    if len(outputs) == 2 and _has_box_output(outputs):
        wide = [o for o in outputs if not _is_boxes(o)] or list(outputs)
        if any(
            o.shape and any(_may_be(o.shape[-1], n) for n in (classes, classes + 1)) for o in wide
        ):
            found.append("detr")
    return found


def _exactly(layout: LayoutName, sides: tuple[_Dim, ...], classes: int) -> bool:
    wanted = {"yolov8": 4 + classes, "yolov5": 5 + classes, "end2end": 6}[layout]
    return wanted in (sides[1:] if layout == "end2end" else sides)


def _may_be(side: _Dim, size: int) -> bool:
    return isinstance(side, str) or side == size


def _is_boxes(output: TensorSpec) -> bool:
    return len(output.shape) >= 2 and output.shape[-1] == 4


def _has_box_output(outputs: tuple[TensorSpec, ...]) -> bool:
    return any(_is_boxes(output) for output in outputs)


def _attributes_first(spec: DetectorSpec, layout: LayoutName, output: TensorSpec) -> bool:
    """Along which axis a box's values lie; where both could, as the layout's makers have it."""
    size = (5 if layout == "yolov5" else 4) + len(spec.class_names)
    first, last = output.shape[1:]
    if (first == size) != (last == size):
        return first == size
    return layout == "yolov8"


def _roles(spec: DetectorSpec, manifest: ModelManifest, layout: LayoutName) -> Mapping[Role, str]:
    """Which output is which."""
    outputs = {output.name: output for output in manifest.outputs}
    if lost := [name for name in spec.outputs.values() if name not in outputs]:
        raise _unfit(spec, manifest, f"the output {lost[0]!r} that `outputs` names")
    if layout not in ("nms", "detr"):
        return {"boxes": next(iter(outputs))}
    wanted: tuple[Role, ...] = ("boxes", "logits")
    if layout == "nms":
        wanted = ("boxes", "scores", "classes", *(("count",) if len(outputs) == 4 else ()))
    found = dict(spec.outputs)
    for role in wanted:
        if role in found:
            continue
        fitting = [
            name
            for name, output in outputs.items()
            if name not in found.values() and _could_be(layout, role, output)
        ]
        if len(fitting) != 1:
            told = {each: found.get(each, "its output") for each in wanted}
            raise _unfit(spec, manifest, f"`outputs` in `preprocessing`, as {told}")
        found[role] = fitting[0]
    return {role: found[role] for role in wanted}


_WORDS: Final[Mapping[str, Mapping[Role, tuple[str, ...]]]] = {
    "nms": {
        "boxes": ("box",),
        "scores": ("score", "conf", "prob"),
        "classes": ("class", "label", "categor"),
        "count": ("num", "count"),
    },
    "detr": {"boxes": ("box", "dets"), "logits": ("logit", "label", "class", "score")},
}


def _could_be(layout: str, role: Role, output: TensorSpec) -> bool:
    """Whether an output may have a role: by its name, else by its shape and type."""
    words = _WORDS[layout]
    named = [each for each in words if any(word in output.name.lower() for word in words[each])]
    if len(named) == 1 and (named != ["boxes"] or _is_boxes(output)):
        return named == [role]
    if role == "boxes":
        return _is_boxes(output)
    if role == "logits":
        return len(output.shape) >= 2
    if _is_boxes(output):
        return False
    is_whole = output.dtype.startswith(("int", "uint"))
    if role == "scores":
        return not is_whole
    is_count = len(output.shape) <= 1 or output.shape[-1] == 1
    return is_whole and is_count == (role == "count")


def _unfit(spec: DetectorSpec, manifest: ModelManifest, expected: str) -> ModelError:
    outputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in manifest.outputs)
    return ModelError(
        f"detector {spec.name} with {len(spec.class_names)} classes: expected {expected}; its "
        f"manifest has the outputs {outputs}; docs/detector.md lists the layouts"
    )
