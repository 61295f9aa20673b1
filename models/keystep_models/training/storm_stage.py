"""One stage of a STORM run: epochs of batches that are made ahead of being learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from keystep_models.steps.feature_folder import atomic_path
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings
from keystep_models.training.contrastive import supervised_contrastive_loss
from keystep_models.training.prefetch import Prefetched
from keystep_models.training.storm_data import ClipBatch, ClipBatches, FrameBatch, FrameBatches
from keystep_models.training.storm_run import (
    STAGES,
    StormData,
    StormRun,
    learns_spatial,
    make_optimiser,
    stage_settings,
)

_HELD_OUT_CLIPS: Final = 512
_HELD_OUT_EPOCHS: Final = 5
_EMBED_BATCH: Final = 256


class StageTrainer:
    """One stage's loop over batches."""

    def __init__(
        self, run: StormRun, data: StormData, settings: StormSettings, folder: Path, device: str
    ) -> None:
        """Prepare the stage that the run stands in; embeddings are made where it needs them."""
        self._run, self._data, self._of, self._device = run, data, settings, device
        self.settings = stage_settings(settings, run.stage)
        self._name = STAGES[run.stage]
        if not self.settings.epochs:
            return
        self._learns_spatial = learns_spatial(settings, run.stage)
        if run.optimiser is None:
            run.optimiser = make_optimiser(run.model, settings, run.stage)
        self._frames: FrameBatches | None = None
        self._clips: ClipBatches | None = None
        self._held_out: ClipBatch | None = None
        if self._name == "contrastive":
            self._frames = FrameBatches(data.sessions, run.classes, settings)
        else:
            self._prepare_clips(folder)

    def run_epoch(self) -> dict[str, Any]:
        """All batches of the next epoch; its row of the curves."""
        run, seed = self._run, (self._of.seed, self._run.stage, self._run.epoch)
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            self._set_modes()
            with Prefetched(lambda: self._batches(np.random.default_rng(seed))) as batches:
                for number, batch in enumerate(batches):
                    rate = self._set_rate(run.epoch * self.settings.steps + number)
                    losses.append(self._step(batch))
        row = {
            "stage": self._name,
            "epoch": run.epoch,
            "learning_rate": rate,
            "loss": float(np.mean(losses)),
        }
        last = run.epoch + 1 == self.settings.epochs
        if self._held_out is not None and (last or run.epoch % _HELD_OUT_EPOCHS == 0):
            row |= self._measure(self._held_out)
        return row

    def _batches(self, rng: np.random.Generator) -> Iterator[FrameBatch | ClipBatch]:
        if self._frames is not None:
            return self._frames.epoch(self.settings.steps, rng)
        assert self._clips is not None
        return self._clips.epoch(self.settings.steps, self.settings.batch, rng)

    def _step(self, batch: FrameBatch | ClipBatch) -> float:
        loss = self._loss(batch)
        optimiser = self._run.optimiser
        assert optimiser is not None
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def _loss(self, batch: FrameBatch | ClipBatch) -> Tensor:
        model = self._run.model
        if isinstance(batch, FrameBatch):
            projected = model.projection(model.spatial(batch.inputs.to(self._device)))
            classes = batch.classes.to(self._device)
            return supervised_contrastive_loss(projected, classes, temperature=self._of.temperature)
        logits = self._logits(batch)
        return F.binary_cross_entropy_with_logits(logits, batch.changed.to(self._device))

    def _logits(self, batch: ClipBatch) -> Tensor:
        model, frames = self._run.model, batch.frames.to(self._device)
        valid = batch.valid.to(self._device)
        if self._name == "fine_tune" and self._learns_spatial:
            # Missing frames are left out, so that batch norm does not learn from zeros.
            embedded = model.spatial(frames[valid])
            clips = embedded.new_zeros(*valid.shape, embedded.shape[-1])
            clips[valid] = embedded
            frames = clips
        found: Tensor = model.temporal(frames, valid)
        return found

    def _prepare_clips(self, folder: Path) -> None:
        embeddings, everything = None, (*self._data.sessions, *self._data.held_out)
        if not self._learns_spatial:
            embeddings = stored_embeddings(
                self._run.model.spatial, everything, folder / "embeddings", self._device
            )
        self._clips = ClipBatches(self._data.sessions, self._of, embeddings)
        if self._data.held_out:
            drawn = ClipBatches(self._data.held_out, self._of, embeddings)
            count = _HELD_OUT_CLIPS if embeddings is not None else self.settings.batch
            self._held_out = drawn.draw(count, np.random.default_rng(0))

    def _measure(self, batch: ClipBatch) -> dict[str, float]:
        """Loss and F1 of held-out clips, at the threshold that predicts a component."""
        self._run.model.eval()
        with torch.inference_mode():
            logits = self._logits(batch).cpu()
        loss = F.binary_cross_entropy_with_logits(logits, batch.changed)
        predicted, true = logits >= 0, batch.changed > 0
        hits = float((predicted & true).sum())
        f1 = 2 * hits / max(1.0, float(predicted.sum() + true.sum()))
        return {"held_out_loss": float(loss), "held_out_f1": f1}

    def _set_modes(self) -> None:
        self._run.model.train()
        if not self._learns_spatial:
            self._run.model.spatial.eval()

    def _set_rate(self, step: int) -> float:
        rate = self.settings.learning_rate_at(step)
        assert self._run.optimiser is not None
        for group in self._run.optimiser.param_groups:
            group["lr"] = rate
        return rate


def embed_session(spatial: nn.Module, session: SessionInputs, device: str) -> NDArray[np.float32]:
    """Embeddings of every tick, float32 (T, D); missing ticks are zeros."""
    rows: list[NDArray[np.float32]] = []
    spatial.eval()
    for start in range(0, session.ticks.tick_count, _EMBED_BATCH):
        valid = session.ticks.valid[start : start + _EMBED_BATCH]
        inputs = np.array(session.inputs[start : start + _EMBED_BATCH])
        inputs[~valid] = 0
        with torch.inference_mode():
            found = spatial(torch.from_numpy(inputs).to(device)).cpu().numpy()
        rows.append(np.where(valid[:, None], found, np.float32(0)))
    return np.concatenate(rows)


def stored_embeddings(
    spatial: nn.Module, sessions: Sequence[SessionInputs], folder: Path, device: str = "cpu"
) -> dict[str, NDArray[np.float32]]:
    """Embeddings by session: those in the folder if these weights made them, else made now."""
    digest = hashlib.sha256()
    for name, value in sorted(spatial.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    target = folder / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    found = {}
    for session in sessions:
        path = target / f"{session.ticks.name}.npy"
        if not path.exists():
            with atomic_path(path) as temporary:
                np.save(temporary, embed_session(spatial, session, device), allow_pickle=False)
        found[session.ticks.name] = np.load(path, allow_pickle=False)
    return found
