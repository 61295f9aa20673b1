"""What a detector's manifest says under `preprocessing` (docs/detector.md), read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from keystep_capture.errors import DataError, ModelError
from keystep_models.detector.letterbox import Fit, Scaling
from keystep_models.onnx_model import ModelManifest
from keystep_models.psr.procedure import ComponentState, parse_state

KIND: Final = "detector"
MAX_CLASSES: Final = 10_000
MAX_INPUT_SIDE: Final = 4096

LayoutName: TypeAlias = Literal["yolov8", "yolov5", "end2end", "yolov7", "nms", "detr"]
"""What the outputs hold; `keystep_models.detector.layouts` says how each is laid out."""

Role: TypeAlias = Literal["boxes", "scores", "classes", "count", "logits"]
Activation: TypeAlias = Literal["none", "sigmoid", "softmax"]

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Channels = float | Annotated[tuple[float, ...], msgspec.Meta(min_length=3, max_length=3)]


class _Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table as it is written."""

    kind: Literal["detector"]
    classes: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    states: tuple[str | None, ...] | None = None
    layout: LayoutName | None = None
    outputs: dict[Role, _Text] = {}
    fit: Fit = "letterbox"
    scaling: Scaling = "bilinear"
    colour: Literal["rgb", "bgr"] = "rgb"
    pad_value: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    mean: _Channels = 0.0
    scale: _Channels = 255.0
    boxes: Literal["pixels", "relative"] = "pixels"
    form: Literal["corners", "centre"] | None = None
    activation: Activation | None = None
    confidence: _Share = 0.25
    iou: _Share | None = None
    across_classes: bool = False
    max_detections: _Count = 100
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """How a detector wants its pictures and what its answers mean.

    Attributes:
        name: The model's, for messages.
        class_names: By class id.
        states: What each class stands for, one value per component; None: no state (background,
            an assembly with an error).
        height: Rows of the input.
        width: Columns of the input.
        planar: Whether the input is (B, 3, H, W), not (B, H, W, 3).
        dtype: Of the input: "uint8" (pixels as they are), "float32" or "float16".
        fit: How a picture is fitted into the input.
        scaling: The filter that scales it.
        colour: Order of the channels.
        pad_value: Of the pixels that no picture covers, 0 to 255.
        mean: Of each channel, pixels from 0 to 255, in the order of `colour`.
        scale: The input is (pixel - mean) / scale.
        layout: Of the outputs; None where their shapes are to tell.
        outputs: Names of the outputs by role, for layouts of several outputs; may be empty.
        relative_boxes: Whether boxes go from 0 to 1, not over the input's pixels.
        form: Of boxes in layouts of several outputs: x1, y1, x2, y2, or centre and size; None: as
            the layout has them.
        activation: What is still to be applied to scores; None: as the layout has them.
        confidence: Detections below are left out.
        iou: Of two boxes of a class that overlap more, the less sure one is left out; None: as
            the layout needs it.
        across_classes: Whether boxes of different classes drive each other out, too.
        max_detections: Most of a frame.
    """

    name: str
    class_names: tuple[str, ...]
    states: tuple[ComponentState | None, ...]
    height: int
    width: int
    planar: bool
    dtype: str
    fit: Fit
    scaling: Scaling
    colour: str
    pad_value: int
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    layout: LayoutName | None
    outputs: dict[Role, str]
    relative_boxes: bool
    form: str | None
    activation: Activation | None
    confidence: float
    iou: float | None
    across_classes: bool
    max_detections: int

    @classmethod
    def of(cls, manifest: ModelManifest) -> DetectorSpec:
        """Read a manifest.

        Raises:
            ModelError: It is no detector's: no `preprocessing` of kind "detector", one that is not
                as documented, or an input that is no picture.
        """
        if manifest.preprocessing.get("kind") != KIND:
            raise ModelError(
                f"model {manifest.name} is no detector: expected `preprocessing` with kind "
                f'"{KIND}", got kind {manifest.preprocessing.get("kind")!r}; docs/detector.md says '
                "what a detector's manifest holds"
            )
        try:
            told = msgspec.convert(manifest.preprocessing, _Told)
        except msgspec.ValidationError as error:
            raise ModelError(
                f"model {manifest.name}, `preprocessing`: {error}; see docs/detector.md"
            ) from error
        height, width, planar = _input_shape(manifest)
        return cls(
            name=manifest.name,
            class_names=told.classes,
            states=_states(manifest.name, told),
            height=height,
            width=width,
            planar=planar,
            dtype=manifest.inputs[0].dtype,
            fit=told.fit,
            scaling=told.scaling,
            colour=told.colour,
            pad_value=told.pad_value,
            mean=_channels(manifest.name, "mean", told.mean),
            scale=_channels(manifest.name, "scale", told.scale),
            layout=told.layout,
            outputs=dict(told.outputs),
            relative_boxes=told.boxes == "relative",
            form=told.form,
            activation=told.activation,
            confidence=told.confidence,
            iou=told.iou,
            across_classes=told.across_classes,
            max_detections=told.max_detections,
        )


def is_detector(manifest: ModelManifest) -> bool:
    """Whether a manifest says that its model is a detector."""
    return manifest.preprocessing.get("kind") == KIND


def _input_shape(manifest: ModelManifest) -> tuple[int, int, bool]:
    found: Any = manifest.inputs[0]
    shape = found.shape
    fits = (
        len(manifest.inputs) == 1
        and len(shape) == 4
        and 3 in (shape[1], shape[3])
        and (isinstance(shape[0], str) or shape[0] == 1)
        and found.dtype in ("uint8", "float32", "float16")
    )
    if fits:
        planar = shape[3] != 3
        height, width = shape[2:] if planar else shape[1:3]
        are_numbers = isinstance(height, int) and isinstance(width, int)
        if are_numbers and max(height, width) <= MAX_INPUT_SIDE:
            return height, width, planar
    inputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in manifest.inputs)
    raise ModelError(
        f"model {manifest.name} is no detector: expected one input, uint8, float32 or float16, of "
        "shape [1 or a name, 3, H, W] or [1 or a name, H, W, 3], H and W numbers up to "
        f"{MAX_INPUT_SIDE}; its manifest has {inputs}"
    )


def _states(name: str, told: _Told) -> tuple[ComponentState | None, ...]:
    """What classes stand for: as `states` says, else as names of digits do."""
    if len(set(told.classes)) < len(told.classes):
        twice = next(c for c in told.classes if told.classes.count(c) > 1)
        raise ModelError(f"model {name}: class {twice!r} occurs twice; every class needs its name")
    if told.states is not None and len(told.states) != len(told.classes):
        raise ModelError(
            f"model {name}: expected a state for each of {len(told.classes)} classes, got "
            f"{len(told.states)}"
        )
    texts = told.classes if told.states is None else told.states
    try:
        states = tuple(
            parse_state(text)
            if text is not None and (told.states is not None or text.isdecimal())
            else None
            for text in texts
        )
    except DataError as error:
        raise ModelError(f"model {name}, `states`: {error}") from error
    if len({len(state) for state in states if state is not None}) > 1:
        raise ModelError(f"model {name}: its states have different numbers of components")
    return states


def _channels(name: str, key: str, value: float | tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, tuple) else (value,) * 3
    found = (float(red), float(green), float(blue))
    if not all(abs(each) < 1e6 for each in found) or (key == "scale" and 0 in found):
        raise ModelError(
            f"model {name}: expected `{key}` as numbers of pixels from 0 to 255, got {value}"
        )
    return found
