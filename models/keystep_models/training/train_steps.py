"""Trains the temporal encoders on the videos of a feature folder (STEPs, section 3 and table 15).

A run is a folder:

    settings.json     every choice, the cues' sizes, the videos' names
    checkpoint.pt     weights, optimiser, epoch; replaced every few epochs; a stopped run goes on
    curves.json       per epoch: loss, its terms, learning rate, fraction of pairs inside the window
    model.pt          the trained encoders; there when the run has ended

The same videos, settings and number of threads give the same weights, stopped in between or not:
epoch e draws from a generator seeded with (seed, e).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_models.steps.feature_folder import VideoFeatures, atomic_path, write_json
from keystep_models.steps.settings import TrainingSettings
from keystep_models.steps.temporal_sampling import (
    draw_tempo,
    live_count,
    live_frames,
    sample_frames,
)
from keystep_models.training.bmc2 import bmc2_loss
from keystep_models.training.soft_dtw import alignment_loss
from keystep_models.training.steps_model import (
    Batch,
    StepsModel,
    feature_sizes,
    gather,
    read_document,
)

CHECKPOINT_EPOCHS = 10
_HASHED_ROWS = 4096

Progress = Callable[[int, int, float], None]
"""Called with epochs done, epochs in all and the last epoch's loss."""


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run as it stands."""

    model: StepsModel
    optimiser: torch.optim.Optimizer
    identity: str
    content: str
    epoch: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)


def train_steps(
    videos: list[VideoFeatures],
    settings: TrainingSettings,
    folder: Path,
    *,
    on_progress: Progress | None = None,
    stop_after: int | None = None,
) -> StepsModel:
    """Train encoders, or go on where a run in this folder was stopped.

    Args:
        videos: With raw features of the settings' cues; a video may lack some of them.
        settings: How to train.
        folder: The run's folder.
        on_progress: Told after every epoch.
        stop_after: Leave a checkpoint and stop once so many epochs are done.

    Returns:
        The trained model, ready for inference.

    Raises:
        DataError: A cue is missing everywhere, sizes differ between videos, or the loss is no
            longer a number; the last checkpoint stays.
        StateError: The folder holds a run with other settings or videos; or `stop_after` was
            reached.
        OSError: The disk does not take it; the last checkpoint stays.
    """
    if not videos:
        raise ConfigError("expected at least one video to train on")
    sizes = feature_sizes(videos, settings.cues)
    folder.mkdir(parents=True, exist_ok=True)
    run = _begin(videos, sizes, settings, folder)
    run.model.train()
    while run.epoch < settings.epochs:
        if stop_after is not None and run.epoch >= stop_after:
            _write_checkpoint(run, folder)
            raise StateError(f"stopped after {run.epoch} of {settings.epochs} epochs")
        run.curves.append(_epoch(run, videos, sizes, settings))
        run.epoch += 1
        if not math.isfinite(run.curves[-1]["loss"]):
            raise DataError(
                f"training failed: the loss of epoch {run.epoch} is {run.curves[-1]['loss']}; "
                f"choose a learning rate below {settings.learning_rate:g}, or smaller values for "
                f"{_largest(videos, settings.cues)}"
            )
        if run.epoch % CHECKPOINT_EPOCHS == 0:
            _write_checkpoint(run, folder)
        if on_progress is not None:
            on_progress(run.epoch, settings.epochs, run.curves[-1]["loss"])
    _write_checkpoint(run, folder)
    with atomic_path(folder / "model.pt") as path:
        run.model.save(path)
    run.model.eval()
    return run.model


def run_identity(videos: list[VideoFeatures], settings: TrainingSettings) -> str:
    """What tells one run from another: settings, the videos' names and lengths, cues' sources."""
    described = [
        (v.name, v.frame_count, v.rate_hz, {c: (f.size, f.source) for c, f in v.cues.items()})
        for v in videos
    ]
    return hashlib.sha256(repr((settings, described)).encode()).hexdigest()


def run_name(videos: list[VideoFeatures], settings: TrainingSettings) -> str:
    """A folder's name for a run: others have another, also where only what is seen differs."""
    described = run_identity(videos, settings) + _content(videos)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _content(videos: list[VideoFeatures]) -> str:
    """Of the recordings; of the features themselves where a video does not tell its recording."""
    digest = hashlib.sha256()
    for video in videos:
        if isinstance(key := video.recording.get("key"), str):
            digest.update(key.encode())
            continue
        digest.update(video.times_ns.tobytes())
        for name, cue in sorted(video.cues.items()):
            digest.update(f"{name} {cue.size}".encode() + cue.valid.tobytes())
            for start in range(0, video.frame_count, _HASHED_ROWS):
                digest.update(cue.features[start : start + _HASHED_ROWS].tobytes())
    return digest.hexdigest()


