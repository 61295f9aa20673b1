"""A storm bundle's two models as an inference engine runs them: one row in, one row out.

A row holds what the newest tick of a session looks like, and whose and which tick that is: the
embeddings of the ticks before it wait in the session's window, which the model knows. The answer is
the tick's embedding, which joins them, and what its clip shows. So each tick is embedded once, and
the clips of all sessions run together.

N frames of a clip, D values of an embedding, F of what the spatial model takes, C components.
"""

from __future__ import annotations

import itertools
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ModelError, ShapeError
from keystep_models.onnx_model import ModelManifest, OnnxModel, TensorSpec
from keystep_models.storm.bundle import StormBundle
from keystep_models.storm.clip_window import ClipWindow

NAME: Final = "storm-clips"
_BASE: Final = 1 << 20  # numbers of windows and ticks are two float32 each
_PLACES: Final = 4
_NUMBERS: Final = itertools.count()


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
        self._width = features + _PLACES
        # Windows are their sessions': one whose session ended is not here any more.
        self._windows: WeakValueDictionary[int, ClipWindow] = WeakValueDictionary()
        self._clips = np.empty((0, self._frames, self._size), np.float32)
        self._answers = self._size + document.component_count
        self._manifest = ModelManifest(
            name=NAME,
            version="1",
            file="bundle.json",
            sha256=bundle.id,
            licence=temporal.manifest.licence,
            source=temporal.manifest.source,
            inputs=(TensorSpec(name="ticks", dtype="float32", shape=("batch", self._width)),),
            outputs=(TensorSpec(name="seen", dtype="float32", shape=("batch", self._answers)),),
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
        window = ClipWindow(self._bundle.document.clip, self._size)
        try:
            seen = self.run(self.new_row(self.open_window(window)))
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
        """The same, its weights and windows shared, for another thread."""
        other = ClipModel(self._bundle, self._spatial.beside(), self._temporal.beside())
        other._windows = self._windows
        return other

    def open_window(self, window: ClipWindow) -> int:
        """Take in a session's window, which its session keeps; its number, for `new_row`.

        The model writes to it while a row of it is on its way, so give one row at a time.
        """
        number = next(_NUMBERS)
        self._windows[number] = window
        return number

    def new_row(self, number: int) -> NDArray[np.float32]:
        """A row of a window's session, float32 (1, F + 4), for `fill`."""
        row = np.zeros((1, self._width), np.float32)
        row[0, -_PLACES], row[0, -_PLACES + 1] = divmod(number, _BASE)
        return row

    def fill(self, row: NDArray[np.float32], index: int, feature: NDArray[np.float32]) -> None:
        """Write a tick into a row.

        Args:
            row: Of `new_row`, and answered.
            index: Of the tick.
            feature: What the spatial model takes of it, (F,).

        Raises:
            ShapeError: The feature has another size.
        """
        if feature.shape != (self._features,):
            raise ShapeError(f"expected a feature of {self._features} values, got {feature.shape}")
        row[0, : self._features] = feature
        row[0, -2], row[0, -1] = divmod(index, _BASE)

    def unpack(
        self, answer: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of a row's answer: the embedding, (D,), and the sigmoid values, (C,)."""
        return answer[: self._size], answer[self._size :]

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Embed ticks and look at their clips.

        Args:
            batch: Filled rows, float32 (B, F + 4).

        Returns:
            Float32 (B, D + C): embeddings, then sigmoid values.

        Raises:
            ShapeError: The rows have another width.
            ModelError: A model failed, or a window was let go.
        """
        embeddings = self._spatial.run(np.ascontiguousarray(batch[:, : self._features]))
        clips, there = self._clips_of(batch[:, self._features :], embeddings)
        logits = self._temporal.run({"clips": clips, "valid": there})["logits"]
        answer = np.empty((len(batch), self._answers), np.float32)
        answer[:, : self._size] = embeddings
        answer[:, self._size :] = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        return answer

    def _clips_of(
        self, places: NDArray[np.float32], embeddings: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Let embeddings join their windows; the clips that end there, (B, N, D) and (B, N)."""
        found = []
        for (high, low, far, near), embedding in zip(places.tolist(), embeddings, strict=True):
            window = self._windows.get(int(high) * _BASE + int(low))
            if window is None:
                raise ModelError(f"{NAME}: the session of this tick was closed")
            index = int(far) * _BASE + int(near)
            window.put(index, embedding)
            found.append(window.clip(index))
        if len(found) == 1:
            [(rows, there)] = found
            return rows[None], there[None]
        if len(found) > len(self._clips):
            self._clips = np.empty((len(found), self._frames, self._size), np.float32)
        clips = self._clips[: len(found)]
        for clip, (rows, _) in zip(clips, found, strict=True):
            clip[:] = rows
        return clips, np.stack([there for _, there in found])
