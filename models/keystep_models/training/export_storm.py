"""A trained STORM run as a bundle: both models as ONNX, checked against torch."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from keystep_capture.errors import ModelError
from keystep_models.cues.appearance_cue import CROP, EMBEDDING_SIZE, AppearancePreprocessing
from keystep_models.onnx_model import ModelManifest, OnnxModel
from keystep_models.psr.procedure import Procedure
from keystep_models.steps.feature_folder import write_json
from keystep_models.storm.bundle import (
    SPATIAL,
    TEMPORAL,
    Accumulation,
    ClipGeometry,
    StormBundle,
    StormDocument,
    write_storm_bundle,
)
from keystep_models.storm.settings import StormSettings
from keystep_models.training.storm_run import StormData, StormModel, StormRun

OPSET: Final = 17
MAX_DIFFERENCE: Final = 1e-4
"""Between the exported graphs and torch, of any value."""


def export_bundle(
    run: StormRun,
    data: StormData,
    settings: StormSettings,
    procedure: Procedure,
    folder: Path,
    *,
    licence: str = "LicenseRef-own-data",
) -> StormBundle:
    """Write a run's bundle; nothing is left behind if a graph differs from torch.

    Args:
        run: With the trained model.
        data: What it was trained on.
        settings: How.
        procedure: What the components belong to.
        folder: Where to; must not exist.
        licence: SPDX expression; the weights are their maker's.

    Raises:
        StateError: The folder exists.
        DataError: The procedure has other components.
        ModelError: A graph differs from torch by more than `MAX_DIFFERENCE`.
    """
    draft = StormDocument(
        format_version=1,
        kind="storm",
        id="0" * 64,
        rate_hz=float(settings.rate_hz),
        input=settings.input,
        input_source=dict(data.sessions[0].source),
        embedding_size=settings.embedding,
        component_count=data.component_count,
        clip=ClipGeometry(frames=settings.clip_frames, every=settings.clip_every),
        accumulation=Accumulation(
            threshold=settings.threshold,
            decay=settings.decay,
            window_ticks=settings.clip_ticks,
        ),
        states=run.classes,
        temporal=settings.temporal,
        training={
            "settings": settings.as_document(),
            "sessions": [session.ticks.name for session in data.sessions],
        },
        files={},
    )

    def write_models(target: Path) -> None:
        _write_spatial(run.model, settings, target / SPATIAL, licence)
        _write_temporal(run.model, settings, data.component_count, target / TEMPORAL, licence)

    return write_storm_bundle(folder, procedure, draft, write_models)


def _write_spatial(
    model: StormModel, settings: StormSettings, manifest: Path, licence: str
) -> None:
    rng = np.random.default_rng(0)
    example: dict[str, Tensor]
    if settings.input == "appearance":
        values = np.abs(rng.normal(size=(2, EMBEDDING_SIZE))).astype(np.float32)
        example, preprocessing = {"appearance": torch.from_numpy(values)}, {}
    else:
        pixels = rng.integers(0, 256, (2, CROP, CROP, 3), np.uint8)
        example = {"frames": torch.from_numpy(pixels)}
        preprocessing = AppearancePreprocessing.manifest_entry(mean=127.5, scale=127.5)
    _export(model.spatial, example, "embedding", manifest, "spatial.onnx")
    _finish(
        model.spatial, example, "embedding", manifest, "spatial.onnx", licence,
        {"kind": "storm-spatial", **preprocessing}, settings.rate_hz,
    )  # fmt: skip


def _write_temporal(
    model: StormModel,
    settings: StormSettings,
    component_count: int,
    manifest: Path,
    licence: str,
) -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(3, settings.clip_frames, settings.embedding)).astype(np.float32)
    clips /= np.linalg.norm(clips, axis=2, keepdims=True)
    valid = np.ones(clips.shape[:2], np.bool_)
    valid[1, : settings.clip_frames // 2] = False  # the session began half a clip ago
    valid[2, 1:-1:3] = False  # gaps
    example = {"clips": torch.from_numpy(clips), "valid": torch.from_numpy(valid)}
    _export(model.temporal, example, "logits", manifest, "temporal.onnx")
    about: dict[str, Any] = {
        "kind": "storm-temporal",
        "temporal": settings.temporal,
        "every_ticks": settings.clip_every,
        "components": component_count,
    }
    _finish(
        model.temporal, example, "logits", manifest, "temporal.onnx", licence, about,
        settings.rate_hz,
    )  # fmt: skip


def _export(
    network: nn.Module, example: dict[str, Tensor], output: str, manifest: Path, file: str
) -> None:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    path = manifest.parent / file
    with warnings.catch_warnings():
        # The exporter that writes opset 17 is deprecated, and warns of GRUs' batch dimension.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=[output],
            dynamic_axes={name: {0: "batch"} for name in (*example, output)},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _finish(
    network: nn.Module,
    example: dict[str, Tensor],
    output: str,
    manifest: Path,
    file: str,
    licence: str,
    preprocessing: dict[str, Any],
    rate_hz: float,
) -> None:
    """Write the manifest and compare the graph with torch."""
    with torch.inference_mode():
        expected = network(*example.values()).numpy()
    kinds = {torch.float32: "float32", torch.uint8: "uint8", torch.bool: "bool"}
    write_json(
        manifest,
        {
            "name": preprocessing["kind"],
            "version": "1",
            "file": file,
            "sha256": hashlib.sha256((manifest.parent / file).read_bytes()).hexdigest(),
            "licence": licence,
            "source": "trained with keystep train storm",
            "inputs": [
                {"name": name, "dtype": kinds[value.dtype], "shape": ["batch", *value.shape[1:]]}
                for name, value in example.items()
            ],
            "outputs": [
                {"name": output, "dtype": "float32", "shape": ["batch", expected.shape[1]]}
            ],
            "preprocessing": preprocessing,
            "rate_hz": rate_hz,
        },
    )
    ModelManifest.read(manifest)
    model = OnnxModel.load(manifest, providers=["CPUExecutionProvider"])
    for rows in (slice(None), slice(0, 1)):  # any batch size
        found = model.run({name: value.numpy()[rows] for name, value in example.items()})[output]
        difference = float(np.abs(found - expected[rows]).max())
        if not difference <= MAX_DIFFERENCE:
            raise ModelError(f"{file} differs from torch by {difference:.1e}; nothing was written")
