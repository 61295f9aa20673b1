"""A detector as an inference engine runs it: any number of pictures in, rows of detections out.

Whatever its layout and however many outputs it has, whether it takes one picture at a time or
many: the engine sees one input and one output whose first dimension is the batch, and reading and
suppression are done in the engine's thread.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystep_models.detector.detector import Detector
from keystep_models.onnx_model import ModelManifest, TensorSpec

MAX_ROWS: Final = 20
"""Detections of a picture that are handed on: the surest."""

ROW_VALUES: Final = 6
"""Corners in pixels of the input, score, class; class -1: there is no more."""


class BatchedDetector:
    """Runs a detector batch by batch; used by one thread at a time, `beside` gives another."""

    def __init__(self, detector: Detector) -> None:
        """Take a loaded detector."""
        self._detector = detector
        own = detector.model.manifest
        [given] = own.inputs
        self._takes_many = isinstance(given.shape[0], str) and all(
            output.shape and output.shape[0] == given.shape[0] for output in own.outputs
        )
        shape = ("batch", *given.shape[1:])
        found = TensorSpec(
            name="detections", dtype="float32", shape=("batch", MAX_ROWS, ROW_VALUES)
        )
        self._manifest = msgspec.structs.replace(
            own,
            inputs=(TensorSpec(name=given.name, dtype=given.dtype, shape=shape),),
            outputs=(found,),
        )

    @property
    def manifest(self) -> ModelManifest:
        """What goes in and out here."""
        return self._manifest

    @property
    def sha256(self) -> str:
        """The detector's id."""
        return self._detector.id

    def beside(self) -> BatchedDetector:
        """The same, its weights shared, for another thread."""
        return BatchedDetector(self._detector.beside())

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Look at pictures.

        Args:
            batch: As the manifest says, (B, ...).

        Returns:
            Float32 (B, 20, 6), surest first.

        Raises:
            ShapeError: The pictures are not as the manifest says.
            ModelError: The model failed.
        """
        rows = np.zeros((len(batch), MAX_ROWS, ROW_VALUES), np.float32)
        rows[..., -1] = -1
        for number, outputs in enumerate(self._outputs(batch)):
            found = self._detector.find(outputs)[:MAX_ROWS]
            rows[number, : len(found)] = found
        return rows

    def _outputs(self, batch: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        """Each picture's outputs."""
        model, name = self._detector.model, self._manifest.inputs[0].name
        if not self._takes_many:
            return [
                model.run({name: np.ascontiguousarray(batch[n : n + 1])}) for n in range(len(batch))
            ]
        whole = model.run({name: batch})
        return [
            {output: values[n : n + 1] for output, values in whole.items()}
            for n in range(len(batch))
        ]
