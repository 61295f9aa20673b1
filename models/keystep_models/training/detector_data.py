"""Training data of the small detector: a simulated data set's labels and the trunk's features.

Features are computed once per person and kept in the run's folder (`features/PERSON.npz`), so that
a run that was stopped does not look at the pictures again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from keystep_capture.errors import DataError
from keystep_models.detector.frame_labels import FrameLabels, read_frame_labels
from keystep_models.detector.letterbox import Placement, Scaler, place
from keystep_models.detector.recorded_pictures import open_pictures
from keystep_models.steps.feature_folder import atomic_path
from keystep_models.training.detector_model import (
    CHANNELS,
    CROP,
    HEIGHT,
    STRIDE,
    WIDTH,
    Trunk,
    crop,
    halve,
)
from keystep_models.training.onnx_graph import graph_of

VERSION: Final = 2
"""Counts changes of what is kept, so that an older run's features are not taken."""

_BATCH: Final = 32
# How a crop's box errs: the first a little, as the box head does, the others so that heads see more
# than the recording's views.
_SHIFT: Final = (0.04, 0.12)  # of the box's longer side
_STRETCH: Final = (0.10, 0.25)  # of its size, as a logarithm
_ANGLE: Final = (0.0, 0.26)  # radians
_GAIN: Final = (0.0, 0.25)  # of brightness, as a logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonFeatures:
    """A person's features (F frames looked at, V of them with an assembly, J crops of each).

    Attributes:
        whole: Of the halved picture, (F, 112, 6, 10), float16.
        boxes: In pixels of the input, NaN where there is no assembly, (F, 4), float32.
        crops: Of jittered crops, (V, J, 112, 10, 10), float16.
        states: Of the frames with an assembly, (V, K), int8.
        hidden: Of the same frames, (V,), float32.
    """

    whole: NDArray[np.float16]
    boxes: NDArray[np.float32]
    crops: NDArray[np.float16]
    states: NDArray[np.int8]
    hidden: NDArray[np.float32]


