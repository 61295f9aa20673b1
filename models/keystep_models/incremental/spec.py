"""What a manifest says of incremental encoders, checked against the graph's tensors."""

from __future__ import annotations

from typing import Annotated

import msgspec

from keystep_capture.errors import ModelError
from keystep_models.onnx_model import OnnxModel

KIND = "incremental-encoders"
"""`preprocessing.kind` in the manifest of such a model."""

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class EncoderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest's `preprocessing`: how the encoders are to be used.

    Attributes:
        kind: Always `KIND`.
        cues: Values of a raw feature (D_cue) by cue, in the graph's order.
        layers: Names of the pool's tensors, one per layer.
        width: Values of an embedding (D).
        context: How many ticks back a tick sees, its own included (W).
        position: Which position encoding was trained.
    """

    kind: str
    cues: Annotated[dict[str, _Positive], msgspec.Meta(min_length=1)]
    layers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    width: _Positive
    context: _Positive
    position: str


def read_spec(model: OnnxModel) -> EncoderSpec:
    """The spec of a loaded model, checked against its tensors.

    Raises:
        ModelError: It is no model of incremental encoders.
    """
    name = model.manifest.name
    try:
        spec = msgspec.convert(model.manifest.preprocessing, EncoderSpec)
    except msgspec.ValidationError as error:
        raise ModelError(f"{name} is no model of incremental encoders: {error}") from error
    shapes = {each.name: each.shape for each in model.manifest.inputs if each.name != "frames"}
    fixed = {  # what is not free in the inputs' shapes
        "slots": (len(spec.cues), 2),
        "places": (len(spec.cues), 3),
        "ages": (len(spec.cues), spec.context),
        **{f"raw_{cue}": (size,) for cue, size in spec.cues.items()},
        **dict.fromkeys(spec.layers, (len(spec.cues), spec.context, spec.width)),
    }
    found = {key: tuple(n for n in shape if isinstance(n, int)) for key, shape in shapes.items()}
    outputs = ["adapted", *(f"{layer}_out" for layer in spec.layers)]
    if (
        spec.kind != KIND
        or found != fixed
        or [each.name for each in model.manifest.outputs] != outputs
    ):
        raise ModelError(
            f"{name} is no model of incremental encoders: expected inputs of sizes {fixed} and "
            f"outputs {outputs}; export it again"
        )
    return spec
