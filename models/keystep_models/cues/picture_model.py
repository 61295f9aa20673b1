"""Cues from an ONNX model on pictures: one picture, or the one before and this one, to a vector.

What a model wants is read from its manifest (docs/steps.md, "Models of your own"): the shape and
type of its one or two inputs, and under `preprocessing` the colours' order, the crop and, for
inputs that are not bytes, `mean` and `scale`. B pictures of a batch, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from keystep_capture.errors import ModelError, ShapeError
from keystep_models.cues.appearance_cue import CROP, AppearancePreprocessing
from keystep_models.onnx_model import ModelManifest, OnnxModel, TensorSpec

MAX_BATCH: Final = 16
MAX_SIDE: Final = 2048
_MAX_VALUES: Final = 65536

Row = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInput:
    """How a model wants its pictures.

    Attributes:
        names: Of its inputs: one picture, or the earlier and the later of two.
        height: Pixels.
        width: Pixels.
        planar: Whether channels come before rows, (B, 3, H, W), or last, (B, H, W, 3).
        dtype: "uint8": pixels as they are; "float32": (pixel - mean) / scale.
        colour: "rgb" or "bgr".
        crop: Whether the picture's middle is taken (as the appearance cue's); else all of it,
            stretched to H x W.
        mean: Of each channel, in the order of `colour`.
        scale: Of each channel.
        batch: Pictures that one run takes.
        size: Values of the vector (D).
    """

    names: tuple[str, ...]
    height: int
    width: int
    planar: bool
    dtype: str
    colour: str
    crop: bool
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    batch: int
    size: int

    @classmethod
    def of(cls, manifest: ModelManifest) -> PictureInput:
        """Read a manifest.

        Raises:
            ModelError: Its inputs are no pictures, its output is no vector of a known size, or
                `preprocessing` asks for what is not known here.
        """
        specs = manifest.inputs
        if len(specs) > 2 or any(s.shape != specs[0].shape for s in specs):
            raise _unfit(manifest, "one input, or two of one shape (earlier and later picture)")
        height, width, planar = _picture_shape(manifest, specs[0])
        dtype = specs[0].dtype
        if dtype not in ("uint8", "float32") or any(s.dtype != dtype for s in specs):
            raise _unfit(manifest, "inputs of uint8 or float32")
        told = manifest.preprocessing
        colour = told.get("colour", "rgb")
        if colour not in ("rgb", "bgr"):
            raise _unfit(manifest, f"`colour` rgb or bgr, not {colour!r}")
        crop = told.get("crop")
        if crop is not None and not (crop == CROP == height == width and colour == "rgb"):
            raise _unfit(manifest, f"no `crop`, or {CROP} with rgb inputs of {CROP} x {CROP}")
        plain = dtype == "uint8"
        return cls(
            names=tuple(s.name for s in specs),
            height=height,
            width=width,
            planar=planar,
            dtype=dtype,
            colour=colour,
            crop=crop is not None,
            mean=(0.0,) * 3 if plain else _channels(manifest, told, "mean"),
            scale=(1.0,) * 3 if plain else _channels(manifest, told, "scale"),
            batch=_batch(manifest),
            size=_output_size(manifest),
        )

    def describe(self) -> dict[str, Any]:
        """What a cache must know beside the model's hash."""
        told: dict[str, Any] = {
            "pictures": len(self.names),
            "fit": "crop" if self.crop else "stretch",
            "colour": self.colour,
        }
        if self.dtype != "uint8":
            told |= {"mean": list(self.mean), "scale": list(self.scale)}
        return told


