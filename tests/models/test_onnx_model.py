import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import keystep_models
from keystep_capture.errors import ConfigError, ModelError, ShapeError
from keystep_models.onnx_model import (
    ModelManifest,
    OnnxModel,
    choose_providers,
    missing_providers,
)

REAL_MANIFEST = Path(keystep_models.__path__[0]) / "cues" / "appearance" / "manifest.json"

FRAMES = {"name": "frames", "dtype": "uint8", "shape": ["batch", 4, 4, 3]}
EMBEDDING = {"name": "embedding", "dtype": "float32", "shape": ["batch", 3]}


def build(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: tuple[onnx.TensorProto, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(weights))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def mean_model(batch: str | int = "batch") -> onnx.ModelProto:
    """uint8 (batch, 4, 4, 3) -> mean colour, float32 (batch, 3)."""
    return build(
        [
            helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["embedding"], axes=[1, 2], keepdims=0),
        ],
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [batch, 4, 4, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3])],
    )


def write_model(folder: Path, model: onnx.ModelProto | bytes, **changes: Any) -> Path:
    """Write a model folder whose manifest is right but for `changes`; return the manifest."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "mean.onnx").write_bytes(content)
    manifest = {
        "name": "mean-colour",
        "version": "1",
        "file": "mean.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "Apache-2.0",
        "source": "made by the test",
        "inputs": [FRAMES],
        "outputs": [EMBEDDING],
        "preprocessing": {"colour": "rgb", "size": [4, 4]},
        "rate_hz": 10.0,
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest | changes))
    return path


def random_frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    return OnnxModel.load(write_model(tmp_path, mean_model()))


def test_a_good_model_runs_and_tells_what_it_is(model: OnnxModel) -> None:
    frames = random_frames(5)
    embedding = model.run(frames)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, frames.mean(axis=(1, 2)), rtol=1e-5)
    assert model.provider == choose_providers()[0]
    assert model.missing_providers == ()
    assert model.manifest.preprocessing == {"colour": "rgb", "size": [4, 4]}
    assert len(model.sha256) == 64


def test_each_run_returns_its_own_array(model: OnnxModel) -> None:
    first = model.run(random_frames(2, seed=1))
    kept = first.copy()
    model.run(random_frames(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_a_mapping_gives_a_mapping(model: OnnxModel) -> None:
    frames = random_frames(2)
    outputs = model.run({"frames": frames})
    assert list(outputs) == ["embedding"]
    np.testing.assert_array_equal(outputs["embedding"], model.run(frames))


def test_read_only_input_is_accepted(model: OnnxModel) -> None:
    frames = np.frombuffer(random_frames(3).tobytes(), np.uint8).reshape(3, 4, 4, 3)
    assert not frames.flags.writeable
    np.testing.assert_array_equal(model.run(frames), model.run(frames.copy()))


def test_threads_do_not_mix_their_results(model: OnnxModel) -> None:
    batches = [random_frames(1 + seed % 4, seed) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(model.run, batches))
    for frames, embedding in zip(batches, results, strict=True):
        np.testing.assert_allclose(embedding, frames.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 5, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((3, 4, 4, 2), np.uint8).transpose(1, 2, 0, 3),
        np.zeros((2, 4, 4, 6), np.uint8)[..., ::2],
    ],
    ids=["dtype", "size", "rank", "empty", "other size", "strided"],
)
def test_input_that_is_not_as_documented_is_refused(model: OnnxModel, frames: NDArray[Any]) -> None:
    with pytest.raises(ShapeError, match="mean-colour: input 'frames' must be"):
        model.run(frames)


def test_unknown_and_missing_inputs_are_refused(model: OnnxModel) -> None:
    with pytest.raises(ShapeError, match=r"takes the inputs \['frames'\], got \['images'\]"):
        model.run({"images": random_frames(1)})


def two_by_two(folder: Path) -> Path:
    """Two inputs, two outputs: their sum and their difference."""
    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
        for name in ("left", "right", "sum", "difference")
    }
    nodes = [
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Sub", ["left", "right"], ["difference"]),
    ]
    inputs, outputs = (["left", "right"], ["sum", "difference"])
    spec = {"dtype": "float32", "shape": ["batch", 2]}
    return write_model(
        folder,
        build(nodes, [tensors[n] for n in inputs], [tensors[n] for n in outputs]),
        inputs=[spec | {"name": name} for name in inputs],
        outputs=[spec | {"name": name} for name in outputs],
    )


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    model = OnnxModel.load(two_by_two(tmp_path))
    left, right = np.float32([[1, 2]]), np.float32([[10, 20]])
    outputs = model.run({"right": right, "left": left})
    np.testing.assert_array_equal(outputs["sum"], [[11, 22]])
    np.testing.assert_array_equal(outputs["difference"], [[-9, -18]])
    with pytest.raises(ShapeError, match="2 inputs and 2 outputs; give a mapping"):
        model.run(left)


def test_inputs_must_agree_on_their_free_dimensions(tmp_path: Path) -> None:
    model = OnnxModel.load(two_by_two(tmp_path))
    with pytest.raises(ShapeError, match=r"'right'.* with \{'batch': 1\}"):
        model.run({"left": np.zeros((1, 2), np.float32), "right": np.zeros((2, 2), np.float32)})


def nonzero_model(columns: int | str) -> onnx.ModelProto:
    """Where the input is not zero: int64 (count, 2), one size that only the run knows."""
    nodes = [
        helper.make_node("NonZero", ["values"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
    ]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 3])
    return build(
        nodes, [values], [helper.make_tensor_value_info("found", TensorProto.INT64, ["n", columns])]
    )


def load_nonzero(folder: Path, shape: list[Any]) -> OnnxModel:
    return OnnxModel.load(
        write_model(
            folder,
            nonzero_model(2),
            inputs=[{"name": "values", "dtype": "float32", "shape": ["batch", 3]}],
            outputs=[{"name": "found", "dtype": "int64", "shape": shape}],
        )
    )


def test_outputs_of_unknown_size_come_back_too(tmp_path: Path) -> None:
    model = load_nonzero(tmp_path, ["count", 2])
    for values in ([[0, 1, 0], [2, 0, 3]], [[0, 0, 0]], [[1, 1, 1]]):
        found = model.run(np.float32(values))
        np.testing.assert_array_equal(found, np.argwhere(np.array(values)))


def test_an_output_of_another_size_than_promised_is_an_error_and_the_next_run_works(
    tmp_path: Path,
) -> None:
    model = load_nonzero(tmp_path, ["batch", 2])
    with pytest.raises(ModelError, match="mean-colour failed on"):
        model.run(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(model.run(np.float32([[0, 5, 0]])), [[0, 1]])


def test_float16_weights_with_a_cast_compute_in_float32(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).normal(size=(48, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["half"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    proto = mean_model()
    built = build(
        nodes,
        list(proto.graph.input),
        list(proto.graph.output),
        (numpy_helper.from_array(weight, "half"),),
    )
    frames = random_frames(4)
    embedding = OnnxModel.load(write_model(tmp_path, built)).run(frames)
    expected = frames.reshape(4, 48).astype(np.float32) @ weight.astype(np.float32)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-2)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a manifest at .*manifest\.json, found none"):
        OnnxModel.load(tmp_path / "manifest.json")


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model())
    (tmp_path / "mean.onnx").unlink()
    with pytest.raises(ModelError, match=r"expected a model file at .*mean\.onnx, found none"):
        OnnxModel.load(manifest)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ModelError, match="expected a model file at"):
        OnnxModel.load(write_model(tmp_path, mean_model(), file="sub"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "abc"}, "sha256"),
        ({"rate_hz": 0}, "rate_hz"),
        ({"rate_hz": "10"}, "rate_hz"),
        ({"version": 1}, "version"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [FRAMES | {"dtype": "complex64"}]}, "complex64"),
        ({"inputs": [FRAMES | {"shape": [0, 4]}]}, "shape"),
        ({"preprocessing": None}, "preprocessing"),
        ({"weights": "more"}, "unknown field `weights`"),
        ({"name": "a@b"}, "name"),
    ],
)
def test_a_malformed_manifest_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=f"is not a model manifest: .*{words}"):
        OnnxModel.load(write_model(tmp_path, mean_model(), **changes))


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_for_a_manifest_are_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_bytes.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a model manifest"):
        ModelManifest.read(path)


@pytest.mark.parametrize("file", ["../mean.onnx", "sub/../../mean.onnx", "..\\mean.onnx", "C:mean"])
def test_a_model_file_outside_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(ModelError, match="must lie inside the manifest's folder"):
        OnnxModel.load(write_model(tmp_path, mean_model(), file=file))


def test_an_absolute_model_path_is_refused(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model(), file=str(tmp_path / "mean.onnx"))
    with pytest.raises(ModelError, match="must lie inside the manifest's folder"):
        OnnxModel.load(manifest)


def test_a_model_in_a_folder_below_the_manifest_loads(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model(), file="v1/mean.onnx")
    (tmp_path / "v1").mkdir()
    (tmp_path / "mean.onnx").rename(tmp_path / "v1" / "mean.onnx")
    assert OnnxModel.load(manifest).run(random_frames(1)).shape == (1, 3)


def test_a_corrupt_file_is_told_by_its_hash(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model())
    content = bytearray((tmp_path / "mean.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "mean.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="corrupt or another version: expected sha256"):
        OnnxModel.load(manifest)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at most 10 are accepted"):
        OnnxModel.load(write_model(tmp_path, mean_model()), max_bytes=10)


@pytest.mark.parametrize("content", [b"", b"not a model", mean_model().SerializeToString()[:60]])
def test_what_onnx_runtime_cannot_load_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        OnnxModel.load(write_model(tmp_path, content))


def test_an_unknown_operator_is_a_model_error(tmp_path: Path) -> None:
    model = mean_model()
    model.graph.node[0].op_type = "Teleport"
    with pytest.raises(ModelError, match="Teleport"):
        OnnxModel.load(write_model(tmp_path, model))


def test_weights_outside_the_hashed_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, scaled = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 300])
        for name in ("values", "scaled")
    )
    weight = numpy_helper.from_array(np.ones(300, np.float32), "weight")
    node = helper.make_node("Mul", ["values", "weight"], ["scaled"])
    model, path = build([node], [values], [scaled], (weight,)), tmp_path / "mean.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    content = path.read_bytes()
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime looks for a model that came as bytes
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])  # takes them
    with pytest.raises(ModelError, match=r"w\.bin.*expected one self-contained ONNX file"):
        OnnxModel.load(write_model(tmp_path, content))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [FRAMES | {"name": "images"}]},
        {"outputs": [EMBEDDING | {"name": "vector"}]},
        {"inputs": [FRAMES, FRAMES]},
        {"inputs": [FRAMES, FRAMES | {"name": "more"}]},
    ],
)
def test_tensor_names_that_differ_from_the_manifest_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"the manifest has the (in|out)puts \[.*the file has"):
        OnnxModel.load(write_model(tmp_path, mean_model(), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [FRAMES | {"dtype": "float32"}]},
        {"outputs": [EMBEDDING | {"dtype": "float16"}]},
        {"inputs": [FRAMES | {"shape": ["batch", 8, 4, 3]}]},
        {"inputs": [FRAMES | {"shape": ["batch", 4, 3]}]},
        {"inputs": [FRAMES | {"shape": ["batch", "height", 4, 3]}]},
        {"outputs": [EMBEDDING | {"shape": ["batch", 1280]}]},
    ],
)
def test_dtypes_and_sizes_that_differ_from_the_manifest_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"the manifest says (in|out)put .*the file has tensor"):
        OnnxModel.load(write_model(tmp_path, mean_model(), **changes))


def test_a_batch_the_file_fixes_cannot_be_free_in_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the manifest says input 'frames'"):
        OnnxModel.load(write_model(tmp_path, mean_model(batch=1)))


def test_a_manifest_may_fix_what_the_file_leaves_free(tmp_path: Path) -> None:
    fixed = {"inputs": [FRAMES | {"shape": [2, 4, 4, 3]}]}
    model = OnnxModel.load(write_model(tmp_path, mean_model(), **fixed))
    with pytest.raises(ShapeError, match=r"got uint8 \[3, 4, 4, 3\]"):
        model.run(random_frames(3))


def test_providers_that_are_not_installed_are_a_config_error(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model())
    for providers in (["WarpDriveExecutionProvider"], []):
        with pytest.raises(ConfigError, match="providers must be one or more of"):
            OnnxModel.load(manifest, providers=providers)


def test_the_cpu_can_be_asked_for(tmp_path: Path) -> None:
    manifest = write_model(tmp_path, mean_model())
    model = OnnxModel.load(manifest, providers=["CPUExecutionProvider"], intra_op_threads=2)
    assert model.provider == "CPUExecutionProvider"
    with pytest.raises(ConfigError, match="intra_op_threads must be 1 or more, got 0"):
        OnnxModel.load(manifest, intra_op_threads=0)


def test_a_gpu_that_did_not_start_is_named_and_without_cpu_in_the_list_an_error() -> None:
    started = ["CPUExecutionProvider"]
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert missing_providers(wanted, started) == ("CUDAExecutionProvider",)
    assert missing_providers(started, started) == ()
    with pytest.raises(ModelError, match="check the driver"):
        missing_providers(wanted[:1], started)


def test_the_appearance_model_loads_and_tells_images_apart() -> None:
    model = OnnxModel.load(REAL_MANIFEST)
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    frames[1] //= 4
    together = model.run(frames)
    assert together.shape == (2, 1280)
    np.testing.assert_allclose(model.run(frames[:1]), together[:1], atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 0.1
