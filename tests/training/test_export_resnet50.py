"""ResNet-50 from a user's weights file: random weights, the graph against torch's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from torch.nn import functional as F  # noqa: E402, N812

from keystep_capture.errors import ModelError  # noqa: E402
from keystep_capture.samples.catalogue import find_sample  # noqa: E402
from keystep_models.onnx_model import OnnxModel  # noqa: E402
from keystep_models.steps.cue_extraction import CueChoice, extract_features  # noqa: E402
from keystep_models.steps.recording_source import open_recording  # noqa: E402
from keystep_models.training.export_resnet50 import ResNet50, load_network, main  # noqa: E402


def weights() -> dict[str, Any]:
    """Random weights in torchvision's names, classifier included."""
    torch.manual_seed(0)
    found = ResNet50().state_dict()
    for name, value in found.items():
        if name.endswith("running_mean"):
            found[name] = 0.1 * torch.randn_like(value)
        elif name.endswith("running_var"):
            found[name] = 0.5 + torch.rand_like(value)
    return {**found, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def by_hand(of: dict[str, Any], frames: Any) -> Any:
    """The network written out with torch's functions alone."""

    def norm(x: Any, name: str) -> Any:
        return F.batch_norm(
            x, of[f"{name}.running_mean"], of[f"{name}.running_var"],
            of[f"{name}.weight"], of[f"{name}.bias"],
        )  # fmt: skip

    x = frames.permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / deviation[:, None, None]
    x = F.relu(norm(F.conv2d(x, of["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = F.relu(norm(F.conv2d(x, of[f"{at}.conv1.weight"]), f"{at}.bn1"))
            y = F.conv2d(y, of[f"{at}.conv2.weight"], stride=stride, padding=1)
            y = F.relu(norm(y, f"{at}.bn2"))
            y = norm(F.conv2d(y, of[f"{at}.conv3.weight"]), f"{at}.bn3")
            if block == 0:
                x = F.conv2d(x, of[f"{at}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{at}.downsample.1")
            x = F.relu(x + y)
    assert x.shape[1:] == (2048, 7, 7)
    return x.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("resnet")
    of = weights()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in of.items()}}, folder / "w"
    )
    about = ["--licence", "MIT", "--source", "random numbers"]
    main(["--weights", str(folder / "w"), "--out", str(folder / "model"), *about])
    return of, folder / "model" / "manifest.json"


def test_the_graph_gives_what_torchs_layers_give(exported: Any) -> None:
    of, manifest = exported
    frames = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        expected = by_hand(of, torch.from_numpy(frames)).numpy()
    model = OnnxModel.load(manifest)
    found = model.run(frames)
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (model.manifest.licence, model.manifest.source) == ("MIT", "random numbers")


def test_it_is_an_appearance_model(exported: Any, tmp_path: Path) -> None:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    choice = CueChoice(cues=("appearance",), rate_hz=1.0, appearance_manifest=exported[1])
    video = extract_features(open_recording(path), choice, tmp_path)
    assert video.cues["appearance"].size == 2048
    assert video.cues["appearance"].source["model"] == "appearance-resnet50-conv5"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda of: of.pop("layer3.5.bn2.weight"), "1 tensors are missing, 0 unknown"),
        (lambda of: of.update(head=torch.zeros(1)), "0 tensors are missing, 1 unknown"),
        (lambda of: of.update({"conv1.weight": torch.zeros(64, 4, 7, 7)}), "shape"),
        (lambda of: of["bn1.bias"].fill_(float("nan")), "finite"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    of = weights()
    spoil(of)
    torch.save(of, tmp_path / "w")
    with pytest.raises(ModelError, match=message):
        load_network(tmp_path / "w")


class Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", [1.0, 2.0], Code(), None])
def test_files_without_weights_are_refused_and_run_no_code(
    tmp_path: Path, content: Any, capsys: Any
) -> None:
    path = tmp_path / "w"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as left:
        main(
            [
                "--weights",
                str(path),
                "--out",
                str(tmp_path / "o"),
                "--licence",
                "x",
                "--source",
                "x",
            ]
        )
    assert left.value.code == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "code ran" not in told.out
    assert not (tmp_path / "o").exists()