def _begin(
    videos: list[VideoFeatures], sizes: dict[str, int], settings: TrainingSettings, folder: Path
) -> _Run:
    identity, content = run_identity(videos, settings), _content(videos)
    model = StepsModel(sizes, settings)
    run = _Run(
        model=model, optimiser=_optimiser(model, settings), identity=identity, content=content
    )
    path = folder / "checkpoint.pt"
    if path.exists():
        document = read_document(path)
        found = document.get("identity"), document.get("content", content)  # older ones lack it
        if found != (identity, content):
            raise StateError(
                f"{folder}: holds a run with other settings or videos; choose another folder"
            )
        run.model.load_state_dict(document["weights"])
        run.optimiser.load_state_dict(document["optimiser"])
        run.epoch, run.curves = document["epoch"], document["curves"]
        return run
    write_json(
        folder / "settings.json",
        {
            "settings": settings.as_document(),
            "sizes": sizes,
            "videos": [video.name for video in videos],
            "identity": identity,
            "parameters": sum(p.numel() for p in model.parameters()),
            "torch": torch.__version__,
        },
    )
    return run


def _largest(videos: list[VideoFeatures], cues: tuple[str, ...]) -> str:
    """The cue with the largest value, in words."""
    peaks = {
        cue: max(
            float(np.abs(video.cues[cue].features[video.cues[cue].valid]).max(initial=0.0))
            for video in videos
            if cue in video.cues
        )
        for cue in cues
    }
    cue = max(peaks, key=lambda name: peaks[name])
    return f"cue {cue} (up to {peaks[cue]:.3g})"


def _optimiser(model: StepsModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate)


def _epoch(
    run: _Run, videos: list[VideoFeatures], sizes: dict[str, int], settings: TrainingSettings
) -> dict[str, Any]:
    """Steps over max(batch, videos) videos drawn with replacement."""
    rng = np.random.default_rng([settings.seed, run.epoch])
    drawn = rng.integers(len(videos), size=max(settings.batch_size, len(videos))).tolist()
    rate = settings.learning_rate_at(run.epoch)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    totals: list[float] = []
    terms: list[dict[str, float]] = []
    inside: list[float] = []
    for start in range(0, len(drawn), settings.batch_size):
        places = drawn[start : start + settings.batch_size]
        chosen = [videos[idx] for idx in places]
        batch = _sample(chosen, sizes, settings, rng)
        total, of_terms, share = _step(run, batch, places, settings)
        totals.append(total)
        terms.append(of_terms)
        inside.append(share)
    return {
        "epoch": run.epoch,
        "learning_rate": rate,
        "loss": float(np.mean(totals)),
        "terms": {name: float(np.mean([t[name] for t in terms])) for name in terms[0]},
        "window": float(np.mean(inside)),
    }


def _sample(
    videos: list[VideoFeatures],
    sizes: dict[str, int],
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> Batch:
    """Some frames of each video."""
    if settings.spacing == "live":
        tempos = [draw_tempo(settings.tempo, rng) for _ in videos]
        played = [live_count(v.frame_count, s) for v, s in zip(videos, tempos, strict=True)]
        count = min(settings.chunk_count, *played)
        drawn = [
            live_frames(v.frame_count, count, s, rng) for v, s in zip(videos, tempos, strict=True)
        ]
        return gather(videos, [f for f, _ in drawn], sizes, [ticks for _, ticks in drawn])
    count = min(settings.chunk_count, max(video.frame_count for video in videos))
    frames = [sample_frames(v.frame_count, max(count, 2), settings.extent, rng) for v in videos]
    return gather(videos, frames, sizes)


def _step(
    run: _Run, batch: Batch, drawn: list[int], settings: TrainingSettings
) -> tuple[float, dict[str, float], float]:
    projected = run.model(batch)
    loss = bmc2_loss(
        projected,
        batch.raw,
        batch.timestamps,
        batch.num_frames,
        batch.rates_hz,
        anchor=settings.anchor,
        bootstrap=settings.bootstrap_cues,
        sigma_seconds=settings.sigma_seconds,
        margin=settings.margin,
        window=settings.window,
        pair_weights={(u, v): weight for u, v, weight in settings.pair_weights} or None,
        valid=batch.valid,
    )
    terms = {name: float(value) for name, value in loss.terms.items()}
    total = loss.total
    if settings.soft_dtw:
        anchor = settings.anchor
        aligned = alignment_loss(projected[anchor], batch.valid.get(anchor), drawn)
        total = total + settings.soft_dtw * aligned
        terms["soft-dtw"] = float(aligned.detach())
    run.optimiser.zero_grad()
    total.backward()
    run.optimiser.step()
    return float(total.detach()), terms, float(loss.window.float().mean())


def _write_checkpoint(run: _Run, folder: Path) -> None:
    write_json(folder / "curves.json", run.curves)
    with atomic_path(folder / "checkpoint.pt") as path:
        run.model.save(
            path,
            optimiser=run.optimiser.state_dict(),
            epoch=run.epoch,
            curves=run.curves,
            identity=run.identity,
            content=run.content,
        )
