"""A detector of assembly states: a frame in, detections out, whatever the exporter's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ModelError, ShapeError
from keystep_models.detector.candidates import read_candidates
from keystep_models.detector.layouts import choose_reading
from keystep_models.detector.letterbox import Placement, Scaler, place
from keystep_models.detector.spec import DetectorSpec
from keystep_models.detector.suppression import suppress, surest_first
from keystep_models.onnx_model import OnnxModel
from keystep_models.psr.logic import Detection

MANIFEST: Final = "manifest.json"


class Detector:
    """A loaded detector.

    `detect` does it all. A server that runs models elsewhere calls `prepare`, runs the rows, and
    gives `read` what came out. `read` may be called from any thread; `prepare` keeps the scaler's
    tables, so give each thread, and best each stream, its own (`beside`).
    """

    def __init__(self, model: OnnxModel, detector_id: str = "") -> None:
        """Take a loaded model; `load` is the way in, which gives it its id.

        Raises:
            ModelError: Its manifest is no detector's, or its outputs are of no known layout.
        """
        self.model = model
        self.id = detector_id
        self.spec = DetectorSpec.of(model.manifest)
        self.reading = choose_reading(self.spec, model.manifest)
        self._scaler = Scaler(self.spec.scaling)
        self._channels = (0, 1, 2) if self.spec.colour == "rgb" else (2, 1, 0)

    @classmethod
    def load(
        cls, path: Path | str, *, providers: Sequence[str] | None = None, intra_op_threads: int = 1
    ) -> Detector:
        """Load a detector.

        Args:
            path: Its folder, or the manifest.json in it.
            providers: As for `OnnxModel.load`.
            intra_op_threads: Threads that one run may use.

        Raises:
            ConfigError: A provider that this installation does not have.
            ModelError: The files are missing, corrupt or disagree, or it is no detector.
        """
        path = Path(path)
        manifest = path / MANIFEST if path.is_dir() else path
        model = OnnxModel.load(manifest, providers=providers, intra_op_threads=intra_op_threads)
        return cls(model, manifest_id(manifest))

    def beside(self) -> Detector:
        """The same detector, its weights shared, for another thread."""
        return Detector(self.model.beside(), self.id)

    def detect(self, frame: av.VideoFrame) -> list[Detection]:
        """The assembly states in a frame, surest first.

        Args:
            frame: Any pixel format that swscale reads, any size.

        Returns:
            Class ids are the detector's own (`ClassMap` makes them a procedure's); boxes are
            centre and size in pixels of the frame, inside it.

        Raises:
            ShapeError: The frame has no pixels or sides that no camera has.
            ModelError: The model failed, or gave another shape than its layout's.
        """
        rows, placement = self.prepare(frame)
        outputs = self.model.run({self.model.manifest.inputs[0].name: rows})
        return self.read(outputs, placement)

    def prepare(
        self, frame: av.VideoFrame, out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], Placement]:
        """A frame as the model's input.

        Args:
            frame: As for `detect`.
            out: Where it goes, a batch of 1 as the manifest says; a new array where not given.

        Returns:
            The input, C-contiguous, and where the frame lies in it.
        """
        spec = self.spec
        placement = place(frame.width, frame.height, spec.width, spec.height, spec.fit)
        shape = (3, spec.height, spec.width) if spec.planar else (spec.height, spec.width, 3)
        rows = np.empty((1, *shape), spec.dtype) if out is None else out
        if rows.shape != (1, *shape) or rows.dtype != spec.dtype or not rows.flags.c_contiguous:
            raise ShapeError(
                f"expected a contiguous {spec.dtype} buffer of shape {(1, *shape)}, got "
                f"{rows.dtype} {rows.shape}"
            )
        planes = rows[0] if spec.planar else rows[0].transpose(2, 0, 1)
        top, left = placement.top, placement.left
        bottom, right = top + placement.height, left + placement.width
        pixels = self._scaler.planes(frame, placement)
        for channel, (plane, source) in enumerate(zip(planes, self._channels, strict=True)):
            self._write(pixels[source], plane[top:bottom, left:right], channel)
            padding = self._value(spec.pad_value, channel)
            plane[:top], plane[bottom:] = padding, padding
            plane[top:bottom, :left], plane[top:bottom, right:] = padding, padding
        return rows, placement

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement) -> list[Detection]:
        """Detections from a model's outputs for one frame; as `detect`.

        Args:
            outputs: By name, a batch of 1.
            placement: What `prepare` said of the frame.
        """
        return self.to_detections(self.find(outputs), placement)

    def find(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """What a model's outputs for one frame hold, surest first, without overlapping boxes.

        Args:
            outputs: By name, a batch of 1.

        Returns:
            Corners in pixels of the input, score, class; shape (N, 6), at most `max_detections`.
        """
        spec = self.spec
        found = read_candidates(self.reading, spec, outputs)
        boxes, scores, class_ids = found.boxes, found.scores, found.class_ids
        if self.reading.relative_boxes:
            boxes = boxes * np.array([spec.width, spec.height] * 2, np.float64)
        if self.reading.iou is None:
            kept = surest_first(scores, spec.max_detections)
        else:
            kept = suppress(
                boxes,
                scores,
                class_ids,
                iou=self.reading.iou,
                max_count=spec.max_detections,
                across_classes=spec.across_classes,
            )
        return np.column_stack([boxes[kept], scores[kept], class_ids[kept]])

    def to_detections(self, found: NDArray[np.floating], placement: Placement) -> list[Detection]:
        """Rows of `find` as detections in a frame; as `detect`."""
        rows = found.astype(np.float64)
        limits = np.array(placement.picture_size * 2, np.float64)
        boxes = np.clip(placement.to_picture(rows[:, :4]), 0.0, limits)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        made = (
            _detection(row, box) for row, box in zip(rows[has_area], boxes[has_area], strict=True)
        )
        return list(dict.fromkeys(made))  # the very same box twice is one

    def _write(self, pixels: NDArray[np.uint8], out: NDArray[Any], channel: int) -> None:
        """Pixels as the input has them: (pixel - mean) / scale."""
        if self.spec.dtype == "uint8":
            out[...] = pixels
            return
        mean, scale = self.spec.mean[channel], self.spec.scale[channel]
        np.multiply(pixels, np.float32(1 / scale), out=out, casting="unsafe")
        if mean:
            out -= out.dtype.type(mean / scale)

    def _value(self, pixel: int, channel: int) -> float:
        if self.spec.dtype == "uint8":
            return pixel
        return (pixel - self.spec.mean[channel]) / self.spec.scale[channel]


def manifest_id(path: Path) -> str:
    """A detector's id: the hash of its manifest, which holds the model's; 64 hex digits.

    Raises:
        ModelError: There is no such file.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read the manifest {path}: {error}") from error


def _detection(row: NDArray[np.float64], corners: NDArray[np.float64]) -> Detection:
    x1, y1, x2, y2 = corners.tolist()
    box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    return Detection(int(row[5]), min(float(row[4]), 1.0), box)
