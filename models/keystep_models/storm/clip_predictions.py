"""Clip predictions of whole recordings from a bundle, in the layout that `keystep psr run` reads.

Every tick's clip is predicted, as live: those that begin before the session too, with what is
missing marked as such. B is ticks of a batch, N frames of a clip, C components.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError, ModelError
from keystep_models.onnx_model import OnnxModel
from keystep_models.steps.feature_folder import atomic_path
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.inputs import SessionInputs

_BATCH: Final = 64


def embed(bundle: StormBundle, inputs: NDArray[Any], *, threads: int = 1) -> NDArray[np.float32]:
    """Embeddings of a session's ticks, float32 (T, D), length one."""
    model = OnnxModel.load(bundle.spatial_manifest, intra_op_threads=threads)
    blocks = [
        model.run(np.ascontiguousarray(inputs[start : start + _BATCH]))
        for start in range(0, len(inputs), _BATCH)
    ]
    return np.concatenate(blocks).astype(np.float32)


def try_bundle(bundle: StormBundle) -> None:
    """Run a bundle's models once, before anything is made for them.

    Raises:
        ModelError: A model cannot be loaded, or gives values that are not finite.
    """
    spatial, temporal = map(OnnxModel.load, (bundle.spatial_manifest, bundle.temporal_manifest))
    row = spatial.manifest.inputs[0]
    shape = [dim for dim in row.shape if isinstance(dim, int)]
    embedding = spatial.run(np.zeros((1, *shape), row.dtype))
    frames = bundle.document.clip.frames
    clips = np.repeat(embedding[:, None], frames, axis=1)
    logits = temporal.run({"clips": clips, "valid": np.ones((1, frames), np.bool_)})["logits"]
    if not (np.isfinite(embedding).all() and np.isfinite(logits).all()):
        raise ModelError(f"{bundle.folder}: expected finite values; fetch the bundle again")


def predict_clips(
    bundle: StormBundle, session: SessionInputs, *, threads: int = 1
) -> NDArray[np.float32]:
    """Sigmoid values of the clip that ends at each tick, float32 (T, C).

    Ticks that cannot be seen have no prediction: a row of values that are not numbers.

    Raises:
        DataError: The session's inputs were made by another model than the bundle's.
        ModelError: A model cannot be loaded, or gives values that are not finite.
    """
    document = bundle.document
    if session.source != document.input_source:
        raise DataError(
            f"{session.ticks.name}: inputs were made by {session.source}, the bundle's by"
            f" {document.input_source}"
        )
    embeddings = embed(bundle, session.inputs, threads=threads)
    model = OnnxModel.load(bundle.temporal_manifest, intra_op_threads=threads)
    count = session.ticks.tick_count
    found = np.full((count, document.component_count), np.nan, np.float32)
    steps = np.arange(document.clip.frames - 1, -1, -1) * document.clip.every
    ends = np.flatnonzero(session.ticks.valid)
    for start in range(0, len(ends), _BATCH):
        batch = ends[start : start + _BATCH]
        ticks = batch[:, None] - steps
        valid = (ticks >= 0) & session.ticks.valid[np.maximum(ticks, 0)]
        clips = np.where(valid[..., None], embeddings[np.maximum(ticks, 0)], np.float32(0))
        logits = model.run({"clips": clips, "valid": valid})["logits"]
        if not np.isfinite(logits).all():
            raise ModelError(
                f"{bundle.folder}: expected finite values of the clips of {session.ticks.name}, got"
                " others; fetch the bundle again"
            )
        found[batch] = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return found


def write_clips(path: Path, session: SessionInputs, values: NDArray[np.float32]) -> None:
    """Write predictions by video frame: a frame without a tick of its own has none.

    Raises:
        OSError: The disk does not take it.
    """
    tick_of = dict(zip(session.ticks.frames.tolist(), range(len(values)), strict=True))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["framenr", *(f"component_{idx}" for idx in range(values.shape[1]))])
        for frame_idx in range(session.ticks.frame_count):
            tick = tick_of.get(frame_idx)
            there = tick is not None and not np.isnan(values[tick]).any()
            row = [f"{value:.6f}" for value in values[tick]] if there and tick is not None else []
            writer.writerow([frame_idx, *row])
