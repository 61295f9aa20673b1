"""A whole STORM run: training, pictures, bundle; what is there already is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from keystep_capture.errors import ConfigError
from keystep_models.psr.procedure import Procedure
from keystep_models.storm.bundle import StormBundle, read_storm_bundle
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings
from keystep_models.training.export_storm import export_bundle
from keystep_models.training.storm_models import VitSmall, load_vit
from keystep_models.training.storm_pictures import draw_run
from keystep_models.training.storm_run import StormData, StormModel
from keystep_models.training.train_storm import Progress, train_storm


def check_choices(
    settings: StormSettings, component_count: int, spatial_weights: Path | None, device: str
) -> None:
    """Whether the choices can be trained by; to be asked before inputs are made, which takes long.

    Raises:
        ConfigError: This installation of torch cannot compute there.
        ModelError: The weights are none.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"torch cannot compute on --device {device!r}: {first[:200]}") from error
    if spatial_weights is not None:
        spatial = StormModel(settings, component_count).spatial
        assert isinstance(spatial, VitSmall)
        load_vit(spatial, spatial_weights)


def train_and_export(
    sessions: Sequence[SessionInputs],
    held_out: Sequence[SessionInputs],
    procedure: Procedure,
    settings: StormSettings,
    folder: Path,
    *,
    spatial_weights: Path | None = None,
    device: str = "cpu",
    licence: str = "LicenseRef-own-data",
    on_progress: Progress | None = None,
) -> StormBundle:
    """Train, or go on; draw the pictures; write `bundle`.

    Args:
        sessions: To learn from.
        held_out: To look at only: in curves and pictures.
        procedure: What the components belong to.
        settings: How to train.
        folder: The run's folder.
        spatial_weights: Pretrained ViT-S/16, for the "picture" input.
        device: Where torch computes.
        licence: SPDX expression of the weights.
        on_progress: Told after every epoch.

    Raises:
        KeystepError: As `train_storm` and `export_bundle` say.
        OSError: The disk does not take it; what was done stays.
    """
    data = StormData(sessions=sessions, held_out=held_out)
    run = train_storm(
        data,
        settings,
        folder,
        spatial_weights=spatial_weights,
        device=device,
        on_progress=on_progress,
    )
    target = folder / "bundle"
    if target.exists():
        return read_storm_bundle(target)
    draw_run(run, sessions, held_out, settings, folder)
    return export_bundle(run, data, settings, procedure, target, licence=licence)
