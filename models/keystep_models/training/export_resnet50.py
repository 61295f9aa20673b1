"""Turn ResNet-50 weights that a user has into an appearance model for `--appearance-model`.

    python -m keystep_models.training.export_resnet50 --weights FILE --out DIR
        --licence SPDX --source TEXT

FILE holds a state dict with torchvision's names (`conv1.weight`, `layer1.0.bn1.running_mean`, ...),
as torchvision's and timm's ResNet-50 files do; it is read without running code in it. The graph
takes raw pixels, uint8 RGB `frames` (B, 224, 224, 3), and gives the global average of conv5's
feature map, float32 `embedding` (B, 2048): the paper's RGB cue. ImageNet's normalisation is inside.
No weights come with Keystep: say whose they are and under which licence.

Network: He et al., CVPR 2016, table 1, with the stride in the 3 x 3 convolutions as in torchvision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from keystep_capture.errors import ModelError
from keystep_models.cues.appearance_cue import CROP, AppearancePreprocessing
from keystep_models.onnx_model import OnnxModel

FILE_NAME: Final = "resnet50_conv5.onnx"
SIZE: Final = 2048
OPSET: Final = 17
MAX_DIFFERENCE: Final = 1e-3
"""Of the graph to torch, relative to the largest value."""
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels from 0 to 1; what these weights expect
_DEVIATION = (0.229, 0.224, 0.225)
_BLOCKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """Make a block that gives 4 x `width` channels."""
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Feature map to feature map, float [B, C, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """ResNet-50 up to conv5, its global average: raw pixels to one vector per picture."""

    def __init__(self) -> None:
        """Make a network with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for number, (width, blocks, stride) in enumerate(_BLOCKS, start=1):
            layer = [Bottleneck(inputs, width, stride)]
            inputs = 4 * width
            layer += [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*layer))
        # In bytes, so that no caller normalises.
        self.register_buffer("mean", 255.0 * torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer(
            "deviation", 255.0 * torch.tensor(_DEVIATION)[:, None, None], persistent=False
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Embed uint8 RGB frames (B, 224, 224, 3) as float32 (B, 2048)."""
        x = (frames.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.deviation
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, len(_BLOCKS) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean(dim=(2, 3))


def load_network(path: Path) -> ResNet50:
    """A network with a file's weights, in evaluation mode.

    Args:
        path: A file that torch saved: a state dict, or a dict that holds one as `state_dict`;
            names may begin with `module.`. The classifier (`fc`) is not needed and ignored.

    Raises:
        ModelError: The file cannot be read without running code in it, or is no ResNet-50.
    """
    try:
        document = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises what its unpickler met
        raise ModelError(f"{path}: no file of weights that torch can read: {error}") from error
    weights = _state_dict(document, path)
    network = ResNet50()
    expected = network.state_dict()
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        first = missing[0] if missing else unknown[0]
        raise ModelError(
            f"{path}: no ResNet-50 with torchvision's names: {len(missing)} tensors are missing, "
            f"{len(unknown)} unknown, the first: {first}"
        )
    for name, tensor in expected.items():
        own = weights[name]
        if own.shape != tensor.shape or (own.is_floating_point() and not own.isfinite().all()):
            raise ModelError(
                f"{path}: {name} must be finite and of shape {tuple(tensor.shape)}, "
                f"got shape {tuple(own.shape)}"
            )
    network.load_state_dict(weights)
    network.eval()
    return network


def export(network: ResNet50, folder: Path, *, licence: str, source: str) -> Path:
    """Write the model and its manifest into a folder, and compare them with torch.

    Args:
        network: In evaluation mode.
        folder: Made if it is not there.
        licence: SPDX expression of the weights' licence.
        source: Where they come from.

    Returns:
        The manifest's path.

    Raises:
        ModelError: The graph does not give what torch gives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that writes opset 17
        torch.onnx.export(
            network,
            (torch.zeros((2, CROP, CROP, 3), dtype=torch.uint8),),
            str(path),
            input_names=["frames"],
            output_names=["embedding"],
            dynamic_axes={"frames": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    payload = _without_traces(onnx.load(str(path))).SerializeToString(deterministic=True)
    path.write_bytes(payload)
    manifest = {
        "name": "appearance-resnet50-conv5",
        "version": "1",
        "file": FILE_NAME,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "licence": licence,
        "source": source,
        "inputs": [{"name": "frames", "dtype": "uint8", "shape": ["batch", CROP, CROP, 3]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", SIZE]}],
        "preprocessing": AppearancePreprocessing.manifest_entry(mean=0.0, scale=255.0)
        | {"mean": [255 * m for m in _MEAN], "scale": [255 * d for d in _DEVIATION]},
        "rate_hz": 10.0,
    }
    written = folder / "manifest.json"
    written.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _compare(network, written)
    return written


def _state_dict(document: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(document, Mapping) and isinstance(document.get("state_dict"), Mapping):
        document = document["state_dict"]
    if not isinstance(document, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in document.items()
    ):
        raise ModelError(f"{path}: expected a state dict, names to tensors")
    weights = {name.removeprefix("module."): value for name, value in document.items()}
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what depends on the machine that exported."""
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "appearance"
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:  # one encoding of the same numbers
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return model


def _compare(network: ResNet50, manifest: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, CROP, CROP, 3), np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(frames)).numpy()
    found = OnnxModel.load(manifest, providers=["CPUExecutionProvider"]).run(frames)
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(f"the exported graph differs from torch by {difference:.1e} of its scale")


def main(arguments: list[str] | None = None) -> None:
    """Export the weights that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="state dict that torch saved")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--licence", required=True, help="SPDX expression of the weights' licence")
    parser.add_argument("--source", required=True, help="where the weights come from")
    options = parser.parse_args(arguments)
    try:
        network = load_network(options.weights)
        written = export(network, options.out, licence=options.licence, source=options.source)
    except ModelError as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(f"{written}: use it with keystep extract --appearance-model {written}\n")


if __name__ == "__main__":
    main()
