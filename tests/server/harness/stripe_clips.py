"""A small storm bundle that really looks at the stripes' scene, made without training.

Its spatial model is a linear map, fitted to the appearance features of the scene, to which stripe
is bright. Its temporal one compares the newest frame with the oldest that are there: a component
changed where only one of them is in a stripe that has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keystep_capture.video import PacketDecoder
from keystep_models.cues.appearance_cue import (
    CROP,
    AppearancePreprocessing,
    appearance_manifest_path,
)
from keystep_models.onnx_model import ModelManifest, OnnxModel
from keystep_models.psr.procedure import Procedure
from keystep_models.storm.bundle import (
    Accumulation,
    ClipGeometry,
    StormBundle,
    StormDocument,
    write_storm_bundle,
)
from stripe_detector import FRAMES

STRIPES = 3
CLIP = ClipGeometry(frames=7, every=2)
HAS = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32)  # stripe by component
Features = NDArray[np.float32]


def decoded(packets: Sequence[dict[str, Any]]) -> list[av.VideoFrame]:
    decoder = PacketDecoder("h264")
    return [decoder.decode(packet["payload"]) for packet in packets]


def features_of(frames: Sequence[av.VideoFrame]) -> Features:
    """The appearance feature of each frame, float32 (T, 1280)."""
    model, preparing = OnnxModel.load(appearance_manifest_path()), AppearancePreprocessing()
    found, row = [], np.empty((1, CROP, CROP, 3), np.uint8)
    for frame in frames:
        preparing.from_video_frame(frame, row[0])
        found.append(model.run(row)[0])
    return np.stack(found)


def make_bundle(
    folder: Path, procedure: Procedure, features: Features, clip: ClipGeometry = CLIP
) -> StormBundle:
    """Write a bundle for the scene's features, a row per frame."""
    manifest = ModelManifest.read(appearance_manifest_path())
    draft = StormDocument(
        format_version=1,
        kind="storm",
        id="0" * 64,
        rate_hz=10.0,
        input="appearance",
        input_source={"model": manifest.name, "sha256": manifest.sha256},
        embedding_size=STRIPES,
        component_count=procedure.component_count,
        clip=clip,
        accumulation=Accumulation(threshold=2.5, decay=0.75, window_ticks=clip.ticks),
        states=("100", "110", "111"),
        temporal="mlp",
        training={},
        files={},
    )

    def write(into: Path) -> None:
        _write(into / "spatial", _spatial(features), ["appearance"], "embedding")
        _write(into / "temporal", _temporal(clip.frames), ["clips", "valid"], "logits")

    return write_storm_bundle(folder, procedure, draft, write)


def _spatial(features: Features) -> onnx.ModelProto:
    targets = np.eye(STRIPES, dtype=np.float64)[np.arange(len(features)) * STRIPES // FRAMES]
    known = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    gram = known @ known.T + 1e-3 * np.trace(known @ known.T) / len(known) * np.eye(len(known))
    weights = (known.T @ np.linalg.solve(gram, targets)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["appearance", "w", "b"], ["placed"]),
        helper.make_node("LpNormalization", ["placed"], ["embedding"], axis=1, p=2),
    ]
    return _model(
        nodes,
        {"w": weights[:-1], "b": weights[-1]},
        {"appearance": (TensorProto.FLOAT, [features.shape[1]])},
        ("embedding", [STRIPES]),
    )


def _temporal(frames: int) -> onnx.ModelProto:
    node = helper.make_node
    constants = {
        "ages": (0.4 ** np.arange(frames)).astype(np.float32),  # the oldest weighs most
        "little": np.array(1e-9, np.float32),
        "axis": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "newest": np.array(frames - 1, np.int64),
        "has": 8 * HAS,
        "half": np.array(4.0, np.float32),
    }
    nodes = [
        node("Cast", ["valid"], ["there"], to=TensorProto.FLOAT),
        node("Mul", ["there", "ages"], ["weighed"]),
        node("ReduceSum", ["weighed", "axis"], ["mass"], keepdims=1),
        node("Add", ["mass", "little"], ["more"]),
        node("Div", ["weighed", "more"], ["shares"]),
        node("Unsqueeze", ["shares", "last"], ["columns"]),
        node("Mul", ["clips", "columns"], ["parts"]),
        node("ReduceSum", ["parts", "axis"], ["old"], keepdims=0),
        node("Gather", ["clips", "newest"], ["new"], axis=1),
        node("Sub", ["new", "old"], ["change"]),
        node("MatMul", ["change", "has"], ["moved"]),
        node("Sub", ["moved", "half"], ["logits"]),
    ]
    inputs = {
        "clips": (TensorProto.FLOAT, [frames, STRIPES]),
        "valid": (TensorProto.BOOL, [frames]),
    }
    return _model(nodes, constants, inputs, ("logits", [STRIPES]))


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    inputs: dict[str, tuple[int, list[int]]],
    output: tuple[str, list[int]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "stripes",
        [helper.make_tensor_value_info(n, t, ["batch", *s]) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["batch", *output[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _write(folder: Path, model: onnx.ModelProto, inputs: list[str], output: str) -> None:
    content = model.SerializeToString()
    folder.mkdir()
    (folder / f"{folder.name}.onnx").write_bytes(content)
    kinds = {TensorProto.FLOAT: "float32", TensorProto.BOOL: "bool"}

    def described(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        return {"name": value.name, "dtype": kinds[tensor.elem_type], "shape": shape}

    assert [value.name for value in model.graph.input] == inputs
    assert model.graph.output[0].name == output
    manifest = {
        "name": f"stripes-{folder.name}",
        "version": "1",
        "file": f"{folder.name}.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "CC0-1.0",
        "source": "made by a test",
        "inputs": [described(value) for value in model.graph.input],
        "outputs": [described(value) for value in model.graph.output],
        "preprocessing": {},
        "rate_hz": 10.0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