class PictureCue:
    """A model's rows for one video's pictures, tick after tick; runs in batches.

    Every tick that is told gives one row, in order, though perhaps only after later ones.
    """

    def __init__(self, model: OnnxModel) -> None:
        """Start before the first tick.

        Raises:
            ModelError: The model does not take pictures, or gives no vector.
        """
        self.input = PictureInput.of(model.manifest)
        self._model = model
        self._crop = AppearancePreprocessing()
        self._reformatter = VideoReformatter()
        shape = (self.input.batch, self.input.height, self.input.width, 3)
        self._pixels = [np.zeros(shape, np.uint8) for _ in self.input.names]
        self._before: Pixels | None = None
        self._waiting: list[bool] = []  # of the ticks not yet run: whether there is something
        self._count = 0

    @property
    def size(self) -> int:
        """Values of a row (D)."""
        return self.input.size

    def forget(self) -> None:
        """The next picture does not follow the last one (a gap)."""
        self._before = None

    def remember(self, picture: av.VideoFrame | Pixels | None) -> None:
        """A tick whose row is known already: only what the next one needs of it."""
        if len(self.input.names) > 1:
            self._before = None if picture is None else self._prepared(picture)

    def take(self, picture: av.VideoFrame | Pixels | None) -> list[Row | None]:
        """A tick.

        Args:
            picture: Any pixel format and size, or uint8 (H, W, 3) just as the model wants it; None
                where there is none.

        Returns:
            Rows that are ready, float32 (D,), oldest first; None where the tick has none (no
            picture, or for two pictures none before).

        Raises:
            ModelError: The model failed on these pictures.
            ShapeError: A picture has no pixels, or sides that no camera has.
        """
        there = picture is not None
        if picture is not None:
            place = self._count
            if len(self.input.names) == 1:
                self._prepare(picture, self._pixels[0][place])
            else:
                before, self._before = self._before, self._prepared(picture)
                there = before is not None
                if before is not None:
                    self._pixels[0][place], self._pixels[1][place] = before, self._before
        else:
            self.forget()
        self._count += there
        self._waiting.append(there)
        # Ticks without a picture wait for those with one: rows keep their order.
        return self.finish() if self._count == self.input.batch or not self._count else []

    def finish(self) -> list[Row | None]:
        """The rows of the ticks that wait."""
        rows = iter(self._run())
        found = [next(rows) if there else None for there in self._waiting]
        self._waiting.clear()
        self._count = 0
        return found

    def _run(self) -> Row:
        count = self._count
        if not count:
            return np.zeros((0, self.size), np.float32)
        batch = {
            name: self._as_input(pixels[:count])
            for name, pixels in zip(self.input.names, self._pixels, strict=True)
        }
        [output] = self._model.run(batch).values()
        return np.asarray(output, np.float32).reshape(count, -1)

    def _as_input(self, pixels: Pixels) -> NDArray[Any]:
        values: NDArray[Any] = pixels
        if self.input.dtype == "float32":
            mean = np.asarray(self.input.mean, np.float32)
            values = (pixels - mean) / np.asarray(self.input.scale, np.float32)
        if self.input.planar:
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values)

    def _prepared(self, picture: av.VideoFrame | Pixels) -> Pixels:
        out = np.empty((self.input.height, self.input.width, 3), np.uint8)
        self._prepare(picture, out)
        return out

    def _prepare(self, picture: av.VideoFrame | Pixels, out: Pixels) -> None:
        if isinstance(picture, np.ndarray):
            if picture.shape != out.shape or picture.dtype != np.uint8:
                raise ShapeError(f"expected pixels {out.shape}, uint8; got {picture.shape}")
            out[...] = picture
            return
        if self.input.crop:
            self._crop.from_video_frame(picture, out)
            return
        scaled = self._reformatter.reformat(
            picture,
            self.input.width,
            self.input.height,
            format="rgb24",
            interpolation=Interpolation.AREA,
        )
        pixels = scaled.to_ndarray()
        out[...] = pixels if self.input.colour == "rgb" else pixels[..., ::-1]


def _unfit(manifest: ModelManifest, expected: str) -> ModelError:
    inputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in manifest.inputs)
    outputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in manifest.outputs)
    return ModelError(
        f"model {manifest.name} cannot be a picture's cue: expected {expected}; its manifest has "
        f"{inputs} -> {outputs}"
    )


def _picture_shape(manifest: ModelManifest, spec: TensorSpec) -> tuple[int, int, bool]:
    expected = f"shape (batch, H, W, 3) or (batch, 3, H, W), H and W numbers up to {MAX_SIDE}"
    if len(spec.shape) != 4 or 3 not in (spec.shape[1], spec.shape[3]):
        raise _unfit(manifest, expected)
    planar = spec.shape[3] != 3
    height, width = spec.shape[2:] if planar else spec.shape[1:3]
    if not (isinstance(height, int) and isinstance(width, int)):
        raise _unfit(manifest, expected)
    if max(height, width) > MAX_SIDE:
        raise _unfit(manifest, expected)
    return height, width, planar


def _batch(manifest: ModelManifest) -> int:
    first = {
        spec.shape[0] if spec.shape else None for spec in (*manifest.inputs, *manifest.outputs)
    }
    if first == {1}:
        return 1
    if len(first) == 1 and isinstance(next(iter(first)), str):
        return MAX_BATCH
    raise _unfit(manifest, "one first dimension everywhere, free (a name) or 1")


def _output_size(manifest: ModelManifest) -> int:
    expected = "one output of float32 with numbers as all but its first dimension"
    if len(manifest.outputs) != 1 or manifest.outputs[0].dtype != "float32":
        raise _unfit(manifest, expected)
    size = 1
    for dimension in manifest.outputs[0].shape[1:]:
        if not isinstance(dimension, int):
            raise _unfit(manifest, expected)
        size *= dimension
    if size > _MAX_VALUES:
        raise _unfit(manifest, f"at most {_MAX_VALUES} values a picture")
    return size


def _channels(manifest: ModelManifest, told: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = told.get(name)
    values = value if isinstance(value, list) else [value] * 3
    numbers = [v for v in values if isinstance(v, int | float) and np.isfinite(v)]
    if len(values) != 3 or len(numbers) != 3 or (name == "scale" and 0 in numbers):
        raise _unfit(
            manifest, f"`preprocessing` with `{name}`, a number or three, of pixels from 0 to 255"
        )
    return tuple(float(each) for each in numbers)
