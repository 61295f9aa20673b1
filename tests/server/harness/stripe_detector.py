"""A detector that really looks: which third of the picture is bright is the class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from keystep_models.detector.detector import manifest_id
from keystep_models.psr.procedure import Procedure, ProcedureStep
from keystep_models.psr.procedure_document import of_procedure, write_document

NAME = "stripes"
CLASSES = ("100", "110", "111")
SIDE = 96
FRAMES = 90  # at 10 Hz: a third of them in each stripe, a few without a square


def make_detector(folder: Path, *, free_batch: bool = False) -> str:
    """Write model and manifest; the detector's id.

    With the centre of brightness at t of the width (0 to 1), class c scores
    1 - |3 t - c - 0.5|, times how much brightness there is.
    """
    node = helper.make_node
    constants = {
        "xs": (np.arange(SIDE, dtype=np.float32) + 0.5) * (3 / SIDE),
        "places": np.array([0.5, 1.5, 2.5], np.float32),
        "one": np.array(1.0, np.float32),
        "little": np.array(1.0, np.float32),
        "enough": np.array(100.0, np.float32),
        "box": np.array([[48.0, 48.0, 20.0, 20.0]], np.float32),
        "column": np.array([-1, 1], np.int64),
        "last": np.array([2], np.int64),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels"], ["columns"], axes=[1, 2], keepdims=0),
        node("Sub", ["columns", "enough"], ["above"]),
        node("Relu", ["above"], ["bright"]),
        node("ReduceSum", ["bright", "axes"], ["mass"], keepdims=1),
        node("Mul", ["bright", "xs"], ["moments"]),
        node("ReduceSum", ["moments", "axes"], ["moment"], keepdims=1),
        node("Add", ["mass", "little"], ["more"]),
        node("Div", ["moment", "more"], ["place"]),
        node("Sub", ["place", "places"], ["off"]),
        node("Abs", ["off"], ["distance"]),
        node("Sub", ["one", "distance"], ["near"]),
        node("Relu", ["near"], ["score"]),
        node("Div", ["mass", "more"], ["sure"]),
        node("Mul", ["score", "sure"], ["scores"]),
        node("Shape", ["mass"], ["sides"]),
        node("Mul", ["sides", "ones"], ["wide"]),
        node("Expand", ["box", "wide"], ["boxes"]),
        node("Concat", ["boxes", "scores"], ["flat"], axis=1),
        node("Unsqueeze", ["flat", "last"], ["output0"]),
    ]
    constants["ones"] = np.array([1, 4], np.int64)
    used = {name for each in nodes for name in each.input}
    batch = "batch" if free_batch else 1
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, 7, 1])],
        [numpy_helper.from_array(v, name) for name, v in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    folder.mkdir(parents=True)
    (folder / "detector.onnx").write_bytes(content)
    manifest = {
        "name": NAME,
        "version": "1",
        "file": "detector.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "CC0-1.0",
        "source": "made by a test",
        "inputs": [{"name": "images", "dtype": "uint8", "shape": [batch, 3, SIDE, SIDE]}],
        "outputs": [{"name": "output0", "dtype": "float32", "shape": [batch, 7, 1]}],
        "preprocessing": {"kind": "detector", "classes": list(CLASSES), "layout": "yolov8"},
        "rate_hz": 10.0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest_id(folder / "manifest.json")


def make_procedure(detector: str | None) -> Procedure:
    """Three parts, one after the other; the detector's classes in another order."""
    return Procedure(
        name=NAME,
        task="assy",
        steps=tuple(
            ProcedureStep(
                id=3 * k,
                title=f"Install part {k}",
                component_idx=k,
                kind="completed",
                expected=True,
            )
            for k in range(3)
        ),
        component_count=3,
        initial_state=(0, 0, 0),
        states=(None, (1, 1, 1), (1, 1, 0), (1, 0, 0)),
        detector=detector,
    )


def publish(data_dir: Path, **options: bool) -> Procedure:
    """Put detector and procedure where a server looks for them."""
    procedure = make_procedure(make_detector(data_dir / "detectors" / "mine", **options))
    (data_dir / "procedures").mkdir(parents=True, exist_ok=True)
    write_document(of_procedure(procedure), data_dir / "procedures" / f"{NAME}.json")
    return procedure


def scene(frames: int = FRAMES) -> Iterator[av.VideoFrame]:
    """A bright square in each third of the picture in turn; every seventh picture is dark."""
    for number in range(frames):
        image = np.full((180, 320, 3), 20, np.uint8)
        if number % 7 != 6:
            left = 20 + 107 * (3 * number // FRAMES) + number % 5
            image[20:160, left : left + 60] = 230
        yield av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
