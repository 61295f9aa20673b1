"""Small ONNX detectors, made on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keystep_models.detector.detector import Detector

_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}
_TYPES |= {"int32": TensorProto.INT32, "int64": TensorProto.INT64}

MakeDetector = Callable[..., Detector]


def save_model(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any]]],
    preprocessing: Mapping[str, Any],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        list(nodes),
        "detector",
        [helper.make_tensor_value_info(n, _TYPES[t], s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, _TYPES[t], s) for n, (t, s) in outputs.items()],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    (folder / "detector.onnx").write_bytes(content)
    tensors = {
        key: [{"name": n, "dtype": t, "shape": list(s)} for n, (t, s) in given.items()]
        for key, given in (("inputs", inputs), ("outputs", outputs))
    }
    manifest = {
        "name": "test-detector",
        "version": "1",
        "file": "detector.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "CC0-1.0",
        "source": "made by a test",
        **tensors,
        "preprocessing": {"kind": "detector", **preprocessing},
        "rate_hz": 10.0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def make_detector(tmp_path: Path) -> MakeDetector:
    """A detector that answers every picture with the same arrays."""
    made = 0

    def make(
        arrays: Mapping[str, NDArray[Any]],
        shapes: Mapping[str, Sequence[Any]] | None = None,
        size: tuple[int, int] = (64, 96),
        dtype: str = "float32",
        planar: bool = True,
        **preprocessing: Any,
    ) -> Detector:
        nonlocal made
        made += 1
        side = (1, 3, *size) if planar else (1, *size, 3)
        # The picture's values take part, times nothing, so that the graph has its input.
        nodes = [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["pixels"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        ]
        initializers = [numpy_helper.from_array(np.zeros((), np.float32), "zero")]
        for name, array in arrays.items():
            initializers.append(numpy_helper.from_array(array, f"{name}_values"))
            kind = _TYPES[str(array.dtype)]
            nodes.append(helper.make_node("Cast", ["nothing"], [f"{name}_nothing"], to=kind))
            added = helper.make_node("Add", [f"{name}_values", f"{name}_nothing"], [f"{name}_all"])
            # A shape that is computed is one that ONNX Runtime cannot know before.
            shape = np.array(array.shape, np.int64)
            initializers.append(numpy_helper.from_array(shape, f"{name}_shape"))
            nodes += [
                added,
                helper.make_node("Cast", ["nothing"], [f"{name}_zero"], to=TensorProto.INT64),
                helper.make_node("Add", [f"{name}_shape", f"{name}_zero"], [f"{name}_sides"]),
                helper.make_node("Reshape", [f"{name}_all", f"{name}_sides"], [name]),
            ]
        said = {
            name: (str(a.dtype), (shapes or {}).get(name, a.shape)) for name, a in arrays.items()
        }
        folder = save_model(
            tmp_path / f"detector{made}",
            nodes,
            initializers,
            {"images": (dtype, side)},
            said,
            preprocessing,
        )
        return Detector.load(folder)

    return make


@pytest.fixture
def box_finder(tmp_path: Path) -> MakeDetector:
    """A detector that really measures a bright rectangle: its centre of mass and its extent.

    For a separable picture v(x, y) = a(x) b(y) with a peak of 1, the sum of a is the sum of v over
    the greatest column sum.
    """
    made = 0

    def make(size: tuple[int, int], dtype: str = "float32", **preprocessing: Any) -> Detector:
        nonlocal made
        made += 1
        height, width = size
        constants = {
            "xs": (np.arange(width) + 0.5).astype(np.float32),
            "ys": (np.arange(height) + 0.5).astype(np.float32),
            "score": np.array([0.9], np.float32),
            "shape": np.array([1, 5, 1], np.int64),
            "top": np.array(255.0 if dtype == "uint8" else 1.0, np.float32),
            "first": np.array([1], np.int64),
            "second": np.array([2], np.int64),
            "third": np.array([3], np.int64),
        }
        node = helper.make_node
        nodes = [
            node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            node("Div", ["pixels", "top"], ["bright"]),
            node("ReduceMean", ["bright"], ["grey"], axes=[0, 1], keepdims=0),
            node("ReduceSum", ["grey"], ["mass"], keepdims=0),
            node("ReduceSum", ["grey", "rows"], ["columns"], keepdims=0),
            node("ReduceSum", ["grey", "cols"], ["lines"], keepdims=0),
            node("ReduceMax", ["columns"], ["tallest"], keepdims=0),
            node("ReduceMax", ["lines"], ["longest"], keepdims=0),
            node("Mul", ["columns", "xs"], ["moments_x"]),
            node("Mul", ["lines", "ys"], ["moments_y"]),
            node("ReduceSum", ["moments_x"], ["moment_x"], keepdims=0),
            node("ReduceSum", ["moments_y"], ["moment_y"], keepdims=0),
            node("Div", ["moment_x", "mass"], ["cx"]),
            node("Div", ["moment_y", "mass"], ["cy"]),
            node("Div", ["mass", "tallest"], ["w"]),
            node("Div", ["mass", "longest"], ["h"]),
        ]
        constants["rows"], constants["cols"] = np.array([0], np.int64), np.array([1], np.int64)
        for name in ("cx", "cy", "w", "h"):
            nodes.append(node("Unsqueeze", [name, "rows"], [f"{name}1"]))
        nodes.append(node("Concat", ["cx1", "cy1", "w1", "h1", "score"], ["flat"], axis=0))
        nodes.append(node("Reshape", ["flat", "shape"], ["output0"]))
        used = {name for each in nodes for name in each.input}
        initializers = [
            numpy_helper.from_array(v, name) for name, v in constants.items() if name in used
        ]
        planar = {"images": (dtype, (1, 3, height, width))}
        folder = save_model(
            tmp_path / f"finder{made}",
            nodes,
            initializers,
            planar,
            {"output0": ("float32", (1, 5, 1))},
            {"classes": ["thing"], "pad_value": 0, **preprocessing},
        )
        return Detector.load(folder)

    return make
