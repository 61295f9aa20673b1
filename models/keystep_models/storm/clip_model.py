"""A storm bundle's two models as an inference engine runs them: one row in, one row out.

A row holds what the newest tick looks like and the embeddings of the frames before it in its clip;
it comes back as that tick's embedding, for later clips, and what the clip shows. So each tick is
embedded once, and the clips of all sessions run together.

N frames of a clip, D values of an embedding, F of what the spatial model takes, C components.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ModelError, ShapeError
from keystep_models.onnx_model import ModelManifest, OnnxModel, TensorSpec
from keystep_models.storm.bundle import StormBundle

NAME: Final = "storm-clips"


class ClipModel:
    """Embeds ticks and looks at their clips; used by one thread at a time."""

    def __init__(self, bundle: StormBundle, spatial: OnnxModel, temporal: OnnxModel) -> None:
        """Wrap a bundle's models; `load` is the way in, which tries them first."""
        self._bundle, self._spatial, self._temporal = bundle, spatial, temporal
        document = bundle.document
        self._frames, self._size = document.clip.frames, document.embedding_size
        [features] = spatial.manifest.inputs[0].shape[1:]
        assert isinstance(features, int)
        self._features = features
        before = self._frames - 1
        self._valid = slice(features, features + before)
        self._width = features + before * (1 + self._size)
        answers = self._size + document.component_count
        self._manifest = ModelManifest(
            name=NAME,
            version="1",
            file="bundle.json",
            sha256=bundle.id,
            licence=temporal.manifest.licence,
            source=temporal.manifest.source,
            inputs=(TensorSpec(name="ticks", dtype="float32", shape=("batch", self._width)),),
            outputs=(TensorSpec(name="seen", dtype="float32", shape=("batch", answers)),),
            preprocessing={},
            rate_hz=document.rate_hz,
        )

    @classmethod
    def load(cls, bundle: StormBundle, *, threads: int = 1) -> ClipModel:
        """Load a bundle's models and try them.

        Raises:
            ConfigError: The bundle takes pictures: live ticks have appearance features.
            ModelError: A model is damaged, or what it gives is not as documented.
        """
        if bundle.document.input != "appearance":
            raise ConfigError(
                f"storm bundle {bundle.id[:12]} takes pictures; live sessions have appearance"
                " features only; train with --preset small"
            )
        model = cls(
            bundle,
            OnnxModel.load(bundle.spatial_manifest, intra_op_threads=threads),
            OnnxModel.load(bundle.temporal_manifest, intra_op_threads=threads),
        )
        model._try()
        return model

    def _try(self) -> None:
        """One clip of one frame."""
        row = np.zeros((1, self._width), np.float32)
        try:
            seen = self.run(row)
        except ShapeError as error:
            raise ModelError(f"{self._bundle.folder}: {error}; export the bundle again") from error
        length = float(np.linalg.norm(seen[0, : self._size]))
        if not np.isfinite(seen).all() or abs(length - 1) > 1e-2:
            raise ModelError(
                f"{self._bundle.folder}: expected finite values and an embedding of length one,"
                f" got length {length}; export the bundle again"
            )

    @property
    def manifest(self) -> ModelManifest:
        """What goes in and out here."""
        return self._manifest

    @property
    def sha256(self) -> str:
        """The bundle's id."""
        return self._bundle.id

    def beside(self) -> ClipModel:
        """The same, its weights shared, for another thread."""
        return ClipModel(self._bundle, self._spatial.beside(), self._temporal.beside())

    def pack(
        self,
        feature: NDArray[np.float32],
        before: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """A tick's row, float32 (1, width).

        Args:
            feature: What the spatial model takes of it, (F,).
            before: Embeddings of the clip's other frames, oldest first, (N - 1, D).
            valid: Which of those there are, (N - 1,).

        Raises:
            ShapeError: The feature has another size.
        """
        if feature.shape != (self._features,):
            raise ShapeError(f"expected a feature of {self._features} values, got {feature.shape}")
        row = np.empty((1, self._width), np.float32)
        row[0, : self._features] = feature
        row[0, self._valid] = valid
        row[0, self._valid.stop :] = before.reshape(-1)
        return row

    def unpack(
        self, answer: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of a row's answer: the embedding, (D,), and the sigmoid values, (C,)."""
        return answer[: self._size], answer[self._size :]

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Embed ticks and look at their clips.

        Args:
            batch: Rows of `pack`, float32 (B, width).

        Returns:
            Float32 (B, D + C): embeddings, then sigmoid values.

        Raises:
            ShapeError: The rows have another width.
            ModelError: A model failed.
        """
        count = len(batch)
        embeddings = self._spatial.run(np.ascontiguousarray(batch[:, : self._features]))
        clips = np.empty((count, self._frames, self._size), np.float32)
        clips[:, :-1] = batch[:, self._valid.stop :].reshape(count, -1, self._size)
        clips[:, -1] = embeddings
        valid = np.ones((count, self._frames), np.bool_)
        valid[:, :-1] = batch[:, self._valid]
        logits = self._temporal.run({"clips": clips, "valid": valid})["logits"]
        chances = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        return np.concatenate([embeddings, chances.astype(np.float32)], axis=1)