class Looks:
    """The trunk's two looks, run by ONNX Runtime: a third of torch's time on a CPU."""

    def __init__(self, trunk: Trunk, threads: int = 1) -> None:
        """Make two graphs of the trunk."""
        pictures = torch.zeros((2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
        boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]] * 2)
        self._whole = _session(_WholeLook(trunk), {"pictures": pictures}, threads)
        angles = torch.zeros(2)
        inputs = {"pictures": pictures, "boxes": boxes, "angles": angles, "gains": angles + 1.0}
        self._crop = _session(_CropLook(trunk), inputs, threads)

    def whole(self, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Features of halved pictures (B, 3, 192, 320): (B, 112, 6, 10)."""
        [found] = self._whole.run(None, {"pictures": pictures})
        return np.asarray(found, np.float16)

    def crops(
        self,
        pictures: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        angles: NDArray[np.float32],
        gains: NDArray[np.float32],
    ) -> NDArray[np.float16]:
        """Features of one crop of each picture: (B, 112, 10, 10).

        Args:
            pictures: Uint8 (B, 3, 192, 320).
            boxes: Around which, x1, y1, x2, y2 (B, 4).
            angles: By which it is turned, radians (B,).
            gains: By which its pixels are multiplied (B,).
        """
        inputs = {"pictures": pictures, "boxes": boxes, "angles": angles, "gains": gains}
        [found] = self._crop.run(None, inputs)
        return np.asarray(found, np.float16)


class _WholeLook(nn.Module):
    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.trunk(halve(pictures.to(torch.float32)))
        return found


class _CropLook(nn.Module):
    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(
        self,
        pictures: torch.Tensor,
        boxes: torch.Tensor,
        angles: torch.Tensor,
        gains: torch.Tensor,
    ) -> torch.Tensor:
        pixels = crop(pictures.to(torch.float32), boxes, angles=angles)
        found: torch.Tensor = self.trunk(torch.clamp(pixels * gains[:, None, None, None], 0, 255))
        return found


def _session(
    module: nn.Module, examples: Mapping[str, torch.Tensor], threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = graph_of(module.eval(), examples, ["features"], "look")
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def person_features(
    person: Path,
    folder: Path,
    looks: Looks,
    *,
    every: int,
    jitters: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> PersonFeatures:
    """A person's features, from `folder` if they are there, else computed and kept there.

    Args:
        person: With recording and labels.
        folder: Where features are kept.
        looks: What computes them.
        every: Every how many frames one is looked at.
        jitters: Crops of each frame with an assembly.
        on_progress: Told frames done and frames in all.

    Raises:
        DataError: The recording or the labels cannot be read, or are of different length.
    """
    pictures = open_pictures(person)
    labels = read_frame_labels(person)
    chosen = {"every": every, "jitters": jitters, "version": VERSION}
    described = json.dumps([dict(pictures.identity), chosen], sort_keys=True, default=str)
    labelled = (person / "frames.csv").read_bytes()
    key = hashlib.sha256(described.encode() + labelled).hexdigest()
    path = folder / f"{person.name}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) == key:
                return PersonFeatures(**{name: kept[name] for name in PersonFeatures.__slots__})
    gathering = _Gathering(labels, looks, jitters, seed=int(key[:8], 16))
    for number, _, picture in pictures.read():
        if number >= len(labels.states):
            raise DataError(
                f"{person}: the video has more frames than frames.csv ({len(labels.states)})"
            )
        if number % every == 0 and picture is not None:
            gathering.take(number, picture)
        if on_progress is not None and number % 100 == 0:
            on_progress(number, len(labels.states))
    made = gathering.finish()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, key=np.array(key), **{n: getattr(made, n) for n in PersonFeatures.__slots__})
    return made


class _Gathering:
    """Takes a person's pictures and computes features batch by batch."""

    def __init__(self, labels: FrameLabels, looks: Looks, jitters: int, seed: int) -> None:
        self._labels, self._looks, self._jitters = labels, looks, jitters
        self._rng = np.random.default_rng(seed)
        self._scaler = Scaler()
        self._pixels: list[NDArray[np.uint8]] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._frames: list[int] = []
        self._whole: list[NDArray[np.float16]] = []
        self._crops: list[NDArray[np.float16]] = []

    def take(self, number: int, picture: Any) -> None:
        """A frame of the labels."""
        placement = place(picture.width, picture.height, WIDTH, HEIGHT, "letterbox")
        self._pixels.append(letterboxed(self._scaler, picture, placement))
        self._boxes.append(placement.to_input(self._labels.boxes[number][None])[0])
        self._frames.append(number)
        if len(self._pixels) == _BATCH:
            self._run()

    def finish(self) -> PersonFeatures:
        """Everything that was taken."""
        if not self._frames:
            raise DataError("expected a recording with pictures, none could be decoded")
        self._run()
        boxes = np.array(self._boxes, np.float32)
        there = np.array(self._frames)[np.isfinite(boxes).all(axis=1)]
        return PersonFeatures(
            whole=np.concatenate(self._whole),
            boxes=boxes,
            crops=np.concatenate([self._no_crops(), *self._crops]),
            states=self._labels.states[there],
            hidden=self._labels.hidden[there].astype(np.float32),
        )

    def _no_crops(self) -> NDArray[np.float16]:
        side = CROP // STRIDE
        return np.zeros((0, self._jitters, CHANNELS, side, side), np.float16)

    def _run(self) -> None:
        if not self._pixels:
            return
        pixels = np.stack(self._pixels)
        boxes = np.array(self._boxes[-len(self._pixels) :])
        self._pixels.clear()
        there = np.isfinite(boxes).all(axis=1)
        self._whole.append(self._looks.whole(pixels))
        found = [
            self._looks.crops(pixels[there], *self._jittered(boxes[there], int(number > 0)))
            for number in range(self._jitters if there.any() else 0)
        ]
        if found:
            self._crops.append(np.stack(found, axis=1))

    def _jittered(
        self, boxes: NDArray[np.float64], kind: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Boxes that err, angles and gains; `kind` 0: a little, 1: much."""
        centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
        size = boxes[:, 2:] - boxes[:, :2]
        longer = size.max(axis=1, keepdims=True)
        centre = centre + self._drawn(_SHIFT[kind], centre.shape) * longer
        size = size * np.exp(self._drawn(_STRETCH[kind], longer.shape))
        moved = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        angles = self._drawn(_ANGLE[kind], len(boxes))
        gains = np.exp(self._drawn(_GAIN[kind], len(boxes)))
        return moved.astype(np.float32), angles.astype(np.float32), gains.astype(np.float32)

    def _drawn(self, most: float, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        return self._rng.uniform(-most, most, shape)


def letterboxed(scaler: Scaler, picture: Any, placement: Placement) -> NDArray[np.uint8]:
    """A picture as the detector's input, uint8 (3, 192, 320)."""
    pixels = np.full((3, HEIGHT, WIDTH), 114, np.uint8)
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    for channel, plane in enumerate(scaler.planes(picture, placement)):
        pixels[channel, rows, columns] = plane
    return pixels
