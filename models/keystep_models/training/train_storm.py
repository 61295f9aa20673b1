"""Trains STORM-PSR's spatio-temporal stream in three stages; see docs/storm.md.

A run is a folder:

    settings.json     every choice, the sessions, the classes
    checkpoint.pt     weights, optimiser, stage and epoch; replaced after every epoch
    embeddings/       what the trained spatial encoder makes of every session
    curves.json       per epoch: stage, learning rate, loss, now and then that of held-out sessions
    model.pt          the trained model
    curves.png, confusion.png, embedding.png
    bundle/           for the live server; there when the run has ended

The same data, settings and number of threads give the same bytes, killed in between or not: each
epoch draws from generators seeded with (seed, stage, epoch), and goes on from a whole checkpoint.

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keystep_capture.errors import ConfigError, StateError
from keystep_models.steps.feature_folder import write_json
from keystep_models.storm.clip_sampling import state_classes
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings
from keystep_models.training.storm_data import FrameBatches
from keystep_models.training.storm_models import AppearanceHead, VitSmall, load_vit
from keystep_models.training.storm_run import (
    CHECKPOINT,
    STAGES,
    StormData,
    StormModel,
    StormRun,
    describe_run,
    make_optimiser,
    read_document,
    run_identity,
    save_document,
    write_checkpoint,
)
from keystep_models.training.storm_stage import StageTrainer

Progress = Callable[[dict[str, Any]], None]
"""Called after every epoch: `stage`, `done`, `of`, `loss`."""


def train_storm(
    data: StormData,
    settings: StormSettings,
    folder: Path,
    *,
    spatial_weights: Path | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
    stop_after: int | None = None,
) -> StormRun:
    """Train all stages, or go on where a run in this folder was stopped.

    Args:
        data: The sessions.
        settings: How to train.
        folder: The run's folder.
        spatial_weights: Pretrained ViT-S/16, for the "picture" input.
        device: Where torch computes.
        on_progress: Told after every epoch.
        stop_after: Leave a checkpoint and stop once so many epochs, of all stages, are done.

    Returns:
        The run with its trained model, ready for inference on the CPU.

    Raises:
        DataError: The sessions are too few, or do not fit together.
        ConfigError: There is no session.
        StateError: The folder holds another run; or `stop_after` was reached.
        OSError: The disk does not take it; the last checkpoint stays.
    """
    if not data.sessions:
        raise ConfigError("expected at least one session to train on")
    classes = state_classes([session.ticks for session in data.sessions], settings)
    FrameBatches(data.sessions, classes, settings)  # what is amiss is said before anything is done
    folder.mkdir(parents=True, exist_ok=True)
    run = _begin(data, settings, classes, folder, spatial_weights)
    run.model.to(device)
    while run.stage < len(STAGES):
        trainer = StageTrainer(run, data, settings, folder, device)
        while run.epoch < trainer.settings.epochs:
            if stop_after is not None and len(run.curves) >= stop_after:
                raise StateError(f"stopped after {len(run.curves)} epochs; call again to go on")
            run.curves.append(trainer.run_epoch())
            run.epoch += 1
            write_checkpoint(run, folder)
            if on_progress is not None:
                on_progress(
                    {
                        "stage": STAGES[run.stage],
                        "done": run.epoch,
                        "of": trainer.settings.epochs,
                        "loss": run.curves[-1]["loss"],
                    }
                )
        run.stage, run.epoch, run.optimiser = run.stage + 1, 0, None
        write_checkpoint(run, folder)
    run.model.to("cpu").eval()
    document = {"weights": run.model.state_dict(), **describe_run(run, settings, data)}
    save_document(folder / "model.pt", document)
    return run


def _begin(
    data: StormData,
    settings: StormSettings,
    classes: tuple[str, ...],
    folder: Path,
    weights: Path | None,
) -> StormRun:
    model = StormModel(settings, data.component_count)
    run = StormRun(model=model, classes=classes, identity=run_identity(data, settings, weights))
    path = folder / CHECKPOINT
    if path.exists():
        document = read_document(path)
        if document.get("identity") != run.identity:
            raise StateError(
                f"{folder}: holds a run with other settings or sessions; choose another folder"
            )
        model.load_state_dict(document["weights"])
        run.stage, run.epoch, run.curves = document["stage"], document["epoch"], document["curves"]
        if document["optimiser"] is not None:
            run.optimiser = make_optimiser(model, settings, run.stage)
            run.optimiser.load_state_dict(document["optimiser"])
        return run
    if isinstance(model.spatial, AppearanceHead):
        model.spatial.fit_scale(*_moments(data.sessions))
    elif weights is not None and isinstance(model.spatial, VitSmall):
        load_vit(model.spatial, weights)
    write_json(
        folder / "settings.json",
        {
            **describe_run(run, settings, data),
            "held_out": [session.ticks.name for session in data.held_out],
            "torch": torch.__version__,
            "parameters": {
                name: sum(value.numel() for value in module.parameters())
                for name, module in model.named_children()
            },
        },
    )
    return run


def _moments(sessions: Sequence[SessionInputs]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each value of the inputs over all ticks that can be seen."""
    total = np.zeros(sessions[0].inputs.shape[1])
    squares, count = np.zeros_like(total), 0
    for session in sessions:
        rows = np.asarray(session.inputs[session.ticks.valid], np.float64)
        total += rows.sum(axis=0)
        squares += (rows**2).sum(axis=0)
        count += len(rows)
    mean = total / max(1, count)
    deviation = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
