"""A STORM run as it stands, and the files it is kept in."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from keystep_capture.errors import ModelError
from keystep_models.steps.feature_folder import atomic_path, write_json
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StageSettings, StormSettings
from keystep_models.training.storm_models import Projection, make_spatial, make_temporal

STAGES: Final = ("contrastive", "temporal", "fine_tune")
FORMAT_VERSION: Final = 1
CHECKPOINT: Final = "checkpoint.pt"


class StormModel(nn.Module):
    """All that is learnt."""

    def __init__(self, settings: StormSettings, component_count: int) -> None:
        """Make it with weights that the seed decides."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.spatial = make_spatial(settings)
            self.projection = Projection(settings.embedding)
            self.temporal = make_temporal(settings, component_count)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StormData:
    """Sessions to learn from, and others to look at only."""

    sessions: Sequence[SessionInputs]
    held_out: Sequence[SessionInputs] = ()

    @property
    def component_count(self) -> int:
        """C."""
        return int(self.sessions[0].ticks.states.shape[1])


@dataclass(slots=True, kw_only=True)
class StormRun:
    """A run as it stands.

    Attributes:
        model: What is learnt.
        classes: States told apart in the first stage.
        identity: What tells the run from others.
        stage: Place in `STAGES`; their number when all is done.
        epoch: Epochs of the stage that are done.
        optimiser: The stage's.
        curves: A row per epoch.
    """

    model: StormModel
    classes: tuple[str, ...]
    identity: str
    stage: int = 0
    epoch: int = 0
    optimiser: torch.optim.Optimizer | None = None
    curves: list[dict[str, Any]] = field(default_factory=list)


def stage_settings(settings: StormSettings, stage: int) -> StageSettings:
    """A stage's optimisation; without fine-tuning the last has no epoch."""
    found = (settings.contrastive, settings.temporal_stage, settings.fine_tune)[stage]
    if STAGES[stage] == "fine_tune" and settings.fine_tuning == "none":
        return StageSettings(epochs=0, steps=1, batch=1, learning_rate=1.0, weight_decay=0.0)
    return found


def learns_spatial(settings: StormSettings, stage: int) -> bool:
    """Whether a stage changes the spatial encoder."""
    return stage == 0 or (stage == 2 and settings.fine_tuning == "all")


def make_optimiser(model: StormModel, settings: StormSettings, stage: int) -> torch.optim.Optimizer:
    """A stage's optimiser at its start."""
    learnt: list[nn.Module] = [model.spatial] if learns_spatial(settings, stage) else []
    learnt.append(model.projection if stage == 0 else model.temporal)
    parameters = [value for module in learnt for value in module.parameters()]
    own = stage_settings(settings, stage)
    return torch.optim.AdamW(
        parameters, lr=own.learning_rate, weight_decay=own.weight_decay, fused=True
    )


def run_identity(data: StormData, settings: StormSettings, weights: Path | None) -> str:
    """What tells one run from another: settings and the sessions' contents."""
    digest = hashlib.sha256(repr(settings).encode())
    for session in (*data.sessions, None, *data.held_out):
        if session is None:
            digest.update(b"held out")
            continue
        ticks = session.ticks
        digest.update(repr((ticks.name, session.inputs.shape, session.source)).encode())
        for array in (ticks.states, ticks.valid, ticks.frames):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(np.ascontiguousarray(session.inputs[:: max(1, ticks.tick_count // 16)]).data)
    if weights is not None:
        digest.update(hashlib.sha256(weights.read_bytes()).digest())
    return digest.hexdigest()


def load_storm_model(path: Path) -> tuple[StormModel, dict[str, Any]]:
    """A trained model and what its file says besides.

    Raises:
        ModelError: The file is missing or is no model of ours.
    """
    document = read_document(path)
    try:
        settings = StormSettings.from_document(document["settings"])
        model = StormModel(settings, int(document["component_count"]))
        model.load_state_dict(document["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: no STORM model: {error}") from error
    return model.eval(), document


def describe_run(run: StormRun, settings: StormSettings, data: StormData) -> dict[str, Any]:
    """What a run's files say of it."""
    return {
        "format_version": FORMAT_VERSION,
        "settings": settings.as_document(),
        "classes": list(run.classes),
        "component_count": data.component_count,
        "sessions": [session.ticks.name for session in data.sessions],
        "identity": run.identity,
    }


def write_checkpoint(run: StormRun, folder: Path) -> None:
    """Replace the curves and the checkpoint, each at once."""
    write_json(folder / "curves.json", run.curves)
    document = {
        "format_version": FORMAT_VERSION,
        "identity": run.identity,
        "weights": run.model.state_dict(),
        "optimiser": None if run.optimiser is None else run.optimiser.state_dict(),
        "stage": run.stage,
        "epoch": run.epoch,
        "curves": run.curves,
    }
    save_document(folder / CHECKPOINT, document)


def save_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write what torch can write at once; OSError where the disk does not take it."""
    # Given a path, torch writes its name into the file; the same content shall be the same bytes.
    buffer = io.BytesIO()
    torch.save(dict(document), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_document(path: Path) -> dict[str, Any]:
    """A file's content, read without running any code in it; ModelError where it is no such."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise ModelError(f"{path}: no file that torch can read: {first[:200]}") from error
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        raise ModelError(f"{path}: expected a STORM run of format_version {FORMAT_VERSION}")
    return document
