"""STEPs' model: a temporal encoder and a projection for each cue, with missing cues left out.

B videos, N frames, D values of a raw feature.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keystep_capture.errors import ConfigError, DataError, ModelError
from keystep_models.steps.feature_folder import VideoFeatures
from keystep_models.steps.settings import TrainingSettings
from keystep_models.steps.temporal_sampling import evaluation_frames
from keystep_models.training.encoders import WIDTH, CueEncoder, Projection

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames of several videos.

    Attributes:
        raw: Cue to raw features, float [B, N, D]; zeros where the cue is missing.
        valid: Cue to bool [B, N]; only cues that are missing somewhere.
        timestamps: Frame indices, int64 [B, N].
        positions: The ticks that the encoders are told, int64 [B, N]: the frame indices unless
            the videos are played at another tempo.
        num_frames: Frames of each whole video, int64 [B].
        rates_hz: Frames a second of each video, float64 [B].
    """

    raw: dict[str, Tensor]
    valid: dict[str, Tensor]
    timestamps: Tensor
    positions: Tensor
    num_frames: Tensor
    rates_hz: Tensor


class StepsModel(nn.Module):
    """An encoder and a projection for each cue."""

    def __init__(self, sizes: Mapping[str, int], settings: TrainingSettings) -> None:
        """Make a model with fresh weights that depend on the settings' seed alone.

        Args:
            sizes: Values of a raw feature of each cue in `settings.cues`.
            settings: Which encoders.
        """
        super().__init__()
        self.sizes = {cue: sizes[cue] for cue in settings.cues}
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.encoders = nn.ModuleDict(
                {
                    cue: CueEncoder(
                        size,
                        kind=settings.encoder,
                        position=settings.position,
                        causal=settings.causal,
                        context=settings.context or None,
                    )
                    for cue, size in self.sizes.items()
                }
            )
            self.projections = nn.ModuleDict({cue: Projection() for cue in self.sizes})

    def adapt(self, cue: str, raw: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """Adapted features of one cue, float [B, N, 128].

        Where some frames lack the cue, each video's encoder sees the others only, as if the
        sequence held no more than those (with their own positions); missing frames give zeros.
        """
        encoder = self.encoders[cue]
        if valid is None:
            adapted: Tensor = encoder(raw, positions)
            return adapted
        rows = []
        for video in range(len(raw)):
            places = valid[video].nonzero()[:, 0]
            row = raw.new_zeros(raw.shape[1], WIDTH)
            if len(places):
                found = encoder(raw[video, places][None], positions[video, places][None])[0]
                row = row.index_copy(0, places, found)
            rows.append(row)
        return torch.stack(rows)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Projected features of every cue, unit norm, float [B, N, 128]."""
        projected = {}
        for cue in self.sizes:
            adapted = self.adapt(cue, batch.raw[cue], batch.positions, batch.valid.get(cue))
            projected[cue] = self.projections[cue](adapted)
        return projected

    def save(self, path: Path, **more: Any) -> None:
        """Write weights, sizes and settings to a file; the same model gives the same bytes.

        Raises:
            OSError: The disk does not take it.
        """
        document = {
            "format_version": FORMAT_VERSION,
            "sizes": self.sizes,
            "settings": self.settings.as_document(),
            "weights": self.state_dict(),
            **more,
        }
        # Given a path, torch writes its name into the file; given a file that is full, it raises
        # an error of its own.
        buffer = io.BytesIO()
        torch.save(document, buffer)
        path.write_bytes(buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> StepsModel:
        """Read what `save` wrote.

        Raises:
            ModelError: The file is missing or is no model of ours.
        """
        return cls.of_document(read_document(path), path)

    @classmethod
    def of_document(cls, document: Mapping[str, Any], path: Path) -> StepsModel:
        """From a file's content.

        Raises:
            ModelError: It is no model of ours.
        """
        try:
            settings = TrainingSettings.from_document(dict(document["settings"]))
            model = cls(document["sizes"], settings)
            model.load_state_dict(document["weights"])
        except (KeyError, TypeError, RuntimeError, ConfigError) as error:
            raise ModelError(f"{path}: no temporal encoders of Keystep: {error}") from error
        model.eval()
        return model


def read_document(path: Path) -> dict[str, Any]:
    """A model file's content, read without running any code in it.

    Raises:
        ModelError: The file is missing or is no model of ours.
    """
    try:
        document = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; train a model first") from None
    except Exception as error:  # torch.load raises what its unpickler met
        raise ModelError(f"{path}: no file that torch can read: {error}") from error
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        raise ModelError(f"{path}: expected temporal encoders of format version {FORMAT_VERSION}")
    return document


def feature_sizes(videos: list[VideoFeatures], cues: tuple[str, ...]) -> dict[str, int]:
    """Values of a raw feature of each cue.

    Raises:
        DataError: No video has a cue, or two videos' sizes differ.
    """
    sizes: dict[str, int] = {}
    for cue in cues:
        found = {video.cues[cue].size: video.name for video in videos if cue in video.cues}
        if not found:
            known = sorted({name for video in videos for name in video.cues})
            raise DataError(
                f"no video has cue {cue!r}; there are {', '.join(known) or 'none'}: choose others"
            )
        if len(found) > 1:
            raise DataError(f"cue {cue!r} has {sorted(found)} values, expected one size")
        sizes[cue] = next(iter(found))
        if not any(video.cues[cue].valid.any() for video in videos if cue in video.cues):
            raise DataError(f"cue {cue!r} is missing in every frame: choose others")
    return sizes


def gather(
    videos: list[VideoFeatures],
    frames: list[NDArray[np.int64]],
    sizes: Mapping[str, int],
    positions: list[NDArray[np.int64]] | None = None,
) -> Batch:
    """Some frames of some videos as a batch; `frames` holds as many for each video.

    `positions` are what the encoders are told, the frames' indices by default.
    """
    raw, valid = {}, {}
    for cue, size in sizes.items():
        features = np.zeros((len(videos), len(frames[0]), size), np.float32)
        there = np.zeros(features.shape[:2], np.bool_)
        for row, (video, places) in enumerate(zip(videos, frames, strict=True)):
            if cue in video.cues:
                own = video.cues[cue]
                there[row] = own.valid[places]
                features[row] = own.features[places]
        if not there.all():
            features[~there] = 0.0
            valid[cue] = torch.from_numpy(there)
        raw[cue] = torch.from_numpy(features)
    return Batch(
        raw=raw,
        valid=valid,
        timestamps=torch.from_numpy(np.stack(frames)),
        positions=torch.from_numpy(np.stack(positions or frames)),
        num_frames=torch.tensor([video.frame_count for video in videos]),
        rates_hz=torch.tensor([video.rate_hz for video in videos], dtype=torch.float64),
    )


def adapt_video(
    model: StepsModel, video: VideoFeatures, *, stride: int = 2
) -> tuple[NDArray[np.int64], dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]]:
    """A video's adapted features for every cue of the model that the video has.

    Args:
        model: Trained encoders.
        video: Its raw features.
        stride: Every how many frames one is taken (2 as published). Encoders trained with live
            spacing see all frames first, as they do live.

    Returns:
        The frames' indices, int64 (N,), and cue to features, float32 (N, 128), with where they
        are there, bool (N,).

    Raises:
        DataError: A cue's size is not the model's.
    """
    frames = evaluation_frames(video.frame_count, stride)
    live = model.settings.spacing == "live"
    seen = np.arange(video.frame_count) if live else frames
    taken = frames if live else np.arange(len(frames))
    found = {}
    for cue, size in model.sizes.items():
        if cue not in video.cues:
            continue
        if video.cues[cue].size != size:
            raise DataError(
                f"{video.name}: cue {cue!r} has {video.cues[cue].size} values, the model {size}"
            )
        batch = gather([video], [seen], {cue: size})
        valid = batch.valid.get(cue)
        with torch.inference_mode():
            adapted = model.adapt(cue, batch.raw[cue], batch.positions, valid)[0]
        there = np.ones(len(seen), np.bool_) if valid is None else valid[0].numpy()
        found[cue] = (np.asarray(adapted.numpy(), np.float32)[taken], there[taken])
    return frames, found
