"""Exports causal encoders as one ONNX graph that advances a batch of sessions by one tick.

A model's folder gets `encoders.onnx` and `manifest.json`, which
`keystep_models.incremental.encoders.IncrementalEncoders` loads. Before anything is kept, the graph
is stepped through made-up features with gaps, past the context, and compared with torch's masked
forward over the whole sequence.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ModelError
from keystep_models.incremental.encoders import KIND, IncrementalEncoders, Ticks
from keystep_models.onnx_model import ModelManifest
from keystep_models.steps.feature_folder import atomic_path, write_json
from keystep_models.training.encoders import (
    AGE_SLOPES,
    HEADS,
    WIDTH,
    CueEncoder,
    position_rates,
)
from keystep_models.training.step_graph import (
    CueWeights,
    GraphOptions,
    LayerWeights,
    Weights,
    build_step_graph,
    tensor_entries,
)
from keystep_models.training.steps_model import StepsModel

FILE_NAME = "encoders.onnx"
MAX_DIFFERENCE = 1e-4
"""Between stepping the graph and torch's masked forward, of any value of an embedding."""
_CHECKED_PAST_CONTEXT = 200

Features = Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""Cue to raw features, float32 (T, D_cue), and where they are there, bool (T,)."""


def export_incremental(
    model: StepsModel,
    folder: Path,
    *,
    name: str = "encoders",
    version: str = "1",
    rate_hz: float = 10.0,
    licence: str = "LicenseRef-own-data",
    source: str = "trained with keystep train steps",
    check: Features | None = None,
) -> float:
    """Write the graph and its manifest; nothing is left behind if it differs from torch.

    Args:
        model: Causal transformers with a bounded context.
        folder: Where to; made where it is not there.
        name: In the manifest.
        version: In the manifest.
        rate_hz: Ticks a second the model was trained with.
        licence: SPDX expression; the weights are their maker's.
        source: Where the weights come from.
        check: Features of one session to compare on, made up by default.

    Returns:
        The largest difference from torch that was found.

    Raises:
        ConfigError: Encoders that see the future, without a bounded context or of another kind.
        ModelError: The graph differs from torch by more than `MAX_DIFFERENCE`.
    """
    _check_exportable(model)
    settings = model.settings
    encoders = {cue: _weights(_encoder(model, cue)) for cue in model.sizes}
    rates = {cue: position_rates(size).numpy() for cue, size in model.sizes.items()}
    options = GraphOptions(
        context=settings.context,
        heads=HEADS,
        slopes=AGE_SLOPES if settings.position == "age" else (0.0,) * HEADS,
        frame_rates=rates if settings.position == "frame" else {},
    )
    graph = build_step_graph(encoders, options)
    payload = graph.SerializeToString(deterministic=True)
    document = {
        "name": name,
        "version": version,
        "file": FILE_NAME,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "licence": licence,
        "source": source,
        "inputs": tensor_entries(graph.graph.input),
        "outputs": tensor_entries(graph.graph.output),
        "preprocessing": {
            "kind": KIND,
            "cues": model.sizes,
            "layers": [each.name for each in graph.graph.input if each.name.startswith("layer_")],
            "width": WIDTH,
            "context": settings.context,
            "position": settings.position,
        },
        "rate_hz": rate_hz,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as trial:
        _write(Path(trial), payload, document)
        difference = stepping_difference(model, Path(trial) / "manifest.json", check)
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"the exported graph differs from torch by {difference:.1e}, at most "
            f"{MAX_DIFFERENCE:g} is accepted; nothing was written"
        )
    _write(folder, payload, document)
    return difference


def stepping_difference(
    model: StepsModel, manifest_path: Path, features: Features | None = None
) -> float:
    """Largest difference between stepping an exported graph and torch's masked forward.

    Args:
        model: What was exported.
        manifest_path: Of the export.
        features: One session's; by default made-up ones, with gaps, longer than the context.
    """
    features = features or made_up_features(
        model.sizes, model.settings.context + _CHECKED_PAST_CONTEXT
    )
    expected = masked_forward(model, features)
    encoders = IncrementalEncoders.load(manifest_path, slot_count=2)
    encoders.open()
    slot = encoders.open()
    largest = 0.0
    count = len(next(iter(features.values()))[0])
    for frame in range(count):
        found = encoders.step(
            Ticks(
                slots=np.array([slot]),
                frames=np.array([frame]),
                raw={cue: raw[frame][None] for cue, (raw, _) in features.items()},
                valid={cue: valid[frame][None] for cue, (_, valid) in features.items()},
            )
        )
        for cue, rows in found.adapted.items():
            difference = np.abs(rows[0] - expected[cue][frame]).max()
            largest = max(largest, float(difference) if np.isfinite(difference) else math.inf)
    return largest


def masked_forward(model: StepsModel, features: Features) -> dict[str, NDArray[np.float32]]:
    """Adapted features of a whole session in one pass of torch, float32 (T, 128) by cue."""
    found = {}
    for cue, (raw, valid) in features.items():
        frames = torch.arange(len(raw))[None]
        there = None if valid.all() else torch.from_numpy(valid)[None]
        held = torch.from_numpy(np.where(valid[:, None], raw, np.float32(0.0)))[None]
        with torch.inference_mode():
            found[cue] = np.asarray(model.adapt(cue, held, frames, there)[0].numpy(), np.float32)
    return found


def made_up_features(
    sizes: Mapping[str, int], count: int, seed: int = 0
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Simulated raw features of one session: a slow drift with noise; every cue has gaps."""
    rng = np.random.default_rng(seed)
    found = {}
    for cue, size in sizes.items():
        drift = np.cumsum(rng.normal(size=(count, size)), axis=0) / math.sqrt(count)
        raw = (drift + 0.5 * rng.normal(size=(count, size))).astype(np.float32)
        valid = rng.random(count) > 0.1
        start = int(rng.integers(count // 4, count // 2))
        valid[start : start + count // 10] = False
        found[cue] = (raw, valid)
    return found


def _check_exportable(model: StepsModel) -> None:
    settings = model.settings
    if settings.encoder != "transformer" or not settings.causal or not settings.context:
        raise ConfigError(
            f"only causal transformers with a bounded context run tick by tick, this is a "
            f"{settings.encoder} with causal {settings.causal}, context {settings.context}; "
            "train with --causal --context 1024 --spacing live"
        )
    if settings.position == "after_mlp":
        raise ConfigError("position after_mlp is not exported; train with frame, age or none")


def _encoder(model: StepsModel, cue: str) -> CueEncoder:
    encoder = model.encoders[cue]
    assert isinstance(encoder, CueEncoder)
    return encoder


def _weights(encoder: CueEncoder) -> CueWeights:
    layers: Any = encoder.temporal.layers
    return CueWeights(
        inward=_pair(encoder.inward),
        raw_scale=math.sqrt(WIDTH),
        layers=tuple(
            LayerWeights(
                queries_keys_values=_pair(layer.queries_keys_values),
                out=_pair(layer.out),
                norm_attention=_pair(layer.norm_attention),
                wide=_pair(layer.wide),
                narrow=_pair(layer.narrow),
                norm_feed=_pair(layer.norm_feed),
            )
            for layer in layers
        ),
    )


def _pair(module: Any) -> tuple[Weights, Weights]:
    weight, bias = (
        np.asarray(p.detach().numpy(), np.float32) for p in (module.weight, module.bias)
    )
    return weight, bias


def _write(folder: Path, payload: bytes, document: dict[str, Any]) -> None:
    with atomic_path(folder / FILE_NAME) as path:
        path.write_bytes(payload)
    write_json(folder / "manifest.json", document)
    ModelManifest.read(folder / "manifest.json")
