"""Exports the small detector as one ONNX graph with its manifest, checked against torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from keystep_capture.errors import ModelError
from keystep_models.detector.detector import MANIFEST
from keystep_models.steps.feature_folder import atomic_path, write_json
from keystep_models.training.detector_model import HEIGHT, WIDTH, WholeDetector
from keystep_models.training.export_appearance import store_weights_as_float16
from keystep_models.training.onnx_graph import graph_of

FILE_NAME: Final = "detector.onnx"
STATES_NAME: Final = "states.json"
MAX_DIFFERENCE: Final = 0.02
"""Of a confidence between torch and the stored graph, whose weights are float16."""


def export_detector(
    detector: WholeDetector,
    folder: Path,
    *,
    name: str,
    source: str,
    licence: str,
    simulated: bool,
    check: NDArray[np.uint8],
) -> float:
    """Write detector.onnx, manifest.json and states.json.

    Args:
        detector: Trained and calibrated.
        folder: Where to.
        name: What the manifest calls it.
        source: Where the weights come from.
        licence: SPDX expression.
        simulated: Whether it was trained on simulated pictures.
        check: Pictures on which graph and torch are compared, uint8 (B, 3, 192, 320).

    Returns:
        The largest difference of a confidence.

    Raises:
        ModelError: Graph and torch differ too much, or the exporter wrote what is not known.
        OSError: The disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = store_weights_as_float16(_graph(detector))
    payload = stored.SerializeToString(deterministic=True)
    difference = _difference(detector, payload, check)
    if difference > MAX_DIFFERENCE:
        raise ModelError(
            f"expected graph and torch to agree within {MAX_DIFFERENCE}, they differ by "
            f"{difference:.4f} in a confidence"
        )
    texts = state_texts(detector)
    with atomic_path(folder / FILE_NAME) as path:
        path.write_bytes(payload)
    write_json(folder / STATES_NAME, [None, *texts, None])
    classes = ["background", *texts, "error_state"]
    manifest = {
        "name": name,
        "version": "1",
        "file": FILE_NAME,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "licence": licence,
        "source": source,
        "inputs": [{"name": "pictures", "dtype": "uint8", "shape": ["batch", 3, HEIGHT, WIDTH]}],
        "outputs": [{"name": "found", "dtype": "float32", "shape": ["batch", 4 + len(classes), 1]}],
        "preprocessing": {
            "kind": "detector",
            "layout": "yolov8",
            "classes": classes,
            "scaling": "bilinear",
            "max_detections": 1,
            "across_classes": True,
            "simulated": simulated,
        },
        "rate_hz": 10.0,
    }
    write_json(folder / MANIFEST, manifest)
    return difference


def state_texts(detector: WholeDetector) -> list[str]:
    """The known states as digits, in the order of the classes."""
    count = detector.name.component_count
    chosen = detector.choices.t().reshape(-1, count, 3).argmax(2).tolist()
    return ["".join(map(str, state)) for state in chosen]


def _graph(detector: WholeDetector) -> onnx.ModelProto:
    example = torch.zeros((2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    return graph_of(detector, {"pictures": example}, ["found"], "detector")


def _difference(detector: WholeDetector, payload: bytes, check: NDArray[np.uint8]) -> float:
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"pictures": check})
    with torch.inference_mode():
        expected = detector(torch.from_numpy(check)).numpy()
    return float(np.abs(found[:, 4:] - expected[:, 4:]).max())
